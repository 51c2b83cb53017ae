"""This project beside PyTorch on the same processor: the 62.6 M network, and diffusers' UNet2DModel of the same layers.

    python benchmarks/compare_torch.py [--rounds 3] [--only "forward 64x1" …] [--programs torch …]

Each measurement runs in a process of its own, the programs taken in turn, `--rounds` times; a process gives the median
of its calls, and the table the median over the processes. A ratio is to PyTorch in float32; the second one, to the best
of PyTorch's ways: bfloat16, and either with its channels last. OpenVINO is taken in float32 and bfloat16. A training
step is forward, backward, clipping by the global norm, Adam and the average of the weights. A restoration is a process
that loads a checkpoint and takes 20 steps of the ancestral chain. "photos" are whole commands with the model that
ships, which PyTorch has no peer to: a first picture of 600 × 400, and the ratio of 12 pictures of 12 sizes to 12 of
one. PyTorch gets a virtual environment of its own, .venv-torch, on the first call; where pip is set to find PyTorch's
wheels for a CPU (PIP_EXTRA_INDEX_URL), that is a much smaller download.
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
SIZES = ("64x1", "64x4", "128x1", "256x1")  # side × batch
RESTORATIONS = ["restoration 64x1"]
CASES = [*(f"forward {size}" for size in SIZES), *(f"step {size}" for size in SIZES[:3]), *RESTORATIONS, "photos"]
PROGRAMS = {"torch": "PyTorch", "torch_last": "channels last", "torch_bf16": "bfloat16",
            "torch_bf16_last": "bfloat16, channels last", "mindspore": "MindSpore", "onnx": "ONNX Runtime",
            "openvino": "OpenVINO", "openvino_bf16": "OpenVINO bfloat16"}
TRAINING = ("torch", "mindspore")
CALLS = {"forward": 15, "step": 6}
STEPS = 20


# What runs in the processes: prepare(…) returns a function to time.


def prepare_mindspore(program, kind, side, batch, model_file):
    import dataclasses

    import numpy as np

    from palette_ms import Palette, runtime  # before MindSpore: it sets the environment

    name, _, half = program.partition("_")
    precision = "bfloat16" if half else "float32"

    if kind == "restoration":
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        palette = Palette.load(model_file, "CPU", name, precision)
        return lambda: palette.restore(image, "inpainting", "center", steps=STEPS)

    from palette_ms.config import load_config

    if name != "mindspore":
        from palette_ms.unet.onnx import shapes
        from palette_ms.unet.runtimes import Network

        model, rng = load_config(CONFIG).model, np.random.default_rng(0)
        weights = {name: 0.02 * rng.standard_normal(shape, np.float32) for name, shape in shapes(model).items()}
        network = Network(model, weights, name, precision)
        x, gamma = rng.random((batch, 6, side, side), np.float32), rng.random(batch, np.float32)
        return lambda: network(x, gamma)

    from mindspore import Tensor, nn

    from palette_ms.checkpoint import build_unet
    from palette_ms.diffusion.loss import DiffusionLoss
    from palette_ms.training.step import TrainStep

    runtime.setup("CPU", seed=0)
    model = dataclasses.replace(load_config(CONFIG).model, dropout=0.0)
    unet = build_unet(model)
    rng = np.random.default_rng(0)
    y_0, cond, noise = (Tensor(rng.standard_normal((batch, 3, side, side), np.float32)) for _ in range(3))
    x, gamma = (Tensor(rng.random(shape, np.float32)) for shape in ((batch, 6, side, side), (batch,)))
    if kind == "forward":
        unet.set_train(False)
        return lambda: unet(x, gamma).asnumpy()
    average = build_unet(model)
    for name, parameter in average.parameters_and_names():
        parameter.name = f"ema.{name}"
    optimizer = nn.Adam(unet.trainable_params(), 1e-4)
    step = TrainStep(DiffusionLoss(unet), optimizer, list(average.get_parameters())).set_train()
    return lambda: step(y_0, cond, noise, gamma)[0].asnumpy()


def prepare_torch(program, kind, side, batch, model_file):
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    if kind == "restoration":
        unet = UNet2DModel.from_pretrained(model_file).eval()
    else:
        unet = torch_unet(UNet2DModel)
    y_0, cond, noise = (torch.randn(batch, 3, side, side) for _ in range(3))
    x, gamma = torch.randn(batch, 6, side, side), torch.rand(batch)
    if "bf16" in program:
        unet, cond, noise, x = unet.bfloat16(), cond.bfloat16(), noise.bfloat16(), x.bfloat16()
    if "last" in program:
        unet, x = unet.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

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
    if program.startswith("torch"):
        call = prepare_torch(program, kind, side, batch, model_file)
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


def write_models(folder, peers):
    """Models of random weights for the restoration, one for each program, of PyTorch where `peers`."""
    code = ("import sys; sys.path.insert(0, 'benchmarks'); from compare_torch import torch_unet; "
            "from diffusers import UNet2DModel; torch_unet(UNet2DModel).save_pretrained(sys.argv[1])")
    if peers:
        subprocess.run([ENVIRONMENT / "bin/python", "-c", code, folder / "torch"], check=True, cwd=ROOT)
    code = ("import sys; from palette_ms.config import load_config; "
            "from palette_ms.checkpoint import build_unet, save_checkpoint, unet_arrays; "
            "config = load_config(sys.argv[1]); "
            "save_checkpoint(sys.argv[2], config, weights=unet_arrays(build_unet(config.model)))")
    subprocess.run([sys.executable, "-c", code, CONFIG, folder / "palette.safetensors"], check=True, cwd=ROOT)
    return {program: folder / ("torch" if program.startswith("torch") else "palette.safetensors")
            for program in PROGRAMS}


def measure(program, case, model_file):
    python = ENVIRONMENT / "bin/python" if program.startswith("torch") else sys.executable
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
    parser.add_argument("--programs", nargs="*", choices=PROGRAMS, default=list(PROGRAMS), metavar="PROGRAM",
                        help=", ".join(PROGRAMS))
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(*args.worker)
        return
    cases = [case for case in args.only if case != "photos"]
    peers = cases and any(program.startswith("torch") for program in args.programs)
    if peers and not (ENVIRONMENT / "bin/python").exists():
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([ENVIRONMENT / "bin/python", "-m", "pip", "install", "--quiet", *PEER], check=True)
    with tempfile.TemporaryDirectory() as folder:
        models = write_models(Path(folder), peers) if set(RESTORATIONS) & set(cases) else {}
        for case in cases:
            programs = [program for program in args.programs if program in TRAINING or not case.startswith("step")]
            results = {program: [] for program in programs}
            # What a restoration finds cached, the disk's pages, the first round leaves behind.
            restores = case in RESTORATIONS
            for number in range(args.rounds + restores):
                for program in programs:
                    run = measure(program, case, models.get(program, ""))
                    print(f"{case}, {program}: {run}", file=sys.stderr, flush=True)
                    if number >= restores:
                        results[program].append(run)
            tell(case, results)
        if "photos" in args.only:
            photos(Path(folder), args.rounds)


def tell(case, results):
    """Print a case's table: of each program seconds, peak memory and the time to the first result, each with its ratio
    to PyTorch and to the best of PyTorch's ways, where they were measured."""
    print(f"\n| {case} | seconds | ratio | to the best | peak memory, GB | ratio | first result, s |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    values = {program: {name: median([run[name] for run in runs]) for name in runs[0]}
              for program, runs in results.items()}
    own, best = values.get("torch"), min((one["seconds"] for program, one in values.items()
                                          if program.startswith("torch")), default=None)
    for program, one in values.items():
        ratio = f"{one['seconds'] / own['seconds']:.2f}" if own else ""
        to_best = f"{one['seconds'] / best:.2f}" if best else ""
        memory = f"{one['memory'] / own['memory']:.2f}" if own else ""
        print(f"| {PROGRAMS[program]} | {one['seconds']:.3g} | {ratio} | {to_best} | {one['memory']:.2f} | {memory} | "
              f"{one['first']:.1f} |", flush=True)


def photos(folder, rounds):
    """Time whole commands with the model that ships; see the top."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (25, 38, 3), np.uint8)).resize((600, 400), Image.BICUBIC)
    sizes = {"one": [(600, 400)], "same": [(240, 160)] * 12,
             "different": [(240 + 8 * i, 160 - 5 * i) for i in range(12)]}
    times = {name: [] for name in sizes}
    for number in range(rounds):
        for name, boxes in sizes.items():
            given = folder / f"{name}{number}"
            given.mkdir()
            for i, size in enumerate(boxes):
                picture.crop((0, 0, *size)).save(given / f"{i}.png")
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "palette_ms.sample", "--ckpt", "photo", "--input", given, "--output",
                            folder / f"out_{name}{number}", "--task", "jpeg_restoration"], check=True, cwd=ROOT,
                           env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
            times[name].append(time.perf_counter() - started)
    one, same, different = (median(times[name]) for name in sizes)
    print(f"\nphotos: one of 600 × 400 {one:.2f} s; 12 of 240 × 160 {same:.2f} s; 12 of 12 sizes, as large together, "
          f"{different:.2f} s, {different / same:.2f} of that")


if __name__ == "__main__":
    main()
