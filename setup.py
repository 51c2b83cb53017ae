from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    # What CANN's own Python parts import and do not bring with them, by its installation guide; but for protobuf, of
    # which that has 3.20 and MindSpore 2.10 wants 7.34 or later.
    "ascend": ["absl-py", "attrs", "cffi>=1.12.3", "cython", "decorator>=4.4", "pathlib2", "psutil", "requests",
               "sympy>=1.5.1"],
    "benchmarks": ["matplotlib", "scikit-image"],
    "modelarts": ["huaweicloudsdkmodelarts"],
    "onnx": ["onnxruntime"],
    "quickstart": ["onnxruntime", "pillow>=10.1", "scikit-image"],  # Pillow draws text of any size since 10.1
    "tensorboard": ["tensorboard"],
    "tests": ["huaweicloudsdkmodelarts", "onnxruntime", "pillow>=10.1", "pytest", "pytest-xdist>=3.8", "ruff",
              "scikit-image", "tensorboard"],
    "tiff": ["imagecodecs"],  # for TIFF compressed by LZW, JPEG, Zstandard …
}

setup(
    name="palette_ms",
    version="0.1.0",
    description="Palette, image-to-image diffusion models, on MindSpore for Ascend NPUs and CPUs",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",  # of the code; NOTICE has what holds for the weights
    license_files=["LICENSE", "NOTICE", "docs/photo_data.csv"],
    packages=find_packages(include=["palette_ms", "palette_ms.*"]),
    package_data={"palette_ms": ["models/*.safetensors", "models/*.json"]},
    python_requires=">=3.9,<3.13",
    install_requires=[
        "mindspore>=2.7,<2.11",
        "numpy<2",  # some of MindSpore's eager operators fail with NumPy 2
        "scipy",
        "pillow>=9.1",
        "opencv-python-headless<4.12",  # later ones need NumPy 2
        "pyyaml",
        "safetensors>=0.4",
        "tifffile",
        "tqdm",
    ],
    extras_require=EXTRAS,
)
