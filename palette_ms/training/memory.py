"""What a training needs of a card's memory, estimated from its config."""

import textwrap

from palette_ms.unet.cost import activations, costs
from palette_ms.unet.lora import count_parameters

CARDS = (32, 64)  # GiB
# Of a card's memory: the rest is left to the driver, the links' buffers and the operators' working space.
_USABLE = 0.9
_GIB = 2**30


class Memory:
    """Bytes that a training step needs on each card.

    Kept from step to step: weights, their average, Adam's moments and, with accumulation, the gradients gathered so
    far, of both a slice where they are spread over the ranks. The backward pass needs besides the gradients, the
    weights once more at half precision, and the activations (see `palette_ms.unet.cost`). When the weights are updated
    the activations are gone, and gradients lie beside those that have been clipped.

    How far it is off: parameters are exact. What a picture more added to the measured peak was 0.6 to 1.2 times the
    estimate on a CPU, without graphs, and 1.6 to 1.7 times where attention over many positions is nearly all there
    is (docs/memory.md). Nothing was measured on a card, where the compiler fuses operators and keeps less, and their
    working space comes on top.

    Args:
        config: `Config`.
        ranks: processes that train together.
        recomputed: levels, in place of the config's `training.recompute`.
    """

    def __init__(self, config, ranks=1, recomputed=None):
        training = config.training
        recomputed = training.recompute if recomputed is None else recomputed
        is_half = training.precision != "float32"
        self.blocks = costs(config.model, config.data.image_size, 2 if is_half else 4)
        self.parameters = sum(block.parameters for block in self.blocks)
        self.activations, self.work = activations(self.blocks, recomputed)
        again = sum(block.operations for block in self.blocks if block.passed is not None and block.level < recomputed)
        self.operations = sum(block.operations for block in self.blocks)  # of a picture's forward pass
        self.more_operations = again / (3 * self.operations)  # share of a step's, where it takes three forward passes
        weights = learned = 4 * self.parameters
        self.kept = {"weights": weights, "average of the weights": weights}
        if training.lora:
            learned = 4 * count_parameters(config.model, training.lora.rank, training.lora.targets)
            self.kept["adapters and their average"] = 2 * learned
        self.gradients = learned
        self.kept["Adam's moments"] = 2 * learned
        if training.shard_optimizer and ranks > 1:
            self.kept["Adam's moments"] = 2 * learned // ranks
            self.kept["slices of the weights"] = learned // ranks
        if training.accumulation > 1:
            self.kept["gathered gradients"] = learned // (ranks if training.shard_optimizer else 1)
        if config.distillation:
            self.kept["teacher"] = weights
        self.passing = {"gradients": self.gradients}
        if is_half:
            networks = 2 if config.distillation else 1
            self.passing[f"weights in {training.precision}"] = networks * weights // 2

    def parts(self, batch):
        """Bytes of everything that is there in the backward pass, by name."""
        return {**self.kept, **self.passing, "activations": batch * self.activations,
                "largest block at work": batch * self.work}

    def total(self, batch):
        """Bytes at the step's peak."""
        return max(sum(self.parts(batch).values()), sum(self.kept.values()) + 2 * self.gradients)

    def batch_for(self, card):
        """The largest batch for a card of so many GiB; 0: not even one picture."""
        room = _USABLE * card * _GIB
        if self.total(1) > room:
            return 0
        return int((room - sum(self.parts(0).values())) // (self.activations + self.work))


def report(config, batch, ranks=1):
    """The estimate as a text: what a step needs at that batch, and what each setting of `training.recompute` makes fit.

    Args:
        config: `Config`.
        batch: pictures of a card at once.
        ranks: processes that train together.
    """
    memory, size = Memory(config, ranks), config.data.image_size
    rows = [*memory.parts(batch).items(), ("at the peak", memory.total(batch))]
    lines = [f"{memory.parameters / 1e6:.1f} M parameters, {size}×{size}, {config.training.precision}, batch {batch}"
             f"{f', {ranks} ranks' if ranks > 1 else ''}, training.recompute {config.training.recompute}", "",
             "| on each card | GiB |", "| --- | --- |",
             *(f"| {name} | {number / _GIB:.2f} |" for name, number in rows), "",
             "| training.recompute | activations a picture, GiB | more operations | "
             + " | ".join(f"batch in {card} GiB" for card in CARDS) + " |", "| --- " * (3 + len(CARDS)) + "|"]
    for levels in range(len(config.model.channel_mults) + 1):
        other = Memory(config, ranks, levels)
        fits = " | ".join(str(other.batch_for(card)) for card in CARDS)
        lines.append(f"| {levels} | {other.activations / _GIB:.3f} | {other.more_operations:.0%} | {fits} |")
    largest = {f"{block.largest / 2**20:.1f} MiB ({block.name})": None
               for block in sorted(memory.blocks, key=lambda block: -block.largest)}
    lines += ["", textwrap.fill("largest tensors of a picture: " + "; ".join([*largest][:3]), 120)]
    return "\n".join(lines)
