"""Pages say the same in both languages, point to what is there, and show code as it stands.

What needs no site is tested here; the site itself is built in test_site.py, where mkdocs is installed.
"""

import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from palette_ms.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "notebooks/*.ipynb")
               for path in ROOT.glob(pattern))
TRANSLATED = [page.replace(".zh-CN.md", "") for page in PAGES if page.endswith(".zh-CN.md")]


def read(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        return "\n\n".join("".join(cell["source"]) for cell in cells)
    return text


def prose(text):
    """Without code blocks."""
    return re.sub(r"^ *```[^\n]*\n.*?^ *```", "", text, flags=re.M | re.S)


def commands(text):
    """What stands in code blocks, line by line, without comments."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S)
    return [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]


def outline(text):
    """The depths of headings, and the number of list items and of table rows after each."""
    text = re.sub(r"<!-- made by .*?<!-- end -->", "", text, flags=re.S)  # tables that a script makes stand once
    parts = re.split(r"^(#+) .*$", prose(text), flags=re.M)
    return [(len(depth), len(re.findall(r"^(?:-|\d\.) ", part, re.M)), len(re.findall(r"^\|", part, re.M)))
            for depth, part in zip(parts[1::2], parts[2::2])]


def anchors(text):
    """Of its headings, as GitHub and the site make them."""
    titles = [re.sub(r"`|\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", prose(text), re.M)]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def numbers(text):
    """Versions and settings in its tables' first two columns, and what it links to."""
    cells = re.findall(r"^\| (`[^`]+`|[\d.]+) \|", text, re.M)
    return cells, sorted(set(re.findall(r"\((https?://[^)]+)\)", text)))


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_chinese_page_is_in_step_with_the_english_one(name):
    english, chinese = read(f"{name}.md"), read(f"{name}.zh-CN.md")
    assert commands(chinese) == commands(english)
    for page, other in ((english, f"{name}.zh-CN.md"), (chinese, f"{name}.md")):
        assert f"({other.rpartition('/')[2]})" in page
    if name == "README":  # whose figures a script writes into the English one
        assert [depth for depth, *_ in outline(chinese)] == [depth for depth, *_ in outline(english)]
    else:
        assert outline(chinese) == outline(english)
        assert numbers(chinese) == numbers(english)


def test_pages_exist_in_chinese_for_what_a_newcomer_reads():
    assert {"README", "docs/getting_started", "docs/ascend"} <= {*TRANSLATED}


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_points_to_is_there(name):
    page = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", prose(read(name))):
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor and there.suffix == ".md" and not anchor.startswith("palette_ms."):  # of the API, made by the site
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_the_site_has_every_page():
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert len(listed) == len({*listed})
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == {
        page for page in listed if "/" not in page} - {"index.md", "index.zh-CN.md"}


def test_how_it_works_shows_code_as_it_stands():
    shown = re.findall(r'^```python title="(\S+)"\n(.*?)^```', read("docs/how_it_works.md"), re.M | re.S)
    assert len(shown) > 5
    for file, code in shown:
        assert code in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no longer\n{code}"


def invocations(text):
    """(verb, words) of each command of palette_ms in code blocks, but for those with … or a task of one's own."""
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S):
        waiting = ""
        for line in block.replace("\\\n", " ").splitlines():
            waiting += line + "\n"
            try:
                words = shlex.split(waiting, comments=True)
            except ValueError:  # a quotation that goes on in the next line
                continue
            waiting = ""
            found = re.match(r"python -m palette_ms\.(\w+)|palette-ms (\w+)|\$sample", " ".join(words))
            # check_ascend leaves to others what it does not take itself.
            if found and "…" not in line and "--import" not in words and "palette_ms.check_ascend" not in words:
                verb = found[1] or found[2] or "sample"
                given = [] if found[1] or found[2] else ["--ckpt", "photo", "--output", "outputs"]
                yield {"restore": "sample"}.get(verb, verb), given + words[len(found[0].split()):]


def test_all_pages_together_show_many_commands():
    assert len([1 for page in PAGES for _ in invocations(read(page))]) > 60


@pytest.mark.parametrize("name", PAGES)
def test_verbs_take_the_commands_that_a_page_shows(name, monkeypatch):
    class Parsed(Exception):
        pass

    def parsing(whole):
        def parse(parser, *arguments):
            raise Parsed(whole(parser, *arguments))

        return parse

    for way in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, way, parsing(getattr(argparse.ArgumentParser, way)))
    monkeypatch.chdir(ROOT)
    for verb, words in invocations(read(name)):
        monkeypatch.setattr(sys, "argv", [verb, *words])
        module = importlib.import_module(f"palette_ms.{verb}")
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"palette_ms.{verb}.__main__")
        with pytest.raises(Parsed) as parsed:
            module.main()
        args = parsed.value.args[0]
        if verb == "train" and Path(args.config).is_file():
            load_config(args.config, args.overrides)
