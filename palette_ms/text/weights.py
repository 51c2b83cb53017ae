"""T5's published weights, as Hugging Face keeps them: a folder with config.json and one file or several."""

import json
import re

import numpy as np
from mindspore import Tensor

from palette_ms.data.files import expand
from palette_ms.errors import UserError
from palette_ms.text.t5 import T5Config, T5Encoder
from palette_ms.torch_weights.files import read_tensors

# In the order in which they are looked for: whole, or an index that names the parts.
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Hugging Face's names to ours; {} is the number of a block.
_NAMES = {
    r"encoder\.final_layer_norm\.weight": "norm.weight",
    r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight": "position_bias",
    r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.([qkvo])\.weight": r"blocks.\1.attention.\2.weight",
    r"encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight": r"blocks.\1.norm1.weight",
    r"encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight": r"blocks.\1.norm2.weight",
    r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0\.weight": r"blocks.\1.feed_forward.gate.weight",
    r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.(?:wi|wi_1)\.weight": r"blocks.\1.feed_forward.wi.weight",
    r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.weight": r"blocks.\1.feed_forward.wo.weight",
}
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # the same, under either name


def load_encoder(folder):
    """The encoder of a T5, ready to use, from a folder with its `config.json` and its weights: `model.safetensors` or
    `pytorch_model.bin`, whole or in parts. A decoder beside it is left out.

    Args:
        folder: path.

    Returns: `T5Encoder`.

    Raises:
        UserError: a file is missing or damaged, or weights and config are not of one network.
    """
    folder = expand(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder with a T5's config.json and its weights")
    encoder = T5Encoder(T5Config.read(folder / "config.json"))
    _fill(encoder, _read(folder), folder)
    return encoder.set_train(False)


def _read(folder):
    """All tensors of the folder's weights, by Hugging Face's names."""
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index")
    if path.suffix != ".json":
        return read_tensors(path)
    try:
        parts = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        if any("/" in part or "\\" in part for part in parts):
            raise ValueError("it names files of other folders")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not an index of weights: {error}") from None
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which {path.name} names")
    return {name: array for part in parts for name, array in read_tensors(folder / part).items()}


def _fill(encoder, tensors, folder):
    arrays = {}
    for name, array in tensors.items():
        ours = {re.sub(pattern, ours, name) for pattern, ours in _NAMES.items() if re.fullmatch(pattern, name)}
        if name in _EMBEDDINGS:
            ours = {"embedding"}
        elif name.startswith("encoder.") and not ours:  # such as umT5's biases of each block
            raise UserError(f"the weights in {folder} are not of a T5, whose encoder has no {name}")
        arrays.update(dict.fromkeys(ours, array))
    parameters = dict(encoder.parameters_and_names())
    lacking, extra = sorted(parameters.keys() - arrays.keys()), sorted(arrays.keys() - parameters.keys())
    for name in parameters.keys() & arrays.keys():
        if arrays[name].shape != parameters[name].shape:
            raise UserError(f"the weights in {folder} are of another T5 than its config.json: {name} is "
                            f"{arrays[name].shape}, not {tuple(parameters[name].shape)}")
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"the weights in {folder} are damaged: {name} is not finite")
    if lacking or extra:
        raise UserError(f"the weights in {folder} are of another T5 than its config.json: they "
                        + (f"lack {lacking[0]}" if lacking else f"have {extra[0]} besides"))
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(arrays[name].astype(np.float32)))
