"""python -m palette_ms.export: write a checkpoint's network, or a whole chain, for other programs to run."""

import argparse
import functools
import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np

from palette_ms import errors, runtime
from palette_ms.data.files import expand, replacing
from palette_ms.diffusion.preconditioning import around_network
from palette_ms.errors import UserError
from palette_ms.tasks.imports import add_import

FORMATS = (".onnx", ".mindir")
MOST_BYTES = 2**31 - 2**20  # of an ONNX file, which is one protocol buffer, less what the graph takes
TOLERANCE = 1e-4  # of the file's answer, relative to the Cell's: other orders of summation in float32 stay well below


def main():
    parser = argparse.ArgumentParser(
        prog="python -m palette_ms.export", description=__doc__,
        epilog="An ONNX file takes pictures of any size, and any number of them; a MINDIR file one size and number. It "
               "is run before it is put in its place, and must give what the network gives here. docs/export.md tells "
               "what its inputs are.")
    parser.add_argument("--ckpt", required=True, help="checkpoint (.safetensors), or photo: the model that ships")
    parser.add_argument("--output", required=True, type=expand, help="the file to write: .onnx or .mindir")
    parser.add_argument("--format", choices=[suffix[1:] for suffix in FORMATS], help="default: the output's suffix")
    parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="MINDIR: of the pictures (default: as trained)")
    parser.add_argument("--batch", type=int, help="MINDIR: pictures at once (default: 1)")
    parser.add_argument("--chain", action="store_true", help="MINDIR: the whole chain instead of one network call")
    parser.add_argument("--task", help="of the chain, where the model knows several")
    parser.add_argument("--sampler", help="of the chain (default: what the checkpoint says is best)")
    parser.add_argument("--steps", type=int, help="of the chain (default: what the checkpoint says is best)")
    add_import(parser)
    args = parser.parse_args()
    suffix = f".{args.format}" if args.format else args.output.suffix
    if suffix not in FORMATS or args.output.suffix != suffix:
        raise UserError(f"--output {args.output} must end in {suffix if args.format else ' or '.join(FORMATS)}")
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; it must be a file")
    if args.chain and suffix != ".mindir":
        raise UserError("--chain is for MINDIR: an ONNX file holds one network call")
    if not args.chain and (args.task or args.sampler or args.steps):
        raise UserError("--task, --sampler and --steps say which chain to export: add --chain")
    if suffix == ".onnx" and (args.size or args.batch is not None):
        raise UserError("--size and --batch are for MINDIR: an ONNX file takes pictures of any size and number")
    if args.batch is not None and args.batch < 1:
        raise UserError("--batch must be at least 1")

    from palette_ms.pipeline import Palette

    obstacle = runtime.runtime_obstacle("onnx") if suffix == ".onnx" else None
    if obstacle:
        raise UserError(f"{obstacle}; --format mindir does without")
    palette = Palette.load(args.ckpt, "CPU", "mindspore")
    side, batch, multiple = palette.config.data.image_size, args.batch or 1, palette.network.multiple
    height, width = parse_size(args.size, multiple) if args.size else (side, side)
    if suffix == ".onnx":  # all sizes are in the file, and a small one tells whether it is right
        height, width, batch = 2 * multiple, 3 * multiple, 2
    if args.chain:
        cell = palette.chain(args.task, batch, args.sampler, args.steps)
        inputs = chain_inputs(cell, palette.config.data.channels, batch, height, width)
    else:
        from palette_ms.diffusion.cells import Exported

        model, cell = palette.config.model, palette.unet
        if model.text_channels is not None or model.source_noise:
            cell = Exported(cell, model).set_train(False)
        inputs = network_inputs(palette.config, batch, height, width)
    how = functools.partial(write_onnx, palette) if suffix == ".onnx" else functools.partial(write_mindir, cell, inputs)
    write(how, cell, inputs, args.output)
    for name, array in inputs.items():
        free = array.shape
        if suffix == ".onnx":
            free = ("N", array.shape[1], "H", "W") if name == "x" else ("N", *array.shape[1:])
        print(f"{name}: {array.dtype} ({', '.join(map(str, free))})")
    print(args.output)


def parse_size(text, multiple):
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UserError(f"--size {text!r} is not of the form 256x256")
    if int(height) % multiple or int(width) % multiple:
        raise UserError(f"--size {text}: height and width must be multiples of {multiple}, which this network divides")
    return int(height), int(width)


def network_inputs(config, batch, height, width):
    """Arrays to try a network with, by the names of its inputs, in order."""
    rng, model = np.random.default_rng(0), config.model
    told = rng.random(batch, np.float32)
    inputs = {"x": rng.standard_normal((batch, model.in_channels, height, width), np.float32),
              "gamma": told if config.diffusion.time_input == "gamma" else np.floor(1000 * told)}
    if model.num_classes is not None:
        inputs["label"] = rng.integers(0, model.num_classes, batch).astype(np.int32)
    if model.text_channels is not None:
        inputs["text"] = rng.standard_normal((batch, model.text_length, model.text_channels), np.float32)
        inputs["text"][:, model.text_length // 2:] = 0
    if model.source_noise:
        inputs["source_noise"] = rng.random(batch, np.float32)
    return inputs


def chain_inputs(cell, channels, batch, height, width):
    """Arrays to try a `WholeChain` with, by the names of its inputs, in order: a hole in the middle of a picture."""
    rng = np.random.default_rng(0)
    shape = batch, channels.target, height, width
    mask = np.zeros((batch, 1, height, width), np.float32)
    mask[..., height // 4:-(height // 4) or None, width // 4:-(width // 4) or None] = 1
    arrays = {"y_T": rng.standard_normal(shape, np.float32), "mask": mask, "y_0": rng.uniform(-1, 1, shape),
              "cond": rng.uniform(-1, 1, (batch, channels.source, height, width)),
              "noise": rng.standard_normal((cell.num_steps, *shape), np.float32)}
    return {name: arrays[name].astype(np.float32) for name in cell.inputs}


def write_onnx(palette, path):
    """Write the network with its weights; those of more than 2 GB, which an ONNX file cannot hold, into a second file
    beside it."""
    import onnx

    from palette_ms.unet.onnx import write

    model = palette.config.model
    graph, outputs = write(model, around_network(palette.config.diffusion, model.out_channels))
    weights = {name: parameter.asnumpy() for name, parameter in palette.network.parameters_and_names()}
    large = sum(array.nbytes for array in weights.values()) > MOST_BYTES
    onnx.save_model(graph.model(outputs, weights), str(path), save_as_external_data=large, location=f"{path.name}.data")


def write_mindir(cell, inputs, path):
    """Write a Cell by MindSpore's exporter, for the inputs' sizes.

    More than a gigabyte of weights MindSpore writes into a folder beside the file.
    """
    import mindspore as ms

    from palette_ms.unet.layers import use_device_kernels

    use_device_kernels(cell, False)
    try:
        ms.export(cell, *map(ms.Tensor, inputs.values()), file_name=str(path), file_format="MINDIR")
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"MindSpore {ms.__version__} cannot export this network to MINDIR: "
                        f"{str(error).splitlines()[0]}") from None
    finally:
        use_device_kernels(cell, True)


def scratch_folder():
    """A new temporary folder whose path MindSpore writes files to: it takes no spaces and few other characters."""
    folders = [folder for folder in (gettempdir(), "/tmp", "/var/tmp", "/dev/shm")
               if re.fullmatch(r"[\w./-]+", folder, re.A) and os.access(folder, os.W_OK | os.X_OK)]
    return TemporaryDirectory(dir=folders[0] if folders else None)


def write(how, cell, inputs, path):
    """Write a file by a function of its path, run it, and put it in its place where it says what the Cell says."""
    from mindspore import Tensor

    with scratch_folder() as scratch:
        # MindSpore takes few signs in names; what is written beside the file has a name that this one holds.
        exported = Path(scratch) / re.sub(r"[^A-Za-z0-9_.-]", "_", path.name)
        expected = cell(*map(Tensor, inputs.values())).asnumpy()
        how(exported)
        # The weights' folder or file, then the graph; MindSpore adds a suffix where it finds none.
        written = sorted(Path(scratch).iterdir(), key=lambda file: file.suffix in FORMATS)
        graph = written[-1]
        error = np.linalg.norm(answer(graph, list(inputs.values())) - expected) / np.linalg.norm(expected)
        if not error < TOLERANCE:
            raise UserError(f"the exported file does not say what the network says (relative error {error:.1e}), and "
                            "was not kept")
        try:
            for file in written:
                put(file, path if file == graph else path.with_name(file.name))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None


def answer(path, arrays):
    """What an exported file says to arrays."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, dict(zip((node.name for node in session.get_inputs()), arrays)))[0]
    import mindspore as ms

    return ms.nn.GraphCell(ms.load(str(path)))(*map(ms.Tensor, arrays)).asnumpy()


def put(source, path):
    """Copy a file, or a folder of a MINDIR's weights, to its place, whole or not at all.

    Raises:
        UserError: a folder of that name holds something else, or a file for an ONNX file's weights is of none.
    """
    if not source.is_dir():
        if source.suffix == ".data" and path.exists() and not path.with_suffix("").exists():
            raise UserError(f"{path}, where the weights are to be, is there already: choose another --output")
        with replacing(path) as part:
            shutil.copyfile(source, part)  # without its mode: MindSpore writes files that cannot be written again
        return
    if path.exists() and not (path.is_dir() and all(re.fullmatch(r"data_\d+", file.name) for file in path.iterdir())):
        raise UserError(f"{path}, where the weights are to be, is there already: choose another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".palette_ms.", dir=path.parent) as scratch:
        part = Path(scratch) / path.name
        shutil.copytree(source, part, copy_function=shutil.copyfile)
        part.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)


if __name__ == "__main__":
    errors.run(main)
