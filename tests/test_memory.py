"""What a training needs of a card's memory, estimated."""

import dataclasses
import sys

import pytest

from palette_ms import estimate
from palette_ms.checkpoint import build_unet
from palette_ms.config import load_config
from palette_ms.errors import UserError
from palette_ms.training.memory import Memory, report
from palette_ms.unet.cost import costs

VARIANTS = {
    "quickstart.yaml": [],
    "palette_62m.yaml": ["model.base_channels=8", "model.num_head_channels=4", "model.dropout=0"],
    "palette_paper.yaml": ["model.base_channels=16", "model.num_head_channels=16", "model.num_classes=3",
                           "model.attention=local", "model.attention_blocks=2"],
    "imagenet_jpeg.yaml": ["model.base_channels=8", "model.attention=dilated", "model.resblock_updown=false",
                           "model.scale_shift=false"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_counted_as_the_network_has_them(name, repository):
    model = load_config(repository / "configs" / name, VARIANTS[name]).model
    assert (sum(block.parameters for block in costs(model, 256))
            == sum(parameter.size for parameter in build_unet(model).get_parameters()))


def paper(repository, *overrides):
    return load_config(repository / "configs" / "palette_paper.yaml", overrides)


def test_the_papers_network_is_counted_without_being_built(repository):
    memory = Memory(paper(repository))
    assert memory.parameters / 1e6 == pytest.approx(552.8, abs=0.05)  # as `build_unet` makes it: 2.2 GB
    assert memory.kept["weights"] == 4 * memory.parameters and memory.kept["Adam's moments"] == 8 * memory.parameters


def test_the_batch_that_fits_is_the_largest(repository):
    for levels in range(7):
        memory = Memory(paper(repository), recomputed=levels)
        for card in (32, 64):
            batch = memory.batch_for(card)
            assert memory.total(batch) <= 0.9 * card * 2**30 < memory.total(batch + 1)
    assert Memory(paper(repository)).batch_for(8) == 0


def test_every_level_recomputed_saves_memory_and_costs_operations(repository):
    memories = [Memory(paper(repository), recomputed=levels) for levels in range(7)]
    for one, next_one in zip(memories, memories[1:]):
        assert next_one.activations < one.activations and next_one.more_operations > one.more_operations
    assert 0.3 < memories[-1].more_operations < 1 / 3  # all but the first and last layer, of three forward passes


def test_half_precision_halves_the_activations_but_what_stays_in_float32(repository):
    half, whole = (Memory(paper(repository, f"training.precision={name}")) for name in ("float16", "float32"))
    assert 0.5 < half.activations / whole.activations < 0.8


def test_a_spread_optimizer_takes_its_share_of_the_moments(repository):
    config = paper(repository, "training.shard_optimizer=true")
    alone, eight = Memory(config), Memory(config, ranks=8)
    assert alone.kept["Adam's moments"] == 8 * eight.kept["Adam's moments"]
    assert alone.kept["gathered gradients"] == pytest.approx(8 * eight.kept["gathered gradients"])
    assert eight.total(4) < alone.total(4)


def test_the_command_prints_the_estimate(repository, monkeypatch, capsys):
    path = repository / "configs" / "quickstart.yaml"
    monkeypatch.setattr(sys, "argv", ["estimate", "--config", str(path), "training.recompute=1", "--batch", "3"])
    estimate.main()
    config = load_config(path)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, recompute=1))
    assert capsys.readouterr().out == report(config, 3) + "\n"
    monkeypatch.setattr(sys, "argv", ["estimate", "--config", str(path), "--batch", "0"])
    with pytest.raises(UserError, match="--batch must be at least 1"):
        estimate.main()
