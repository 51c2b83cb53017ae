"""What people mean by a mask."""

import numpy as np

from palette_ms.errors import UserError

# Of white, beside it and beside black: what a JPEG's noise may be.
_NOISE = 1 / 8
# Colours, told apart by eighths of each channel, from which on a picture is no mask.
_MANY = 16


def weights(array, name):
    """How much of each pixel of the picture is to be made.

    White, or 1, marks what is to be made, and so does any colour. Where a mask has transparency, that is known; what
    was painted in one colour on a transparent ground is to be made whatever the colour. Of a mask of two values the
    greater one marks. Values between, of soft edges, are shares.

    Args:
        array: (H, W, C) of any type, whose last channel is opacity where C is 2 or 4.
        name: what errors call it.

    Returns: float32 (H, W), from 0 to 1.

    Raises:
        UserError: nothing is marked, or it looks like a picture rather than a mask; the message tells what it holds.
    """
    opacity = None
    if array.shape[2] in (2, 4):
        opacity, array = array[..., -1].astype(np.float64), array[..., :-1]
        if not opacity.any():
            raise UserError(f"{name} is transparent everywhere: nothing to make. Paint what is to be made")
        opacity = None if opacity.min() == opacity.max() else opacity / opacity.max()  # a faint brush paints, too
    if array.shape[2] == 3 and array.dtype == np.uint8:
        seen = array if opacity is None else array[opacity > 0.5]
        spread = seen.max(-1).astype(int) - seen.min(-1)
        if (spread > 64).mean() > 0.05 and len(np.unique((seen.reshape(-1, 3) // 32) @ [1, 8, 64])) > _MANY:
            raise UserError(f"{name} is a picture in many colours, and not a mask: white, or one colour, on black "
                            "marks what is to be made")
    values = array.max(2)
    if opacity is None:
        if values.min() == values.max() and (array != array[0, 0]).any():
            colours = np.unique(array.reshape(-1, array.shape[2]), axis=0)
            raise UserError(f"{name} has no black, and its colours do not tell what is to be made: it holds "
                            f"{', '.join(str(tuple(colour)) for colour in colours[:4].tolist())}; white, or one "
                            "colour, on black marks that")
        marked = _marked(values)
    else:
        painted = values[opacity > 0.5]
        marked = opacity if painted.min() == painted.max() else np.minimum(opacity, _marked(values))
    if marked.max() < 0.5:
        found = np.unique(values)
        told = ", ".join(map(str, found[:4].tolist())) + (", …" if len(found) > 4 else "")
        raise UserError(f"{name} has no white pixel: nothing to make. It holds {told}; white (255, or 1) marks what is "
                        "to be made")
    return marked.astype(np.float32)


def _marked(values):
    """Shares of white: (H, W) of any type → float64 (H, W)."""
    found = np.unique(values)
    if len(found) == 2:
        return (values == found[1]).astype(np.float64)
    return ((_share(values) - _NOISE) / (1 - 2 * _NOISE)).clip(0, 1)


def _share(values):
    """Of the greatest value that can be: of 8 bits 255, unless there is only 0 and 1; of others what there is."""
    most = 255 if values.dtype == np.uint8 and values.max() > 1 else max(values.max(), 1e-30)
    return values / np.float64(most)
