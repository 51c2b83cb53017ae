"""Pictures made in half precision, and which precision a device gets."""

import numpy as np
import pytest

import palette_ms.sample
from palette_ms import Palette, errors, runtime
from palette_ms.errors import UserError


@pytest.fixture(scope="module")
def palettes():
    return [Palette.load("quickstart", "CPU", "mindspore", precision) for precision in ("float32", "float16")]


def photo():
    y, x = np.mgrid[:64, :64]
    return np.stack([x * 4, y * 4, 128 + 100 * np.sin(x / 5) * np.cos(y / 7)], 2).astype(np.uint8)


def test_the_shipped_models_pictures_in_float16_are_those_in_float32_but_for_rounding(palettes):
    made = [np.asarray(palette.restore(photo(), "colorization", None, "dpmpp_2m", 4)[0], int) for palette in palettes]
    apart = np.abs(np.subtract(*made))
    assert 0 < apart.mean() < 0.05 and apart.max() <= 2  # seen: 0.008 grey levels, at most 1


def test_auto_is_float16_where_attention_is_fused(monkeypatch):
    assert runtime.sampling_precision("auto") == "float32"
    monkeypatch.setattr(runtime, "device", lambda: "Ascend")
    for card, precision in (("Ascend910B2", "float16"), ("Ascend910_9392", "float16"), ("Ascend910A", "float32")):
        monkeypatch.setattr(runtime, "card", lambda name=card: name)
        assert runtime.sampling_precision("auto") == precision
    assert runtime.sampling_precision("float16") == "float16"  # on the last: a chain has no loss scale
    with pytest.raises(UserError, match="Ascend910A has no bfloat16.*; --precision auto takes what there is"):
        runtime.sampling_precision("bfloat16")


@pytest.mark.parametrize("precision, message", [
    ("float8", "unknown precision 'float8': auto, float32, float16, bfloat16"),
    ("bfloat16", "MindSpore has no bfloat16 on CPU; --precision auto takes what there is"),
])
def test_a_precision_that_is_not_there_ends_in_one_line(precision, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sample", "--ckpt", "quickstart", "--input", str(tmp_path), "--output",
                                     str(tmp_path / "out"), "--precision", precision, "--device", "CPU", "--runtime",
                                     "mindspore"])
    with pytest.raises(SystemExit) as end:
        errors.run(palette_ms.sample.main)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {message}"]
    assert not (tmp_path / "out").exists()
