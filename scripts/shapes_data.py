"""Writes captioned pictures of coloured shapes, to train and to measure a small text-to-picture cascade with, and a
small text encoder.

    python scripts/shapes_data.py OUTPUT [--number 8000] [--held-out 400] [--size 64] [--seed 0]

OUTPUT/train and OUTPUT/held_out have pictures and beside each its caption: "a small red circle above a blue square",
"three green triangles", "a large yellow square at the top left". What is held out are scenes of other combinations than
those of training, whose parts training has all seen. OUTPUT/t5 is an encoder of the first T5's layout with random
weights: config.json, model.safetensors, tokenizer.json. Its relative position biases are large, so that what it says of
a word depends on the words around it, as much as on the word: of a network that learns to read it that is all that is
asked.
"""

import argparse
import json
import zlib
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

import cv2
import numpy as np
from PIL import Image

from palette_ms import errors
from palette_ms.data.files import expand
from palette_ms.seeds import generator

COLOURS = {"red": (215, 45, 40), "green": (45, 165, 60), "blue": (45, 85, 215), "yellow": (240, 205, 40),
           "purple": (150, 60, 185)}
SHAPES = ("circle", "square", "triangle")
# Half the side of a shape's box, as shares of the picture's side.
SIZES = {"small": (0.14, 0.155), "": (0.17, 0.19), "large": (0.205, 0.22)}
# From the first to the second thing's middle: the axis (x 0, y 1) along which they lie, and the sign.
RELATIONS = {"above": (1, 1), "below": (1, -1), "left of": (0, 1), "right of": (0, -1)}
PLACES = {"at the top left": (0, 0), "at the top right": (1, 0), "at the bottom left": (0, 1),
          "at the bottom right": (1, 1), "in the middle": (0.5, 0.5)}
COUNTS = {"two": 2, "three": 3}
KINDS = "pair", "single", "count"  # of scenes
_SHARES = 0.6, 0.2, 0.2  # of the kinds
_EDGE, _GAP = 0.02, 0.1  # from the border, and between things
_FINE = 8  # samples a pixel and axis
_HELD_OUT = 8  # one scene of so many


class Thing(NamedTuple):
    """size: a key of `SIZES`; colour, shape: of `COLOURS` and `SHAPES`."""

    size: str
    colour: str
    shape: str

    def __str__(self):
        return " ".join(filter(None, self))


class Scene(NamedTuple):
    """What a caption says: one thing, or two by a relation, or one several times."""

    things: Tuple[Thing, ...]
    relation: Optional[str] = None
    count: Optional[str] = None
    place: Optional[str] = None

    @property
    def caption(self):
        first = self.things[0]
        if self.count:
            return f"{self.count} {first}s"
        if self.relation:
            return f"a {first} {self.relation} a {self.things[1]}"
        return f"a {first} {self.place}" if self.place else f"a {first}"

    @property
    def all_things(self):
        """A thing for each that is to be seen."""
        return self.things * COUNTS.get(self.count, 1)

    @property
    def is_held_out(self):
        """Whether it is kept from training, in any sizes and said either way round (above, below)."""
        things, relation = [thing[1:] for thing in self.things], self.relation
        if relation and RELATIONS[relation][1] < 0:
            things.reverse()
            relation = {"below": "above", "right of": "left of"}[relation]
        key = json.dumps([things, relation, self.count, self.place])
        return zlib.crc32(key.encode()) % _HELD_OUT == 0


def draw_scene(rng, held_out, kind=None):
    """A scene, held out or not, of one of `KINDS` or any."""
    while True:
        scene = _draw(rng, kind or rng.choice(KINDS, p=_SHARES))
        if scene.is_held_out == held_out:
            return scene


def _draw(rng, kind):
    def thing(sizes=tuple(SIZES)):
        return Thing(str(rng.choice(sizes)), str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)))

    if kind == "count":
        return Scene((thing(("",)),), count=str(rng.choice(list(COUNTS))))
    if kind == "single":
        return Scene((thing(),), place=str(rng.choice(list(PLACES))))
    first, second = thing(), thing()
    while second[1:] == first[1:]:
        second = thing()
    return Scene((first, second), relation=str(rng.choice(list(RELATIONS))))


def place_things(rng, scene):
    """Where a scene's things are: (x, y, half side) of each, as shares of the side, no two nearer than `_GAP`."""
    while True:
        halves = [rng.uniform(*SIZES["small" if scene.count else thing.size]) for thing in scene.all_things]
        spots = [[*rng.uniform(_EDGE + half, 1 - _EDGE - half, 2), half] for half in halves]
        if scene.place:
            target = np.array(PLACES[scene.place])
            room = 1 - 2 * (_EDGE + halves[0])
            spots[0][:2] = _EDGE + halves[0] + room * np.clip(target + rng.uniform(-0.12, 0.12, 2), 0, 1)
        if scene.relation:
            axis, sign = RELATIONS[scene.relation]
            (*first, a), (*second, b) = spots
            away, aside = sign * (second[axis] - first[axis]), abs(second[1 - axis] - first[1 - axis])
            if away < a + b + _GAP / 2 or aside > 0.15:
                continue
        elif any(max(abs(x - u), abs(y - v)) < a + b + _GAP for (x, y, a), (u, v, b) in combinations(spots, 2)):
            continue
        return spots


def render(rng, scene, size):
    """A scene's picture, uint8 (size, size, 3)."""
    fine = size * _FINE
    axis = (np.arange(fine, dtype=np.float32) + 0.5) / fine
    picture = np.full((size, size, 3), rng.uniform(205, 235), np.float32)
    for thing, (x, y, half) in zip(scene.all_things, place_things(rng, scene)):
        u, v = (axis[None] - np.float32(x)) / half, (axis[:, None] - np.float32(y)) / half
        inside = {"circle": u**2 + v**2 <= 1, "square": np.maximum(abs(u), abs(v)) <= 1,
                  "triangle": (v <= 1) & (2 * abs(u) <= v + 1)}[thing.shape]
        cover = cv2.resize(inside.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)[..., None]
        colour = np.float32(COLOURS[thing.colour]) + rng.uniform(-12, 12, 3).astype(np.float32)
        picture += cover * (colour - picture)
    return np.uint8(np.clip(np.round(picture), 0, 255))


def write_pictures(folder, number, size, seed, held_out):
    """So many pictures with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(number):
        rng = generator(seed, "shapes", k, int(held_out))
        scene = draw_scene(rng, held_out)
        Image.fromarray(render(rng, scene, size)).save(folder / f"{k:06}.png")
        (folder / f"{k:06}.txt").write_text(scene.caption + "\n", encoding="utf-8")


def write_encoder(folder, seed, d_model=128, d_kv=16, d_ff=256, num_layers=2, num_heads=8):
    """A T5's encoder with random weights, as Hugging Face keeps them, and a tokenizer with a token for each word."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    words = {word for text in ("a", *SIZES, *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *RELATIONS, *PLACES,
                               *COUNTS) for word in text.split()}
    vocabulary = {word: k for k, word in enumerate(("<pad>", "</s>", "<unk>", *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "t5", "vocab_size": len(vocabulary), "d_model": d_model, "d_kv": d_kv, "d_ff": d_ff,
              "num_layers": num_layers, "num_heads": num_heads, "feed_forward_proj": "gated-gelu",
              "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    rng, inner = generator(seed, "encoder"), num_heads * d_kv

    def drawn(deviation, *shape):
        return np.float32(deviation * rng.standard_normal(shape))

    tensors = {"shared.weight": drawn(1, len(vocabulary), d_model),
               "encoder.final_layer_norm.weight": np.ones(d_model, np.float32),
               "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": drawn(3, 32, num_heads)}
    for k in range(num_layers):
        attention, dense = f"encoder.block.{k}.layer.0", f"encoder.block.{k}.layer.1"
        tensors.update({f"{part}.layer_norm.weight": np.ones(d_model, np.float32) for part in (attention, dense)})
        # T5's own initial deviations: its attention does not divide by √d_kv.
        tensors.update({f"{attention}.SelfAttention.{name}.weight": drawn(deviation, *shape) for name, deviation, shape
                        in (("q", (d_model * d_kv) ** -0.5, (inner, d_model)), ("k", d_model**-0.5, (inner, d_model)),
                            ("v", d_model**-0.5, (inner, d_model)), ("o", inner**-0.5, (d_model, inner)))})
        tensors.update({f"{dense}.DenseReluDense.{name}.weight": drawn(shape[1]**-0.5, *shape) for name, shape
                        in (("wi_0", (d_ff, d_model)), ("wi_1", (d_ff, d_model)), ("wo", (d_model, d_ff)))})
    save_file(tensors, str(folder / "model.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=expand)
    parser.add_argument("--number", type=int, default=8000, help="pictures to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=400, help="of scenes never trained on (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    output = Path(args.output)
    write_pictures(output / "train", args.number, args.size, args.seed, False)
    write_pictures(output / "held_out", args.held_out, args.size, args.seed, True)
    write_encoder(output / "t5", args.seed)
    print(output)


if __name__ == "__main__":
    errors.run(main)
