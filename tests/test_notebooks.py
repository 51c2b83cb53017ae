"""The notebooks' cells run, in a process of their own, with settings that make them small."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from palette_ms.checkpoint import Checkpoint

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
# What stands in place of each notebook's cell of settings, and what it must leave or say.
SMALL = {
    "restore": "photo, largest = 'photo.png', 64",
    "train_on_a_folder": """
folder, output, minutes = "photos", "runs", 5
overrides = ["training.steps=2", "training.batch_size=2", "training.log_every=1", "training.sample_every=0",
             "model.base_channels=8", "model.channel_mults=[1]", "model.attention_resolutions=[]",
             "model.norm_groups=4", "model.num_head_channels=8", "data.image_size=16", "training.sample_steps=1"]
""",
    "write_a_task": "photo, side = 'photo.png', 32",
}


def cells(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def photo(number):
    """Some part of a photo."""
    from skimage import data

    left = 30 * number
    return Image.fromarray(data.coffee()).crop((left, 50, left + 300, 275)).resize((64, 48), Image.LANCZOS)


@pytest.fixture(scope="module", params=SMALL)
def ran(request, tmp_path_factory, repository):
    """(name, folder, what it said) of a notebook that was run."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "photos").mkdir()
    for number in range(8):
        photo(number).save(folder / "photos" / f"{number}.png")
    photo(9).save(folder / "photo.png")
    code = [SMALL[request.param] if "parameters" in cell["metadata"].get("tags", ()) else "".join(cell["source"])
            for cell in cells(request.param) if cell["cell_type"] == "code"]
    assert code[0] == SMALL[request.param]
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(repository)})
    assert done.returncode == 0, done.stderr[-2000:]
    return request.param, folder, done.stdout


def test_a_notebook_does_what_it_says(ran):
    name, folder, said = ran
    if name == "restore":
        damaged, restored = map(float, re.findall(r"([\d.]+) dB", said))
        assert restored > damaged + 0.3
        assert "known pixels as they were: True" in said and "the same seed, the same picture: True" in said
    elif name == "train_on_a_folder":
        assert Checkpoint(folder / "runs" / "model" / "model.safetensors").step == 2
        listed = [line for part in ("train", "validation")
                  for line in (folder / "runs" / "lists" / f"{part}.txt").read_text().splitlines()]
        assert len(listed) == 8
    else:
        assert "loss must be at least 0 and at most 1" in said


def test_notebooks_are_kept_without_their_outputs():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*SMALL}
    for name in SMALL:
        code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
