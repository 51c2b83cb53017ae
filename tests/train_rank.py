"""One rank of a training: python train_rank.py CONFIG ARRAYS [INTERRUPTED]

Writes the losses of each call and the final weights, average and optimizer state to ARRAYS_<rank>.npz. With
INTERRUPTED, the last rank alone gets SIGTERM at that step.
"""

import os
import signal
import sys
from contextlib import suppress

import numpy as np

from palette_ms import errors, runtime
from palette_ms.checkpoint import unet_arrays
from palette_ms.config import load_config
from palette_ms.training import buffers, loop


def main(path, arrays, interrupted=None):
    config = load_config(path)
    runtime.setup("CPU", seed=config.training.seed)
    # An optimizer is spread on cards, where gradients lie in flat buffers; here in several of them.
    runtime.wants_few_kernels, buffers._VALUES = lambda: config.training.shard_optimizer, 1000
    trainer_of, losses = loop.Trainer, []

    def recording(config):
        trainer = trainer_of(config)
        recording.trainer, train_on = trainer, trainer.train_on

        def train_and_record(batch):
            loss, norm, finite = train_on(batch)
            losses.append((loss.asnumpy(), norm.asnumpy()))
            last = runtime.rank() == runtime.ranks() - 1
            if last and len(losses) == config.training.accumulation * int(interrupted or 0):
                os.kill(os.getpid(), signal.SIGTERM)
            return loss, norm, finite

        trainer.train_on = train_and_record
        return trainer

    loop.Trainer = recording
    with suppress(errors.Stopped):
        loop.train(config, "auto")
    trainer = recording.trainer
    trainer.step_cell.give_average()
    moments = sum(p.size for p in trainer.step_cell.get_parameters() if p.name.startswith("moment"))
    np.savez(f"{arrays}_{runtime.rank()}.npz", losses=losses, step=trainer.step, moments=moments,
             **{f"weights.{name}": value for name, value in unet_arrays(trainer.unet).items()},
             **{f"ema.{name}": value for name, value in unet_arrays(trainer.ema).items()},
             **{f"optimizer.{name}": value for name, value in trainer.optimizer_arrays().items()})


if __name__ == "__main__":
    errors.run(lambda: main(*sys.argv[1:]))
