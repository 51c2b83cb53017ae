"""The model that ships and the scripts around it."""

import subprocess
import sys

import numpy as np
import pytest

from palette_ms import Palette
from palette_ms.checkpoint import MODELS, Checkpoint, save_checkpoint
from palette_ms.config import load_config
from palette_ms.evaluation.metrics import psnr
from palette_ms.tasks.masks import MASKS


@pytest.fixture(scope="module")
def patches():
    """Four 64×64 patches of the photo that no training saw."""
    from PIL import Image
    from skimage import data

    photo = Image.fromarray(data.coffee())
    boxes = [(100, 50, 228, 178), (250, 150, 442, 342), (350, 50, 478, 178), (180, 80, 436, 336)]
    return [np.asarray(photo.crop(box).resize((64, 64), Image.LANCZOS)) for box in boxes]


def test_the_shipped_model_is_small_and_of_the_quickstarts_config(repository):
    path = MODELS / "quickstart.safetensors"
    assert path.stat().st_size < 10 * 2**20
    shipped, config = Checkpoint("quickstart"), load_config(repository / "configs" / "quickstart.yaml")
    assert (shipped.config.model, shipped.config.diffusion) == (config.model, config.diffusion)
    assert shipped.config.data.image_size == 64
    assert {task.name for task in shipped.config.tasks} == {"inpainting", "colorization"}


def test_the_shipped_model_restores_a_photo_it_never_saw(patches):
    palette = Palette.load("quickstart", "cpu")
    hole = MASKS["center"](None, 64, 64)[0] > 0
    made, mean = [], []
    for patch in patches:
        image = np.asarray(palette.restore(patch, "inpainting", hole, steps=10)[0])
        made.append(psnr(image, patch, hole))
        mean.append(psnr(np.broadcast_to(patch[~hole].mean(0), patch.shape), patch, hole))
    assert np.mean(made) > np.mean(mean) + 1
    colored = np.asarray(palette.restore(patches[3], "colorization", steps=10)[0]).astype(float)
    assert np.ptp(colored, axis=2).mean() > 20  # it has colours


def test_shipping_keeps_the_averaged_weights_in_half_precision(repository, tmp_path):
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((3, 4), np.float32)}
    average = {"a": rng.standard_normal((3, 4), np.float32)}
    source, target = tmp_path / "model.safetensors", tmp_path / "shipped.safetensors"
    save_checkpoint(source, load_config(repository / "configs" / "quickstart.yaml"), 3, 48, weights, average)
    subprocess.run([sys.executable, repository / "scripts" / "ship_model.py", source, target], check=True)
    shipped = Checkpoint(target)
    assert (shipped.step, shipped.pictures, shipped.tensors("weights")) == (3, 48, {})
    np.testing.assert_array_equal(shipped.tensors("ema")["a"], average["a"].astype(np.float16))


def test_the_quickstart_photos_are_written_with_the_held_out_one_apart(repository, tmp_path):
    subprocess.run([sys.executable, repository / "scripts" / "quickstart_data.py", tmp_path], check=True)
    train, held_out = ({path.stem for path in (tmp_path / name).iterdir()} for name in ("train", "held_out"))
    assert held_out == {"coffee"} and len(train) == 7 and not train & held_out
