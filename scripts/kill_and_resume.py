"""Kills a small training run again and again, at random moments, resumes it each time, and compares the end.

    python scripts/kill_and_resume.py [--kills 50] [--ranks 1] [--seed 0] [--folder runs/killed]

An undisturbed run and one that SIGKILL ends KILLS times must leave the same weights, averages and optimizer state, bit
for bit. Two kills in five come as soon as a half-written state is seen, one within the first ten seconds, while a
process starts and compiles, the others within two seconds of its first state. States are written every other step; a
step accumulates two batches, an epoch is no whole number of steps, and the network has dropout. With --ranks 2, one of
the two is killed, now this, now that one: the job must then end by itself and say which it was. Exit status 1 where
anything differs.
"""

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

from palette_ms import errors
from palette_ms.errors import UserError
from palette_ms.training.loop import find_state

CONFIG = {
    "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": [],
              "dropout": 0.2},
    "diffusion": {"prediction": "v", "noise_levels": "cosine", "test_schedule": {"num_steps": 8}},
    "tasks": [{"name": "inpainting"}, {"name": "colorization"}],
    "data": {"image_size": 16, "min_scale": 0.5, "workers": 2},
    "training": {"batch_size": 2, "accumulation": 2, "learning_rate": 1e-3, "warmup_steps": 5, "log_every": 5,
                 "sample_every": 0, "save_every": 2},
}


def command(config, output, steps, ranks):
    train = ["-m", "palette_ms.train", "--config", str(config), f"training.output={output}", f"training.steps={steps}",
             "--device", "CPU", "--resume", "auto"]
    if ranks == 1:
        return [sys.executable, *train]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = f"{output}_logs"
    return [sys.executable, "-m", "palette_ms.launch", logs, "msrun", f"--worker_num={ranks}", "--join=True",
            f"--local_worker_num={ranks}", f"--master_port={port}", f"--log_dir={logs}", "python", *train]


def newest(folder):
    return max((path.name for path in folder.glob("state_*.safetensors")), default=None)


def is_writing(folder):
    return any(name.endswith(".part") for name in os.listdir(folder)) if folder.exists() else False


def wait_for(condition, process, seconds):
    """Until the condition holds; raises UserError where the process ends by itself."""
    while not condition():
        if process.poll() is not None:
            raise UserError(f"training ended by itself with status {process.returncode}; see its stderr")
        time.sleep(seconds)


def rank_process(process, rank):
    """The process of a rank, which leads a session of its own, or None: not started yet."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if os.getsid(child.pid) == child.pid and child.environ().get("RANK_ID") == str(rank):
                return child
        except (psutil.Error, ProcessLookupError):
            pass
    return None


def kill(process, ranks, rank, log):
    """SIGKILL to a process, or to one of its ranks, after which the others must end as well, with a word about it."""
    if ranks == 1:
        process.kill()
        process.wait()
        return
    wait_for(lambda: rank_process(process, rank), process, 0.05)
    rank_process(process, rank).kill()
    try:
        status = process.wait(60)
    except subprocess.TimeoutExpired:
        raise UserError(f"a minute after rank {rank} was killed, the job has not ended") from None
    log.flush()
    said = Path(log.name).read_text(errors="replace").count(f"rank {rank} was killed by SIGKILL")
    if status != 137 or not said:
        raise UserError(f"rank {rank} was killed: the job ended with status {status}"
                        f"{'' if said else ' and without naming it'}; see {log.name}")


def differences(one, other):
    """Names of the tensors in which two training states differ."""
    names = []
    for group in ("weights", "ema", "optimizer"):
        a, b = (state.tensors(group) for state in (one, other))
        names += [f"{group}.{name}" for name in a.keys() | b.keys()
                  if name not in a or name not in b or a[name].tobytes() != b[name].tobytes()]
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/killed"))
    args = parser.parse_args()
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # msrun, and its Python
    shutil.rmtree(args.folder, ignore_errors=True)
    (args.folder / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(args.seed)
    for number in range(7):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        small.resize((48, 40), Image.BICUBIC).save(args.folder / "pictures" / f"{number}.png")
    config = args.folder / "config.yaml"
    CONFIG["data"]["path"] = str(args.folder / "pictures")
    config.write_text(yaml.safe_dump(CONFIG))

    moments, killed = random.Random(args.seed), args.folder / "killed"
    halves = 0
    for number in range(args.kills):
        # A file for each process, so that what is said of a killed rank is of this one.
        log = open(args.folder / f"stderr_{number + 1}.txt", "w", encoding="utf-8")
        process = subprocess.Popen(command(config, killed, 10**6, args.ranks), stdout=subprocess.DEVNULL, stderr=log)
        moment, rank = moments.random(), moments.randrange(args.ranks)
        if moment < 0.2:
            time.sleep(moments.uniform(0, 10))
        else:
            before = newest(killed)
            wait_for(lambda: newest(killed) != before, process, 0.01)  # noqa: B023  called here and now
            if moment < 0.6:
                rank = 0  # which writes
                wait_for(lambda: is_writing(killed), process, 0)
            else:
                time.sleep(moments.uniform(0, 2))
        kill(process, args.ranks, rank, log)
        log.close()
        left = len(list(killed.glob("*.part")))
        halves += left
        state = find_state(killed, lambda text: print(text, flush=True))
        print(f"kill {number + 1}: newest whole state at step {state.step if state else 0}"
              f"{f', {left} half-written files' if left else ''}", flush=True)
    reached = find_state(killed, print)
    steps = reached.step + 2 if reached else 2
    for output in (killed, args.folder / "whole"):
        with open(args.folder / f"stderr_{output.name}.txt", "w", encoding="utf-8") as log:
            run = command(config, output, steps, args.ranks)
            subprocess.run(run, stdout=subprocess.DEVNULL, stderr=log, check=True)
    end = [find_state(output, print) for output in (killed, args.folder / "whole")]
    names = differences(*end)
    if names or end[0].step != end[1].step:
        print(f"different: {len(names)} tensors ({', '.join(sorted(names)[:3])} …), steps {end[0].step}, {end[1].step}")
        sys.exit(1)
    print(f"{args.kills} kills, {args.ranks} rank{'s' * (args.ranks > 1)}, {halves} of them in the middle of a write: "
          f"equal to the bit at step {steps}")


if __name__ == "__main__":
    errors.run(main)
