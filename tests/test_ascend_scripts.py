"""The shell scripts for Ascend cards, with stand-ins for npu-smi and msrun, since no card is at hand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mindspore.run_check._check_version import AscendEnvChecker

# What npu-smi info prints, as users of the three kinds of machines show it: the lines of a chip (card, chip of the
# card, number of the chip), and those about processes.
LAYOUTS = {
    "A2": """\
| {card}     910B4               | OK            | 88.2        30                0    / 0             |
| {chip}                         | 0000:C1:00.0  | 0           0    / 0          3416 / 32768         |
""",
    "A3": """\
| {card}     Ascend910           | OK            | 178.5       36                0    / 0             |
| {chip}     {number}                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |
""",
    "300I Duo": """\
| {card}       310P3                 | OK              | NA           45                0     / 0             |
| {chip}       {number}                     | 0000:01:00.0    | 0            1529 / 44280                            |
""",
}
HEADS = """\
| npu-smi 25.2.0                   Version: 25.2.0                                               |
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
""", "| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |\n"
FREE = "| No running processes found in NPU {card}                                                            |\n"
BUSY = "| {card}       {chip}                 | 4711          | python3.1          | 197                   | NA     |\n"


def npu_smi(processes, layout="A2", cards=range(4), chips=1):
    """The tables for so many cards; processes: (card, chip) of the busy chips."""
    places = [(card, chip) for card in cards for chip in range(chips)]
    rows = "".join(LAYOUTS[layout].format(card=card, chip=chip, number=number) + "+-----+\n"
                   for number, (card, chip) in enumerate(places))
    below = "".join(BUSY.format(card=card, chip=chip) for card, chip in processes)
    below += "".join(FREE.format(card=card) for card in cards if card not in {busy for busy, _ in processes})
    return HEADS[0] + rows + HEADS[1] + below


class Machine:
    """One with four cards and a CANN that MindSpore was built for."""

    def __init__(self, folder):
        self.folder = folder
        self.environ = {"ASCEND_HOME_PATH": str(folder / "cann"), "PYTHONPATH": str(folder / "lib")}
        (folder / "cann" / "compiler").mkdir(parents=True)
        self.set_cann(f"{AscendEnvChecker('').version[0]}.RC1")
        self.program("msrun", "import json, sys; print(json.dumps(sys.argv[1:]))")
        for module in ("te", "hccl", "attr", "decorator", "sympy", "cffi", "pathlib2"):
            (folder / "lib" / module).mkdir(parents=True)
            (folder / "lib" / module / "__init__.py").touch()
        self.set_cards()

    def set_cann(self, version):
        (self.folder / "cann" / "compiler" / "version.info").write_text(f"Version={version}\nversion_dir=x\n")

    def set_cards(self, processes=(), **layout):
        self.program("npu-smi", f"print({npu_smi(processes, **layout)!r})")

    def program(self, name, code):
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{code}\n")
        path.chmod(0o755)

    def run(self, repository, script, *arguments):
        path = f"{self.folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin"
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("ASCEND_", "MASTER_", "HCCL_"))}
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
              "--tail_worker_log=0", "--bind_core=True", "python", "-m", "palette_ms.train", "--config", "c.yaml",
              "--device", "Ascend"]
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
        assert argv[7:10] == ["--tail_worker_log=2", "--cluster_time_out=3600", "--bind_core=True"]
        assert argv[-1] == "a.b=c"


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
        machine.set_cards(cards=[0])
    elif what == "card taken":
        machine.set_cards([(1, 0)])
    elif what == "second chip taken":
        machine.set_cards([(0, 1)], layout="A3", chips=2)
    elif what == "unknown card":
        machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "0,9"
    elif what == "no CANN":
        del machine.environ["ASCEND_HOME_PATH"]
    elif what == "wrong home":
        machine.environ["ASCEND_HOME_PATH"] = "/none"
    elif what == "no te":
        (machine.folder / "lib" / "te" / "__init__.py").unlink()
        (machine.folder / "lib" / "te").rmdir()
    elif what == "no attrs":
        (machine.folder / "lib" / "attr" / "__init__.py").write_text("raise ImportError")
    elif what == "old CANN":
        machine.set_cann("5.1.0")
    elif what == "no version":
        (machine.folder / "cann" / "compiler" / "version.info").unlink()
    elif what == "another table":
        machine.program("npu-smi", "print('| Slot | Chip Phy-ID |')")


@pytest.mark.parametrize("what, message", [
    ("no driver", "no Ascend driver: npu-smi was not found"),
    ("driver broken", "the driver does not work.*dcmi module initialize failed"),
    ("too few cards", "2 chips were asked for, npu-smi finds 1"),
    ("card taken", r"chip 1 \(NPU 1 chip 0, 910B4\) is taken by python3.1 4711"),
    ("second chip taken", r"chip 1 \(NPU 0 chip 1, Ascend910\) is taken by python3.1 4711"),
    ("unknown card", "names chip 9, which npu-smi does not find"),
    ("no CANN", "CANN is not set up"),
    ("wrong home", "ASCEND_HOME_PATH is /none, which is not there"),
    ("no te", "Python does not find CANN's te: source .*/set_env.sh"),
    ("no attrs", r"CANN imports attrs, which .* lacks: pip install -e '.\[ascend\]'"),
])
def test_a_machine_that_is_not_ready_is_told_what_it_lacks(machine, repository, what, message):
    unready(machine, what)
    done = machine.run(repository, "run_train_ascend.sh", "c.yaml", 2)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and not done.stdout and len(lines) == 1, done.stderr
    assert re.search(message, lines[0])
    machine.environ["FORCE"] = "1"
    done = machine.run(repository, "run_train_ascend.sh", "c.yaml", 2)
    started(done)
    assert re.search(message, done.stderr) and done.stderr.startswith("warning: ")


@pytest.mark.parametrize("what, message", [
    ("old CANN", r"was built for CANN \d.*, and this is CANN 5\.1"),
    ("no version", "CANN's version cannot be read"),
    ("another table", "not of a form known here"),
])
def test_what_may_do_no_harm_is_a_warning(machine, repository, what, message):
    unready(machine, what)
    done = machine.run(repository, "run_train_ascend.sh", "c.yaml", 2)
    started(done)
    assert re.search(f"^warning: .*{message}", done.stderr)


@pytest.mark.parametrize("layout, cards, chips, processes, wanted, message", [
    ("A3", range(8), 2, [], 16, None),
    ("A3", range(8), 2, [], 17, "17 chips were asked for, npu-smi finds 16"),
    ("A3", range(8), 2, [(7, 1)], 15, None),
    ("A3", range(8), 2, [(7, 1)], 16, r"chip 15 \(NPU 7 chip 1, Ascend910\) is taken"),
    ("A2", [2, 5], 1, [], 2, None),  # what a container sees of eight
    ("300I Duo", [2], 2, [], 2, r"chip 0 \(NPU 2 chip 0, 310P3\) is of before the Atlas A2 series"),
])
def test_chips_are_counted_on_machines_with_two_a_card(machine, repository, layout, cards, chips, processes, wanted,
                                                       message):
    machine.set_cards(processes, layout=layout, cards=cards, chips=chips)
    done = machine.run(repository, "run_train_ascend.sh", "c.yaml", wanted)
    if message is None:
        assert f"--worker_num={wanted}" in started(done) and "warning" not in done.stderr
    else:
        assert done.returncode == 2 and re.search(message, done.stderr)


def test_a_step_that_does_not_fit_a_chip_is_told_before_it_is_compiled(machine, repository):
    config = repository / "configs" / "palette_62m.yaml"
    done = machine.run(repository, "run_train_ascend.sh", config, "training.batch_size=64", "--resume", "auto")
    assert "--resume" in started(done)
    assert re.search(r"^warning: by estimate a step of training.batch_size 64 needs 1\d\d\.\d GiB, and a chip has 32, "
                     r"where \d+ fit; python -m palette_ms.estimate", done.stderr)
    assert "warning" not in machine.run(repository, "run_train_ascend.sh", config).stderr


def test_free_cards_can_be_chosen_where_others_are_taken(machine, repository):
    machine.set_cards([(0, 0)])
    machine.environ["ASCEND_RT_VISIBLE_DEVICES"] = "2,3"
    started(machine.run(repository, "run_train_ascend.sh", "c.yaml", 2))


def test_other_devices_need_no_ascend(machine, repository):
    machine.environ.update(DEVICE="CPU", MASTER_PORT="9000")
    unready(machine, "no driver")
    argv = started(machine.run(repository, "run_train_ascend.sh", "c.yaml", 2))
    assert "--master_port=9000" in argv and argv[-2:] == ["--device", "CPU"] and "--bind_core=True" not in argv
