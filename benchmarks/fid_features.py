"""Pictures a second through FID's Inception, beside pytorch-fid on the same processor.

    python benchmarks/fid_features.py [--torch-python PYTHON] [--pictures 64] [--rounds 3]

Both resize pictures of 256×256 and compute their 2048 features, in batches of 16, with weights that are drawn by the
tensors' names; each program in a process of its own, in turn. pytorch-fid (0.3.0) and PyTorch may be installed for
another Python, which --torch-python names.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

KEYS = Path(__file__).parents[1] / "tests" / "data" / "fid_inception.npz"
BATCH = 16


def drawn():
    """The network's tensors by name."""
    tensors = {}
    for name, shape in json.loads(str(np.load(KEYS)["keys"])):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) == 4:
            tensors[name] = rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        else:
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return tensors


def pictures(number):
    return list(np.random.default_rng(0).integers(0, 256, (number, 256, 256, 3), np.uint8))


def ours(number):
    """(pictures a second, features)."""
    from palette_ms import runtime
    from palette_ms.evaluation.networks import features
    from palette_ms.evaluation.views import VIEWS
    from palette_ms.evaluation.weights import PUBLISHED
    from palette_ms.torch_weights.files import write_pth

    runtime.setup("CPU")
    with tempfile.TemporaryDirectory() as folder:
        write_pth(Path(folder) / PUBLISHED["inception"].name, drawn())
        view = VIEWS["inception"](folder)
        given = pictures(number)
        view(given[:BATCH])  # the export, or compiling
        start = time.perf_counter()
        said = features(view(given))
        return number / (time.perf_counter() - start), said


def theirs(number):
    """(pictures a second, features)."""
    import torch
    from pytorch_fid import inception

    inception.load_state_dict_from_url = lambda *_, **__: {name: torch.tensor(array) for name, array in drawn().items()}
    network = inception.InceptionV3([3]).eval()
    given = torch.tensor(np.stack(pictures(number)).transpose(0, 3, 1, 2)).float() / 255
    with torch.no_grad():
        network(given[:BATCH])
        start = time.perf_counter()
        said = torch.cat([network(given[i:i + BATCH])[0] for i in range(0, number, BATCH)])[..., 0, 0].numpy()
        return number / (time.perf_counter() - start), said


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--features", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        speed, said = globals()[args.run](args.pictures)
        np.save(args.features, said)
        print(speed)
        return
    speeds = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for name, python in (("ours", sys.executable), ("theirs", args.torch_python)):
                done = subprocess.run([python, __file__, "--run", name, "--pictures", str(args.pictures), "--features",
                                       f"{folder}/{name}.npy"], capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                speeds[name].append(float(done.stdout.split()[-1]))
        a, b = (np.load(f"{folder}/{name}.npy") for name in speeds)
    print(f"relative difference of the features: {np.linalg.norm(a - b) / np.linalg.norm(b):.1e}")
    for name, several in speeds.items():
        print(f"{name}: {np.median(several):.1f} pictures a second ({', '.join(f'{speed:.1f}' for speed in several)})")
    ratios = np.divide(*speeds.values())
    print(f"ratio, of each round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; median {np.median(ratios):.2f}")


if __name__ == "__main__":
    main()
