"""What published networks say of pictures: the networks with their weights, and how a picture is prepared for each."""

import cv2
import numpy as np
from mindspore import Tensor
from PIL import Image

from palette_ms.errors import UserError
from palette_ms.evaluation.backbones import Inception, Lpips, ResNet50
from palette_ms.evaluation.weights import open_weights
from palette_ms.runtime import takes_onnx
from palette_ms.unet.onnx import OnnxCell

_BATCH = 16
_IMAGENET_MEAN, _IMAGENET_STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


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
        size = sum(array.nbytes for array in tensors[0].values())
        self.run = OnnxCell(cell, path, str(self.digests), required=False) if takes_onnx("auto", size) else cell

    def __call__(self, pictures):
        """What the network says of pictures, uint8 (H, W, 3): a list of arrays, one for each."""
        prepared = [self.prepare(picture).transpose(2, 0, 1) for picture in pictures]
        said = [None] * len(pictures)
        for shape in dict.fromkeys(array.shape for array in prepared):
            places = [i for i, array in enumerate(prepared) if array.shape == shape]
            for begin in range(0, len(places), _BATCH):
                group = places[begin:begin + _BATCH]
                made = self.run(Tensor(np.stack([prepared[i] for i in group])))
                made = np.concatenate([part.asnumpy() for part in (made if isinstance(made, tuple) else (made,))], 1)
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
    scale = 256 / min(width, height)
    width, height = (256 if side == min(width, height) else int(side * scale) for side in (width, height))
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
