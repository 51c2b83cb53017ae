"""What ModelArts' boot file does: fetch the data, start msrun over all cards and hosts, send results up as they come.

It needs nothing but Python until it has seen to the packages that training needs, since the platform's images have
MindSpore and moxing and not all of them.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from palette_ms import launch
from palette_ms.errors import UserError
from palette_ms.modelarts.storage import Mirror, fetch, is_remote, local_folder

CODE = Path(__file__).resolve().parents[2]
SEND_SECONDS = 20  # between looks for new files to send
_LAST_TRIES = 3  # to send what is left, after the training's end
_NAME_SECONDS = 600  # for the first host to be known by its name
_PORT = 8118
# What training imports beside MindSpore, and which package brings it (see pyproject.toml).
_PACKAGES = {"cv2": "opencv-python-headless<4.12", "PIL": "pillow>=9.1", "safetensors": "safetensors>=0.4",
             "scipy": "scipy", "tqdm": "tqdm", "yaml": "pyyaml"}
# The platform sets these for a program that runs once a card. msrun sets its own, and with the table its ranks would
# meet by that.
_SET_BY_MSRUN = ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH", "RANK_ID", "RANK_SIZE", "DEVICE_ID",
                 "ASCEND_DEVICE_ID")
# Seconds for which hosts wait for each other where there are several: one may fetch its data for longer than another.
# HCCL takes 120 to 7200.
_MEETING_SECONDS = 3600


class Cluster(NamedTuple):
    """The job's machines, seen from one of them."""

    hosts: int
    cards: int  # of each host
    index: int  # type: ignore[assignment]  # of this host; tuples have a method of this name
    master: str  # address of host 0


def read_cluster(environ):
    """The `Cluster` that the platform's environment tells.

    MA_NUM_HOSTS, MA_NUM_GPUS (cards of any kind), VC_TASK_INDEX and VC_WORKER_HOSTS; where these are not set, the rank
    table of RANK_TABLE_FILE with RANK_ID; without either one host with one card.

    Raises:
        UserError: variables that contradict each other or are no numbers, or an unreadable rank table.
    """
    table = environ.get("RANK_TABLE_FILE")
    if "MA_NUM_GPUS" not in environ and table:
        return _from_rank_table(table, environ)
    try:
        hosts, cards, index = (int(environ.get(name, default)) for name, default in
                               (("MA_NUM_HOSTS", 1), ("MA_NUM_GPUS", 1), ("VC_TASK_INDEX", 0)))
    except ValueError as error:
        raise UserError(f"MA_NUM_HOSTS, MA_NUM_GPUS and VC_TASK_INDEX must be whole numbers: {error}") from None
    if hosts == 1:
        return Cluster(1, cards, 0, "127.0.0.1")
    names = [name for name in environ.get("VC_WORKER_HOSTS", "").split(",") if name]
    if len(names) != hosts or "VC_TASK_INDEX" not in environ or not 0 <= index < hosts:
        raise UserError(f"MA_NUM_HOSTS is {hosts}, VC_WORKER_HOSTS names {len(names)} hosts and VC_TASK_INDEX is "
                        f"{environ.get('VC_TASK_INDEX', 'not set')}: they do not fit together")
    return Cluster(hosts, cards, index, names[0])


def wait_for_name(host):
    """Wait until a host's name is known to the network: its container may start later than this one.

    Raises:
        UserError: it is not after ten minutes.
    """
    end = time.monotonic() + _NAME_SECONDS
    while True:
        try:
            return socket.getaddrinfo(host, None)
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(f"the first host, {host}, is not to be found: {error}") from None
        time.sleep(2)


def _from_rank_table(path, environ):
    try:
        servers = json.loads(Path(path).read_text(encoding="utf-8"))["server_list"]
        cards = len(servers[0]["device"])
        index = int(environ.get("RANK_ID", 0)) // cards
        return Cluster(len(servers), cards, index, "127.0.0.1" if len(servers) == 1 else servers[0]["server_id"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"RANK_TABLE_FILE {path} is not a rank table ({type(error).__name__}: {error})") from None


def parse(argv):
    """The boot file's arguments: (named ones, overrides of the training config).

    The platform takes no parameter with a dot in its name, so that all overrides are in one, see `join_overrides`. By
    hand an override may also be `section.key=value`, with or without `--`, or `--section.key value`.
    """
    parser = argparse.ArgumentParser(prog="scripts/modelarts/train.py", description=__doc__.partition("\n")[0],
                                     allow_abbrev=False)
    parser.add_argument("--config", required=True, help="YAML file, such as configs/places2_inpainting.yaml")
    parser.add_argument("--data_url", help="what replaces data.path; data.path and data.validation, where given too, "
                                           "are looked for in it")
    parser.add_argument("--train_url", help="what replaces training.output; a training state there is gone on from")
    parser.add_argument("--overrides", default="", help="of the config: section.key=value, with commas between; a "
                                                        "comma within a value is %%2C, a blank %%20")
    parser.add_argument("--work_dir", type=Path, help="local folder for copies (default: in /cache or MA_JOB_DIR)")
    parser.add_argument("--device", default="Ascend", help="Ascend (default), GPU or CPU")
    named, rest = parser.parse_known_args(argv)
    overrides = split_overrides(named.overrides)
    while rest:
        word = rest.pop(0)
        name = word[2:] if word.startswith("--") else word
        if re.match(r"[a-z_]+\.[a-z_.]+$", name) and rest:
            name = f"{name}={rest.pop(0)}"
        if re.match(r"[a-z_]+\.[a-z_.]+=", name):
            overrides.append(name)
        else:
            _say(f"ignored: {word}, which is no argument of ours")
    return named, overrides


def join_overrides(overrides):
    """Overrides as one word that no shell changes: commas between them, and within them %XX for what is not plain."""
    return ",".join(quote(override, safe="=/:.-_") for override in overrides)


def split_overrides(text):
    """The reverse of `join_overrides`."""
    return [unquote(part) for part in text.split(",") if part]


def place(overrides, data, output, folder):
    """Overrides with paths on this machine.

    Args:
        overrides: strings `section.key=value`. What is in OBS is fetched.
        data: local path of the data, or None: the config names it.
        output: local path for results, or None.
        folder: for what is fetched.
    """
    placed = {} if data is None else {"data.path": str(data)}
    for override in overrides:
        key, _, value = override.partition("=")
        if is_remote(value):
            value = str(fetch(value, folder))
        elif data is not None and key in ("data.path", "data.validation") and (data / value).exists():
            value = str(data / value)
        placed[key] = value
    if output is not None:
        placed["training.output"] = str(output)
    return [f"{key}={value}" for key, value in placed.items()]


def msrun_command(cluster, logs, arguments, options=()):
    """The command line that trains over a cluster, one process a card. Raises UserError where there is no msrun.

    Args:
        cluster: `Cluster`.
        logs: folder for the processes' output; that of this host's first card is shown too.
        arguments: of `python -m palette_ms.train`.
        options: of msrun, beside those for the cluster.
    """
    if cluster.hosts > 1:
        options = [f"--cluster_time_out={_MEETING_SECONDS}", *options]
    beside = os.path.dirname(sys.executable)
    msrun = shutil.which("msrun") or shutil.which("msrun", path=beside)
    if msrun is None:
        raise UserError("msrun was not found: it comes with MindSpore, which this image seems not to have")
    return [msrun, f"--worker_num={cluster.hosts * cluster.cards}", f"--local_worker_num={cluster.cards}",
            f"--master_addr={cluster.master}", f"--master_port={_PORT}", f"--node_rank={cluster.index}",
            f"--log_dir={logs}", "--join=True", f"--tail_worker_log={cluster.index * cluster.cards}", *options,
            "python3", "-m", "palette_ms.train", *arguments]


def worker_environment(environ):
    """The environment for msrun: this project and this Python first, without what msrun sets itself."""
    return rank_environment({name: value for name, value in environ.items() if name not in _SET_BY_MSRUN})


def rank_environment(environ):
    """The environment for a rank that msrun started."""
    kept = {name: value for name, value in environ.items() if name != "RANK_TABLE_FILE"}
    kept.setdefault("HCCL_CONNECT_TIMEOUT", str(_MEETING_SECONDS))
    before = {"PYTHONPATH": str(CODE), "PATH": os.path.dirname(sys.executable)}
    return {**kept, **{name: os.pathsep.join(filter(None, (first, kept.get(name)))) for name, first in before.items()}}


def install_requirements():
    """Install with pip what training needs beside MindSpore, where something is missing.

    The packages alone, not this project: to pip, an image's MindSpore 2.7.0rc1 is older than the 2.7 that it asks for,
    and would be replaced.

    Raises:
        UserError: no MindSpore or one that is too old, or pip failed.
    """
    if importlib.util.find_spec("mindspore") is None:
        raise UserError("this image has no MindSpore: choose an engine or an image with 2.7 to 2.10")
    with suppress(importlib.metadata.PackageNotFoundError):  # called mindspore-ascend in older images
        version = importlib.metadata.version("mindspore")
        # pip would replace it by one that may not fit the image's CANN.
        if not (2, 7) <= tuple(map(int, re.findall(r"\d+", version)[:2])) < (2, 11):
            raise UserError(f"this image has MindSpore {version}: choose an engine or an image with 2.7 to 2.10")
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        _say(f"installing what is missing ({', '.join(missing)}) ...")
        if subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "numpy<2", *missing]).returncode:
            raise UserError(f"pip could not install {', '.join(missing)}; see its message above")


def run(command, environ, folder, logs, mirror=None):
    """Run msrun, or a single rank, to its end, sending new files up meanwhile.

    Args:
        command, environ: see `palette_ms.launch.run`.
        logs: see there; None: the command is that of a rank.
        folder: where it runs; MindSpore leaves files of its own there.
        mirror: `Mirror`, or None.

    Returns: exit status, see `palette_ms.launch.run`; 1 where all went well but the sending.
    """
    due = time.monotonic() + SEND_SECONDS

    def send_now_and_then():
        nonlocal due
        if time.monotonic() > due:
            _send(mirror)
            due = time.monotonic() + SEND_SECONDS

    if logs is None:
        status = _run_rank(command, send_now_and_then, env=environ, cwd=folder)
    else:
        status = launch.run(command, logs, send_now_and_then, env=environ, cwd=folder)
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to be stopped but the sending
    try:
        sent = _send(mirror)
        for _ in range(_LAST_TRIES):
            if sent:
                break
            time.sleep(SEND_SECONDS)
            sent = _send(mirror)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return status or int(not sent)


def _run_rank(command, meanwhile, **options):
    """Run a rank to its end, handing on SIGTERM: its exit status."""
    rank = subprocess.Popen(command, **options)
    previous = signal.signal(signal.SIGTERM, lambda *_: rank.terminate())
    try:
        while rank.poll() is None:
            meanwhile()
            with suppress(subprocess.TimeoutExpired):
                rank.wait(launch.TICK)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return rank.returncode if rank.returncode >= 0 else 128 - rank.returncode


def prepare_once(work, prepare):
    """On each machine the first of the ranks that msrun started prepares, and all go on with what it made.

    Args:
        work: folder of the machine, in which they find each other.
        prepare: function without arguments → what JSON can hold. The other ranks wait for it; where it fails, msrun
            ends them.

    Returns: (what it made, whether it was this rank that did).

    Raises:
        UserError: after an hour it is not there.
    """
    msrun = os.getppid()
    began = Path(f"/proc/{msrun}/stat").read_text().rpartition(")")[2].split()[19]  # numbers of processes come again
    made = work / f"prepared_{msrun}_{began}.json"
    try:
        os.close(os.open(made.with_suffix(".lock"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        end = time.monotonic() + _MEETING_SECONDS
        while not made.exists():
            if time.monotonic() > end:
                raise UserError("the first rank of this machine has not fetched the data within an hour") from None
            time.sleep(launch.TICK)
        return json.loads(made.read_text()), False
    part = made.with_suffix(".part")
    part.write_text(json.dumps(prepare()))
    part.replace(made)
    return json.loads(made.read_text()), True


def _send(mirror):
    """Whether all that is new has been sent."""
    try:
        if mirror:
            mirror.send()
    # moxing tells of a network that fails by many kinds of error, and the next time may do better.
    except Exception as error:
        _say(f"not everything could be sent to {mirror.url}: {error}")
        return False
    return True


def main():
    """The boot file. Ends with the training's exit status."""
    if os.environ.get("MA_RUN_METHOD") == "torchrun":
        raise UserError("the platform was told to start this file by torchrun (MA_RUN_METHOD), by which MindSpore's "
                        "ranks do not meet: take that variable out of the job, or make it msrun")
    is_rank = "MS_ROLE" in os.environ  # MA_RUN_METHOD is msrun: the platform starts all ranks
    # Ascend-Powered-Engine runs the boot file once for each card; msrun sees to the cards itself.
    if not is_rank and os.environ.get("ASCEND_DEVICE_ID", "0") != "0":
        return
    named, overrides = parse(sys.argv[1:])
    cluster = read_cluster(os.environ)
    config = CODE / named.config  # an absolute path stays one
    if not config.is_file():
        raise UserError(f"no such config in the code folder: {named.config}")
    work = (named.work_dir or _work_folder(os.environ)).absolute()
    work.mkdir(parents=True, exist_ok=True)
    _say(f"host {cluster.index} of {cluster.hosts} with {cluster.cards} cards, host 0 is {cluster.master}; "
         f"copies in {work}")
    logs = f"logs/host{cluster.index}_{time.strftime('%Y%m%d_%H%M%S')}"
    output = mirror = None
    if named.train_url and is_remote(named.train_url):
        output = local_folder(work / "output", named.train_url)
        mirror = Mirror(output, named.train_url)
    elif named.train_url:
        output = Path(named.train_url).absolute()

    def prepare():
        """The training's arguments, with all that they name on this machine."""
        install_requirements()
        if not is_rank:
            wait_for_name(cluster.master)
        data = fetch(named.data_url, work / "data").absolute() if named.data_url else None
        if mirror:
            # Several hosts must start from one state, and what only one of them has cannot be it.
            mirror.fetch(("state_*.safetensors", "log.jsonl"), exactly=cluster.hosts > 1)
        return ["--config", str(config), "--resume", "auto", "--device", named.device,
                *place(overrides, data, output, work / "inputs")]

    if is_rank:  # whose output is the platform's matter
        arguments, first = prepare_once(work, prepare)
        command, environ = [sys.executable, "-m", "palette_ms.train", *arguments], rank_environment(os.environ)
        logs, mirror = None, mirror if first and cluster.index == 0 else None
    else:
        arguments = prepare()
        if mirror and cluster.index:  # host 0 writes the results
            mirror = Mirror(output / logs, f"{mirror.url}/{logs}")
        logs = (output or work) / logs
        options = ["--bind_core=True"] if named.device == "Ascend" else []
        command, environ = msrun_command(cluster, logs, arguments, options), worker_environment(os.environ)
    _say("starting: " + " ".join(command))
    sys.exit(run(command, environ, work, logs, mirror))


def _work_folder(environ):
    # /cache is the machine's fast disk, where the machine has one.
    for folder in ("/cache", environ.get("MA_JOB_DIR")):
        if folder and os.access(folder, os.W_OK):
            return Path(folder) / "palette_ms_job"
    return Path("palette_ms_job")


def _say(text):
    print(text, file=sys.stderr, flush=True)
