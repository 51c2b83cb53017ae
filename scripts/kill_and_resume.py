"""Kills a small training run again and again, at random moments, resumes it each time, and compares the end.

    python scripts/kill_and_resume.py [--kills 50] [--seed 0] [--folder runs/killed]

An undisturbed run and one that SIGKILL ends KILLS times must leave the same weights, averages and optimizer state, bit
for bit. One kill in five comes within the first ten seconds, while a process starts and compiles, the others within two
seconds of its first state. States are written every other step, so that some kills fall into a write; a step
accumulates two batches, and an epoch is no whole number of steps. Exit status 1 where anything differs.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from palette_ms import errors
from palette_ms.errors import UserError
from palette_ms.training.loop import find_state

CONFIG = {
    "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": []},
    "diffusion": {"prediction": "v", "noise_levels": "cosine", "test_schedule": {"num_steps": 8}},
    "tasks": [{"name": "inpainting"}, {"name": "colorization"}],
    "data": {"image_size": 16, "min_scale": 0.5, "workers": 2},
    "training": {"batch_size": 2, "accumulation": 2, "learning_rate": 1e-3, "warmup_steps": 5, "log_every": 5,
                 "sample_every": 0, "save_every": 2},
}


def command(config, output, steps):
    return [sys.executable, "-m", "palette_ms.train", "--config", str(config), f"training.output={output}",
            f"training.steps={steps}", "--resume", "auto"]


def newest(folder):
    return max((path.name for path in folder.glob("state_*.safetensors")), default=None)


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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/killed"))
    args = parser.parse_args()
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
    print(f"killing up to {args.kills} times ...", flush=True)
    halves, log = 0, open(args.folder / "stderr.txt", "w", encoding="utf-8")
    for number in range(args.kills):
        process = subprocess.Popen(command(config, killed, 10**6), stdout=subprocess.DEVNULL, stderr=log)
        if moments.random() < 0.2:
            time.sleep(moments.uniform(0, 10))
        else:
            before = newest(killed)
            while newest(killed) == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 2))
        if process.poll() is not None:
            raise UserError(f"training ended by itself; see {log.name}")
        process.kill()
        process.wait()
        left = len(list(killed.glob("*.part")))
        halves += left
        state = find_state(killed, lambda text: print(text, flush=True))
        print(f"kill {number + 1}: newest whole state at step {state.step if state else 0}"
              f"{f', {left} half-written files' if left else ''}", flush=True)
    reached = find_state(killed, print)
    steps = reached.step + 2 if reached else 2
    for output in (killed, args.folder / "whole"):
        subprocess.run(command(config, output, steps), stdout=subprocess.DEVNULL, stderr=log, check=True)
    end = [find_state(output, print) for output in (killed, args.folder / "whole")]
    names = differences(*end)
    if names or end[0].step != end[1].step:
        print(f"different: {len(names)} tensors ({', '.join(sorted(names)[:3])} …), steps {end[0].step}, {end[1].step}")
        sys.exit(1)
    print(f"{args.kills} kills, {halves} of them in the middle of a write: equal to the bit at step {steps}")


if __name__ == "__main__":
    errors.run(main)
