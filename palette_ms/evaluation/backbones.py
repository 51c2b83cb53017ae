"""The networks that metrics look through, with the weights that were published for PyTorch.

Each is made from the tensors of its file by their names there; normalisations are folded into the convolutions before
them, which computes the same. All take float32 (N, 3, H, W), scaled as the network was trained.
"""

import numpy as np
from mindspore import Tensor, nn, ops

from palette_ms.errors import UserError


class _Conv(nn.Cell):
    """A convolution with bias, and ReLU after it.

    Args:
        weight, bias: arrays (O, I, h, w) and (O,).
        stride, padding: of both axes; None, for a stride of 1: the size stays.
        relu: False: none.
    """

    def __init__(self, weight, bias, stride=1, padding=None, relu=True):
        super().__init__()
        out, channels, height, width = weight.shape
        # MindSpore 2.10 writes ONNX files with the wrong padding where that is not the same on both axes.
        pad = {"pad_mode": "same"} if padding is None else {"pad_mode": "pad", "padding": padding}
        self.conv = nn.Conv2d(channels, out, (height, width), stride, **pad, has_bias=True,
                              weight_init=Tensor(np.float32(weight)), bias_init=Tensor(np.float32(bias)))
        self.relu = relu

    def construct(self, x):
        x = self.conv(x)
        return ops.relu(x) if self.relu else x


def _folded(tensors, conv, norm, epsilon):
    """(weight, bias) of a convolution without bias and the batch normalisation after it, by their names."""
    weight = _named(tensors, f"{conv}.weight").astype(np.float64)
    gain, shift, mean, variance = (_named(tensors, f"{norm}.{name}").astype(np.float64)
                                   for name in ("weight", "bias", "running_mean", "running_var"))
    gain = gain / np.sqrt(variance + epsilon)
    return weight * gain[:, None, None, None], shift - mean * gain


def _named(tensors, name):
    if name not in tensors:
        raise UserError(f"it has no tensor {name}: it is of another network")
    return tensors[name]


class _Mixed(nn.Cell):
    """Branches side by side, their channels one after the other."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.CellList(list(branches))

    def construct(self, x):
        made = ()
        for branch in self.branches:
            made = made + (branch(x),)
        return ops.concat(made, 1)


def _mean(x):
    return ops.mean(x, (2, 3))


class Inception(nn.Cell):
    """The Inception v3 of FID (Szegedy et al. 2015, arXiv 1512.00567), as TensorFlow's of 2015-12-05 was brought to
    PyTorch: its average pools leave the border out, the last block has a maximum pool.

    Args:
        tensors: dict of arrays by the names of `pt_inception-2015-12-05-6726825d.pth`.

    Inputs: pictures (N, 3, 299, 299) in [−1, 1].
    Output: features (N, 64), (N, 192), (N, 768) and (N, 2048): the means over the maps after the first and the second
        maximum pool, before the last three blocks, and at the end.
    """

    def __init__(self, tensors):
        super().__init__()

        def conv(name, stride=1, padding=None):
            return _Conv(*_folded(tensors, f"{name}.conv", f"{name}.bn", 1e-3), stride, padding)

        def chain(block, name, length, **last):
            cells = [conv(f"{block}.{name}_{i}") for i in range(1, length)]
            return nn.SequentialCell(*cells, conv(f"{block}.{name}_{length}", **last))

        def pooled(block, pool=None):
            return nn.SequentialCell(pool or nn.AvgPool2d(3, 1, "same"), conv(f"{block}.branch_pool"))

        def of_35(block):
            return _Mixed(conv(f"{block}.branch1x1"), chain(block, "branch5x5", 2), chain(block, "branch3x3dbl", 3),
                          pooled(block))

        def of_17(block):
            return _Mixed(conv(f"{block}.branch1x1"), chain(block, "branch7x7", 3), chain(block, "branch7x7dbl", 5),
                          pooled(block))

        def of_8(block, pool=None):
            def split(stem, last):
                return nn.SequentialCell(*(conv(f"{block}.{name}") for name in stem),
                                         _Mixed(conv(f"{block}.{last}a"), conv(f"{block}.{last}b")))

            return _Mixed(conv(f"{block}.branch1x1"), split(["branch3x3_1"], "branch3x3_2"),
                          split(["branch3x3dbl_1", "branch3x3dbl_2"], "branch3x3dbl_3"), pooled(block, pool))

        halves = {"stride": 2, "padding": 0}
        self.to_64 = nn.SequentialCell(conv("Conv2d_1a_3x3", **halves), conv("Conv2d_2a_3x3", padding=0),
                                       conv("Conv2d_2b_3x3"), nn.MaxPool2d(3, 2))
        self.to_192 = nn.SequentialCell(conv("Conv2d_3b_1x1"), conv("Conv2d_4a_3x3", padding=0), nn.MaxPool2d(3, 2))
        self.to_768 = nn.SequentialCell(
            *map(of_35, ("Mixed_5b", "Mixed_5c", "Mixed_5d")),
            _Mixed(conv("Mixed_6a.branch3x3", **halves), chain("Mixed_6a", "branch3x3dbl", 3, **halves),
                   nn.MaxPool2d(3, 2)),
            *map(of_17, ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e")))
        self.to_2048 = nn.SequentialCell(
            _Mixed(chain("Mixed_7a", "branch3x3", 2, **halves), chain("Mixed_7a", "branch7x7x3", 4, **halves),
                   nn.MaxPool2d(3, 2)),
            of_8("Mixed_7b"), of_8("Mixed_7c", nn.MaxPool2d(3, 1, "same")))

    def construct(self, x):
        first = self.to_64(x)
        second = self.to_192(first)
        third = self.to_768(second)
        return _mean(first), _mean(second), _mean(third), _mean(self.to_2048(third))


class ResNet50(nn.Cell):
    """ResNet-50 (He et al. 2016, arXiv 1512.03385), with torchvision's strides, at the 3×3 convolutions.

    Args:
        tensors: dict of arrays by the names of torchvision's `resnet50-0676ba61.pth`.

    Inputs: pictures (N, 3, H, W), normalised by ImageNet's mean and deviation.
    Output: logits (N, 1000).
    """

    def __init__(self, tensors):
        super().__init__()

        def conv(name, norm, stride=1, relu=True):
            weight, bias = _folded(tensors, name, norm, 1e-5)
            return _Conv(weight, bias, stride, len(weight[0, 0]) // 2, relu)

        def block(name, stride):
            path = nn.SequentialCell(*(conv(f"{name}.conv{i}", f"{name}.bn{i}", stride if i == 2 else 1, relu=i < 3)
                                       for i in (1, 2, 3)))
            changes = f"{name}.downsample.0.weight" in tensors
            return _Residual(path, conv(f"{name}.downsample.0", f"{name}.downsample.1", stride, False) if changes
                             else None)

        # What comes from ReLU is not negative, so that zeros around it change no maximum; MindSpore 2.10 exports no
        # maximum pool that pads by itself.
        self.stem = nn.SequentialCell(conv("conv1", "bn1", 2), nn.Pad(((0, 0), (0, 0), (1, 1), (1, 1))),
                                      nn.MaxPool2d(3, 2))
        self.blocks = nn.SequentialCell(*(block(f"layer{level + 1}.{i}", 2 if level and not i else 1)
                                          for level, depth in enumerate((3, 4, 6, 3)) for i in range(depth)))
        weight, bias = (_named(tensors, f"fc.{name}") for name in ("weight", "bias"))
        self.fc = nn.Dense(weight.shape[1], weight.shape[0], Tensor(np.float32(weight)), Tensor(np.float32(bias)))

    def construct(self, x):
        return self.fc(_mean(self.blocks(self.stem(x))))


class _Residual(nn.Cell):
    def __init__(self, path, shortcut):
        super().__init__()
        self.path = path
        self.shortcut = shortcut

    def construct(self, x):
        return ops.relu(self.path(x) + (x if self.shortcut is None else self.shortcut(x)))


# Of LPIPS: the convolutions of each stage by their numbers in torchvision's `features`, and what stands before it.
_STAGES = {
    "alex": ((0,), (3,), (6,), (8,), (10,)),
    "vgg": ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
}
_SHIFT, _SCALE = (np.array(numbers, np.float32) for numbers in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))


class Lpips(nn.Cell):
    """What LPIPS compares (Zhang et al. 2018, arXiv 1801.03924, eq. 1, version 0.1): of every stage the features of
    each position, of length 1, times the roots of their weights and of their share in the mean over positions. So the
    distance of two pictures is the square of the Euclidean distance between what is said of them.

    Args:
        net: "alex" or "vgg".
        tensors: dict of arrays by the names of the torchvision network's file, `features.N.weight`.
        linear: dict of arrays by the names of LPIPS's own file for it, `linN.model.1.weight`, none below 0.

    Inputs: pictures (N, 3, H, W) in [−1, 1], all sides 32 or more.
    Output: (N, a number that grows with the size).
    """

    def __init__(self, net, tensors, linear):
        super().__init__()
        stages, roots = [], []
        for number, names in enumerate(_STAGES[net]):
            cells = []
            if number and (net == "vgg" or number < 3):
                cells.append(nn.MaxPool2d(2, 2) if net == "vgg" else nn.MaxPool2d(3, 2))
            for name in names:
                weight, bias = (_named(tensors, f"features.{name}.{part}") for part in ("weight", "bias"))
                cells.append(_Conv(weight, bias, *((4, 2) if net == "alex" and number == 0 else ())))
            stages.append(nn.SequentialCell(*cells))
            roots.append(Tensor(np.sqrt(_named(linear, f"lin{number}.model.1.weight").astype(np.float32))))
        self.stages = nn.CellList(stages)
        self.roots = roots
        self.shift, self.scale = (Tensor(values.reshape(1, 3, 1, 1)) for values in (_SHIFT, _SCALE))

    def construct(self, x):
        x, said = (x - self.shift) / self.scale, ()
        for stage, root in zip(self.stages, self.roots):
            x = stage(x)
            share = (x.shape[2] * x.shape[3]) ** 0.5
            unit = x / (ops.sqrt(ops.sum(x * x, 1, True)) + 1e-10)
            said = said + ((unit * root / share).reshape((x.shape[0], -1)),)
        return ops.concat(said, 1)
