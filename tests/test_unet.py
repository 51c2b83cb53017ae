"""The U-Net and its parts against closed forms, NumPy and finite differences."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from palette_ms.config import load_config
from palette_ms.diffusion.denoisers import ReusingUNet
from palette_ms.unet import AttentionBlock, ModelConfig, ResidualBlock, Swish, TimeEmbedding, UNet, layers
from palette_ms.unet.layers import DROPOUT_MODULUS, Dropout, GroupNorm, Upsample
from palette_ms.unet.unet import DeepFeatures, FinestLevel

TINY = dict(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(2,), num_head_channels=8)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def randomize(cell, seed=0, scale=0.3):
    """Random parameters everywhere, also where a new network starts at zero."""
    for i, parameter in enumerate(cell.get_parameters()):
        parameter.set_data(Tensor(scale * normal(*parameter.shape, seed=[seed, i])))
    return cell


def test_swish_is_x_times_sigmoid(both_modes):
    x = np.linspace(-8, 8, 33, dtype=np.float32)
    np.testing.assert_allclose(Swish()(Tensor(x)).asnumpy(), x / (1 + np.exp(-x.astype(np.float64))), rtol=1e-5)


def test_time_embedding_is_a_perceptron_of_sinusoids():
    cell = randomize(TimeEmbedding(7, 12))
    gamma = np.array([0.0, 0.3, 1.0], np.float32)
    angles = gamma[:, None] * 10000.0 ** (-np.arange(3) / 3)
    sinusoids = np.concatenate([np.cos(angles), np.sin(angles), np.zeros((3, 1))], 1)
    weights = {name: parameter.asnumpy() for name, parameter in cell.parameters_and_names()}
    hidden = sinusoids @ weights["dense1.weight"].T + weights["dense1.bias"]
    expected = hidden / (1 + np.exp(-hidden)) @ weights["dense2.weight"].T + weights["dense2.bias"]
    np.testing.assert_allclose(cell(Tensor(gamma)).asnumpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on_cpu, on_npu", [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("channels, groups", [(64, 32), (48, 32), (8, 2)])
def test_group_norm_normalises_each_group_then_scales_and_shifts(channels, groups, on_cpu, on_npu):
    cell = randomize(GroupNorm(channels, groups))
    cell.on_cpu, cell.on_npu = on_cpu, on_npu
    x, scale, shift = 3 + normal(2, channels, 6, 4), normal(2, channels, seed=1), normal(2, channels, seed=2)
    groups = x.astype(np.float64).reshape(2, np.gcd(groups, channels), -1)
    y = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    y = y.reshape(x.shape) * cell.weight.asnumpy()[:, None, None] + cell.bias.asnumpy()[:, None, None]
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), y, rtol=1e-4, atol=1e-5)
    y = y * (1 + scale[..., None, None]) + shift[..., None, None]
    actual = cell(Tensor(x), Tensor(scale), Tensor(shift)).asnumpy()
    np.testing.assert_allclose(actual, y, rtol=1e-4, atol=1e-5)


def test_attention_equals_numpy(both_modes):
    cell = randomize(AttentionBlock(16, num_head_channels=8))
    x = normal(2, 16, 4, 6)
    qkv = np.einsum("oc,nchw->nohw", cell.qkv.weight.asnumpy()[..., 0, 0], cell.norm(Tensor(x)).asnumpy())
    q, k, v = (qkv + cell.qkv.bias.asnumpy()[:, None, None]).reshape(2, 3, 2, 8, 24).swapaxes(0, 1)
    logits = np.einsum("nhci,nhcj->nhij", q, k) / np.sqrt(8)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("nhij,nhcj->nhci", weights, v).reshape(2, 16, 4, 6)
    y = np.einsum("oc,nchw->nohw", cell.proj.weight.asnumpy()[..., 0, 0], y) + cell.proj.bias.asnumpy()[:, None, None]
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), x + y, rtol=1e-3, atol=1e-4)


def test_attention_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="48 channels.*heads of 32"):
        AttentionBlock(48, num_head_channels=32)
    with pytest.raises(ValueError, match="48 channels.*5 heads"):
        AttentionBlock(48, num_heads=5)


def test_upsample_repeats_every_pixel():
    x = normal(2, 3, 4, 5)
    np.testing.assert_array_equal(Upsample()(Tensor(x)).asnumpy(), x.repeat(2, 2).repeat(2, 3))


def test_new_blocks_are_the_identity_and_a_new_network_says_zero():
    x, emb = Tensor(normal(2, 8, 4, 4)), Tensor(normal(2, 16))
    np.testing.assert_array_equal(ResidualBlock(8, 8, 16)(x, emb).asnumpy(), x.asnumpy())
    np.testing.assert_array_equal(AttentionBlock(8)(x).asnumpy(), x.asnumpy())
    output = UNet(**TINY)(Tensor(normal(1, 6, 8, 8)), Tensor(np.array([0.5], np.float32)))
    np.testing.assert_array_equal(output.asnumpy(), 0)


def test_a_config_and_arguments_by_name_make_the_same_network():
    config = ModelConfig(**TINY, num_classes=3, patch_size=2)
    networks = [UNet(config), UNet(**vars(config)), UNet(ModelConfig(**TINY, num_classes=3), patch_size=2)]
    shapes = [{name: parameter.shape for name, parameter in network.parameters_and_names()} for network in networks]
    assert shapes[0] == shapes[1] == shapes[2] and [network.multiple for network in networks] == [4, 4, 4]
    with pytest.raises(TypeError, match="base_chanels"):
        UNet(base_chanels=8)


VARIANTS = {
    # 8 channels in 32 groups would be groups of one: what is added to a whole group, its norm takes away again
    "added embedding, convolutions resample": dict(norm_groups=2, scale_shift=False, resblock_updown=False),
    "two heads, pixel blocks": dict(num_head_channels=None, num_heads=2, patch_size=2),
    "two residual blocks, dropout": dict(num_res_blocks=2, dropout=0.5),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_uses_source_noise_level_and_position(variant):
    unet = randomize(UNet(**{**TINY, **VARIANTS[variant]})).set_train(False)
    x, gamma = normal(1, 6, 8, 12), np.array([0.3], np.float32)
    output = unet(Tensor(x), Tensor(gamma)).asnumpy()
    assert output.shape == (1, 3, 8, 12)
    other_source = x.copy()
    other_source[:, :3] += 1
    for changed in ((other_source, gamma), (x, gamma + 0.2), (x[..., ::-1].copy(), gamma)):
        assert np.abs(unet(*map(Tensor, changed)).asnumpy() - output).max() > 1e-4


def dropout_numbers(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, DROPOUT_MODULUS, shape).astype(np.float32)


def test_dropped_values_are_as_many_as_asked_and_independent_of_each_other():
    first, second = Dropout(64, 0.3), Dropout(64, 0.3)
    second.start = 128
    x = np.ones((2, 64, 32, 32), np.float32)
    numbers = Tensor(dropout_numbers(2, 4 * 64 + 32 * 32))
    maps = [layer(Tensor(x), numbers).asnumpy() for layer in (first, second)]
    values = np.unique(maps[0])
    np.testing.assert_allclose(values, [0, 1 / 0.7], rtol=1e-6)
    a, b = (drawn == 0 for drawn in maps)
    # 131 072 draws: a standard error is 0.0013 of a share, 0.0028 of a correlation
    assert a.mean() == pytest.approx(0.3, abs=0.006) and b.mean() == pytest.approx(0.3, abs=0.006)
    for one, other in ((a, b), (a[0], a[1]), (a[:, 1:], a[:, :-1]), (a[..., 1:], a[..., :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.015
    # Where a hundred values are dropped at once is as rare as chance has it: by channel and by position.
    for axis, length in ((1, 64), ((2, 3), 1024)):
        assert a.mean(axis).std() == pytest.approx(np.sqrt(0.3 * 0.7 / length), rel=0.25)


def test_dropout_is_a_function_of_its_numbers_and_without_them_there_is_none():
    x = Tensor(normal(1, 8, 4, 4))
    np.testing.assert_array_equal(Dropout(8, 0.5)(x).asnumpy(), x.asnumpy())
    unet = randomize(UNet(**{**TINY, "channel_mults": (1,)}, dropout=0.5))
    x, gamma = Tensor(normal(1, 6, 8, 8)), Tensor([0.3], ms.float32)
    one, other = (Tensor(dropout_numbers(1, unet.dropout_numbers(8, 8), seed=seed)) for seed in (0, 1))
    outputs = [unet(x, gamma, None, numbers).asnumpy() for numbers in (one, other, one)]
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    assert UNet(**TINY).dropout_numbers(8, 8) == 0


def test_a_batch_gives_what_its_pictures_give_alone():
    unet = randomize(UNet(**TINY))
    x, gamma = normal(2, 6, 8, 8), np.array([0.2, 0.9], np.float32)
    together = unet(Tensor(x), Tensor(gamma)).asnumpy()
    alone = [unet(Tensor(x[i:i + 1]), Tensor(gamma[i:i + 1])).asnumpy()[0] for i in range(2)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_a_size_that_the_network_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiples of 2"):
        UNet(**TINY)(Tensor(normal(1, 6, 7, 8)), Tensor(np.array([0.5], np.float32)))


def test_gradients_equal_finite_differences():
    unet = randomize(UNet(**TINY), scale=0.2)
    x, weight = Tensor(normal(1, 6, 4, 4)), Tensor(normal(1, 3, 4, 4, seed=9))
    gamma = Tensor(np.array([0.4], np.float32))

    def loss(x, gamma):
        return (unet(x, gamma) * weight).sum()

    parameters = unet.trainable_params()
    grads = ms.value_and_grad(loss, None, ms.ParameterTuple(parameters))(x, gamma)[1]
    # Along a random direction in the space of all parameters, so that one difference tests every one of them. In
    # float32 the difference is good to about 1e-3: a step of 1e-2 over a norm of 1 balances rounding and curvature.
    for seed in range(3):
        directions = [normal(*parameter.shape, seed=[seed, i]) for i, parameter in enumerate(parameters)]
        length = np.sqrt(sum((d**2).sum() for d in directions))
        directions = [d / length for d in directions]
        slope = sum((grad.asnumpy().astype(np.float64) * d).sum() for grad, d in zip(grads, directions))
        values = [parameter.asnumpy().copy() for parameter in parameters]
        ends = []
        for step in (1e-2, -1e-2):
            for parameter, value, direction in zip(parameters, values, directions):
                parameter.set_data(Tensor(value + np.float32(step) * direction))
            ends.append(float(loss(x, gamma).asnumpy()))
        for parameter, value in zip(parameters, values):
            parameter.set_data(Tensor(value))
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(slope, rel=5e-3, abs=5e-3)


def conv2d(x, weight, bias, stride, padding, dilation):
    """In the place of `mindspore.mint.nn.functional.conv2d`, which has no kernel on a CPU, by its documentation."""
    return ops.conv2d(x, weight, bias, stride, "pad", padding, dilation)


def test_the_operators_for_an_npu_give_what_those_for_a_cpu_give(monkeypatch):
    monkeypatch.setattr(layers.mint.nn.functional, "conv2d", conv2d)
    unet = randomize(UNet(**TINY), scale=0.2)
    x, gamma = Tensor(normal(2, 6, 8, 8)), Tensor(np.array([0.2, 0.9], np.float32))
    expected = unet(x, gamma).asnumpy()
    for on_npu in (False, True):
        npu = UNet(**TINY)
        for _, cell in npu.cells_and_names():
            cell.on_cpu, cell.on_npu = False, on_npu
        ms.load_param_into_net(npu, {p.name: p for p in unet.get_parameters()})
        np.testing.assert_allclose(npu(x, gamma).asnumpy(), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_near_float32():
    unet = randomize(UNet(**TINY), scale=0.2)
    x, gamma = Tensor(normal(2, 6, 8, 8)), Tensor(np.array([0.2, 0.9], np.float32))
    exact = unet(x, gamma).asnumpy()
    half = UNet(**TINY).use_precision(ms.float16)
    ms.load_param_into_net(half, {p.name: p for p in unet.get_parameters()})
    output = half(x, gamma)
    assert output.dtype == ms.float32
    error = np.linalg.norm(output.asnumpy() - exact) / np.linalg.norm(exact)
    assert 1e-6 < error < 1e-2  # above zero: it did compute in half precision


def test_the_ports_preset_has_its_number_of_parameters(repository):
    config = load_config(repository / "configs" / "palette_62m.yaml")
    unet = UNet(config.model)
    # the PyTorch port's log: "parameters: 62.6 M" for its guided_diffusion network with this configuration
    assert sum(p.size for p in unet.get_parameters()) / 1e6 == pytest.approx(62.6, abs=0.05)


# Deep features


@pytest.mark.parametrize("options", [{}, {"channel_mults": (1,)}], ids=str)
def test_its_own_deep_features_give_the_whole_networks_answer(options):
    ms.set_context(mode=ms.PYNATIVE_MODE)  # three networks for a call each
    unet = randomize(UNet(**{**TINY, "norm_groups": 4, **options}))
    x, gamma, other = Tensor(normal(1, 6, 8, 8)), Tensor([0.3], ms.float32), Tensor([0.35], ms.float32)
    output, deep = DeepFeatures(unet)(x, gamma)
    np.testing.assert_allclose(FinestLevel(unet)(deep, x, gamma).asnumpy(), output.asnumpy(), rtol=1e-5, atol=1e-6)
    near, far = (np.abs((FinestLevel(unet)(features, x, other) - unet(x, other)).asnumpy()).max()
                 for features in (deep, ops.zeros_like(deep)))
    assert 0 < near < far


def test_the_coarser_levels_work_in_one_call_of_the_interval():
    calls = []

    def whole(x, time):
        calls.append("whole")
        return x + time, 10 * time

    def finest(deep, x, time):
        calls.append("finest")
        return x + deep

    unet = ReusingUNet(whole, finest, 3)
    assert [unet(1, time) for time in (1, 2, 3, 4, 5)] == [2, 11, 11, 5, 41]
    assert calls == ["whole", "finest", "finest", "whole", "finest"]


# Recomputation


@pytest.mark.parametrize("levels, expected", [
    (0, set()),
    (1, {"down.0.residual", "down.1", "up.2.residual", "up.3.residual"}),  # the finest, and halving to the next
    (2, {"down.0.residual", "down.1", "down.2.residual", "down.2.attention", "middle1.residual", "middle1.attention",
         "middle2", "up.0.residual", "up.0.attention", "up.1.residual", "up.1.attention", "up.1.resample",
         "up.2.residual", "up.3.residual"})])
def test_the_blocks_of_the_finest_levels_are_recomputed_and_no_others(levels, expected):
    unet = UNet(**TINY).recompute_blocks(levels)
    assert {name for name, cell in unet.cells_and_names() if isinstance(cell, (ResidualBlock, AttentionBlock))
            and (cell.get_scope() or "").startswith("recompute_")} == expected


def test_recomputed_blocks_have_the_same_gradients():
    def gradients(levels):
        unet = randomize(UNet(base_channels=8, channel_mults=(1,), num_res_blocks=1, attention_resolutions=(1,),
                              norm_groups=2)).recompute_blocks(levels)

        def loss(x, gamma):
            return (unet(x, gamma) ** 2).sum()

        step = ms.value_and_grad(loss, None, ms.ParameterTuple(unet.trainable_params()))
        return step(Tensor(normal(2, 6, 4, 4)), Tensor(np.array([0.2, 0.9], np.float32)))[1]

    for kept, again in zip(gradients(0), gradients(1)):
        np.testing.assert_allclose(again.asnumpy(), kept.asnumpy(), rtol=1e-5, atol=1e-5 * np.abs(kept.asnumpy()).max())


def test_a_recomputed_block_drops_the_same_values_again():
    block = randomize(ResidualBlock(8, 8, 16, dropout=0.5, norm_groups=2)).set_train()
    block.recompute()
    block.conv2.bias.set_data(Tensor(np.zeros(8, np.float32)))
    x, emb, weight = Tensor(normal(1, 8, 6, 6)), Tensor(normal(1, 16)), Tensor(normal(1, 8, 6, 6, seed=1))
    numbers = Tensor(np.random.default_rng(0).integers(1, DROPOUT_MODULUS, (1, 16 + 36)).astype(np.float32))

    def branch(x, emb):
        return ((block(x, emb, numbers) - x) * weight).sum()

    value, grads = ms.value_and_grad(branch, None, ms.ParameterTuple([block.conv2.weight]))(x, emb)
    # The branch is linear in its last convolution: its value is the product of weights and gradient (Euler).
    product = (grads[0].asnumpy().astype(float) * block.conv2.weight.asnumpy()).sum()
    assert product == pytest.approx(float(value.asnumpy()), rel=1e-4)
