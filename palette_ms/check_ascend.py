"""python -m palette_ms.check_ascend: is this machine ready to compute on Ascend cards? What is missing, a line each.

    python -m palette_ms.check_ascend [CARDS] [--force] [--config CONFIG [key=value …]]

Looks at the driver (npu-smi), the first CARDS chips, or those of ASCEND_RT_VISIBLE_DEVICES (which series, free of other
processes, sound?), CANN (ASCEND_HOME_PATH), the Python packages that CANN imports, whether MindSpore was built for this
CANN, and, by an estimate, whether a training's step fits the chips' memory. Ends with status 2 where something is
missing; with --force that is a warning as well, as is always what may do no harm.

No card was at hand. npu-smi's tables are read as users show them of Atlas A2, of A3 and of 300I Duo, whose cards have
two chips each. A chip's number is its place in the table: that is how MindSpore counts those that a container sees.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from palette_ms import errors
from palette_ms.errors import UserError

_OLD = re.compile(r"(Ascend)?(310.*|910(A|B|ProA|ProB|PremiumA))")  # of before the Atlas A2 series
# As CANN's installation guide lists them: module, and package where it is called otherwise. All but `te` and `hccl`,
# which CANN has itself, come with the extra "ascend".
_IMPORTED = {"absl": "absl-py", "attr": "attrs", "cffi": "", "decorator": "", "google.protobuf": "protobuf",
             "numpy": "", "pathlib2": "", "psutil": "", "requests": "", "scipy": "", "sympy": "", "yaml": "pyyaml"}
_OF_CANN = ("te", "hccl")


class Problem(NamedTuple):
    """What keeps the machine from being ready, or may do so."""

    text: str
    warning: bool = False


class Chip(NamedTuple):
    """A row of npu-smi's table."""

    npu: int  # number of the card
    chip: int  # of the card's
    name: str
    health: str
    total: int  # MB of memory
    processes: tuple

    def __str__(self):
        return f"NPU {self.npu} chip {self.chip}, {self.name}"


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.check_ascend", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("cards", nargs="?", type=int, default=1)
    parser.add_argument("--force", action="store_true", help="go on where something is missing")
    parser.add_argument("--config", help="of the training that is to follow, whose memory is estimated")
    args, overrides = parser.parse_known_args()
    chips, problems = wanted_chips(args.cards)
    problems += [*cann_and_mindspore()]
    if args.config and chips and not problems:
        problems += memory(args.config, [word for word in overrides if "=" in word and word[0] != "-"], chips)
    for problem in problems:
        print(f"{'warning' if problem.warning or args.force else 'error'}: {problem.text}", file=sys.stderr)
    sys.exit(0 if args.force or all(problem.warning for problem in problems) else 2)


def wanted_chips(count):
    """The chips to be used, and a list of problems."""
    try:
        done = subprocess.run(["npu-smi", "info"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return [], [Problem("no Ascend driver: npu-smi was not found (install driver and firmware; in a container, "
                            "pass /usr/local/bin/npu-smi, /usr/local/Ascend/driver and /dev/davinci* through)")]
    except subprocess.TimeoutExpired:
        return [], [Problem("the driver does not answer: npu-smi info took more than a minute")]
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return [], [Problem(f"the driver does not work: npu-smi info says {said}")]
    there = read_table(done.stdout)
    if not there:
        return [], [Problem("the table of npu-smi info is not of a form known here: its chips were not checked", True)]
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    numbers = [int(number) for number in re.findall(r"\d+", visible)] if visible else [*range(len(there))]
    problems = []
    if len(numbers) < count:
        by = f"ASCEND_RT_VISIBLE_DEVICES names {len(numbers)}" if visible else f"npu-smi finds {len(there)}"
        problems.append(Problem(f"{count} chips were asked for, {by}"))
    for number in numbers[:count]:
        if number >= len(there):
            problems.append(Problem(f"ASCEND_RT_VISIBLE_DEVICES names chip {number}, which npu-smi does not find"))
            continue
        chip = there[number]
        if _OLD.fullmatch(chip.name):
            problems.append(Problem(f"chip {number} ({chip}) is of before the Atlas A2 series: such cards are not "
                                    "supported"))
        if chip.processes:
            problems.append(Problem(f"chip {number} ({chip}) is taken by {', '.join(chip.processes)}: end it, or "
                                    "choose others with ASCEND_RT_VISIBLE_DEVICES"))
        if chip.health != "OK":
            problems.append(Problem(f"chip {number} ({chip}) says of its health: {chip.health}", True))
    return [there[number] for number in numbers[:count] if number < len(there)], problems


def read_table(text):
    """The `Chip`s in what `npu-smi info` prints, in its order."""
    processes = {}
    for npu, chip, process, name in re.findall(r"^\|\s*(\d+)\s+(\d+)\s*\|\s*(\d+)\s*\|\s*(\S+)\s*\|", text, re.M):
        processes.setdefault((int(npu), int(chip)), []).append(f"{name} {process}")
    # Two lines a chip: number of the card, name | health | …, then number of the chip on it | bus | …, whose last two
    # numbers are of the memory that computations use.
    rows = re.findall(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*([A-Za-z]+)\s*\|.*\n"
                      r"\|\s*(\d+)(?:\s+\d+)?\s*\|\s*[\w:.]+\s*\|.*?\d+\s*/\s*(\d+)\s*\|\s*$", text, re.M)
    return [Chip(int(npu), int(chip), name, health, int(total), tuple(processes.get((int(npu), int(chip)), ())))
            for npu, name, health, chip, total in rows]


def cann_and_mindspore():
    version, home = None, os.environ.get("ASCEND_HOME_PATH")
    if not home:
        installed = [path for path in ("/usr/local/Ascend/cann/set_env.sh",
                                       "/usr/local/Ascend/ascend-toolkit/set_env.sh") if Path(path).exists()]
        yield Problem("CANN is not set up: " + (f"source {installed[0]}" if installed else
                      "install it, then source its set_env.sh (looked in /usr/local/Ascend)"))
    elif not Path(home).is_dir():
        yield Problem(f"ASCEND_HOME_PATH is {home}, which is not there: source CANN's set_env.sh")
    else:
        try:
            text = Path(home, "compiler", "version.info").read_text(encoding="utf-8")
            version = re.search(r"^Version=(\d+\.\d+)", text, re.M).group(1)
        except (OSError, AttributeError):  # MindSpore goes on without it, too
            yield Problem(f"CANN's version cannot be read from {home}/compiler/version.info: whether MindSpore was "
                          "built for it was not checked", True)
        lacking = [name for name in _OF_CANN if importlib.util.find_spec(name) is None]
        if lacking:
            yield Problem(f"Python does not find CANN's {' and '.join(lacking)}: source {home}/set_env.sh (or "
                          f"{Path(home).parent}/set_env.sh) in this shell")
    lacking = [package or module for module, package in _IMPORTED.items() if not imports(module)]
    if lacking:
        yield Problem(f"CANN imports {', '.join(lacking)}, which {sys.executable} lacks: pip install -e '.[ascend]'")
    try:
        mindspore = importlib.metadata.version("mindspore")
    except importlib.metadata.PackageNotFoundError:
        yield Problem(f"MindSpore is not installed for {sys.executable}: pip install 'mindspore>=2.7,<2.11'")
        return
    if version:
        # Where MindSpore keeps what it was built for: importing it would print pages where something is amiss.
        checker = next(iter(importlib.metadata.distribution("mindspore").locate_file(
            "mindspore/run_check").glob("_check_version.py")), None)
        supported = checker and re.search(r"class AscendEnvChecker.*?self\.version = \[(.*?)\]",
                                          checker.read_text(encoding="utf-8"), re.S)
        if supported and version not in re.findall(r"[\d.]+", supported.group(1)):
            fitting = ", ".join(re.findall(r"[\d.]+", supported.group(1)))
            yield Problem(f"MindSpore {mindspore} was built for CANN {fitting}, and this is CANN {version}: where "
                          "something fails, install another of the two (docs/ascend.md)", True)


def imports(module):
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def memory(config, overrides, chips):
    """Whether a step fits, by the estimate of `palette_ms.estimate`."""
    from palette_ms.config import load_config

    try:
        training = load_config(config, overrides)
    except UserError:  # which the training tells
        return []
    from palette_ms.training.memory import Memory  # with MindSpore, which takes a while

    estimate, batch = Memory(training, len(chips)), training.training.batch_size
    smallest = min(chip.total for chip in chips) / 1024
    fits = estimate.batch_for(smallest)
    if fits >= batch:
        return []
    return [Problem(f"by estimate a step of training.batch_size {batch} needs {estimate.total(batch) / 2**30:.1f} GiB, "
                    f"and a chip has {smallest:.0f}, {f'where {fits} fit' if fits else 'where not even 1 fits'}; "
                    f"python -m palette_ms.estimate --config {config} tells what training.recompute gains", True)]


if __name__ == "__main__":
    errors.run(main)
