"""The choices of attention against NumPy, a stand-in for Ascend's operator, and how far a position sees."""

import inspect

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from test_unet import normal, randomize

from palette_ms import runtime
from palette_ms.checkpoint import Checkpoint, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict
from palette_ms.errors import UserError
from palette_ms.torch_weights.conversion import export
from palette_ms.unet import AttentionBlock, ModelConfig, ResidualBlock, UNet
from palette_ms.unet.cost import attention_bytes
from palette_ms.unet.layers import DotProductAttention, GroupNorm

# Attention sees maps of half the picture's size.
TINY = dict(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(2,), num_head_channels=8)
ONE_LEVEL = dict(base_channels=8, channel_mults=(1,), num_res_blocks=1, attention_resolutions=(1,), norm_groups=2)


@pytest.fixture
def pynative(graph_mode):
    ms.set_context(mode=ms.PYNATIVE_MODE)


def numpy_attention(q, k, v):
    """(heads, D, L) each."""
    logits = np.einsum("hci,hcj->hij", q, k).astype(np.float64) / np.sqrt(q.shape[1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("hij,hcj->hci", weights / weights.sum(-1, keepdims=True), v)


def block_by_block(cell, x, row_edges, column_edges):
    """What the cell makes of x (1, C, H, W), by global attention on each block separately."""
    c = x.shape[1]
    qkv = np.einsum("oc,chw->ohw", cell.qkv.weight.asnumpy()[..., 0, 0], cell.norm(Tensor(x)).asnumpy()[0])
    qkv = qkv + cell.qkv.bias.asnumpy()[:, None, None]
    y = np.full(x.shape[1:], np.nan)
    for top, bottom in zip(row_edges, row_edges[1:]):
        for left, right in zip(column_edges, column_edges[1:]):
            q, k, v = qkv[:, top:bottom, left:right].reshape(3, cell.num_heads, c // cell.num_heads, -1)
            y[:, top:bottom, left:right] = numpy_attention(q, k, v).reshape(c, bottom - top, right - left)
    y = np.einsum("oc,chw->ohw", cell.proj.weight.asnumpy()[..., 0, 0], y)
    return x + y + cell.proj.bias.asnumpy()[:, None, None]


# mode, how the blocks are told, where they begin and end along each side of the map
CUTS = {
    "2 × 2 equal blocks": (ms.GRAPH_MODE, dict(blocks=2), [0, 2, 4], [0, 3, 6]),
    "3 × 3 unequal blocks": (ms.GRAPH_MODE, dict(blocks=3), [0, 2, 4, 7], [0, 1, 3, 5]),
    "more blocks than positions": (ms.PYNATIVE_MODE, dict(blocks=4), [0, 1, 2, 3], [0, 1, 2, 3, 5]),
    "blocks of 4 that divide": (ms.PYNATIVE_MODE, dict(block_size=4), [0, 4, 8], [0, 4]),
    "blocks of 4 with a rest": (ms.PYNATIVE_MODE, dict(block_size=4), [0, 4, 7], [0, 4, 8, 10]),
    "one block larger than the map": (ms.PYNATIVE_MODE, dict(block_size=16), [0, 3], [0, 5]),
}


@pytest.mark.parametrize("cut", CUTS)
def test_local_attention_is_global_attention_on_each_block(cut):
    mode, how, rows, columns = CUTS[cut]
    ms.set_context(mode=mode)
    cell = randomize(AttentionBlock(16, num_head_channels=8, **how))
    x = normal(2, 16, rows[-1], columns[-1])
    expected = np.concatenate([block_by_block(cell, x[i:i + 1], rows, columns) for i in range(2)])
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), expected, rtol=1e-3, atol=1e-4)  # float32 against float64


def test_nothing_in_one_block_changes_another(pynative):
    cell = randomize(AttentionBlock(8, blocks=2))
    cell.norm = nn.Identity()  # whose statistics are of the whole map
    x = normal(1, 8, 5, 7)  # blocks of 2 and 3 rows, 3 and 4 columns
    before = cell(Tensor(x)).asnumpy()
    x[:, :, 2:, :3] = np.nan  # the lower left block
    after = cell(Tensor(x)).asnumpy()
    changed = np.zeros((5, 7), bool)
    changed[2:, :3] = True
    np.testing.assert_array_equal(np.isnan(after).all((0, 1)), changed)
    np.testing.assert_array_equal(after[:, :, ~changed], before[:, :, ~changed])


# The whole network

CHOICES = {
    "global": {},
    "local": dict(attention="local", attention_blocks=3),
    "none": dict(attention="none"),
    "dilated": dict(attention="dilated"),
}


def blocks_of(unet, kind):
    return [cell for _, cell in unet.cells_and_names() if isinstance(cell, kind)]


@pytest.mark.parametrize("choice, attentions, residuals", [
    # residual blocks: 1 and 1 on the way down, 2 in the middle, 2 and 2 on the way up, 2 that resample
    ("global", 4, 10), ("local", 4, 10),
    # the attending level has 2 down and 3 up
    ("none", 0, 12), ("dilated", 0, 12),
])
def test_the_choice_holds_at_its_levels_and_in_the_middle(choice, attentions, residuals):
    unet = UNet(**TINY, **CHOICES[choice])
    assert len(blocks_of(unet, AttentionBlock)) == attentions
    assert len(blocks_of(unet, ResidualBlock)) == residuals


def test_local_attention_has_the_parameters_of_global():
    shapes = [{p.name: p.shape for p in UNet(**TINY, **CHOICES[choice]).get_parameters()}
              for choice in ("global", "local")]
    assert shapes[0] == shapes[1]


def test_dilation_rates_grow_along_the_attending_levels_alone():
    unet = UNet(base_channels=8, channel_mults=(1, 1, 1), num_res_blocks=2, attention_resolutions=(2,),
                attention="dilated")

    def rates(cells):
        blocks = [getattr(cell, "residual", cell) for cell in cells]
        assert all(block.conv1.dilation == block.conv2.dilation for block in blocks)
        return [block.conv1.dilation[0] for block in blocks]

    assert rates(unet.down) == [1, 1, 1, 1, 2, 4, 8, 1, 1, 1]  # the third and the eighth halve
    assert rates([unet.middle1, unet.middle2]) == [1, 2]
    assert rates(unet.up) == [1, 1, 1, 1, 2, 4, 8, 1, 1, 1, 1]


@pytest.mark.parametrize("choice, reach", [
    # A 3×3 convolution sees its rate further, and a residual block has two: one convolution going in, 2 blocks down,
    # 2 in the middle, 3 up, one convolution going out.
    ("none", 1 + 2 * (1 + 1) + 2 * (1 + 1) + 2 * (1 + 1 + 1) + 1),
    ("dilated", 1 + 2 * (1 + 2) + 2 * (1 + 2) + 2 * (1 + 2 + 1) + 1),
    ("global", 30),
])
def test_how_far_a_pixel_sees(choice, reach, pynative, monkeypatch):
    def without_statistics(self, x, scale=None, shift=None):
        return x

    monkeypatch.setattr(GroupNorm, "construct", without_statistics)  # they are of the whole picture
    unet = randomize(UNet(**ONE_LEVEL, **CHOICES[choice]))

    def middle(x):
        return unet(x, Tensor([0.5], ms.float32))[:, :, 1, 30].sum()

    seen = np.flatnonzero(ms.grad(middle)(Tensor(normal(1, 6, 3, 61))).asnumpy().any((0, 1, 2)))
    np.testing.assert_array_equal(seen, np.arange(30 - reach, 30 + reach + 1))


@pytest.mark.parametrize("choice", ["local", "dilated"])
def test_every_parameter_learns_and_graph_mode_gives_what_pynative_gives(choice):
    unet = randomize(UNet(**ONE_LEVEL, **CHOICES[choice]))
    x, gamma = Tensor(normal(1, 6, 8, 10)), Tensor([0.4], ms.float32)

    def loss(x):
        return (unet(x, gamma) ** 2).mean()

    in_graph, gradients = ms.value_and_grad(loss, None, ms.ParameterTuple(unet.trainable_params()))(x)
    for parameter, gradient in zip(unet.trainable_params(), gradients):
        gradient = gradient.asnumpy()
        assert np.isfinite(gradient).all() and gradient.any(), parameter.name
    ms.set_context(mode=ms.PYNATIVE_MODE)
    assert float(in_graph.asnumpy()) == pytest.approx(float(loss(x).asnumpy()), rel=1e-4)  # float32


class Recorder(nn.Softmax):
    """The softmax, keeping the sizes of what it is given."""

    def __init__(self):
        super().__init__(axis=-1)
        self.sizes = []

    def construct(self, x):
        self.sizes.append(x.size)
        return super().construct(x)


@pytest.mark.parametrize("config", [
    {}, dict(patch_size=2), dict(attention_resolutions=(1,)), dict(attention_resolutions=()),
    dict(attention="local", attention_blocks=3), dict(attention="local", attention_block_size=5),
])
def test_attention_bytes_are_those_of_the_largest_matrix_made(config, pynative):
    unet = UNet(**{**TINY, **config})
    recorders = []
    for block in blocks_of(unet, AttentionBlock):
        block.attend.softmax = Recorder()
        recorders.append(block.attend.softmax)
    unet(Tensor(normal(1, 6, 12, 20)), Tensor([0.4], ms.float32))
    largest = max(size for recorder in recorders for size in recorder.sizes)
    model = ModelConfig(**{**TINY, **config})
    assert attention_bytes(model, 12, 20) == 4 * largest
    assert attention_bytes(model, 11, 19) == 4 * largest  # what the network does not divide is padded


@pytest.mark.parametrize("choice", ["none", "dilated"])
def test_without_attention_there_are_no_attention_bytes(choice):
    assert attention_bytes(ModelConfig(**TINY, **CHOICES[choice]), 64, 64) == 0


# Ascend's operator


def stand_in(query, key, value, head_num, real_shift=None, drop_mask=None, padding_mask=None, attn_mask=None,
             prefix=None, actual_seq_qlen=None, actual_seq_kvlen=None, keep_prob=1.0, scalar_value=1.0,
             pre_tokens=2147483647, next_tokens=2147483647, inner_precise=0, input_layout="BSH", sparse_mode=0):
    """flash_attention_score by plain operations, as documented for BNSD; its outputs are 1 higher, to tell it apart."""
    b, n, s, d = query.shape
    if input_layout != "BNSD" or head_num != n or d % 16 or query.dtype not in (ms.float16, ms.bfloat16):
        raise ValueError("not what the operator takes")
    scores = scalar_value * ops.matmul(query.astype(ms.float32), key.astype(ms.float32).swapaxes(-1, -2))
    if attn_mask is not None:
        if attn_mask.shape != (b, 1, s, s) or attn_mask.dtype != ms.bool_:
            raise ValueError("not a mask that the operator takes")
        scores = ops.masked_fill(scores, attn_mask, -1e30)  # True: discarded
    return (ops.matmul(ops.softmax(scores, -1), value.astype(ms.float32)) + 1).astype(query.dtype)


@pytest.fixture
def with_operator(monkeypatch):
    assert inspect.signature(stand_in) == inspect.signature(ops.flash_attention_score)
    monkeypatch.setattr(runtime, "has_fused_attention", lambda: True)
    monkeypatch.setattr(ops, "flash_attention_score", stand_in)


@pytest.mark.parametrize("padded", [False, True])
def test_the_fused_operator_gives_the_plain_numbers(padded, both_modes, with_operator):
    q, k, v = (Tensor(normal(3, 2, 16, 10, seed=i)).astype(ms.float16) for i in range(3))
    outside = Tensor(np.arange(30).reshape(3, 10) % 4 == 1) if padded else None
    fused = DotProductAttention()
    plain = DotProductAttention()
    plain.has_operator = False
    # float16 has 11 bits, and values are up to about 3
    np.testing.assert_allclose(fused(q, k, v, outside).asnumpy() - 1.0, plain(q, k, v, outside).asnumpy(), atol=4e-3)


@pytest.mark.parametrize("how", [{}, dict(blocks=2), dict(block_size=4)])
def test_attention_in_half_precision_uses_the_operator(how, pynative, with_operator):
    x = Tensor(normal(2, 32, 5, 7))
    plain = randomize(AttentionBlock(32, num_head_channels=16, **how))
    plain.attend.has_operator = False
    block = randomize(AttentionBlock(32, num_head_channels=16, **how))
    np.testing.assert_array_equal(block(x).asnumpy(), plain(x).asnumpy())  # float32: the operator has none
    for cell in (plain.qkv, plain.proj, block.qkv, block.proj):
        cell.to_float(ms.float16)
    added = block.proj.weight.asnumpy()[..., 0, 0].sum(1)[:, None, None]  # what the stand-in's 1 becomes
    # float16's rounding, through a projection of values up to about 10
    np.testing.assert_allclose(block(x).asnumpy() - added, plain(x).asnumpy(), atol=3e-2)


@pytest.mark.parametrize("shape, dtype", [((1, 2, 8, 10), ms.float16), ((1, 2, 16, 10), ms.float32),
                                          ((1, 1, 528, 4), ms.float16), ((2001, 1, 16, 2), ms.float16)])
def test_what_the_operator_does_not_take_is_computed_plainly(shape, dtype, with_operator):
    assert not DotProductAttention().fused(Tensor(np.zeros(shape, np.float32)).astype(dtype))


@pytest.mark.parametrize("target, name, has", [
    ("CPU", "CPU", False), ("GPU", "NVIDIA", False), ("Ascend", "Ascend910A", False), ("Ascend", "Ascend310P3", False),
    ("Ascend", "Ascend910ProB", False), ("Ascend", "Ascend910B4", True), ("Ascend", "Ascend910_9391", True),
])
def test_cards_with_the_operator(target, name, has, monkeypatch):
    monkeypatch.setattr(runtime, "device", lambda: target)
    monkeypatch.setattr(ms.hal, "get_device_name", lambda device_id, device_target: name)
    assert runtime.has_fused_attention() == has
    for precision, obstacle in (("float32", None), ("float16", "an overflow"), ("bfloat16", "no bfloat16")):
        said = runtime.precision_obstacle(precision)
        if target == "Ascend":
            assert (said is None) if has or obstacle is None else obstacle in said and name in said


# Mistakes


@pytest.mark.parametrize("model, message", [
    (dict(attention="locl"), "model.attention is 'locl'.*did you mean local?"),
    (dict(attention="local"), "needs either model.attention_blocks .* or model.attention_block_size"),
    (dict(attention="local", attention_blocks=2, attention_block_size=8), "needs either"),
    (dict(attention_blocks=2), "model.attention_blocks is for model.attention local, not for global"),
    (dict(attention="none", attention_block_size=8), "model.attention_block_size is for .* local, not for none"),
    (dict(attention="local", attention_blocks=0), "model.attention_blocks must be above 0"),
    (dict(attention="local", attention_block_size=1.5), "model.attention_block_size must be a whole number"),
])
def test_mistakes_are_told_in_one_line(model, message):
    with pytest.raises(UserError, match=message) as error:
        config_from_dict({"model": model}, "c.yaml")
    assert str(error.value).startswith("c.yaml: ") and "\n" not in str(error.value)
    if type(model.get("attention_block_size")) is not float:
        with pytest.raises(ValueError, match="attention_block"):
            UNet(**TINY, **model)


def test_pytorch_gets_no_network_with_another_attention(tmp_path):
    model = {**TINY, "attention": "local", "attention_blocks": 2}
    config = config_from_dict({"model": model}, "c.yaml")
    save_checkpoint(tmp_path / "local.safetensors", config, weights=unet_arrays(UNet(**model)))
    with pytest.raises(UserError, match="no attention but global"):
        export(Checkpoint(tmp_path / "local.safetensors"), tmp_path / "local.pth")
    assert not (tmp_path / "local.pth").exists()
