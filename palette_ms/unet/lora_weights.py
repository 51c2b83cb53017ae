"""What `palette_ms.unet.lora` leaves in a checkpoint, told and taken in without MindSpore."""

_DOWN, _UP = ".lora_down", ".lora_up"


def merged(arrays):
    """A network's arrays by name, as `palette_ms.unet.lora.adapt` left it, as those of the network without: W + BA."""
    whole = {name: array for name, array in arrays.items() if not name.endswith((_DOWN, _UP))}
    for name in arrays:
        if name.endswith(_UP):
            layer = name[:-len(_UP)]
            weight = whole[f"{layer}.weight"]
            whole[f"{layer}.weight"] = weight + (arrays[name] @ arrays[layer + _DOWN]).reshape(weight.shape)
    return whole


def is_adapted(arrays):
    """Whether a network's arrays are as `palette_ms.unet.lora.adapt` leaves them."""
    return any(name.endswith(_UP) for name in arrays)
