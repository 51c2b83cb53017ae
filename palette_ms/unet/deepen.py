"""A deeper network that answers as a shallower one that was trained, to go on training from (Chen et al. 2015,
arXiv 1511.05641: Net2Net)."""

import dataclasses

import numpy as np

from palette_ms.unet.plan import plan


def can_deepen(model, deeper):
    """Whether networks differ in `num_res_blocks` alone, of which the second has more.

    Args:
        model, deeper: `ModelConfig`. Without attention the blocks' dilation depends on their number.
    """
    return (model.attention in ("global", "local") and model.kind == "unet" and model.res_blocks is None
            and model.num_res_blocks < deeper.num_res_blocks
            and dataclasses.replace(model, num_res_blocks=deeper.num_res_blocks) == deeper)


def deepened(arrays, model, deeper, new):
    """The arrays of a network with more residual blocks a level, which answers as the one with fewer.

    On the way down the new blocks follow those of their level, and add nothing at first. On the way up each has a skip
    connection from a block on the way down, so that they stand where those from the new blocks arrive, but for the
    first: the level's first block keeps its place, since all new blocks hand on what it saw. Of their own skip
    connection they take nothing at first.

    Args:
        arrays: the shallower network's, by name.
        model, deeper: `ModelConfig` of both, see `can_deepen`.
        new: the deeper network's arrays by name, as it is created: branches end in zeros.

    Returns: dict of arrays by the deeper network's names.
    """
    blocks, added = model.num_res_blocks, deeper.num_res_blocks - model.num_res_blocks
    (down, _, up), (deep_down, _, deep_up) = plan(model), plan(deeper)
    places = {}  # of the shallower network's steps in the deeper one
    for way, steps, deep_steps in (("down", down, deep_down), ("up", up, deep_up)):
        for level in range(len(model.channel_mults)):
            ours, theirs = ([i for i, step in enumerate(path) if step.level == level] for path in (deep_steps, steps))
            for i, index in enumerate(theirs):
                follows = i > 0 if way == "up" else i >= blocks
                places[f"{way}.{index}."] = f"{way}.{ours[i + added * follows]}."
    kept = {}
    for name, array in arrays.items():
        prefix = next((prefix for prefix in places if name.startswith(prefix)), "")
        kept[places.get(prefix, "") + name[len(prefix):]] = array
    made = {name: kept.get(name, array) for name, array in new.items()}
    for i, step in enumerate(deep_up):
        name = f"up.{i}.residual.skip."
        if f"up.{i}." not in places.values():
            weight = np.zeros_like(made[name + "weight"])
            weight[range(step.c_out), range(step.c_out)] = 1
            made.update({name + "weight": weight, name + "bias": np.zeros_like(made[name + "bias"])})
    return made
