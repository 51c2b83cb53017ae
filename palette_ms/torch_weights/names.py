"""The U-Net's tensors by the names that guided-diffusion's `UNetModel` and the PyTorch Palette port give them.

Both are the same network as `palette_ms.unet.UNet`, with three differences: the names, the attention's convolutions
being one-dimensional, and (unless `use_new_attention_order`) q, k and v being kept together within each head.
"""

import numpy as np

from palette_ms.errors import UserError
from palette_ms.unet import AttentionBlock, ResidualBlock

# By architecture: the prefix of all names in the file, and the name of the time embedding.
ARCHITECTURES = {"palette": ("denoise_fn.", "cond_embed"), "adm": ("", "time_embed")}

_RESIDUAL = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time": "emb_layers.1", "norm2": "out_layers.0",
             "conv2": "out_layers.3", "skip": "skip_connection"}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "proj": "proj_out"}


def torch_names(unet, arch):
    """The architecture's name of every parameter of a `UNet`, by ours.

    Args:
        unet: `UNet`.
        arch: one of `ARCHITECTURES`.
    """
    prefix, embedding = ARCHITECTURES[arch]
    modules = {"time_embedding.dense1": f"{embedding}.0", "time_embedding.dense2": f"{embedding}.2",
               "conv_in": "input_blocks.0.0", "norm_out": "out.0", "conv_out": "out.2"}

    def block(cell, ours, theirs):
        if isinstance(cell, (ResidualBlock, AttentionBlock)):
            parts = _RESIDUAL if isinstance(cell, ResidualBlock) else _ATTENTION
            modules.update({f"{ours}.{our}": f"{theirs}.{their}" for our, their in parts.items()})
        else:  # a resampling convolution
            modules[f"{ours}.conv"] = f"{theirs}.{'op' if ours.startswith('down') else 'conv'}"

    def stage(cell, ours, theirs):
        if isinstance(cell, (ResidualBlock, AttentionBlock)) or not hasattr(cell, "residual"):
            return block(cell, ours, f"{theirs}.0")
        parts = {"residual": cell.residual}
        if isinstance(cell.attention, AttentionBlock):
            parts["attention"] = cell.attention
        if cell.resamples:
            parts["resample"] = cell.resample
        for position, (name, part) in enumerate(parts.items()):
            block(part, f"{ours}.{name}", f"{theirs}.{position}")

    for i, cell in enumerate(unet.down):
        stage(cell, f"down.{i}", f"input_blocks.{i + 1}")
    stage(unet.middle1, "middle1", "middle_block")
    block(unet.middle2, "middle2", "middle_block.2")
    for i, cell in enumerate(unet.up):
        stage(cell, f"up.{i}", f"output_blocks.{i}")

    names = {}
    for name, _ in unet.parameters_and_names():
        module, _, kind = name.rpartition(".")
        names[name] = prefix + ("label_emb.weight" if name == "label_embedding" else f"{modules[module]}.{kind}")
    return names


def from_torch(tensors, unet, arch, path, split_in_heads=True):
    """The arrays for a `UNet`'s parameters out of an architecture's tensors.

    Args:
        tensors: dict of arrays by the architecture's names, and no others.
        unet: `UNet` of the same sizes.
        arch: one of `ARCHITECTURES`.
        path: begins the error messages.
        split_in_heads: q, k, v lie together within each head; False: all q, then all k, then all v.

    Returns: dict of float32 arrays by the names of the U-Net's parameters.

    Raises:
        UserError: missing or extra tensors, or others than the network's shapes; the first few are named.
    """
    names = torch_names(unet, arch)
    missing, extra = names.values() - tensors.keys(), tensors.keys() - names.values()
    for problem, wrong in (("lacks", missing), ("has besides", extra)):
        if wrong:
            raise UserError(f"{path} does not fit the network of its config: it {problem} {len(wrong)} tensors "
                            f"({', '.join(sorted(wrong)[:3])}{', …' if len(wrong) > 3 else ''})")
    parameters, arrays, wrong = dict(unet.parameters_and_names()), {}, []
    for ours, theirs in names.items():
        array = tensors[theirs]
        shape = tuple(parameters[ours].shape)
        expected = shape[:-1] if _is_attention_convolution(ours) else shape
        if array.shape != expected:
            wrong.append(f"{theirs} is {array.shape}, the network needs {expected}")
            continue
        if split_in_heads and _is_qkv(ours):
            heads = _attention(unet, ours).num_heads
            array = array.reshape(heads, 3, -1, *array.shape[1:]).swapaxes(0, 1)
        arrays[ours] = np.asarray(array, np.float32, order="C").reshape(shape)
    if wrong:
        raise UserError(f"{path} does not fit the network of its config, {len(wrong)} shapes differ: "
                        + "; ".join(wrong[:3]) + ("; …" if len(wrong) > 3 else ""))
    return arrays


def to_torch(arrays, unet, arch):
    """The reverse of `from_torch`, with q, k, v together within each head: arrays by the architecture's names."""
    tensors = {}
    for ours, theirs in torch_names(unet, arch).items():
        array = arrays[ours]
        if _is_attention_convolution(ours):
            array = array[..., 0]
        if _is_qkv(ours):
            heads = _attention(unet, ours).num_heads
            array = array.reshape(3, heads, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
        tensors[theirs] = array
    return tensors


def _is_qkv(name):
    return name.split(".")[-2:-1] == ["qkv"]


def _is_attention_convolution(name):
    return ".attention." in name and name.endswith((".qkv.weight", ".proj.weight"))


def _attention(unet, name):
    cells = dict(unet.cells_and_names())
    return cells[name.rsplit(".", 2)[0]]
