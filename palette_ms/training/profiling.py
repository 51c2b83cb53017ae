"""MindSpore's profiler over some steps of a training."""

import mindspore as ms
from mindspore import profiler


class StepProfiler:
    """Records the steps from a first to a last one, each marked, and writes what MindStudio Insight shows.

    The device is waited for before the first and after the last, so that what was launched for them is what is
    recorded. A run that begins or ends between them records what it has.

    Args:
        steps: (first, last), counted from 1, or None: nothing is recorded.
        folder: where each rank makes a folder of its own.
    """

    def __init__(self, steps, folder):
        self._first, self._last = steps or (1, 0)
        self._folder = str(folder)
        self._recording = None

    def before(self, step):
        """Step `step` is about to begin. Returns whether recording begins with it."""
        if self._recording or not self._first <= step <= self._last:
            return False
        ms.runtime.synchronize()
        self._recording = profiler.profile(
            start_profile=False, schedule=profiler.schedule(wait=0, warmup=0, active=self._last - step + 1, repeat=1),
            on_trace_ready=profiler.tensorboard_trace_handler(self._folder))
        self._recording.start()
        return True

    def after(self, step):
        """Step `step` was launched. After the last one, what was recorded is written."""
        if self._recording:
            if step == self._last:
                self.close()
            else:
                self._recording.step()

    def close(self):
        """Write what was recorded, where anything was."""
        if self._recording:
            ms.runtime.synchronize()
            self._recording.stop()
            self._recording, self._last = None, 0
