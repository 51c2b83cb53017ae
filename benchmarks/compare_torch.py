"""This project beside PyTorch on the same processor: the 62.6 M network, and diffusers' UNet2DModel of the same layers.

    python benchmarks/compare_torch.py [--rounds 3] [--only "forward 64x1" …]

Each measurement runs in a process of its own, the programs taken in turn, `--rounds` times; a process gives the median
of its calls, and the table the median over the processes. Ratios are to PyTorch. A training step is forward, backward,
clipping by the global norm, Adam and the average of the weights. A restoration is a process that loads a checkpoint and
takes 20 steps of the ancestral chain; the first of each program, which exports the network, is not counted. PyTorch
gets a virtual environment of its own, .venv-torch, on the first call; where pip is set to find PyTorch's wheels for a
CPU (PIP_EXTRA_INDEX_URL), that is a much smaller download.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-torch"
PEER = ["torch==2.13.0", "diffusers==0.42.1", "numpy"]
CONFIG = ROOT / "configs" / "palette_62m.yaml"
SIZES = ("64x1", "64x4", "128x1")  # side × batch
RESTORATIONS = ["restoration 64x1"]
CASES = [f"{kind} {size}" for kind in ("forward", "step") for size in SIZES] + RESTORATIONS
CALLS = {"forward": 15, "step": 6}
STEPS = 20


# What runs in the processes: prepare(…) returns a function to time.


def prepare_mindspore(program, kind, side, batch, model_file):
    import dataclasses

    import numpy as np

    from palette_ms import Palette, runtime  # before MindSpore: it sets the environment

    if kind == "restoration":
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        palette = Palette.load(model_file, "CPU", program)
        return lambda: palette.restore(image, "inpainting", "center", steps=STEPS)

    from mindspore import Tensor, nn

    from palette_ms.checkpoint import build_unet
    from palette_ms.config import load_config
    from palette_ms.diffusion.loss import DiffusionLoss
    from palette_ms.training.step import TrainStep
    from palette_ms.unet.onnx import OnnxCell

    runtime.setup("CPU", seed=0)
    model = dataclasses.replace(load_config(CONFIG).model, dropout=0.0)
    unet = build_unet(model)
    rng = np.random.default_rng(0)
    y_0, cond, noise = (Tensor(rng.standard_normal((batch, 3, side, side), np.float32)) for _ in range(3))
    x, gamma = (Tensor(rng.random(shape, np.float32)) for shape in ((batch, 6, side, side), (batch,)))
    if kind == "forward":
        unet.set_train(False)
        if program == "onnx":
            unet = OnnxCell(unet, model_file, "")
        return lambda: unet(x, gamma).asnumpy()
    average = build_unet(model)
    for name, parameter in average.parameters_and_names():
        parameter.name = f"ema.{name}"
    optimizer = nn.Adam(unet.trainable_params(), 1e-4)
    step = TrainStep(DiffusionLoss(unet), optimizer, list(average.get_parameters())).set_train()
    return lambda: step(y_0, cond, noise, gamma)[0].asnumpy()


def prepare_torch(kind, side, batch, model_file):
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    if kind == "restoration":
        unet = UNet2DModel.from_pretrained(model_file).eval()
    else:
        unet = torch_unet(UNet2DModel)
    y_0, cond, noise = (torch.randn(batch, 3, side, side) for _ in range(3))
    x, gamma = torch.randn(batch, 6, side, side), torch.rand(batch)

    @torch.inference_mode()
    def forward():
        return unet.eval()(x, gamma).sample

    @torch.inference_mode()
    def restoration():
        scheduler, y_t = DDPMScheduler(1000), noise
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            y_t = scheduler.step(unet(torch.cat((cond, y_t), 1), t).sample, t, y_t).prev_sample
        return y_t

    weights = list(unet.parameters())
    average = [weight.detach().clone() for weight in weights] if kind == "step" else []
    optimizer = torch.optim.Adam(weights, 1e-4)

    def step():
        level = gamma.reshape(-1, 1, 1, 1)
        y_t = level.sqrt() * y_0 + (1 - level).sqrt() * noise
        loss = torch.nn.functional.mse_loss(unet(torch.cat((cond, y_t), 1), gamma).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1e-4)
        return loss.item()

    return {"forward": forward, "step": step, "restoration": restoration}[kind]


def torch_unet(cls):
    return cls(in_channels=6, out_channels=3, block_out_channels=(64, 128, 256, 512), layers_per_block=2,
               down_block_types=("ResnetDownsampleBlock2D",) * 4, up_block_types=("ResnetUpsampleBlock2D",) * 4,
               resnet_time_scale_shift="scale_shift", attention_head_dim=32, norm_num_groups=32)


def worker(program, case, model_file, started):
    """Measure one case and print it as a line of JSON: seconds, first (seconds), memory (GB)."""
    kind, size = case.split()
    side, batch = map(int, size.split("x"))
    if program == "torch":
        call = prepare_torch(kind, side, batch, model_file)
    else:
        call = prepare_mindspore(program, kind, side, batch, model_file)
    call()
    first = time.time() - float(started)
    times = []
    for _ in range(CALLS.get(kind, 0)):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    seconds = sorted(times)[len(times) // 2] if times else first
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "first": first, "memory": memory}))


# What takes them in turn


def write_models(folder):
    """Models of random weights for the restoration, one for each program."""
    code = ("import sys; sys.path.insert(0, 'benchmarks'); from compare_torch import torch_unet; "
            "from diffusers import UNet2DModel; torch_unet(UNet2DModel).save_pretrained(sys.argv[1])")
    subprocess.run([ENVIRONMENT / "bin/python", "-c", code, folder / "torch"], check=True, cwd=ROOT)
    code = ("import sys; from palette_ms.config import load_config; "
            "from palette_ms.checkpoint import build_unet, save_checkpoint, unet_arrays; "
            "config = load_config(sys.argv[1]); "
            "save_checkpoint(sys.argv[2], config, weights=unet_arrays(build_unet(config.model)))")
    subprocess.run([sys.executable, "-c", code, CONFIG, folder / "palette.safetensors"], check=True, cwd=ROOT)
    return {"torch": folder / "torch", "mindspore": folder / "palette.safetensors",
            "onnx": folder / "palette.safetensors"}


def measure(program, case, model_file):
    python = ENVIRONMENT / "bin/python" if program == "torch" else sys.executable
    command = [python, __file__, "--worker", program, case, str(model_file), str(time.time())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{program}, {case}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def median(values):
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", metavar="CASE", default=CASES, help=", ".join(CASES))
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(*args.worker)
        return
    if not (ENVIRONMENT / "bin/python").exists():
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([ENVIRONMENT / "bin/python", "-m", "pip", "install", "--quiet", *PEER], check=True)
    print("| | PyTorch | MindSpore | ratio | ONNX Runtime | ratio |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        models = write_models(Path(folder)) if set(RESTORATIONS) & set(args.only) else {}
        for case in args.only:
            programs = ["torch", "mindspore"] + ([] if case.startswith("step") else ["onnx"])
            results = {program: [] for program in programs}
            # What a restoration finds cached (the disk's pages, the exported network) the first round leaves behind.
            restores = case in RESTORATIONS
            for number in range(args.rounds + restores):
                for program in programs:
                    with tempfile.TemporaryDirectory() as fresh:
                        run = measure(program, case, models.get(program, Path(fresh) / "palette.safetensors"))
                    print(f"{case}, {program}: {run}", file=sys.stderr, flush=True)
                    if number >= restores:
                        results[program].append(run)
            for name, unit in (("seconds", "s"), ("memory", "GB"), ("first", "s")):
                values = {program: median([run[name] for run in runs]) for program, runs in results.items()}
                cells = [f"{values['torch']:.3g} {unit}"]
                for program in programs[1:]:
                    cells += [f"{values[program]:.3g} {unit}", f"{values[program] / values['torch']:.2f}"]
                label = case if name == "seconds" else {"memory": "… peak memory", "first": "… first result"}[name]
                print(f"| {label} | {' | '.join(cells + ['', ''] * (3 - len(programs)))} |", flush=True)


if __name__ == "__main__":
    main()
