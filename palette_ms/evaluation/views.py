"""What published networks say of pictures: the networks with their weights, and how a picture is prepared for each."""

import importlib.util
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import mindspore as ms
import numpy as np
from mindspore import Tensor
from PIL import Image

from palette_ms.errors import UserError
from palette_ms.evaluation.backbones import Inception, Lpips, ResNet50
from palette_ms.evaluation.weights import open_weights
from palette_ms.runtime import device, processors

_BATCH, _SESSIONS = 16, 2
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


class _Exported:
    """A Cell in ONNX Runtime, whose convolutions on a CPU are faster: exported when a size first comes, the last two of
    which are kept. The pictures of a batch are computed side by side."""

    def __init__(self, cell):
        self.cell = cell
        self.sessions = OrderedDict()  # by shape of a picture

    def __call__(self, x):
        """(N, C, H, W) → list of arrays."""
        x = x.asnumpy()
        workers = min(len(x), processors())
        session = self._session(x[:1], processors() // workers)
        name = session.get_inputs()[0].name
        with ThreadPoolExecutor(workers) as pool:
            made = list(pool.map(lambda i: session.run(None, {name: x[i:i + 1]}), range(len(x))))
        return [np.concatenate(parts) for parts in zip(*made)]

    def _session(self, example, threads):
        import onnxruntime

        key = example.shape, threads
        if key not in self.sessions:
            onnxruntime.set_default_logger_severity(3)  # errors alone
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            with TemporaryDirectory() as folder:
                path = Path(folder) / "network.onnx"
                # MindSpore changes the graph that it keeps of a Cell and a size: a second export needs another Cell.
                ms.export(_Once(self.cell).set_train(False), Tensor(example), file_name=str(path), file_format="ONNX")
                self.sessions[key] = onnxruntime.InferenceSession(str(path), options,
                                                                  providers=["CPUExecutionProvider"])
            if len(self.sessions) > _SESSIONS:
                self.sessions.popitem(last=False)
        self.sessions.move_to_end(key)
        return self.sessions[key]


class _Once(ms.nn.Cell):
    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell

    def construct(self, x):
        return self.cell(x)


class View:
    """A network with its weights, called on pictures.

    Args:
        names: of its files, see `palette_ms.evaluation.weights.PUBLISHED`.
        folder: where they are, or None.
        build: function of their tensors → the Cell.
        prepare: function of a picture, uint8 (H, W, 3) → float32 (h, w, 3), the Cell's input.

    Attributes:
        digests: SHA-256 of the files by their names.
        tensors: of the first file.

    Raises:
        UserError: see `open_weights`; tensors of another network.
    """

    def __init__(self, names, folder, build, prepare):
        tensors, self.digests, path = open_weights(names, folder)
        self.tensors, self.prepare = tensors[0], prepare
        try:
            cell = build(*tensors).set_train(False)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        fast = device() == "CPU" and importlib.util.find_spec("onnxruntime") is not None
        self.run = _Exported(cell) if fast else cell

    def __call__(self, pictures):
        """What the network says of pictures, uint8 (H, W, 3): a list of arrays, one for each."""
        prepared = [self.prepare(picture).transpose(2, 0, 1) for picture in pictures]
        said = [None] * len(pictures)
        for shape in dict.fromkeys(array.shape for array in prepared):
            places = [i for i, array in enumerate(prepared) if array.shape == shape]
            for begin in range(0, len(places), _BATCH):
                group = places[begin:begin + _BATCH]
                made = self.run(Tensor(np.stack([prepared[i] for i in group])))
                made = made if isinstance(made, (tuple, list)) else [made]
                made = np.concatenate([part.asnumpy() if isinstance(part, Tensor) else part for part in made], 1)
                for i, row in zip(group, made):
                    said[i] = row
        return said


def bilinear(picture):
    """As pytorch-fid resizes within its network: bilinear without antialiasing. In [−1, 1], (299, 299, 3)."""
    return 2 * cv2.resize(np.float32(picture) / 255, (299, 299), interpolation=cv2.INTER_LINEAR) - 1


def clean(picture):
    """As clean-fid resizes (Parmar et al. 2022, arXiv 2104.11222): bicubic with antialiasing, not rounded.
    (299, 299, 3)."""
    channels = [Image.fromarray(channel).resize((299, 299), Image.BICUBIC)
                for channel in np.float32(picture).transpose(2, 0, 1)]
    return (np.clip(np.stack(channels, -1), 0, 255) - 128) / 128


def for_resnet(picture):
    """As torchvision prepares pictures for the first weights of its ResNet-50: the shorter side 256, the middle 224."""
    image = Image.fromarray(picture)
    width, height = image.size
    shorter = min(width, height)
    width, height = (side * 256 // shorter for side in (width, height))
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    middle = np.float32(image.resize((width, height), Image.BILINEAR))[top:top + 224, left:left + 224]
    return (middle / 255 - _IMAGENET_MEAN) / _IMAGENET_STD


def for_lpips(picture):
    """In [−1, 1]."""
    return np.float32(picture) / 127.5 - 1


def _lpips(net):
    return lambda folder: View([net, f"lpips_{net}"], folder,
                               lambda tensors, linear: Lpips(net, tensors, linear), for_lpips)


VIEWS = {
    "inception": lambda folder: View(["inception"], folder, Inception, bilinear),
    "clean": lambda folder: View(["inception"], folder, Inception, clean),
    "resnet50": lambda folder: View(["resnet50"], folder, ResNet50, for_resnet),
    "alex": _lpips("alex"),
    "vgg": _lpips("vgg"),
}
