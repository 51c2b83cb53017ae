"""Runs msrun to its end, for the scripts and for ModelArts' boot file: python -m palette_ms.launch LOGS msrun …

msrun kills the ranks of its machine once one of them has ended with an error, and then takes half a minute and a
traceback to say so. This says which rank it was, how it ended and where its output is. SIGTERM and Ctrl-C are passed on
to the ranks, which finish their step, save and end; of the one msrun alone would die and leave the ranks behind, on the
other it would kill them.

Of several machines' ranks, those of the others would wait half an hour for one that died. MindSpore's scheduler on the
first machine misses it and ends after half a minute, and each machine ends its ranks when the scheduler is gone.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

TICK = 0.5  # seconds between looks at the ranks
_DIED = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
_KILL_SECONDS = 5  # for msrun to kill the other ranks
_SAVE_SECONDS = 600  # after a signal, for the ranks to end their step and save, before a rank counts as stuck
_LOOK_SECONDS = 5  # between looks for the scheduler, where there are several machines
_GONE_LOOKS = 4  # in vain, before it counts as gone


class _Scheduler:
    """MindSpore's scheduler on the first of several machines, as a command of msrun names it."""

    def __init__(self, command):
        options = dict(word[2:].split("=", 1) for word in command if word.startswith("--") and "=" in word)
        self.watched = options.get("worker_num") != options.get("local_worker_num")
        self.address = options.get("master_addr"), int(options.get("master_port", 0))
        self.seen, self.missed, self.due = False, 0, 0.0

    def is_gone(self):
        """Whether it answered once and does not any more."""
        if not self.watched or time.monotonic() < self.due:
            return False
        self.due = time.monotonic() + _LOOK_SECONDS
        try:
            socket.create_connection(self.address, timeout=_LOOK_SECONDS).close()
            self.seen, self.missed = True, 0
        except OSError:
            self.missed += self.seen
        return self.missed >= _GONE_LOOKS


class _Job:
    """msrun and the processes it started."""

    def __init__(self, command, logs, **options):
        self.logs = Path(logs)
        self.signals = []  # that came here
        self._kill_due = None  # by time.monotonic(), once there was a signal
        self.dead = None  # exit status of the first rank that ended with an error
        self._workers, self._ranks, self._told = {}, {}, set()
        # In a session of its own, so that Ctrl-C does not reach it.
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace",
                                        start_new_session=True, **options)
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            died = _DIED.search(line)
            if died and self.dead is None:
                status = int(died[2])
                self.dead = status if status >= 0 else 128 - status
                if not self.signals:
                    print(self._obituary(int(died[1]), status), file=sys.stderr, flush=True)
                self._end_msrun()
            elif self.dead is None:
                print(line, end="", file=sys.stderr, flush=True)

    def _obituary(self, pid, status):
        rank = self._ranks.get(pid)
        log = self.logs / f"worker_{rank}.log" if rank is not None else self.logs
        how = f"ended with exit status {status}"
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
            if status == -signal.SIGKILL:
                how += " (by the system for want of memory, if by nobody else)"
        text = f"rank {'?' if rank is None else rank} {how}, and the job with it. Its output: {log}"
        with suppress(OSError, IndexError):
            text += f"\nIts last line: {log.read_text(errors='replace').rstrip().splitlines()[-1]}"
        return text

    def _end_msrun(self):
        """msrun would wait for its scheduler, which misses the ranks only after half a minute."""
        end = time.monotonic() + _KILL_SECONDS
        while self.workers() and time.monotonic() < end:
            time.sleep(TICK / 5)
        self.kill()

    def workers(self):
        """The ranks that run: each leads a session of its own. They may outlive msrun."""
        import psutil  # comes with MindSpore

        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error, ProcessLookupError):
                    if os.getsid(child.pid) == child.pid:  # the scheduler's is msrun's
                        self._workers[child.pid] = child
                        self._ranks[child.pid] = child.environ().get("RANK_ID", self._ranks.get(child.pid))
        running = []
        for worker in self._workers.values():
            with suppress(psutil.Error):
                if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
                    running.append(worker)
        return running

    def look(self):
        """Note which process is which rank, and pass on what signal came; kill all that has not ended long after it."""
        if self.signals and self._kill_due is None:
            self._kill_due = time.monotonic() + _SAVE_SECONDS
        if self.signals and time.monotonic() > self._kill_due:
            self._kill_due = float("inf")
            print(f"the ranks have not ended {_SAVE_SECONDS} s after the signal, and are killed; their last state is "
                  "whole", file=sys.stderr, flush=True)
            self.kill()
        for worker in self.workers():
            if self.signals and worker.pid not in self._told:
                self._told.add(worker.pid)
                with suppress(Exception):  # it has ended meanwhile
                    worker.terminate()

    def kill(self):
        """All of it, at once."""
        for worker in self.workers():
            with suppress(Exception):
                os.killpg(worker.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self):
        """The exit status: of the signal that came here, else of the first rank that failed, else msrun's."""
        self._reader.join(TICK)
        if self.signals:  # where all processes got it, msrun has left ranks behind that still save
            while self.workers():
                self.look()
                time.sleep(TICK / 5)
            self.kill()
            return 128 + self.signals[0]
        if self.dead is not None:
            return self.dead
        returned = self.process.returncode
        return returned if returned >= 0 else 128 - returned


def run(command, logs, meanwhile=None, **options):
    """Run an msrun command to its end.

    Args:
        command: list of strings.
        logs: its `--log_dir`.
        meanwhile: called every half second; or None.
        options: of `subprocess.Popen`.

    Returns: 143 after SIGTERM, 130 after Ctrl-C, the second of which kills at once; else the exit status of the first
        rank that ended with an error, or msrun's.
    """
    job, scheduler = _Job(command, logs, **options), _Scheduler(command)

    def stop(number, _):
        job.signals.append(number)
        job.look()
        if job.signals.count(signal.SIGINT) > 1:
            job.kill()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while job.process.poll() is None:
            job.look()
            if scheduler.is_gone() and job.dead is None:
                job.dead = 1
                print("the scheduler on the first machine has ended: a rank of another machine has died, and what that "
                      f"machine says names it. The output of the ranks here: {job.logs}", file=sys.stderr, flush=True)
                job.kill()
            if meanwhile:
                meanwhile()
            with suppress(subprocess.TimeoutExpired):
                job.process.wait(TICK)
        return job.end()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], sys.argv[1]))
