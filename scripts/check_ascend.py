"""Is this machine ready to compute on Ascend cards? Says what is missing, a line each, and how to mend it.

    python scripts/check_ascend.py [CARDS]

Looks at the driver (npu-smi), CANN (ASCEND_HOME_PATH), the first CARDS cards, or those of ASCEND_RT_VISIBLE_DEVICES
(free of other processes?), and whether MindSpore was built for this CANN. Ends with status 2 where something is
missing. No card was at hand: the form of npu-smi's table of processes is taken from its documentation.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path


def main():
    cards = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    problems = [*driver_and_cards(cards), *cann_and_mindspore()]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(2 if problems else 0)


def driver_and_cards(cards):
    try:
        done = subprocess.run(["npu-smi", "info"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        yield ("no Ascend driver: npu-smi was not found (install driver and firmware; in a container, pass "
               "/usr/local/bin/npu-smi, /usr/local/Ascend/driver and /dev/davinci* through)")
        return
    except subprocess.TimeoutExpired:
        yield "the driver does not answer: npu-smi info took more than a minute"
        return
    if done.returncode:
        yield f"the driver does not work: npu-smi info says {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
        return
    free = {int(card) for card in re.findall(r"No running processes found in NPU (\d+)", done.stdout)}
    busy = {}
    # Rows of the table of processes: NPU and chip, process id, name, memory.
    for card, process, name in re.findall(r"^\|\s*(\d+)\s+\d+\s*\|\s*(\d+)\s*\|\s*(\S+)\s*\|\s*\d+\s*\|", done.stdout,
                                          re.M):
        busy.setdefault(int(card), []).append(f"{name} {process}")
    there = free | busy.keys()
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    wanted = [int(card) for card in re.findall(r"\d+", visible)][:cards] if visible else sorted(there)[:cards]
    if len(wanted) < cards:
        yield (f"{cards} cards were asked for, "
               + (f"ASCEND_RT_VISIBLE_DEVICES names {len(wanted)}" if visible else f"npu-smi finds {len(there)}"))
    for card in wanted:
        if card in busy:
            yield (f"card {card} is taken by {', '.join(busy[card])}: end it, or choose others with "
                   "ASCEND_RT_VISIBLE_DEVICES")
        elif card not in there:
            yield f"ASCEND_RT_VISIBLE_DEVICES names card {card}, which npu-smi does not find"


def cann_and_mindspore():
    version, home = None, os.environ.get("ASCEND_HOME_PATH")
    if not home:
        installed = [path for path in ("/usr/local/Ascend/cann/set_env.sh",
                                       "/usr/local/Ascend/ascend-toolkit/set_env.sh") if Path(path).exists()]
        yield ("CANN is not set up: " + (f"source {installed[0]}" if installed else
               "install it, then source its set_env.sh (looked in /usr/local/Ascend)"))
    else:
        try:
            text = Path(home, "compiler", "version.info").read_text(encoding="utf-8")
            version = re.search(r"^Version=(\d+\.\d+)", text, re.M).group(1)
        except (OSError, AttributeError):
            yield f"CANN's version cannot be read from {home}/compiler/version.info: is ASCEND_HOME_PATH right?"
    try:
        mindspore = importlib.metadata.version("mindspore")
    except importlib.metadata.PackageNotFoundError:
        yield f"MindSpore is not installed for {sys.executable}: pip install 'mindspore>=2.7,<2.11'"
        return
    if version:
        # Where MindSpore keeps what it was built for: importing it would print pages where something is amiss.
        checker = next(iter(importlib.metadata.distribution("mindspore").locate_file(
            "mindspore/run_check").glob("_check_version.py")), None)
        supported = checker and re.search(r"class AscendEnvChecker.*?self\.version = \[(.*?)\]",
                                          checker.read_text(encoding="utf-8"), re.S)
        if supported and version not in re.findall(r"[\d.]+", supported.group(1)):
            fitting = ", ".join(re.findall(r"[\d.]+", supported.group(1)))
            yield (f"MindSpore {mindspore} was built for CANN {fitting}, and this is CANN {version}: install another "
                   "of the two, https://www.mindspore.cn/install says which go together")


if __name__ == "__main__":
    main()
