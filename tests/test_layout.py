"""Imports run one way, from verbs down to the network, so that each room can be read without those above it."""

import ast
from pathlib import Path

import pytest

import palette_ms

PACKAGE = Path(palette_ms.__file__).parent
# What each room may import of the package, besides itself, errors and seeds.
BELOW = {
    "unet": {"runtime"},
    "diffusion": {"unet"},
    "tasks": {"data", "diffusion"},
    "data": {"diffusion", "runtime", "unet"},
    "priors": {"data", "diffusion", "runtime", "tasks"},
    "evaluation": {"data", "diffusion", "runtime", "tasks", "torch_weights", "unet"},
    "quality": {"diffusion", "evaluation", "tasks"},
    "text": {"data", "torch_weights"},
    "training": {"checkpoint", "config", "data", "diffusion", "evaluation", "runtime", "searched", "tasks", "unet"},
}


def imported(path):
    """The rooms and files of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else \
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "palette_ms":
            names = [f"palette_ms.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("palette_ms."))


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_nothing_from_above(room):
    found = {name: path.name for path in (PACKAGE / room).rglob("*.py") for name in imported(path)}
    above = {name: file for name, file in found.items() if name not in BELOW[room] | {room, "errors", "seeds"}}
    assert not above


def test_all_rooms_are_on_the_contributors_map(repository):
    text = (repository / "docs" / "contributing.md").read_text(encoding="utf-8")
    tree = text[text.index("```\npalette_ms/"):]
    for path in sorted(PACKAGE.iterdir()):
        if path.name not in ("__init__.py", "__pycache__", "models", "py.typed"):
            name = f"{path.name}/" if path.is_dir() else path.name
            assert name in tree[:tree.index("```", 3)], f"{name} is not on the map"
