"""One HTML file to look at results: source, samples and target of every picture, with a slider, the worst first."""

import base64
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from palette_ms.data.files import replacing
from palette_ms.data.images import load_image
from palette_ms.errors import UserError
from palette_ms.evaluation.metrics import LOWER_IS_BETTER
from palette_ms.evaluation.report import named
from palette_ms.runtime import processors

_SIDE, _QUALITY = 512, 85  # of the pictures in a page, which larger ones are made smaller for


def write_page(path, pairs, report, run, sources=None):
    """Write the page of a report, whole or not at all.

    Args:
        path: ends in .html.
        pairs: the `Pair`s that were compared.
        report: from `palette_ms.evaluation.report.evaluate`.
        run: settings and versions, a dict for JSON.
        sources: a folder with what the samples were made of, by the same names, or None.

    Raises:
        UserError: a picture that cannot be shown, or the file cannot be written.
    """
    sources = named(pairs, sources) if sources else {}
    samples = len(pairs[0].samples)
    kinds = ["source"] * bool(sources) + ([f"sample {k}" for k in range(samples)] if samples > 1 else ["restored"])
    kinds += ["target"] * (pairs[0].reference is not None)
    metrics = [name for name, figures in report.items() if figures["values"]]

    def shown(pair):
        files = sources.get(pair.name), *pair.samples, pair.reference
        return {"name": pair.name, "images": [encoded(file) for file in files if file is not None],
                "values": [_finite(report[metric]["values"][pair.name]) for metric in metrics]}

    with ThreadPoolExecutor(processors()) as pool:
        pictures = list(tqdm(pool.map(shown, pairs), "page", len(pairs), unit="picture", disable=None, leave=False))
    fill("report.html", path, {
        "kinds": kinds, "first": bool(sources) * 1, "metrics": metrics, "run": run, "pictures": pictures,
        "lower": sorted(LOWER_IS_BETTER),
        "report": {name: {key: _finite(value) for key, value in figures.items() if key != "values"}
                   for name, figures in report.items()}})


def _finite(value):
    """None for what is infinite, for which JSON has no word."""
    return value if value is None or math.isfinite(value) else None


def encoded(path, lossless=False):
    """A picture as WebP, in base64, for a page."""
    image = Image.fromarray(load_image(path))
    image.thumbnail((_SIDE, _SIDE), Image.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=lossless, quality=_QUALITY, method=2)
    return base64.b64encode(file.getvalue()).decode()


def check_page(path, template):
    """Raises UserError where a page would not be an HTML file, or take the place of something else than such a page."""
    kind = _template(template).split('content="', 1)[1].split('"')[0]
    if path.suffix.lower() != ".html":
        raise UserError(f"{path} must end in .html")
    if path.exists():
        with open(path, "rb") as file:
            if f'content="{kind}"'.encode() not in file.read(1000):
                raise UserError(f"{path} is there and no {kind} page: choose another name")


def fill(template, path, data):
    """Write a page: a template of this folder with data, a dict for JSON, in it.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")  # which could end the script
    try:
        with replacing(path) as temporary:
            # A name that the file system has in no encoding is shown with question marks.
            temporary.write_text(_template(template).replace("/*DATA*/", text), encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _template(name):
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
