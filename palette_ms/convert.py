"""python -m palette_ms.convert: take in a PyTorch checkpoint, or write one."""

import argparse
import sys
from pathlib import Path

from palette_ms import errors
from palette_ms.data.files import expand, identity
from palette_ms.errors import UserError
from palette_ms.tasks.imports import add_import


def main():
    parser = argparse.ArgumentParser(
        prog="python -m palette_ms.convert", description=__doc__,
        epilog="PyTorch is not needed, and nothing that a .pth file asks for is run.")
    parser.add_argument("--input", required=True, type=expand,
                        help=".pth, .pt or .safetensors of the PyTorch Palette port or of guided-diffusion; "
                             "MindSpore's .ckpt with its YAML beside it, or PyTorch's; with --to torch: a checkpoint "
                             "of this program")
    parser.add_argument("--output", required=True, type=expand, help="the file to write")
    parser.add_argument("--to", choices=("palette_ms", "torch"), default="palette_ms",
                        help="torch: write the state dict that the PyTorch program loads")
    parser.add_argument("--arch", choices=("palette", "adm"), help="default: by the names of the tensors")
    parser.add_argument("--config", help="the PyTorch program's config: the port's JSON, guided-diffusion's flags (as "
                                         "text or in a file), or its arguments as JSON or YAML; or a YAML of this "
                                         "program; default: what the tensors tell")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="a value of this program's config, such as model.num_head_channels=64")
    add_import(parser)
    args = parser.parse_intermixed_args()
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; it must be a file")
    for given in (args.input, args.config and Path(args.config)):
        if given and identity(args.output) == identity(given) is not None:
            raise UserError(f"--output {args.output} is the input: choose another name")

    from palette_ms.checkpoint import Checkpoint, save_checkpoint
    from palette_ms.torch_weights.conversion import convert, export
    from palette_ms.torch_weights.files import is_torch

    if args.to == "torch":
        if args.config or args.arch or args.overrides:
            raise UserError("with --to torch the checkpoint tells everything: leave --arch, --config and key=value out")
        export(Checkpoint(args.input), args.output)
    else:
        if args.output.suffix != ".safetensors":
            raise UserError(f"--output {args.output} must end in .safetensors")
        if args.input.suffix == ".ckpt" and not is_torch(args.input):
            checkpoint = Checkpoint(args.input)
            checkpoint.load_unet()  # all tensors are there and fit
            save_checkpoint(args.output, checkpoint.config, weights=checkpoint.tensors("weights"),
                            source=f"converted from {checkpoint.source}")
        else:
            converted = convert(args.input, args.arch, args.config, args.overrides)
            for note in converted.notes:
                print(f"note: {note}", file=sys.stderr)
            save_checkpoint(args.output, converted.config, weights=converted.weights, source=converted.source)
    print(args.output)


if __name__ == "__main__":
    errors.run(main)
