"""What mkdocs.yml adds to mkdocs, so that the site needs no other host and no second copy of anything.

The READMEs are the site's first pages. What else of the repository a page links to (a source file, a recipe, a
notebook, the changelog) becomes a page below `source/`, and the link leads there. Formulas become MathML, which
browsers show by themselves.
"""

import html
import json
import os
import re
from pathlib import Path, PurePosixPath

import jieba
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
FIRST = {"README.md": "index.md", "README.zh-CN.md": "index.zh-CN.md"}
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
HAN = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
BROKEN = re.compile(rf"(?<={HAN})\n(?={HAN})")  # a line's end between two characters, which browsers show as a space
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".toml": "toml"}
MATH = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)

jieba.add_word("昇腾")  # Ascend: a word that the search would else take for two
_origins = {}  # a page of the site → the file of the repository that it is made of


def place(path):
    """Where the site has a file of the repository, as a path below docs/."""
    path = os.path.normpath(path)
    if path.startswith("docs/"):
        return path[len("docs/"):]
    return FIRST.get(path) or f"source/{path}" + ("" if path.endswith(".md") else ".md")


def rewritten(text, origin):
    """The text of a repository's file with its links as the site has them, and the files that these lead to."""
    found, here = [], PurePosixPath(place(origin)).parent

    def lead(match):
        target = os.path.normpath(os.path.join(os.path.dirname(origin), match[2]))
        if not (ROOT / target).exists():
            return match[0]  # mkdocs warns of it
        found.append(target)
        return match[1] + os.path.relpath(place(target), here) + match[3]

    parts = re.split(r"(^ *```.*?^ *```)", text, flags=re.M | re.S)
    return "".join(part if part.lstrip().startswith("```") else LINK.sub(lead, part) for part in parts), found


def page(path):
    """The Markdown of a file or folder that is no page by itself."""
    file = ROOT / path
    apart = "---\nsearch: {exclude: true}\n---\n"
    if file.is_dir():
        names = sorted(name.name for name in file.iterdir() if not name.name.startswith((".", "_")))
        return f"# {file.name.capitalize()}\n\n" + "".join(f"- [{name}]({file.name}/{name})\n" for name in names)
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    if file.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)
    return f"{apart}# {path}\n\n`````{LANGUAGES.get(file.suffix, 'text')}\n{text}\n`````\n"


def on_files(files, config):
    _origins.clear()
    waiting = [*FIRST, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    while waiting:
        path = waiting.pop()
        if place(path) in _origins:
            continue
        _origins[place(path)] = path
        if path.startswith("docs/") and not path.endswith(".md"):
            continue  # a picture
        text = page(path)
        waiting += rewritten(text, path)[1]
        if not path.startswith("docs/"):
            files.append(File.generated(config, place(path), content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    origin = _origins[page.file.src_uri]
    return BROKEN.sub("", rewritten(markdown, origin)[0])


def on_page_content(content, page, config, files):
    return MATH.sub(lambda match: convert(html.unescape(match[3]), display="inline" if match[2] == "(" else "block"),
                    content)
