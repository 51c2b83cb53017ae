"""What a training run tells: a progress bar or lines, JSON lines, TensorBoard where it is installed."""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm


class TrainingLog:
    """Context manager around a run.

    Args:
        folder: `log.jsonl` is appended to there, one object a line; TensorBoard's files lie in `tensorboard/`. None:
            no files.
        first, last: step numbers, for the bar.
    """

    def __init__(self, folder, first, last):
        self._file = self._writer = None
        if folder is not None:
            folder = Path(folder)
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / "log.jsonl", "a", encoding="utf-8")
            self._writer = _tensorboard(folder / "tensorboard")
        # Where stderr is a file, a bar would leave thousands of half lines: print one line for each record instead.
        self._bar = tqdm(total=last, initial=first, unit="step", dynamic_ncols=True, disable=None)
        self._last = last
        self._time, self._step = time.monotonic(), first

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        for file in filter(None, (self._file, self._writer)):
            with suppress(OSError):
                file.close()

    def advance(self):
        """One step is done."""
        self._bar.update()

    def record(self, step, **values):
        """Write numbers down; steps/s since the last record is added."""
        now = time.monotonic()
        speed = (step - self._step) / max(now - self._time, 1e-9)
        self._time, self._step = now, step
        values["steps_per_second"] = round(speed, 3)
        try:
            if self._file:
                self._file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
                self._file.flush()
            if self._writer:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
        except OSError as error:  # a full disk is no reason to stop: training states are tried again and told of
            self.say(f"warning: the log cannot be written: {error.strerror or error}")
        if self._bar.disable:
            left = (self._last - step) / speed if speed else 0
            print(f"step {step}/{self._last}  loss {values['loss']:.4f}  {speed:.2f} steps/s  "
                  f"{left / 60:.1f} min left", file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix(loss=f"{values['loss']:.4f}")

    def say(self, text):
        """A line on stderr that does not tear the bar."""
        self._bar.write(text, file=sys.stderr)


def _tensorboard(folder):
    try:
        from tensorboard.summary import Writer
    except ImportError:
        return None
    return Writer(str(folder))
