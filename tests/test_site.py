"""The documentation as a site: built without a warning, and nothing in it is loaded from another host."""

import html
import json
import os
import re
import subprocess
import sys
from urllib.parse import unquote

import pytest

for package in ("material", "mkdocstrings", "latex2mathml", "jieba"):
    pytest.importorskip(package, reason="the site is made with mkdocs (pip install palette_ms[docs])")


@pytest.fixture(scope="module")
def site(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet, which keeps warnings from --strict too.
    built = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
                           cwd=repository, capture_output=True, text=True,
                           env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert built.returncode == 0, built.stderr
    assert not re.search("WARNING|ERROR", built.stdout + built.stderr), built.stderr
    return folder


def test_no_page_loads_anything_from_another_host(site):
    pages = [*site.rglob("*.html")]
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|img|iframe|video|audio|source|embed)\b[^>]*|<link\b[^>]*", text)
        loaded = [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)
                  and 'rel="canonical"' not in tag]
        assert not loaded, f"{page}: {loaded}"
        assert 'class="arithmatex"' not in text, f"{page}: a formula is not MathML"
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_link_within_the_site_leads_to_something(site):
    pages = [*site.rglob("*.html")]
    texts = {page: page.read_text(encoding="utf-8") for page in pages if page.name != "404.html"}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in texts.items()}
    followed = 0
    for page, text in texts.items():
        for link in map(html.unescape, re.findall(r'\b(?:href|src)="([^"]+)"', text)):
            if re.match("[a-z]+:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.relative_to(site)}: {link}"
            assert not anchor or target not in anchors or anchor in anchors[target], f"{page.relative_to(site)}: {link}"
            followed += 1
    assert followed > 1000


def test_the_reference_shows_every_function_and_its_example(site, repository):
    names = re.findall(r"^::: (\S+)", (repository / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in names:
        assert f'id="{name}"' in page, name
    assert html.unescape(re.sub("<[^>]+>", "", page)).count(">>> ") > len(names)


def test_both_languages_can_be_searched(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    texts = {entry["location"]: entry["text"] for entry in index["docs"]}
    assert index["config"]["lang"] == ["en", "zh"]
    assert any("getting_started.zh-CN" in location for location in texts)
    assert any("make_beta_schedule" in location for location in texts)
    assert not any(location.startswith("source/palette_ms") for location in texts)  # code would bury the pages
