"""palette-ms VERB …: all that this project does, a verb each; the same as python -m palette_ms.VERB."""

import argparse
import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import palette_ms
from palette_ms import errors
from palette_ms.errors import UserError, did_you_mean

_ALIASES = {"restore": "sample"}
# Completes verbs, options by what --help says of them, and file names.
_COMPLETION = """_palette_ms() {{
    local word=${{COMP_WORDS[COMP_CWORD]}}
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
    elif [[ $word == -* ]]; then
        local options=$(palette-ms "${{COMP_WORDS[1]}}" --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]+')
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    fi
}}
complete -o default -F _palette_ms palette-ms
"""


def verbs():
    """What each verb does, in one line, by its name with hyphens; nothing is imported for it.

    A verb is a file of the package, or a room's `__main__`, whose docstring begins with how it is called.
    """
    found = {}
    for module in pkgutil.iter_modules(palette_ms.__path__):
        path = Path(palette_ms.__path__[0], module.name)
        path = path / "__main__.py" if module.ispkg else path.with_suffix(".py")
        if path.is_file():
            line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
            called, colon, what = " ".join(line.split()).partition(": ")
            if colon and called.startswith(f"python -m palette_ms.{module.name}"):
                found[module.name.replace("_", "-")] = what
    return found


def main():
    known = verbs()
    listed = [f"  {verb:13} {what}" for verb, what in known.items()]
    listed += [f"  {alias:13} as {verb}" for alias, verb in _ALIASES.items()]
    parser = argparse.ArgumentParser(
        prog="palette-ms", formatter_class=argparse.RawDescriptionHelpFormatter, usage="palette-ms VERB …",
        description=__doc__, epilog="\n".join(["verbs (palette-ms VERB --help tells their options):", *listed]))
    parser.add_argument("--version", action="version", version=f"palette_ms {palette_ms.__version__}")
    parser.add_argument("--completion", action="store_true", help="print what completes verbs and options in bash and, "
                                                                  "after bashcompinit, in zsh: eval \"$(palette-ms "
                                                                  "--completion)\"")
    parser.add_argument("verb", nargs="?", metavar="VERB", help="see below")
    args = parser.parse_args(sys.argv[1:2])
    if args.completion:
        print(_COMPLETION.format(verbs=" ".join([*known, *_ALIASES])), end="")
        return
    if args.verb is None:
        parser.error("a verb is needed: palette-ms --help lists them")
    verb = _ALIASES.get(args.verb, args.verb).replace("_", "-")
    if verb not in known:
        raise UserError(f"there is no verb {args.verb!r}{did_you_mean(args.verb, [*known, *_ALIASES])}")
    sys.argv[:2] = [f"palette-ms {args.verb}"]
    module = importlib.import_module(f"palette_ms.{verb.replace('-', '_')}")
    (module if hasattr(module, "main") else importlib.import_module(f"{module.__name__}.__main__")).main()


def command():
    """The entry point."""
    errors.run(main)


if __name__ == "__main__":
    command()
