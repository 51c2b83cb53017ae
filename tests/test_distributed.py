"""Several ranks: processes that msrun starts, which train and sample together. Here they compute on the CPU."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from palette_ms import evaluate
from palette_ms.checkpoint import Checkpoint

BATCH = 2


def msrun(folder, *command, ranks=2, repository):
    """Run a command as so many ranks; returns (status, their output)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    beside = os.path.dirname(sys.executable)
    environ = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(repository)}
    logs = folder / "msrun"
    done = subprocess.run([f"{beside}/msrun", f"--worker_num={ranks}", f"--local_worker_num={ranks}", "--join=True",
                           f"--master_port={port}", f"--log_dir={logs}", "python", *map(str, command)],
                          cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
    return done.returncode, [(logs / f"worker_{rank}.log").read_text() for rank in range(ranks)]


def write_config(path, photos, output, **training):
    config = {
        "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": [],
                  "norm_groups": 4, "dropout": 0.2},
        "diffusion": {"prediction": "v", "noise_levels": "cosine", "test_schedule": {"num_steps": 4}},
        "tasks": [{"name": "inpainting"}, {"name": "colorization"}],
        "data": {"path": str(photos), "image_size": 16, "workers": 1},
        "training": {"output": str(output), "steps": 4, "accumulation": 2, "learning_rate": 1e-4, "warmup_steps": 2,
                     "max_grad_norm": 0.1, "log_every": 1, "sample_every": 4, "sample_steps": 2, "save_every": 4,
                     **training}}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Arrays of one process with twice the batch, and of two ranks that were interrupted at step 2 and went on with the
    optimizer's state spread over them."""
    from skimage import data

    folder, script = tmp_path_factory.mktemp("ranks"), Path(__file__).with_name("train_rank.py")
    repository = script.parents[1]
    (folder / "photos").mkdir()
    for name in ("astronaut", "chelsea", "rocket"):
        Image.fromarray(getattr(data, name)()).resize((40, 32)).save(folder / "photos" / f"{name}.png")
    one = write_config(folder / "one.yaml", folder / "photos", folder / "one", batch_size=2 * BATCH)
    done = subprocess.run([sys.executable, script, one, folder / "whole"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(repository)}, cwd=folder)
    assert done.returncode == 0, done.stderr
    for name, arguments, sharded in (("first", ["2"], False), ("second", [], True)):
        two = write_config(folder / f"{name}.yaml", folder / "photos", folder / "two", batch_size=BATCH,
                           shard_optimizer=sharded)
        status, output = msrun(folder, script, two, folder / name, *arguments, repository=repository)
        assert status == 0, output
    return folder


def arrays(runs, name):
    with np.load(runs / f"{name}.npz") as file:
        return dict(file)


def test_two_ranks_train_as_one_process_with_twice_the_batch(runs):
    whole, ranks = arrays(runs, "whole_0"), [arrays(runs, f"second_{rank}") for rank in (0, 1)]
    halves = [[arrays(runs, f"{part}_{rank}")["losses"] for part in ("first", "second")] for rank in (0, 1)]
    losses = np.mean([np.concatenate(half)[:, 0] for half in halves], 0)
    np.testing.assert_allclose(losses, whole["losses"][:, 0], rtol=1e-6, atol=1e-6)
    for name, value in whole.items():
        if name.startswith(("weights.", "ema.")):
            np.testing.assert_allclose(ranks[0][name], value, rtol=0, atol=1e-6, err_msg=name)


def test_each_rank_keeps_half_of_a_spread_optimizers_state_and_the_file_has_it_whole(runs):
    before, after = arrays(runs, "first_0"), arrays(runs, "second_0")
    padding = 2 * len(unet_names := [name for name in before if name.startswith("weights.")])
    assert before["moments"] / 2 <= after["moments"] <= before["moments"] / 2 + padding
    states = [Checkpoint(runs / run / "state_0000004.safetensors").tensors("optimizer") for run in ("one", "two")]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 2 * len(unet_names)
    for name, value in states[0].items():
        assert value.shape == states[1][name].shape
        if name.startswith("moment"):
            np.testing.assert_allclose(states[1][name], value, rtol=0, atol=1e-4 * np.abs(value).max(), err_msg=name)


def test_two_ranks_hold_the_same_weights_to_the_bit(runs):
    first, second = (arrays(runs, f"second_{rank}") for rank in (0, 1))
    assert first["step"] == second["step"] == 4
    for name, value in first.items():
        if name != "losses":
            np.testing.assert_array_equal(value, second[name], err_msg=name)
    # The gradient norm of a whole step is over all ranks, the losses are each rank's own.
    np.testing.assert_array_equal(first["losses"][1::2, 1], second["losses"][1::2, 1])
    assert (first["losses"][:, 0] != second["losses"][:, 0]).all()


def test_an_interrupt_of_one_rank_stops_all_at_one_step_with_a_whole_state(runs):
    for rank in (0, 1):
        assert arrays(runs, f"first_{rank}")["step"] == 2
    assert (runs / "two" / "state_0000002.safetensors").is_file()


def test_one_rank_writes_and_its_log_is_of_all(runs):
    names = [sorted(path.relative_to(runs / run).as_posix() for path in (runs / run).rglob("*")
                    if path.is_file() and "tensorboard" not in path.parts) for run in ("one", "two")]
    assert names[1] == sorted([*names[0], "state_0000002.safetensors"])
    logs = [[json.loads(line) for line in (runs / run / "log.jsonl").read_text().splitlines()]
            for run in ("one", "two")]
    assert [record["step"] for record in logs[1]] == [1, 2, 3, 4]
    for one, two in zip(*logs):
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-6)  # both are rounded to six digits
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], abs=1e-5)


def test_a_rank_that_dies_ends_the_job_and_is_named(repository, tmp_path):
    # The first would wait for the second without end.
    (tmp_path / "rank.py").write_text(
        "import os, signal\n"
        "from palette_ms import runtime\n"
        "runtime.setup('CPU')\n"
        "if runtime.rank() == 1:\n"
        "    print('last words', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "runtime.sum_over_ranks(0)\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    beside = os.path.dirname(sys.executable)
    environ = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-m", "palette_ms.launch", "logs", f"{beside}/msrun", "--worker_num=2",
                           "--local_worker_num=2", "--join=True", f"--master_port={port}", "--log_dir=logs", "python",
                           "rank.py"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + signal.SIGKILL
    assert "rank 1 was killed by SIGKILL" in done.stderr and "Its output: logs/worker_1.log" in done.stderr
    assert done.stderr.rstrip().endswith("Its last line: last words") and "Traceback" not in done.stderr


def test_a_folder_of_pictures_is_restored_and_evaluated_by_several_ranks(runs, repository, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for path in (runs / "photos").iterdir():
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photos" / "broken.png").write_bytes(b"")  # the second rank's first
    # One start of the ranks, which is what takes long, for both verbs.
    (tmp_path / "verbs.py").write_text(
        "import sys\n"
        "from palette_ms import errors, evaluate, runtime, sample\n"
        "photos, *arguments = sys.argv[1:]\n"
        "def main():\n"
        "    try:\n"
        "        sys.argv = ['sample', *arguments]\n"
        "        sample.main()\n"
        "    finally:\n"
        "        sys.argv = ['evaluate', '--reference', photos, '--restored', 'restored', '--device', 'CPU',\n"
        "                    '--output', 'ranks.json']\n"
        "        evaluate.main()\n"
        "        sys.stdout.flush()\n"
        "        runtime.sum_over_ranks(0)\n"  # since sampling's error, which is raised now, ends both
        "errors.run(main)\n")
    status, output = msrun(tmp_path, "verbs.py", runs / "photos", "--ckpt", runs / "two" / "model.safetensors",
                           "--input", tmp_path / "photos", "--output", tmp_path / "restored", "--task", "colorization",
                           "--device", "CPU", repository=repository)
    assert status != 0  # since one could not be read
    restored = [[Path(line).name for line in text.splitlines() if line.endswith(".png") and "restored" in line]
                for text in output]
    assert restored == [["astronaut.png", "chelsea.png"], ["rocket.png"]]
    made = {path.name for path in (tmp_path / "restored").glob("*.png")}
    assert made == {"chelsea.png", "astronaut.png", "rocket.png"}
    # msrun may end one rank before it has told, once the other has ended.
    assert any("1 of 4 pictures could not be restored" in text for text in output)
    assert ["3 pictures" in text for text in output] == [True, False]  # one rank tells
    monkeypatch.setattr(sys, "argv", ["evaluate", "--reference", str(runs / "photos"), "--restored",
                                      str(tmp_path / "restored"), "--output", str(tmp_path / "one.json")])
    evaluate.main()
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("ranks", "one")]
    for report in reports:
        del report["run"]["settings"]  # the folders, the device
    assert reports[0] == reports[1]


def test_ranks_share_what_json_can_hold(tmp_path, repository):
    code = ("from palette_ms import runtime; runtime.setup('CPU'); "
            "print('shared', runtime.share([runtime.rank(), 0.1, 'ü' * runtime.rank()]))")
    status, output = msrun(tmp_path, "-c", code, ranks=3, repository=repository)
    assert status == 0 and all("shared [[0, 0.1, ''], [1, 0.1, 'ü'], [2, 0.1, 'üü']]" in text for text in output)
