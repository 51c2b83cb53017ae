"""The form of what tasks ask, made from their declarations: a field for each `palette_ms.tasks.asks.Ask`.

A field has `parts`, Gradio's components, and `value`, which makes of what these hold what `Palette.restore` takes, or
None where nothing was said.
"""

import gradio as gr

from palette_ms.errors import UserError
from palette_ms.tasks.asks import SIDES, MarginsAsk, MaskAsk
from palette_ms.tasks.masks import MASKS
from palette_ms.web.uploads import check_size, mask_of

PAINTED, FILE = "painted over the picture", "a file"
BRUSH = "#ff2d55"


def create_field(ask, megapixels):
    """The field of an ask, put where the page is being laid out.

    Args:
        megapixels: of an uploaded mask, at most.
    """
    if isinstance(ask, MaskAsk):
        return MaskField(ask, megapixels)
    return MarginsField(ask) if isinstance(ask, MarginsAsk) else Field(ask)


class Field:
    """A number, a choice or a text; what is left empty is not asked."""

    def __init__(self, ask):
        self.ask = ask
        about = {"label": ask.name.replace("_", " "), "info": f"{ask.help} ({ask.range()})"}
        if ask.choices:
            self.parts = [gr.Dropdown([*ask.choices], value=None, **about)]
        else:  # an empty gr.Number would be 0
            self.parts = [gr.Textbox(placeholder=ask.metavar, max_length=1000, max_lines=1, **about)]

    def value(self, given, picture):
        if given in (None, ""):
            return None
        value = self.ask.parse(given)
        self.ask.check(value)
        return value


class MarginsField:
    """Pixels on each side."""

    def __init__(self, ask):
        self.ask = ask
        gr.Markdown(f"{ask.name}: {ask.help}")
        with gr.Row():
            self.parts = [gr.Number(0, label=side, minimum=0, maximum=4096, precision=0, min_width=80)
                          for side in SIDES]

    def value(self, left, right, top, bottom, picture):
        sides = {side: int(pixels) for side, pixels in zip(SIDES, (left, right, top, bottom)) if pixels}
        if not sides:
            return None
        self.ask.check(sides)
        return sides


class MaskField:
    """A mask that is painted, uploaded, or of a kind; the last two can be had without a pointer."""

    def __init__(self, ask, megapixels):
        self.ask, self.megapixels = ask, megapixels
        kind = gr.Dropdown([PAINTED, FILE, *MASKS], value=PAINTED, label="mask", elem_id="mask-kind",
                           info="what is to be made: painted, a file that is white there, or drawn at random")
        self.painter = gr.ImageEditor(
            label="paint over what is to be made", elem_id="painter", image_mode="RGBA", sources=(), transforms=(),
            layers=gr.LayerOptions(allow_additional_layers=False), buttons=[], format="png", height=460,
            brush=gr.Brush(colors=[BRUSH], color_mode="fixed"), eraser=gr.Eraser())
        file = gr.File(label="mask file", visible=False, elem_id="mask-file", height=150)
        kind.change(lambda kind: (gr.update(visible=kind == PAINTED), gr.update(visible=kind == FILE)), kind,
                    [self.painter, file], show_progress="hidden", api_visibility="private")
        self.parts = [kind, self.painter, file]

    def value(self, kind, painted, file, picture):
        if kind == PAINTED:
            if picture is None:
                raise UserError("what is painted is for one picture: for several, choose a file or a kind of mask")
            return mask_of((painted or {}).get("layers", []), picture.size)
        if kind != FILE:
            return kind
        if file is None:
            raise UserError("choose a mask file, or another mask")
        check_size(file, self.megapixels)
        return str(file)
