"""Fixtures shared by all tests."""

from pathlib import Path

import palette_ms  # noqa: F401  before MindSpore: it sets the environment

# isort: split
import mindspore as ms
import pytest


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(params=["graph", "pynative"])
def both_modes(request, graph_mode):
    if request.param == "pynative":
        ms.set_context(mode=ms.PYNATIVE_MODE)
    return request.param


@pytest.fixture(scope="session")
def repository():
    return Path(__file__).resolve().parents[1]
