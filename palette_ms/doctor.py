"""python -m palette_ms.doctor: what is installed here, what computes, and what is missing for the rest."""

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys

import palette_ms
from palette_ms import errors, runtime
from palette_ms.check_ascend import cann_and_mindspore, wanted_chips

_NEEDED = ("numpy", "scipy", "pillow", "opencv-python-headless", "pyyaml", "safetensors", "tifffile",
           "tqdm")
_MINDSPORE = "mindspore>=2.7,<2.11"
# What each extra of the installation is for: package, extra, purpose.
_EXTRAS = (("onnxruntime", "onnx", "faster pictures on a CPU"),
           ("openvino", "openvino", "faster pictures on a CPU"),
           ("gradio", "web", "a page in the browser to restore pictures in"),
           ("imagecodecs", "tiff", "TIFFs compressed by LZW, JPEG or Zstandard"),
           ("tensorboard", "tensorboard", "curves of a training"),
           ("huaweicloudsdkmodelarts", "modelarts", "submitting jobs to ModelArts"))
_FORMATS = ("avif", "webp", "jpg_2000")  # that Pillow reads where it was built so


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.doctor", description=__doc__)
    parser.parse_args()
    missing = []
    print(f"palette_ms {palette_ms.__version__}, Python {platform.python_version()} ({sys.executable}), "
          f"{platform.system()} {platform.machine()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores, {runtime.memory() / 2**30:.1f} GiB of memory, of which pictures may take "
          f"{runtime.max_memory() / 2**30:.1f} (--max-memory)")
    found = {package: version(package) for package in _NEEDED}
    print(", ".join(f"{package} {number}" for package, number in found.items() if number))
    missing += [f"{package}: pip install {package}" for package, number in found.items() if not number]
    mindspore = version("mindspore")
    print(f"mindspore {mindspore}" if mindspore else "mindspore: not installed; training, cards and --runtime "
                                                     f"mindspore need it: pip install '{_MINDSPORE}'")
    if not mindspore and not (version("onnx") and (version("openvino") or version("onnxruntime"))):
        missing.append(f"what computes: pip install '{_MINDSPORE}', or onnx openvino for restoring on a CPU alone")
    for package, extra, purpose in _EXTRAS:
        number = version(package)
        print(f"{package} {number}" if number else f"{package}: not installed; for {purpose}: pip install "
                                                   f"'palette_ms[{extra}]'")
    if found["pillow"]:
        from PIL import features

        lacking = [name for name in _FORMATS if not features.check(name)]
        if lacking:
            print(f"this Pillow does not read {', '.join(lacking)}: a newer one may")
    if shutil.which("npu-smi") or os.environ.get("ASCEND_HOME_PATH") or os.path.isdir("/usr/local/Ascend"):
        chips, problems = wanted_chips(1)
        problems += [*cann_and_mindspore()]
        print("Ascend: " + (", ".join(map(str, chips)) or "no chip that can be used"))
        missing += [f"Ascend: {problem.text}" for problem in problems]
    else:
        print("Ascend: neither driver (npu-smi) nor CANN is here: docs/ascend.md begins with a bare server")
    if mindspore:
        runtime.setup("auto")  # which says what it takes
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    sys.exit(errors.MISTAKE if missing else 0)


def version(package):
    """Of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    errors.run(main)
