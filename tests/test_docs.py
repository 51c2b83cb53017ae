"""Pages that are there in two languages say the same."""

import re

import pytest


def commands(text):
    """What stands in code blocks, line by line, without comments; but for a map of the package."""
    blocks = re.findall(r"^ *```(?:python)?\n(.*?)^ *```", text, re.M | re.S)
    return [re.sub(r"\s+#.*", "", line).strip() for block in blocks if not block.startswith("palette_ms/")
            for line in block.splitlines()]


def outline(text):
    """The depths of headings, and the number of list items and of table rows after each."""
    text = re.sub(r"<!-- made by .*?<!-- end -->", "", text, flags=re.S)  # tables that a script makes stand once
    text = re.sub(r"^ *```\w*\n.*?^ *```", "", text, flags=re.M | re.S)
    parts = re.split(r"^(#+) .*$", text, flags=re.M)
    return [(len(depth), len(re.findall(r"^(?:-|\d\.) ", part, re.M)), len(re.findall(r"^\|", part, re.M)))
            for depth, part in zip(parts[1::2], parts[2::2])]


def numbers(text):
    """Versions and settings in its tables' first two columns, and what it links to."""
    cells = re.findall(r"^\| (`[^`]+`|[\d.]+) \|", text, re.M)
    return cells, sorted(set(re.findall(r"\((https?://[^)]+)\)", text)))


@pytest.mark.parametrize("name", ["README", "docs/ascend"])
def test_the_chinese_page_is_in_step_with_the_english_one(name, repository):
    english, chinese = ((repository / f"{name}{language}.md").read_text(encoding="utf-8")
                        for language in ("", ".zh-CN"))
    assert commands(chinese) == commands(english)
    assert [depth for depth, *_ in outline(chinese)] == [depth for depth, *_ in outline(english)]
    for page, other in ((english, f"{name}.zh-CN.md"), (chinese, f"{name}.md")):
        assert f"({other.rpartition('/')[2]})" in page


def test_the_chinese_page_on_ascend_has_every_table_list_and_version(repository):
    english, chinese = ((repository / f"docs/ascend{language}.md").read_text(encoding="utf-8")
                        for language in ("", ".zh-CN"))
    assert outline(chinese) == outline(english)
    assert numbers(chinese) == numbers(english)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", *(f"docs/{page}" for page in (
    "ascend.md", "ascend.zh-CN.md", "evaluation.md", "export.md", "memory.md", "modelarts.md", "photo_model.md",
    "priors.md", "sampling.md", "scaling.md", "web.md", "your_own_task.md"))])
def test_what_a_page_points_to_is_there(name, repository):
    page = repository / name
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
