"""What comes from a browser, which may be anything, and what is shown there."""

import base64
import html
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from palette_ms.data.forms import Photo
from palette_ms.errors import UserError

_NUMBERS = itertools.count()
VIEW = 1024  # pixels of the longer side of what is shown; files are downloaded whole
PREVIEW = 320  # of what is shown while a picture is made


@dataclass(frozen=True)
class Picture:
    """An uploaded picture.

    Attributes:
        path: on the server.
        name: what its user calls it.
        size: (width, height), upright.
        view: PIL image of at most `VIEW` pixels a side.
    """

    path: Path
    name: str
    size: tuple
    view: Image.Image


def check_size(path, megapixels):
    """Raises UserError unless an uploaded file begins as a picture of so many pixels at most does. Nothing is decoded:
    a file of some kilobytes can hold pixels for all of the memory."""
    name, size = Path(path).name, None
    try:
        with Image.open(path) as image:
            size = image.width * image.height
    except Image.DecompressionBombError:
        size = np.inf
    except Exception:
        raise UserError(f"{name} is no picture that can be read") from None
    if size > 1e6 * megapixels:
        raise UserError(f"{name} has more than {megapixels} megapixels, which is what this server takes")


def read(path, megapixels):
    """`Picture` of an uploaded file. Raises UserError: it is none, or has too many pixels."""
    check_size(path, megapixels)
    path = Path(path)
    try:
        rgb = Photo().read(path)
    except UserError as error:
        raise UserError(without_folders(error, path)) from None
    return Picture(path, path.name, rgb.shape[1::-1], view(Image.fromarray(rgb)))


def without_folders(error, *paths):
    """An error's message with the names of files in place of their paths on the server."""
    text = str(error)
    for path in paths:
        text = text.replace(str(path), Path(path).name)
    return text


def view(image, side=VIEW):
    """A picture of any mode as RGB of 8 bits of at most `side` pixels a side."""
    rgb = Image.fromarray(Photo().read(image))
    rgb.thumbnail((side, side))
    return rgb


def mask_of(layers, size):
    """What was painted over a view, as a mask of its picture's size.

    Args:
        layers: list of uint8 (h, w, 4), transparent where nothing was painted.
        size: (width, height).

    Returns: uint8 (height, width), 255 where pixels are to be made.

    Raises:
        UserError: nothing was painted.
    """
    painted = [Image.fromarray(np.uint8(255 * (layer[..., 3] > 127))) for layer in layers]
    # A stroke is enlarged with its edge in the middle of the grays.
    masks = [np.asarray(one.resize(size, Image.BILINEAR)) > 127 for one in painted]
    mask = np.any(masks, 0) if masks else np.zeros(1)
    if not mask.any():
        raise UserError("nothing is painted: paint over what is to be made, or choose another mask")
    return np.uint8(255 * mask)


def compare(before, after, caption):
    """HTML of two pictures and a slider between them, which keys move too; side by side where their shapes differ.

    Args:
        before, after: PIL images.
        caption: said below.
    """
    caption = html.escape(caption)
    shapes = before.width * after.height, after.width * before.height
    pictures = [f'<img src="{_data(image)}" alt="{word}">' for image, word in ((before, "before"), (after, "after"))]
    if abs(shapes[0] - shapes[1]) > 0.02 * max(shapes):
        return f'<figure class="beside">{"".join(pictures)}<figcaption>{caption}</figcaption></figure>'
    two = f"compare-{next(_NUMBERS)}"  # an element of a new name: Gradio would leave the slider where it was
    move = "this.parentElement.style.setProperty('--at', this.value + '%')"
    return (f'<figure class="compare"><{two} class="two" style="--at: 50%; aspect-ratio: {after.width}/{after.height}">'
            f'{"".join(pictures)}<input type="range" min="0" max="100" value="50" '
            f'oninput="{move}" aria-label="how much is shown as it was before"></{two}>'
            f'<figcaption>{caption}</figcaption></figure>')


def _data(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def status(job, ahead, what=""):
    """HTML of how far a job is, for eyes and for screen readers."""
    what = html.escape(what)
    if ahead:
        return told(f"{what}in line: {ahead} before this one", 0)
    if job.total is None:
        return told(f"{what}preparing the model", None)
    seen = ""
    if job.shown is not None and job.done < job.total:
        seen = f'<img class="preview" src="{_data(view(job.shown, PREVIEW))}" alt="what there is so far">'
    return told(f"{what}step {min(job.done + 1, job.total)} of {job.total}", job.done / max(job.total, 1)) + seen


def told(text, share=1.0):
    """HTML of a line of text over a bar. share: of the bar, 0 to 1; None: not known. The text is HTML."""
    value = "" if share is None else f' value="{share:.3f}"'
    return f'<div role="status"><p>{text}</p><progress max="1"{value} aria-label="progress"></progress></div>'


def problem(text):
    """HTML of what went wrong."""
    return f'<p role="alert" class="problem">{html.escape(text)}</p>'
