"""Networks that take a text, their data and their guidance, against plain NumPy."""

import json
import shutil
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from PIL import Image
from safetensors.numpy import save_file

from palette_ms import Palette, encode
from palette_ms.checkpoint import build_unet
from palette_ms.config import config_from_dict
from palette_ms.data.captions import Captions, Text, filled_up
from palette_ms.data.loader import TrainingBatches
from palette_ms.diffusion.cells import GuidedUNet, ToldUNet
from palette_ms.diffusion.denoisers import Told, guided, on_arrays
from palette_ms.diffusion.process import noised
from palette_ms.diffusion.samplers import Sampling
from palette_ms.errors import UserError
from palette_ms.text.encoder import TextEncoder
from palette_ms.text.weights import load_encoder
from palette_ms.unet import ModelConfig, UNet
from palette_ms.unet.cost import costs
from palette_ms.unet.plan import plan
from palette_ms.unet.text import CrossAttention, TextEmbedding

TINY = dict(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(2,), num_head_channels=4,
            norm_groups=4, text_channels=6, text_length=5)
EFFICIENT = dict(kind="efficient", base_channels=8, channel_mults=(1, 1, 2), res_blocks=(0, 1, 2), norm_groups=4,
                 attention_resolutions=(4,), num_heads=2)


@pytest.fixture(autouse=True)
def pynative(graph_mode):
    ms.set_context(mode=ms.PYNATIVE_MODE)  # each network is called a few times only


def filled(cell, scale=0.3):
    """With random weights everywhere, so that it says something."""
    rng = np.random.default_rng(0)
    for parameter in cell.get_parameters():
        parameter.set_data(Tensor(scale * rng.standard_normal(parameter.shape, np.float32)))
    return cell.set_train(False)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def weights_of(cell):
    return {name: parameter.asnumpy().astype(np.float64) for name, parameter in cell.parameters_and_names()}


def layer_norm(x, weight, bias):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight + bias


def attention(q, k, v, shown):
    """Of one head: q (Q, D), k, v (K, D), shown (K,)."""
    weights = np.exp(q @ k.T / np.sqrt(q.shape[1])) * shown
    return weights / weights.sum(1, keepdims=True) @ v


def test_cross_attention_is_numpys():
    cell = filled(CrossAttention(8, 6, num_heads=2, norm_groups=4))
    x, tokens, outside = normal(2, 8, 3, 2), normal(2, 5, 6, seed=2), np.zeros((2, 5), bool)
    outside[1, 3:] = True
    w = weights_of(cell)
    for n in range(2):
        maps = x[n].reshape(4, -1).astype(np.float64)
        maps = (maps - maps.mean(1, keepdims=True)) / np.sqrt(maps.var(1, keepdims=True) + 1e-5)
        maps = maps.reshape(8, 6).T * w["norm.weight"] + w["norm.bias"]  # (positions, channels)
        q = maps @ w["q.weight"][:, :, 0, 0].T + w["q.bias"]
        text = layer_norm(tokens[n].astype(np.float64), w["norm_text.weight"], w["norm_text.bias"])
        k, v = np.split(text @ w["kv.weight"].T + w["kv.bias"], 2, 1)
        heads = [attention(q[:, one], k[:, one], v[:, one], ~outside[n]) for one in (slice(0, 4), slice(4, 8))]
        made = np.concatenate(heads, 1) @ w["proj.weight"][:, :, 0, 0].T + w["proj.bias"]
        wanted = x[n] + made.T.reshape(8, 3, 2)
        np.testing.assert_allclose(cell(*map(Tensor, (x, tokens, outside)))[n].asnumpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("blocks", [0, 1])
def test_the_text_embedding_is_numpys(blocks):
    """The learned token, the transformer block where there is one, and the mean of the tokens that are shown."""
    config = ModelConfig(**{**TINY, "text_blocks": blocks, "text_width": 8 if blocks else None})
    cell = filled(TextEmbedding(config, 4))
    w, text = weights_of(cell), normal(2, 5, 6)
    text[0, 3:], text[1] = 0, 0
    tokens, outside, pooled = (one.asnumpy() for one in cell(Tensor(text)))
    assert outside.tolist() == [[False] * 4 + [True] * 2, [False] + [True] * 5]
    for n, shown in enumerate((4, 1)):
        x = text[n].astype(np.float64)
        if blocks:
            x = x @ w["dense.weight"].T + w["dense.bias"] + w["positions"][0]
        x = np.concatenate((w["null"][0], x))[:shown]
        if blocks:
            b = {name[len("blocks.0."):]: array for name, array in w.items() if name.startswith("blocks.0.")}
            y = layer_norm(x, b["norm1.weight"], b["norm1.bias"]) @ b["qkv.weight"].T + b["qkv.bias"]
            q, k, v = np.split(y, 3, 1)
            y = np.concatenate([attention(q[:, one], k[:, one], v[:, one], 1) for one in (slice(0, 4), slice(4, 8))], 1)
            x = x + y @ b["proj.weight"].T + b["proj.bias"]
            y = layer_norm(x, b["norm2.weight"], b["norm2.bias"]) @ b["dense1.weight"].T + b["dense1.bias"]
            y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
            x = x + y @ b["dense2.weight"].T + b["dense2.bias"]
        np.testing.assert_allclose(tokens[n, :shown], x, atol=1e-5)
        y = layer_norm(x, w["norm.weight"], w["norm.bias"]).mean(0) @ w["dense1.weight"].T + w["dense1.bias"]
        y = y / (1 + np.exp(-y)) @ w["dense2.weight"].T + w["dense2.bias"]
        np.testing.assert_allclose(pooled[n], y, atol=1e-5)


def test_padding_means_nothing_and_texts_and_levels_matter():
    network = filled(UNet(**TINY, source_noise=True), 0.2)
    x, gamma, text = np.repeat(normal(1, 6, 8, 8), 4, 0), np.float32([0.5] * 4), np.repeat(normal(1, 5, 6), 4, 0)
    text[:, 3:] = 0
    levels = np.float32([0.2, 0.2, 0.2, 0.7])
    text[1, 2], text[2] = 1, 0
    told, *others = network(*map(Tensor, (x, gamma)), None, None, *map(Tensor, (text, levels))).asnumpy()
    for other in others:
        assert np.abs(other - told).max() > 1e-3
    longer = np.concatenate((text, np.zeros((4, 2, 6), np.float32)), 1)
    made = network(*map(Tensor, (x, gamma)), None, None, *map(Tensor, (longer, levels))).asnumpy()
    np.testing.assert_allclose(made, [told, *others], atol=1e-5)


class Listener(nn.Cell):
    """Says the source times its noise's level, and y_t times the sum of the text."""

    def construct(self, x, time, label=None, dropout=None, text=None, source_noise=None):
        total = text.sum((1, 2)).reshape((-1, 1, 1, 1))
        return x[:, :3] * source_noise.reshape((-1, 1, 1, 1)) + x[:, 3:] * total


def test_guidance_by_a_text_keeps_the_source():
    """3 times what is said with the text less twice what is said without; a text that is told later counts."""
    x, gamma, text = normal(2, 6, 4, 4), np.float32([0.5, 0.9]), normal(1, 5, 6)
    wanted = x[:, :3] * 0.1 + 3 * x[:, 3:] * text.sum()
    cell, arrays = (kind(unet, normal(1, 5, 6, seed=9), np.float32([0.3]), halves=True)
                    for kind, unet in ((ToldUNet, Listener()), (Told, on_arrays(Listener()))))
    for told in (cell, arrays):
        told.tell(text, np.float32([0.1]))
    made = GuidedUNet(cell, 3, by_text=True)(Tensor(x), Tensor(gamma)).asnumpy()
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(guided(arrays, 3, by_text=True)(x, gamma), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [TINY, {**TINY, "text_blocks": 2, "text_width": 8, "source_noise": True}, EFFICIENT,
                                     {**EFFICIENT, **{name: TINY[name] for name in ("text_channels", "text_length")},
                                      "attention_resolutions": (), "text_resolutions": (2, 4)}])
def test_parameters_are_counted_as_the_network_has_them(options):
    config = ModelConfig(**options)
    counted = sum(block.parameters for block in costs(config, 16))
    assert counted == sum(parameter.size for parameter in build_unet(config).get_parameters())


def test_imagens_efficient_network_has_the_papers_parameters():
    """Appendix F.2; the list of F.3 cannot have the 400 M that the paper says, see `ModelConfig`."""
    common = dict(kind="efficient", base_channels=128, channel_mults=(1, 1, 2, 4, 8), res_blocks=(0, 2, 4, 8, 8),
                  num_heads=8, text_channels=4096, source_noise=True)
    config = ModelConfig(**common, attention_resolutions=(16,))
    assert sum(block.parameters for block in costs(config, 256)) == pytest.approx(600e6, rel=0.02)
    down, middle, up = plan(config)
    assert not middle and [step.level for step in down if step.attends] == [4]
    resampled = [i for i, step in enumerate(down) if step.kind == "resampling"]
    assert resampled[:2] == [0, 3] and up[-1].kind == "resampling"  # before the blocks, and after them


def test_an_efficient_network_joins_what_it_kept_by_the_root_of_two():
    """With all branches at zero, what is left are the 1×1 skips, the resampling and the joints."""
    unet = UNet(**{**EFFICIENT, "channel_mults": (1, 1), "res_blocks": (0, 1), "attention_resolutions": ()})
    x = normal(1, 6, 4, 4)
    made, _ = unet.answer(Tensor(x), Tensor(np.float32([0.5])))
    w = weights_of(unet)
    down, up = unet.down[1].residual, unet.up[0].residual
    h = unet.down[0](unet.conv_in(Tensor(x)), None)
    kept = down.skip(h).asnumpy()
    joined = up.skip(Tensor(np.concatenate((kept, kept / np.sqrt(2)), 1).astype(np.float32)))
    assert not w["conv_out.weight"].any() and not made.asnumpy().any()
    filled(unet.conv_out)
    h = unet.act(unet.norm_out(unet.up[1](joined, None)))
    np.testing.assert_allclose(unet(Tensor(x), Tensor(np.float32([0.5]))).asnumpy(), unet.conv_out(h).asnumpy(),
                               atol=1e-5)


# Captions


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    library = pytest.importorskip("tokenizers")
    made, rng = tmp_path_factory.mktemp("t5"), np.random.default_rng(0)
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "red", "blue", "circle"])}
    reader = library.Tokenizer(library.models.WordLevel(words, "<unk>"))
    reader.pre_tokenizer = library.pre_tokenizers.Whitespace()
    reader.save(str(made / "tokenizer.json"))
    (made / "config.json").write_text(json.dumps(dict(vocab_size=6, d_model=6, d_kv=3, d_ff=8, num_layers=1,
                                                      num_heads=2)))
    layer = "encoder.block.0.layer."
    shapes = {"shared.weight": (6, 6), "encoder.final_layer_norm.weight": (6,), f"{layer}0.layer_norm.weight": (6,),
              f"{layer}0.SelfAttention.relative_attention_bias.weight": (32, 2), f"{layer}1.layer_norm.weight": (6,),
              f"{layer}1.DenseReluDense.wi.weight": (8, 6), f"{layer}1.DenseReluDense.wo.weight": (6, 8),
              **{f"{layer}0.SelfAttention.{name}.weight": (6, 6) for name in "qkvo"}}
    save_file({name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()},
              made / "model.safetensors")
    return made


@pytest.fixture(scope="module")
def captioned(tmp_path_factory, encoder_folder):
    """(folder of pictures, MindRecord that the command made of it)."""
    made = tmp_path_factory.mktemp("captioned")
    (made / "pictures").mkdir()
    for i, (colour, caption) in enumerate([("red", "red circle"), ("blue", "blue"), ("red", "red"), ("blue", None)]):
        Image.new("RGB", (16, 16), colour).save(made / "pictures" / f"{i}.png")
        if caption:
            (made / "pictures" / f"{i}.txt").write_text(caption + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["encode", str(made / "pictures"), str(made / "set.mindrecord"), "--encoder",
                                    str(encoder_folder), "--device", "CPU", "--length", "8"])
        encode.main()
    return made / "pictures", made / "set.mindrecord"


def config_of(path, tasks=({"name": "unconditional"},), training=(), **model):
    return config_from_dict({"model": {**TINY, **model}, "tasks": list(tasks), "data": {
        "path": str(path), "image_size": 8, "flip": False}, "training": {"batch_size": 16, **dict(training)}}, "test")


def test_training_reads_what_the_frozen_encoder_said(captioned, encoder_folder):
    """By the encoder called with the text alone. The picture without a caption is left out."""
    batches = TrainingBatches(config_of(captioned[1], training={"text_dropout": 0.0}))
    encoder = load_encoder(encoder_folder)
    said = {}
    for colours, ids in (("red circle", [3, 5, 1]), ("blue", [4, 1]), ("red", [3, 1])):
        hidden = encoder(Tensor(np.int32([ids])), Tensor(np.ones((1, len(ids)), np.int32))).asnumpy()[0]
        said[colours] = filled_up(hidden, 5)
    assert len(batches.pictures) == 3
    batch = batches.batch(0)
    for y_0, text in zip(batch.y_0, batch.text):
        found = [name for name, array in said.items() if np.allclose(array, text, atol=5e-3)]
        assert len(found) == 1 and found[0].startswith("red" if y_0[0, 0, 0] > 0 else "blue")


def test_a_tenth_of_the_texts_is_left_out_in_whichever_batch(captioned):
    batches = TrainingBatches(config_of(captioned[1]))
    dropped = np.concatenate([~batches.batch(i).text.any((1, 2)) for i in range(20)])
    assert 0.05 < dropped.mean() < 0.17  # of 320: three deviations of 0.1
    half = TrainingBatches(config_of(captioned[1], training={"batch_size": 8}), rank=1, ranks=2)
    np.testing.assert_array_equal(half.batch(0).text, batches.batch(0).text[8:])


def test_the_source_is_noised_by_the_level_that_is_told(captioned):
    task = {"name": "super_resolution", "scales": [2]}
    usual = TrainingBatches(config_of(captioned[1], [task])).batch(0)
    batch = TrainingBatches(config_of(captioned[1], [task], source_noise=True)).batch(0)
    np.testing.assert_array_equal(batch.text, usual.text)  # what was drawn before stays
    levels = batch.source_noise
    assert levels.min() < 0.3 and levels.max() > 0.7 and usual.source_noise is None
    for level, noisy, source in zip(levels, batch.cond, usual.cond):
        noise = (noisy - np.cos(np.pi * level / 2) * source) / np.sin(np.pi * level / 2)
        assert abs(noise.std() - 1) < 0.25 and abs(noise.mean()) < 0.3
    np.testing.assert_array_equal(noised(usual.cond, 0 * usual.cond, 0), usual.cond)


def test_captions_of_a_table_and_beside_pictures(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("beside  it\n")
    assert Captions(tmp_path).of(tmp_path / "a.png") == "beside it"
    with pytest.raises(UserError, match="b.png has no caption"):
        Captions(tmp_path).of(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(UserError, match="a.png has no caption.*empty"):
        Captions(tmp_path).of(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "\\ud800"}\n')
    with pytest.raises(UserError, match="line 1 is not of the form"):
        Captions(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "in the table"}\n'
                                             '{"file_name": "b.png", "text": ""}\n')
    with pytest.raises(UserError, match="b.png has no caption"):
        Captions(tmp_path).of(tmp_path / "b.png")
    assert Captions(tmp_path).of(str(tmp_path / "a.png")) == "in the table"
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{"file_name": 3}\n')
    with pytest.raises(UserError, match="line 2 is not of the form"):
        Captions(tmp_path)


def test_what_does_not_fit_is_told(captioned, encoder_folder):
    pictures, records = captioned
    with pytest.raises(UserError, match="palette_ms.encode writes such a set"):
        TrainingBatches(config_of(pictures))
    with pytest.raises(UserError, match="tokens of 6 channels.* model.text_channels, 7"):
        TrainingBatches(config_of(records, text_channels=7))
    config = config_of(records)
    palette = Palette(build_unet(config.model), config)
    other = Text("red", np.ones((2, 6), np.float16), "0" * 16)
    with pytest.raises(UserError, match="weights of another T5"):
        palette.generate(1, text=other)
    with pytest.raises(UserError, match="guidance is by a text, and there is none"):
        palette.generate(1, guidance=2.0)
    with pytest.raises(UserError, match="takes no text"):
        Palette.load("photo", device="CPU").restore(Image.new("RGB", (8, 8)), "denoising", text=other)
    with pytest.raises(UserError, match="source_noise is for models"):
        Palette.load("photo", device="CPU").restore(Image.new("RGB", (8, 8)), "denoising", source_noise=0.5)
    with pytest.raises(UserError, match="res_blocks must name 2 numbers"):
        config_of(records, res_blocks=(1,))


def test_the_encoder_tells_texts_the_same_in_any_company(encoder_folder):
    encoder = TextEncoder(encoder_folder)
    alone, = encoder(["red circle"])
    several = encoder(["blue", "red circle", ""])
    np.testing.assert_allclose(several[1].tokens, alone.tokens, atol=2e-3)
    assert [len(text.tokens) for text in several] == [2, 3, 1] and alone.encoder == encoder.fingerprint
    assert Sampling(text=alone.tokens[None]).below(0.5).text is not None


def test_a_tokenizer_of_another_t5_is_told(encoder_folder, tmp_path):
    shutil.copytree(encoder_folder, tmp_path / "t5")
    tokens = json.loads((tmp_path / "t5" / "tokenizer.json").read_text())
    tokens["model"]["vocab"]["circle"] = 9
    (tmp_path / "t5" / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(UserError, match="tokenizer .* of another T5: it has a token 9, and they know 6"):
        TextEncoder(tmp_path / "t5")(["red circle"])
