"""A model put to the test: sources made of clean pictures as its task makes them, and what it restores of these.

A folder has them by the pictures' names: `target/`, the squares that were taken, `source/`, to look at, `mask/`, white
where pixels are made, and `restored/`. Every picture's damage and noise follow from the seed and its number, so that an
interrupted run goes on with what is missing.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from palette_ms import runtime
from palette_ms.data.files import at_work, clear_parts, result_names
from palette_ms.data.images import load_image, save_atomically
from palette_ms.data.sources import MindRecord, decode, fingerprint, open_source
from palette_ms.errors import UserError
from palette_ms.seeds import generator

SETTINGS = "settings.json"


def make_trials(palette, place, path, folder, sampling, samples=1, size=None, seed=0):
    """Write the folder, over all ranks; what is there of the same settings stays.

    Args:
        palette: `palette_ms.pipeline.Palette` of a model that restores.
        place: of the task in its config.
        path: the clean pictures, as `data.path` in training.
        folder: where to.
        sampling: `palette_ms.diffusion.samplers.Sampling`.
        samples: of each picture.
        size: side of the squares, which are taken from the middles, as large as they go, and resized; None: as in
            training.
        seed: decides damage and noise.

    Returns: the settings, a dict for JSON.

    Raises:
        UserError: no pictures, some that cannot be read, each of which is told on stderr, the folder holds something
            else, a size that the network does not divide.
    """
    task, (source_form, target_form) = palette.config.tasks[place], palette.forms
    size, source = open_clean(palette, task, path, size, [folder])
    settings = {"model": palette.sha256, "task": task.to_dict(), "sampling": vars(sampling), "samples": samples,
                "size": size, "seed": seed, "pictures": fingerprint(source)}
    settings = json.loads(json.dumps(settings))
    names, rank = _names(source, Path(path)), runtime.rank()
    mine, done, failed = range(rank, len(source), runtime.ranks()), 0, 0
    with at_work(folder / SETTINGS) if rank == 0 else nullcontext():
        if rank == 0:
            _claim(folder, settings)
        runtime.sum_over_ranks(0)  # none writes before the folder is known to be ours
        for index in tqdm(mine, desc=task.name, unit="picture", disable=None, leave=False):
            paths = [folder / "restored" / f"{names[index]}{f'_{k}' * (samples > 1)}" for k in range(samples)]
            try:
                y_0, cond, mask = make_pair(palette, task, source, index, size, seed)
            except UserError as error:
                failed += 1
                tqdm.write(f"{names[index]} was not restored: {error}", file=sys.stderr)
                continue
            target = target_form.from_float(y_0)
            shown = {"source": source_form.to_show(cond), "mask": np.uint8(255 * mask[0])}
            # What was put in the place of an earlier picture has other results.
            if all(target_form.path(one).is_file() for one in paths) and _holds(
                    folder / "source" / f"{names[index]}.png", shown["source"]) and _holds(
                    target_form.path(folder / "target" / names[index]), target, target_form.read):
                done += 1
                continue
            noise = int(generator(seed, "evaluate", index).integers(2**31))
            made = palette.make(place, cond, mask, sampling, noise, samples)
            for kind, array in shown.items():
                save_atomically(Image.fromarray(array), folder / kind / f"{names[index]}.png")
            values = target, *map(target_form.from_float, made)
            for one, array in zip((folder / "target" / names[index], *paths), values):
                one.parent.mkdir(parents=True, exist_ok=True)
                target_form.save(target_form.image(array), target_form.path(one))
        done, failed = (int(runtime.sum_over_ranks(number)) for number in (done, failed))
    if done and rank == 0:
        tqdm.write(f"{done} of {len(source)} pictures were made before, in the same way", file=sys.stderr)
    if failed:
        raise UserError(f"{failed} of {len(source)} pictures could not be restored, so there is no report; the same "
                        "command goes on where they are mended")
    return settings


def open_clean(palette, task, path, size=None, leave_out=()):
    """(side of the squares, source of the pictures): `size`, or that of the training, and what a path stands for.

    Raises:
        UserError: a size that the network does not divide, or see `palette_ms.data.sources.open_source`.
    """
    size, multiple = palette.config.data.image_size if size is None else size, palette.chains.multiple
    if size < 1 or size % multiple:
        raise UserError(f"--size must be a multiple of {multiple}, not {size}")
    source = open_source(path, palette.forms[1].suffixes, leave_out)
    if source.paired != task.needs_pairs:
        raise UserError(f"{path} holds {'pairs' if source.paired else 'single pictures'}, which the task {task.name} "
                        "does not take")
    return size, source


def _claim(folder, settings):
    """Note what the folder is of. Raises UserError: it is of something else."""
    noted = folder / SETTINGS
    try:
        text = noted.read_text(encoding="utf-8")
        if text:
            earlier = json.loads(text)
            if earlier != settings:
                changed = [name for name in settings if earlier.get(name) != settings[name]]
                raise UserError(f"{folder} holds results of other settings ({', '.join(changed)}): name another --made")
            for kind in ("restored", "target", "source", "mask"):
                for place, _, _ in os.walk(folder / kind):
                    clear_parts(place)
            return
        if any(entry != noted for entry in folder.iterdir()):
            raise UserError(f"{folder} holds something else: name another --made")
        noted.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"cannot use {folder}: {error}") from None


def _names(source, path):
    """What each picture is called, relative, without suffix."""
    if isinstance(source, MindRecord):
        return [f"{index:06d}" for index in range(len(source))]
    target = source.columns.index("target")
    files = ([str(name) for name, _ in source.members] if hasattr(source, "members")
             else [os.path.abspath(row[target]) for row in source.rows])
    above = os.path.abspath(path) if path.is_dir() else os.path.commonpath([os.path.dirname(file) for file in files])
    suffixes = {Path(file).suffix.lower() for file in files}
    return [name.as_posix() for name in result_names([Path(os.path.relpath(file, above or ".")) for file in files],
                                                     suffixes)]


def _holds(path, expected, read=load_image):
    """Whether a picture is there and has these values."""
    try:
        return np.array_equal(read(path), expected)
    except UserError:
        return False


def make_pair(palette, task, source, index, size, seed):
    """(y_0, cond or None, mask) of the square in a picture's middle, as in training; seed and number decide the damage.
    """
    source_form, target_form = palette.forms
    row = decode(source.read(index), palette.forms)
    height, width = row.target.shape[:2]
    side = min(height, width)
    square = np.s_[(height - side) // 2:(height + side) // 2, (width - side) // 2:(width + side) // 2]

    def taken(array, form):
        part = array[square]
        return form.to_float(part if side == size else form.resize(part, size, size, Image.LANCZOS))

    y_0, given = taken(row.target, target_form), {}
    if task.needs_pairs:
        given = {"source": taken(row.source, source_form), "mask": None}
        if row.mask is not None:
            share = Image.fromarray(np.float32(row.mask[square][..., 0])).resize((size, size), Image.BOX)
            given["mask"] = np.float32(np.asarray(share)[None] > 0)
    cond, mask = task.checked_pair(y_0, generator(seed, "damage", index), palette.config.data.channels.source, **given)
    return y_0, cond, np.ones_like(y_0[:1]) if mask is None else mask
