"""Low-rank adaptation (LoRA: Hu et al. 2021, arXiv 2106.09685): a trained network learns by a few small matrices."""

import math

import numpy as np
from mindspore import Parameter, nn, ops

from palette_ms.unet.blocks import AttentionBlock, ResidualBlock
from palette_ms.unet.plan import attention_width, plan, resamples_by_blocks

# What can be adapted: the blocks, and their layers.
TARGETS = {"attention": (AttentionBlock, ("qkv", "proj")),
           "residual": (ResidualBlock, ("conv1", "time", "conv2", "skip"))}


class LowRank(nn.Cell):
    """A convolution or dense layer with the weight W + BA (section 4.1; of a kernel, A sees all of its positions).

    B begins at zero, so that the network begins as it was. The sum is made of the weights rather than of two layers'
    outputs: a card launches a few kernels more a layer, whatever the picture's size.

    Args:
        layer: `nn.Conv2d` or `nn.Dense`, whose parameters become this Cell's.
        rank: rows of A (rank, inputs · kernel) and columns of B (outputs, rank).
        rng: draws A.
    """

    def __init__(self, layer, rank, rng):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.outputs = self.weight.shape[0]
        inputs = self.weight.size // self.outputs
        self.lora_down = Parameter(rng.standard_normal((rank, inputs), np.float32) / math.sqrt(inputs))
        self.lora_up = Parameter(np.zeros((self.outputs, rank), np.float32))
        self.conv2d = layer.conv2d if isinstance(layer, nn.Conv2d) else None

    def construct(self, x):
        weight = self.weight + ops.matmul(self.lora_up, self.lora_down).reshape(self.weight.shape)
        # Of a parameter MindSpore does so itself at half precision, but not of a sum.
        weight, bias = ops.cast(weight, x.dtype), ops.cast(self.bias, x.dtype)
        if self.conv2d is None:
            return ops.matmul(x, weight.swapaxes(0, 1)) + bias
        return ops.bias_add(self.conv2d(x, weight), bias)


def adapt(unet, rank, targets, rng):
    """Put `LowRank` in the place of the layers of a `UNet` that are to be adapted; only what it adds is trainable then.

    Args:
        rank: of what each layer learns.
        targets: of `TARGETS`.
        rng: numpy's Generator.

    Raises:
        ValueError: the network has no such layer.
    """
    blocks = [block for _, block in unet.cells_and_names()]
    for parameter in unet.get_parameters():
        parameter.requires_grad = False
    for target in targets:
        kind, names = TARGETS[target]
        found = [block for block in blocks if isinstance(block, kind)]
        if not found:
            raise ValueError(f"the network has no {target} to adapt")
        for block in found:
            for name in names:
                if not isinstance(getattr(block, name), nn.Identity):
                    setattr(block, name, LowRank(getattr(block, name), rank, rng))
    return unet


def count_parameters(model, rank, targets):
    """How many values `adapt` adds to the network of a `ModelConfig`: of A and B of each layer."""
    time, layers = 4 * model.base_channels, []

    def residual(c_in, c_out):
        layers.extend([(9 * c_in, c_out), (time, (1 + model.scale_shift) * c_out), (9 * c_out, c_out)])
        if c_in != c_out or model.kind == "efficient":
            layers.append((c_in, c_out))

    for step in (step for part in plan(model) for step in part):
        if "residual" in targets and step.kind == "stage":
            residual(step.c_in, step.c_out)
        if "residual" in targets and step.resample and resamples_by_blocks(model):
            residual(step.c_out, step.c_out)
        if "attention" in targets and step.attends:
            width = attention_width(model, step.c_out)
            layers.extend([(step.c_out, 3 * width), (width, step.c_out)])
    return rank * sum(inputs + outputs for inputs, outputs in layers)
