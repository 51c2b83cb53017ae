"""T5's encoder and tokenizer, against Hugging Face's."""

import json
import math
import shutil
import subprocess
import sys
from string import ascii_lowercase

import mindspore as ms
import numpy as np
import pytest
from golden import DATA, load_arrays, relative_error
from mindspore import Tensor
from safetensors.numpy import load_file, save_file

from palette_ms.errors import UserError
from palette_ms.text import T5Config, Tokenizer, load_encoder
from palette_ms.text.t5 import bucket
from palette_ms.torch_weights.files import write_pth

VERSIONS = ("v1_0", "v1_1")


@pytest.fixture(scope="module")
def arrays():
    return load_arrays("t5.npz")


@pytest.fixture
def folder(tmp_path, arrays):
    """A function that makes the folder of a version, as Hugging Face has it."""
    def make(version="v1_1"):
        shutil.copy(DATA / f"t5_{version}.safetensors", tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(str(arrays[f"{version}_config"]))
        return tmp_path
    return make


@pytest.fixture
def pynative(graph_mode):
    ms.set_context(mode=ms.PYNATIVE_MODE)  # for one call, not worth compiling


def said(encoder, arrays, version):
    """What it says at the tokens, and what it should."""
    ids, mask = (Tensor(arrays[f"{version}_{name}"].astype(np.int32)) for name in ("ids", "mask"))
    shown = arrays[f"{version}_mask"] == 1
    return encoder(ids, mask).asnumpy()[shown], arrays[f"{version}_hidden"][shown]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_encoder_gives_the_reference_numbers(folder, arrays, version):
    assert relative_error(*said(load_encoder(folder(version)), arrays, version)) < 1e-5


def test_padding_does_not_change_what_tokens_say(folder, arrays, pynative):
    encoder = load_encoder(folder())
    ids = arrays["v1_1_ids"][:1, :10].astype(np.int32)
    alone = encoder(Tensor(ids), Tensor(np.ones_like(ids))).asnumpy()
    padded = np.concatenate((ids, np.full((1, 5), 7, np.int32)), 1)
    mask = np.int32([[1] * 10 + [0] * 5])
    np.testing.assert_allclose(encoder(Tensor(padded), Tensor(mask)).asnumpy()[:, :10], alone, rtol=1e-4, atol=1e-5)


def test_large_values_stay_finite_in_half_precision(folder, arrays, pynative):
    """As in the published weights: what leaves the feed-forward layers is beyond float16."""
    made = folder()
    weights = load_file(made / "model.safetensors")
    weights = {name: array * 300 if ".wo." in name or ".wi_1." in name else array for name, array in weights.items()}
    save_file(weights, made / "model.safetensors")
    exact, _ = said(load_encoder(made), arrays, "v1_1")
    half, _ = said(load_encoder(made).use_precision(ms.float16), arrays, "v1_1")
    assert np.isfinite(half).all() and relative_error(half, exact) < 0.01


@pytest.mark.parametrize("form", ["parts", "pytorch"])
def test_weights_are_read_in_every_form(folder, arrays, pynative, form):
    made = folder()
    weights = load_file(made / "model.safetensors")
    weights["decoder.block.0.layer.0.layer_norm.weight"] = np.ones(32, np.float32)
    (made / "model.safetensors").unlink()
    if form == "pytorch":
        write_pth(made / "pytorch_model.bin", weights)
    else:
        places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
        for part in set(places.values()):
            save_file({name: weights[name] for name in weights if places[name] == part}, made / part)
        (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert relative_error(*said(load_encoder(made), arrays, "v1_1")) < 1e-5


def test_distances_have_buckets_of_their_own_then_logarithmic_ones():
    """As section 2.1 has them, of 32 up to 128."""
    distances = np.arange(-200, 201)
    found = bucket(distances, 32, 128)
    for distance, one in zip(distances, found):
        away = abs(int(distance))
        wanted = away if away < 8 else min(15, 8 + math.floor(math.log(away / 8) / math.log(16) * 8 + 1e-6))
        assert one == wanted + 16 * (distance > 0)


CORPUS = ["a red circle above a blue square", "two green triangles", "a small yellow star left of a big red circle"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Folders with a tokenizer of each kind, and what its own library makes of a text."""
    pytest.importorskip("sentencepiece")
    library = pytest.importorskip("tokenizers")
    made = tmp_path_factory.mktemp("tokenizers")
    for kind in ("json", "piece"):
        (made / kind).mkdir()
    (made / "corpus.txt").write_text("\n".join(CORPUS * 20))
    # In a process of its own: it writes pages.
    options = dict(input=str(made / "corpus.txt"), model_prefix=str(made / "piece" / "spiece"), vocab_size=50,
                   hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    subprocess.run([sys.executable, "-c", "import sentencepiece; sentencepiece.SentencePieceTrainer.train("
                    f"**{options!r})"], check=True, capture_output=True)
    reader = library.Tokenizer(library.models.Unigram(
        [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in ascii_lowercase),
         ("▁red", -2.5), ("▁circle", -2.5)], 2))
    reader.pre_tokenizer = library.pre_tokenizers.Metaspace()
    reader.enable_padding(length=99)
    reader.save(str(made / "json" / "tokenizer.json"))
    return made


@pytest.mark.parametrize("kind", ["json", "piece"])
def test_texts_become_tokens_with_an_end_and_padding(tokenizers, kind):
    ids, mask = Tokenizer(tokenizers / kind)(["a red circle", "", "red"])
    lengths = mask.sum(1)
    assert lengths[1] == 1 and ids[1, 0] == 1 and lengths[0] > lengths[2]
    for row, length in zip(ids, lengths):
        assert row[length - 1] == 1 and (row[length:] == 0).all() and (row[:length - 1] > 1).all()
    if kind == "json":
        assert list(ids[2, :2]) == [30, 1]  # ▁red, the end
    else:
        from sentencepiece import SentencePieceProcessor

        reader = SentencePieceProcessor(model_file=str(tokenizers / kind / "spiece.model"))
        assert reader.decode(ids[0, :lengths[0] - 1].tolist()) == "a red circle"


def test_a_long_text_is_cut_and_told(tokenizers, capsys):
    ids, mask = Tokenizer(tokenizers / "piece")(["red " * 30, "red"], 8)
    assert ids.shape == (2, 8) and ids[0, -1] == 1 and mask[0].all()
    told = capsys.readouterr().err
    assert told.count("cut after 8") == 1 and "red red" in told


def test_an_encoder_with_biases_in_every_block_is_no_t5(folder):
    """As umT5's is, whose other weights have the same names."""
    made = folder()
    weights = load_file(made / "model.safetensors")
    name = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    save_file({**weights, name.format(1): weights[name.format(0)]}, made / "model.safetensors")
    with pytest.raises(UserError, match="are not of a T5, whose encoder has no encoder.block.1"):
        load_encoder(made)


def test_what_is_missing_or_does_not_fit_is_told(folder, tmp_path, monkeypatch):
    made = folder()
    with pytest.raises(UserError, match="neither tokenizer.json nor spiece.model"):
        Tokenizer(made)
    (made / "spiece.model").write_bytes(b"nothing")
    with pytest.raises(UserError, match="spiece.model is not a tokenizer"):
        Tokenizer(made)
    monkeypatch.setattr("palette_ms.text.tokens.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"read by the package sentencepiece: pip install 'palette_ms\[text\]'"):
        Tokenizer(made)
    config = json.loads((made / "config.json").read_text())
    for changed, message in ({"d_ff": 32}, "another T5.*feed_forward"), ({"num_layers": 3}, "lack blocks.2"), \
            ({"num_layers": 1}, "blocks.1.* besides"), ({"feed_forward_proj": "silu"}, "none of relu, gated-gelu"), \
            ({"d_kv": 0}, "d_kv must be a whole number above 0"), \
            ({"layer_norm_epsilon": "1e-6"}, "layer_norm_epsilon must be a number"):
        (made / "config.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(UserError, match=message):
            load_encoder(made)
    (made / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not the config.json of a T5"):
        load_encoder(made)
    (made / "config.json").write_text(json.dumps(config))
    (made / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load_encoder(made)
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part.safetensors"}}))
    with pytest.raises(UserError, match="lacks part.safetensors"):
        load_encoder(made)
    with pytest.raises(UserError, match="is not a folder"):
        load_encoder(tmp_path / "none")
    with pytest.raises(UserError, match="config.json of a T5"):
        T5Config.read(tmp_path / "none.json")
