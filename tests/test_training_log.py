"""What a training tells of its speed and of the time that is left."""

import json

import pytest

from palette_ms.training import log as module
from palette_ms.training.log import TrainingLog


@pytest.fixture
def clock(monkeypatch):
    """Seconds, a list of one number, that the log takes for the time."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def run(log, clock, steps, compiling=60.0, every=10):
    """Steps of half a second, the first after compiling, each tenth recorded."""
    for step in range(1, steps + 1):
        clock[0] += 0.5 + compiling * (step == 1)
        log.advance(step)
        if step % every == 0:
            log.record(step, loss=0.25)


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_compiling_does_not_count_as_steps(clock, tmp_path, capsys):
    with TrainingLog(tmp_path, 0, 100) as log:
        run(log, clock, 20)
    assert [record["steps_per_second"] for record in records(tmp_path)] == [2, 2]
    first, second = capsys.readouterr().err.splitlines()
    assert first == "step 10/100  loss 0.2500  2.00 steps/s  0.8 min left"  # 90 steps of half a second
    assert second.endswith("0.7 min left")


@pytest.mark.parametrize("minutes, told", [(1.5, "0.4 min left"), (60, "8.2 min left")])
def test_the_time_left_is_that_of_the_end_that_comes_first(clock, capsys, minutes, told):
    # At step 10, 65 s have passed: of 90 s 25 are left; 990 steps of half a second take 495 s.
    with TrainingLog(None, 0, 1000, clock[0] + 60 * minutes) as log:
        run(log, clock, 10)
    assert capsys.readouterr().err.strip().endswith(told)


def test_of_the_first_step_alone_no_speed_is_told(clock, tmp_path, capsys):
    with TrainingLog(tmp_path, 4, 100, clock[0] + 120) as log:
        clock[0] += 60
        log.advance(5)
        log.record(5, loss=0.25)
    assert "steps_per_second" not in records(tmp_path)[0]
    assert capsys.readouterr().err.strip() == "step 5/100  loss 0.2500  1.0 min left"


def test_what_is_done_aside_is_not_counted(clock, tmp_path):
    with TrainingLog(tmp_path, 0, 100) as log:
        run(log, clock, 10)
        with log.aside():
            clock[0] += 1000
        for step in range(11, 21):
            clock[0] += 0.5
            log.advance(step)
        log.record(20, loss=0.25)
    assert records(tmp_path)[-1]["steps_per_second"] == 2


def test_a_bar_tells_the_same_end(clock, monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with TrainingLog(None, 0, 1000, clock[0] + 90) as log:
        run(log, clock, 10)
    assert "step 10/1000 [" in terminal.getvalue() and "0.4 min left" in terminal.getvalue()


def test_what_is_not_finite_is_null_in_the_file(tmp_path):
    with TrainingLog(tmp_path, 0, 2) as log:
        log.advance(1)
        log.record(1, loss=float("nan"), grad_norm=float("inf"), skipped=1)
    line, = (tmp_path / "log.jsonl").read_text().splitlines()
    assert "NaN" not in line and "Infinity" not in line
    record = json.loads(line)
    assert record["loss"] is None and record["grad_norm"] is None and record["skipped"] == 1
