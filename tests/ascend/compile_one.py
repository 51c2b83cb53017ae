"""Compile a training step or a sampling chain for a simulated Ascend card, without a card and without CANN.

    python tests/ascend/compile_one.py train --config configs/palette_62m.yaml --stand-ins FOLDER [key=value …]

FOLDER comes from `python tests/ascend/stand_ins.py FOLDER`. Nothing is computed. docs/ascend.md says what it shows.
"""

import argparse
import atexit
import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[2]
# A recipe's network, narrow enough to compile in seconds.
NARROW = ("model.base_channels=32", "model.channel_mults=[1,2]", "model.num_res_blocks=1",
          "model.attention_resolutions=[2]", "model.num_head_channels=32", "data.image_size=32",
          "training.batch_size=2")


class Outcome(NamedTuple):
    """What came of compiling."""

    error: Optional[str]  # one line, or None
    kernels: Counter  # how many of each type a call launches, all branches
    memory: int  # bytes of device memory by MindSpore's plan
    seconds: float


def compile_one(what, config, overrides, stand_ins, ranks=1, log=None):
    """The `Outcome` of compiling in a process of its own, since MindSpore has one backend a process.

    Args:
        what: "train", a step; "sample", a chain and, by itself, what stands in its loop.
        config: path of a YAML file.
        overrides: strings `section.key=value`. `sampling.KEY=value`, of `palette_ms.diffusion.samplers.Sampling`,
            `sampling.tile=N` and `sampling.jit_level=O1` are for "sample", which takes precision and batch from the
            training section.
        stand_ins: folder that `stand_ins.build` made.
        ranks: how many cards train together.
        log: file for what MindSpore prints.
    """
    home = Path(stand_ins).resolve() / "cann"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "RANK_", "ASCEND_"))}
    environ = {**kept, "MS_SIMULATION_LEVEL": "1", "ASCEND_HOME_PATH": str(home), "ASCEND_OPP_PATH": str(home / "opp"),
               "LD_LIBRARY_PATH": str(home / "lib64"), "PYTHONPATH": os.pathsep.join([str(home / "python"), str(ROOT)]),
               "RANK_SIZE": str(ranks), "RANK_ID": "0"}
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, __file__, "--inside", work, what, "--config", str(Path(config).resolve())]
        done = subprocess.run([*command, *overrides], env=environ, cwd=work, text=True, errors="replace",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if log:
            Path(log).write_text(done.stdout)
        told = Path(work, "outcome.json")
        if not told.is_file():
            last = (done.stdout.strip().splitlines() or ["nothing said"])[-1]
            return Outcome(f"the process ended with status {done.returncode}: {last}", Counter(), 0, 0)
        return Outcome(kernels=_kernels(Path(work)), **json.loads(told.read_text()))


def _kernels(work):
    """As MindSpore lists them in simulation, one file a graph."""
    found = Counter()
    for path in work.rglob("execute_order/execute_order.csv"):
        with open(path, newline="") as file:
            found.update(re.sub(r".*/|-op\d.*", "", row["node_name"]) for row in csv.DictReader(file)
                         if "@kernel_graph" in row["node_info"])  # others make a Tensor before
    return found


def _inside(what, path, overrides, work):
    """In the process of its own: compile, and write what came of it."""
    told = {"error": None, "memory": 0, "seconds": 0.0}
    try:
        config, sampling = _prepare(path, overrides, work)
        began = time.monotonic()
        if what == "train":
            _train(config)
        else:
            _sample(config, sampling)
        import mindspore as ms

        told.update(memory=ms.runtime.max_memory_allocated(), seconds=round(time.monotonic() - began, 1))
    except Exception as error:
        import traceback

        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
        told["error"] = f"{type(error).__name__}: {(lines or [''])[0]}"
    Path(work, "outcome.json").write_text(json.dumps(told))
    atexit._run_exitfuncs()  # MindSpore's own writes its list of kernels
    sys.stdout.flush()
    os._exit(0)  # MindSpore's libraries would free what the stand-ins never made


def _prepare(path, overrides, work):
    """The config with a picture to read, and what it says of sampling."""
    from palette_ms import runtime
    from palette_ms.config import load_config

    # isort: split
    import yaml
    from PIL import Image

    sampling = dict(word[len("sampling."):].split("=", 1) for word in overrides if word.startswith("sampling."))
    overrides = [word for word in overrides if not word.startswith("sampling.")]
    config = load_config(path, overrides)
    picture = Path(work, "data", "a.png")
    picture.parent.mkdir()
    Image.new("RGB", [config.data.image_size] * 2, "grey").save(picture)
    Path(work, "pairs.csv").write_text("source,target\ndata/a.png,data/a.png\n")
    data = "pairs.csv" if config.tasks[0].name == "paired" else "data"
    if config.model.text_channels is not None:
        data = "captioned.mindrecord"
        _caption(picture.parent, Path(work, data), config.model.text_channels)
    config = load_config(path, [*overrides, f"data.path={work}/{data}", "data.validation=null"])
    runtime.setup("Ascend", seed=0, repeatable=True)
    return config, {key: yaml.safe_load(value) for key, value in sampling.items()}


def _caption(folder, path, channels):
    """MindRecord with a caption of two tokens for each picture, as an encoder might tell it."""
    import numpy as np

    from palette_ms.data.captions import Captions, Text
    from palette_ms.encode import Descriptions
    from palette_ms.pack import pack

    def encoder(texts, length):
        return [Text(text, np.ones((2, channels), np.float16), "0" * 16) for text in texts]

    (folder / "a.txt").write_text("grey")
    pack(folder, path, describe=Descriptions(Captions(folder), encoder, 2))


def _train(config):
    from palette_ms.checkpoint import build_unet, save_checkpoint, unet_arrays
    from palette_ms.training.loop import Trainer

    if config.refiner:
        return _train_refiner(config)
    first = config.distillation.teacher if config.distillation else config.training.init_from
    if first:
        first_config = dataclasses.replace(config, distillation=None)
        save_checkpoint(first, first_config, 1, 1, unet_arrays(build_unet(config.model)))
    trainer = Trainer(config)
    trainer.train_on(trainer.batches.batch(0))


def _train_refiner(config):
    """Of a model as the config's section says, in place of the one that it names, and of pairs that are all grey."""
    import numpy as np

    from palette_ms.checkpoint import build_unet, save_checkpoint, unet_arrays
    from palette_ms.training.refiner import RefinerTrainer

    path = "model.safetensors"
    save_checkpoint(path, dataclasses.replace(config, refiner=None), 1, 1, unet_arrays(build_unet(config.model)))
    config = dataclasses.replace(config, refiner=dataclasses.replace(config.refiner, of=path))
    count, side, channels = config.training.batch_size, config.data.image_size, config.data.channels
    trainer = RefinerTrainer(config, None)
    trainer.train_on([np.ones((count, number, side, side), np.float32) for number in (
        channels.target, channels.source, channels.target, 1)])


def _sample(config, sampling):
    """A chain that is one graph is only compiled: it would wait for a condition that nobody computes. What stands in
    its loop is then compiled and launched by itself, for the kernels and memory of a call. Other chains run."""
    import mindspore as ms
    import numpy as np
    from mindspore import nn, ops

    from palette_ms.checkpoint import build_unet
    from palette_ms.diffusion.cells import FlippedUNet, GuidedUNet, LabelledUNet, ToldUNet
    from palette_ms.diffusion.denoisers import ReusingUNet, flipped, guided
    from palette_ms.diffusion.samplers import Sampling, create_chain, create_sampler
    from palette_ms.diffusion.tiles import TiledUNet
    from palette_ms.unet.unet import DeepFeatures, FinestLevel

    class Call(nn.Cell):
        def __init__(self, chain):
            super().__init__()
            self.unet, self.update = chain.unet, chain.update

        def construct(self, time, y, base, last, older, finished, cond, mask, known, rank, noise, row):
            x = y if cond is None else ops.concat((cond, y), 1)
            return self.update(self.unet(x, time), y, base, last, older, finished, mask, known, rank, noise, row)

    tile, jit_level = sampling.pop("tile", None), sampling.pop("jit_level", None)
    sampling = Sampling(**{"sampler": "dpmpp_2m", "steps": 2 if tile or "reuse" in sampling else 16, **sampling})
    unet = build_unet(config.model)
    if config.training.precision != "float32":
        unet.use_precision(getattr(ms, config.training.precision))
    count, side = config.training.batch_size, config.data.image_size
    denoiser = unet.set_train(False)
    if sampling.reuse > 1:
        denoiser = ReusingUNet(DeepFeatures(unet), FinestLevel(unet), sampling.reuse)
    elif tile:
        denoiser = TiledUNet(unet, np.ones((1, side, side)), unet.multiple, tile)
    elif config.model.text_channels is not None or config.model.source_noise:
        text = None
        if config.model.text_channels is not None:
            text = np.ones((1, config.model.text_length, config.model.text_channels))
        denoiser = ToldUNet(denoiser, text, np.ones(1) if config.model.source_noise else None, sampling.guidance > 1)
    elif config.model.num_classes is not None:
        denoiser = LabelledUNet(unet, [0] * count * (1 + (sampling.guidance > 1)))
    whole = isinstance(denoiser, nn.Cell)
    if sampling.guidance > 1:
        denoiser = (GuidedUNet if whole else guided)(denoiser, sampling.guidance,
                                                     by_text=config.model.text_channels is not None)
    if sampling.flips > 1:
        denoiser = (FlippedUNet if whole else flipped)(denoiser, sampling.flips)
    chain, inputs = create_chain(denoiser, config.diffusion, sampling), []

    def launch(state, cond, mask, known, rank, noise, rows, calls):
        inputs.extend((*state, cond, mask, known, rank, ms.Tensor(noise[0]), ms.Tensor(rows[0])))
        chain.compile(*inputs[:-2], ms.Tensor(noise), ms.Tensor(rows), ms.Tensor(calls, ms.int32))
        return state

    if whole:
        chain.launch = launch
        if jit_level:
            chain.set_jit_config(ms.JitConfig(jit_level=jit_level))
    picture = np.zeros((count, 3, side, side), np.float32)
    source = None if config.model.in_channels == 3 else picture
    create_sampler(chain, config.diffusion, sampling)(source, picture)
    if whole:
        call = Call(chain).set_train(False)
        if jit_level:
            call.set_jit_config(ms.JitConfig(jit_level=jit_level))
        call(ms.Tensor(np.ones(count, np.float32)), *inputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "sample"))
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--stand-ins", type=Path)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--log", type=Path, help="file for what MindSpore prints")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.inside:
        _inside(args.what, args.config, args.overrides, args.inside)
    outcome = compile_one(args.what, args.config, args.overrides, args.stand_ins, args.ranks, args.log)
    if outcome.error:
        sys.exit(f"fails: {outcome.error}")
    types = ", ".join(f"{name} {number}" for name, number in outcome.kernels.most_common(12))
    print(f"compiled in {outcome.seconds:.0f} s: {sum(outcome.kernels.values())} kernels ({types} …), "
          f"{outcome.memory / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
