"""Pages that are there in two languages say the same."""

import re

import pytest


def commands(text):
    """What stands in code blocks, line by line, without comments."""
    return [re.sub(r"\s+#.*", "", line).strip() for block in re.findall(r"^ *```\n(.*?)^ *```", text, re.M | re.S)
            for line in block.splitlines()]


def outline(text):
    """The depths of headings, and the number of list items and of table rows after each."""
    text = re.sub(r"<!-- made by .*?<!-- end -->", "", text, flags=re.S)  # tables that a script makes stand once
    text = re.sub(r"^ *```\n.*?^ *```", "", text, flags=re.M | re.S)
    parts = re.split(r"^(#+) .*$", text, flags=re.M)
    return [(len(depth), len(re.findall(r"^(?:-|\d\.) ", part, re.M)), len(re.findall(r"^\|", part, re.M)))
            for depth, part in zip(parts[1::2], parts[2::2])]


def numbers(text):
    """Versions and settings in its tables' first two columns, and what it links to."""
    cells = re.findall(r"^\| (`[^`]+`|[\d.]+) \|", text, re.M)
    return cells, sorted(set(re.findall(r"\((https?://[^)]+)\)", text)))


@pytest.mark.parametrize("name", ["docs/ascend"])
def test_the_chinese_page_is_in_step_with_the_english_one(name, repository):
    english, chinese = ((repository / f"{name}{language}.md").read_text(encoding="utf-8")
                        for language in ("", ".zh-CN"))
    assert commands(chinese) == commands(english)
    assert outline(chinese) == outline(english)
    assert numbers(chinese) == numbers(english)
    for page, other in ((english, f"{name}.zh-CN.md"), (chinese, f"{name}.md")):
        assert f"({other.rpartition('/')[2]})" in page
