"""What a training run tells: a progress bar or lines, JSON lines, TensorBoard where it is installed."""

import json
import math
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm


class TrainingLog:
    """Context manager around a run.

    Args:
        folder: `log.jsonl` is appended to there, one object a line, with null for what is not finite; TensorBoard's
            files lie in `tensorboard/`. None: no files.
        first, last: step numbers, for the bar.
        end: when the run ends if the last step is not reached before, as `time.monotonic()` tells it.

    Steps per second and the time left do not count what comes before the end of the first step, which is compiling, nor
    what is done in `aside`.
    """

    def __init__(self, folder, first, last, end=float("inf")):
        self._file = self._writer = None
        if folder is not None:
            folder = Path(folder)
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / "log.jsonl", "a", encoding="utf-8")
            self._writer = _tensorboard(folder / "tensorboard")
        # Where stderr is a file, a bar would leave thousands of half lines: print one line for each record instead.
        # tqdm's own time left knows of no end but the last step, and a bar would be hardly filled at another.
        bar = "" if end < float("inf") else "|{bar}| "
        self._bar = tqdm(total=last, initial=first, dynamic_ncols=True, disable=None,
                         bar_format=bar + "step {n_fmt}/{total_fmt} [{elapsed}{postfix}]")
        self._last, self._end = last, end
        self._time = self._step = None  # of the end of the first step, then of the last record

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        for file in filter(None, (self._file, self._writer)):
            with suppress(OSError):
                file.close()

    def advance(self, step):
        """A step is done, of this number."""
        self._bar.update(step - self._bar.n)
        if self._step is None:
            self._time, self._step = time.monotonic(), step

    @contextmanager
    def aside(self):
        """Context of what is no step, such as making samples, the first time of which is compiling."""
        start = time.monotonic()
        yield
        self._time += time.monotonic() - start

    def record(self, step, **values):
        """Write numbers down; steps/s since the last record is added, where there was a step but the first."""
        now, speed = time.monotonic(), None
        if step > self._step:
            speed = (step - self._step) / max(now - self._time, 1e-9)
            values["steps_per_second"] = round(speed, 3)
        self._time, self._step = now, step
        self.note(step, **values)
        told = [f"loss {values['loss']:.4f}"]
        left = self._end - now
        if speed:
            told.append(f"{speed:.2f} steps/s")
            left = min(left, (self._last - step) / speed)
        if left < float("inf"):
            told.append(f"{max(left, 0) / 60:.1f} min left")
        if self._bar.disable:
            print(f"step {step}/{self._last}  {'  '.join(told)}", file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str("  ".join(told))

    def note(self, step, **values):
        """Write numbers down, and say nothing."""
        try:
            if self._file:
                # JSON has no word for what is not finite.
                known = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                         for name, value in values.items()}
                line = json.dumps({"step": step, "time": round(time.time(), 1), **known}, allow_nan=False)
                self._file.write(line + "\n")
                self._file.flush()
            if self._writer:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
        except OSError as error:  # a full disk is no reason to stop: training states are tried again and told of
            self.say(f"warning: the log cannot be written: {error.strerror or error}")

    def say(self, text):
        """A line on stderr that does not tear the bar."""
        self._bar.write(text, file=sys.stderr)


def _tensorboard(folder):
    try:
        from tensorboard.summary import Writer
    except ImportError:
        return None
    return Writer(str(folder))
