"""The shell scripts for Ascend cards, with stand-ins for npu-smi and msrun, since no card is at hand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mindspore.run_check._check_version import AscendEnvChecker

# The table of processes that npu-smi prints below that of the cards.
HEADER = "| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |\n"
FREE = "| No running processes found in NPU {}                                                            |\n"
BUSY = "| {}       0                 | 4711          | python                   | 20480                   |\n"


class Machine:
    """One with four cards and a CANN that MindSpore was built for."""

    def __init__(self, folder):
        self.folder, self.environ = folder, {"ASCEND_HOME_PATH": str(folder / "cann")}
        (folder / "cann" / "compiler").mkdir(parents=True)
        self.set_cann(f"{AscendEnvChecker('').version[0]}.RC1")
        self.program("msrun", "import json, sys; print(json.dumps(sys.argv[1:]))")
        self.set_cards([FREE, FREE, FREE, FREE])

    def set_cann(self, version):
        (self.folder / "cann" / "compiler" / "version.info").write_text(f"Version={version}\nversion_dir=x\n")

    def set_cards(self, rows):
        text = HEADER + "".join(row.format(card) for card, row in enumerate(rows))
        self.program("npu-smi", f"print({text!r})")

    def program(self, name, code):
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{code}\n")
        path.chmod(0o755)

    def run(self, repository, script, *arguments):
        path = f"{self.folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ASCEND_", "MASTER_"))}
        return subprocess.run(["bash", str(repository / "scripts" / script), *map(str, arguments)], text=True,
                              env={**kept, "VIRTUAL_ENV": "x", "LOGS": "logs", **self.environ, "PATH": path},
                              capture_output=True, cwd=self.folder)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def started(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_training_starts_on_as_many_cards_as_asked(machine, repository):
    common = ["--master_addr=127.0.0.1", "--master_port=8118", "--node_rank=0", "--log_dir=logs", "--join=True",
              "--tail_worker_log=0", "python", "-m", "palette_ms.train", "--config", "c.yaml", "--device", "Ascend"]
    argv = started(machine.run(repository, "run_train_ascend.sh", "c.yaml", 4, "training.steps=9", "--resume", "auto"))
    assert argv == ["--worker_num=4", "--local_worker_num=4", *common, "training.steps=9", "--resume", "auto"]
    argv = started(machine.run(repository, "run_train_ascend.sh", "c.yaml", "training.steps=9"))
    assert argv == ["--worker_num=1", "--local_worker_num=1", *common, "training.steps=9"]


def test_hosts_are_named_by_addresses_or_by_a_rank_table(machine, repository):
    table = {"server_list": [{"server_id": f"10.0.0.{host}", "device": [{"rank_id": "0"}] * 2} for host in (5, 6)]}
    (machine.folder / "table.json").write_text(json.dumps(table))
    for hosts, cards in (("10.0.0.5,10.0.0.6", ["2"]), ("table.json", [])):
        argv = started(machine.run(repository, "run_distributed_train_ascend.sh", "c.yaml", hosts, 1, *cards, "a.b=c"))
        assert argv[:5] == ["--worker_num=4", "--local_worker_num=2", "--master_addr=10.0.0.5", "--master_port=8118",
                            "--node_rank=1"]
        assert "--tail_worker_log=2" in argv and argv[-1] == "a.b=c"


def test_sampling_starts_on_as_many_cards_as_asked(machine, repository):
    argv = started(machine.run(repository, "run_sample_ascend.sh", 2, "--ckpt", "quickstart", "--input", "photos"))
    assert argv[0] == "--worker_num=2"
    assert argv[-8:] == ["-m", "palette_ms.sample", "--device", "Ascend", "--ckpt", "quickstart", "--input", "photos"]


def test_evaluation_starts_on_as_many_cards_as_asked(machine, repository):
    argv = started(machine.run(repository, "run_eval_ascend.sh", 2, "--reference", "photos", "--restored", "outputs"))
    assert argv[0] == "--worker_num=2"
    assert argv[-8:] == ["-m", "palette_ms.evaluate", "--device", "Ascend", "--reference", "photos", "--restored",
                         "outputs"]


@pytest.mark.parametrize("script, arguments, message", [
    ("run_train_ascend.sh", [], "error: which config?\nbash scripts/run_train_ascend.sh CONFIG"),
    ("run_train_ascend.sh", ["c.yaml", "two"], "whole number above 0, not 'two'"),
    ("run_distributed_train_ascend.sh", ["c.yaml", "10.0.0.5", "1"], "INDEX must be from 0 to 0 for 1 hosts"),
    ("run_distributed_train_ascend.sh", ["c.yaml", "broken.json", "0"], "broken.json is not a rank table"),
    ("run_sample_ascend.sh", ["2"], "how many cards, and what to restore?"),
    ("run_eval_ascend.sh", ["2"], "how many cards, and which folders?"),
])
def test_wrong_arguments_are_told_with_the_usage(machine, repository, script, arguments, message):
    (machine.folder / "broken.json").write_text("{}")
    done = machine.run(repository, script, *arguments)
    assert done.returncode == 2 and message in done.stderr and not done.stdout


def unready(machine, what):
    if what == "no driver":
        (machine.folder / "bin" / "npu-smi").unlink()
    elif what == "driver broken":
        machine.program("npu-smi", "import sys; sys.exit('dcmi module initialize failed')")
    elif what == "too few cards":
        machine.set_cards([FREE])
    elif what == "card taken":
        machine.set_cards([FREE, BUSY, FREE, FREE])
    elif what == "unknown card":
        machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "0,9"
    elif what == "no CANN":
        del machine.environ["ASCEND_HOME_PATH"]
    elif what == "wrong home":
        machine.environ["ASCEND_HOME_PATH"] = "/none"
    elif what == "old CANN":
        machine.set_cann("5.1.0")


@pytest.mark.parametrize("what, message", [
    ("no driver", "no Ascend driver: npu-smi was not found"),
    ("driver broken", "the driver does not work.*dcmi module initialize failed"),
    ("too few cards", "2 cards were asked for, npu-smi finds 1"),
    ("card taken", "card 1 is taken by python 4711"),
    ("unknown card", "names card 9, which npu-smi does not find"),
    ("no CANN", "CANN is not set up"),
    ("wrong home", "CANN's version cannot be read from /none"),
    ("old CANN", r"was built for CANN \d.*, and this is CANN 5\.1"),
])
def test_a_machine_that_is_not_ready_is_told_what_it_lacks(machine, repository, what, message):
    unready(machine, what)
    done = machine.run(repository, "run_train_ascend.sh", "c.yaml", 2)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and not done.stdout and len(lines) == 1, done.stderr
    assert re.search(message, lines[0])


def test_free_cards_can_be_chosen_where_others_are_taken(machine, repository):
    machine.set_cards([BUSY, FREE, FREE, FREE])
    machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "2,3"
    started(machine.run(repository, "run_train_ascend.sh", "c.yaml", 2))


def test_other_devices_need_no_ascend(machine, repository):
    machine.environ.update(DEVICE="CPU", MASTER_PORT="9000")
    unready(machine, "no driver")
    argv = started(machine.run(repository, "run_train_ascend.sh", "c.yaml", 2))
    assert "--master_port=9000" in argv and argv[-2:] == ["--device", "CPU"]
