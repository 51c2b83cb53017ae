"""The boot file on a fake platform, and submitting a job to a server on this machine that plays the API."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from textwrap import dedent

import pytest
import yaml
from PIL import Image

from palette_ms import launch
from palette_ms.checkpoint import Checkpoint
from palette_ms.errors import UserError
from palette_ms.modelarts import boot
from palette_ms.modelarts.storage import Mirror, fetch

# moxing as the boot file uses it, with folders below $FAKE_OBS for buckets.
MOXING = """
import os, shutil

class file:
    def local(path):
        return os.path.join(os.environ["FAKE_OBS"], path[len("obs://"):]) if path.startswith("obs://") else path
    def exists(url):
        return os.path.exists(file.local(url))
    def is_directory(url):
        return os.path.isdir(file.local(url))
    def list_directory(url):
        return sorted(os.listdir(file.local(url)))
    def copy(source, target):
        os.makedirs(os.path.dirname(file.local(target)), exist_ok=True)
        shutil.copyfile(file.local(source), file.local(target))
    def copy_parallel(source, target):
        shutil.copytree(file.local(source), file.local(target), dirs_exist_ok=True)
    def remove(url):
        os.remove(file.local(url))
"""

# In msrun's place: notes what it was started with and what lay in the output folder, then does what $ACT says.
MSRUN = """
import json, os, pathlib, subprocess, sys, time
arguments = dict(word.partition("=")[::2] for word in sys.argv if "=" in word)
output = pathlib.Path(arguments.get("training.output", "output"))
output.mkdir(parents=True, exist_ok=True)
here = sorted(path.name for path in output.iterdir() if path.is_file())
note = {"argv": sys.argv[1:], "environ": dict(os.environ), "here": here}
pathlib.Path(os.environ["NOTE"]).write_text(json.dumps(note))
exec(os.environ.get("ACT", ""))
"""


class Platform:
    """A fake one: OBS is a folder, moxing and msrun are stand-ins, what a host is told comes from the environment."""

    def __init__(self, folder, repository):
        self.folder, self.obs, self.repository = folder, folder / "obs", repository
        (self.obs / "bucket" / "photos").mkdir(parents=True)
        Image.new("RGB", (40, 40), "teal").save(self.obs / "bucket" / "photos" / "one.png")
        (folder / "lib").mkdir()
        (folder / "lib" / "moxing.py").write_text(MOXING)
        (folder / "bin").mkdir()
        msrun = folder / "bin" / "msrun"
        msrun.write_text(f"#!{sys.executable}\n{MSRUN}")
        msrun.chmod(0o755)

    def command(self, *arguments):
        return [sys.executable, str(self.repository / "scripts" / "modelarts" / "train.py"), *arguments]

    def environ(self, host=0, **variables):
        (self.folder / f"host{host}").mkdir(exist_ok=True)
        # Not what MindSpore, or another test, has set in this process: ranks that got it have failed to meet.
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")
                if name in os.environ}
        return {**kept, "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "FAKE_OBS": str(self.obs),
                "PYTHONPATH": str(self.folder / "lib"), "NOTE": str(self.folder / f"note{host}"),
                "MA_JOB_DIR": str(self.folder / f"host{host}"), **variables}

    def boot(self, *arguments, host=0, **variables):
        """Start the boot file on a host with the platform's variables; returns the finished process."""
        # /cache of the machine that the tests run on is none of theirs.
        work = ["--work_dir", str(self.folder / f"host{host}" / "work")]
        return subprocess.run(self.command("--config", "configs/quickstart.yaml", *work, *arguments),
                              env=self.environ(host, **variables), capture_output=True, text=True, cwd=self.folder)

    def started(self, host=0):
        return json.loads((self.folder / f"note{host}").read_text())

    def stored(self, path):
        root = self.obs / "bucket" / path
        return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def platform(tmp_path, repository):
    return Platform(tmp_path, repository)


@pytest.fixture
def moxing(platform, monkeypatch):
    monkeypatch.syspath_prepend(str(platform.folder / "lib"))
    monkeypatch.setenv("FAKE_OBS", str(platform.obs))
    yield
    sys.modules.pop("moxing", None)


def test_one_host_trains_on_all_its_cards_with_data_from_obs(platform, repository):
    done = platform.boot("--data_url", "obs://bucket/photos/", "--train_url=obs://bucket/run", "--training.steps", "6",
                         "data.min_scale=0.5", "--overrides=training.log_every=2", "--num_gpus=8", MA_NUM_HOSTS="1",
                         MA_NUM_GPUS="8", VC_TASK_INDEX="0", VC_WORKER_HOSTS="job-worker-0.job", ASCEND_DEVICE_ID="0",
                         ACT="(output / 'model.safetensors').write_text('weights')")
    assert done.returncode == 0, done.stderr
    work, argv = platform.folder / "host0" / "work", platform.started()["argv"]
    photos, output = work / "data" / "obs_bucket_photos" / "photos", work / "output" / "obs_bucket_run"
    log_dir, = (word for word in argv if word.startswith("--log_dir="))
    assert re.fullmatch(rf"--log_dir={output}/logs/host0_\d{{8}}_\d{{6}}", log_dir)
    assert [word for word in argv if word != log_dir] == [
        "--worker_num=8", "--local_worker_num=8", "--master_addr=127.0.0.1", "--master_port=8118", "--node_rank=0",
        "--join=True", "--tail_worker_log=0", "--bind_core=True", "python3", "-m", "palette_ms.train",
        "--config", f"{repository}/configs/quickstart.yaml", "--resume", "auto", "--device", "Ascend",
        f"data.path={photos}", "training.log_every=2", "training.steps=6", "data.min_scale=0.5",
        f"training.output={output}"]
    assert (photos / "one.png").is_file()
    assert platform.stored("run") == {"model.safetensors"}
    assert "ignored: --num_gpus=8" in done.stderr


def test_two_hosts_meet_at_the_first_and_only_it_sends_results(platform):
    act = dedent("""
        logs = pathlib.Path(arguments["--log_dir"])
        logs.mkdir(parents=True, exist_ok=True)
        rank = arguments["--node_rank"]
        (logs / f"worker_{rank}.log").write_text("text")
        (output / f"state_{rank}.safetensors").write_text("state")
    """)
    for host in (0, 1):
        done = platform.boot("--data_url=obs://bucket/photos", "--train_url=obs://bucket/run", host=host,
                             MA_NUM_HOSTS="2", MA_NUM_GPUS="4", VC_TASK_INDEX=str(host), ACT=act,
                             VC_WORKER_HOSTS="localhost,job-worker-1.job", RANK_TABLE_FILE="/none", RANK_ID="9")
        assert done.returncode == 0, done.stderr
        started = platform.started(host)
        assert started["argv"][:5] == ["--worker_num=8", "--local_worker_num=4", "--master_addr=localhost",
                                       "--master_port=8118", f"--node_rank={host}"]
        assert started["argv"][7:10] == [f"--tail_worker_log={4 * host}", "--cluster_time_out=3600", "--bind_core=True"]
        assert started["environ"]["HCCL_CONNECT_TIMEOUT"] == "3600"
        assert not {"RANK_TABLE_FILE", "RANK_ID", "RANK_SIZE"} & started["environ"].keys()
    names = {re.sub(r"_\d{8}_\d{6}", "", name) for name in platform.stored("run")}
    assert names == {"state_0.safetensors", "logs/host0/worker_0.log", "logs/host1/worker_1.log"}


def test_a_restarted_job_finds_its_states_and_log_again(platform):
    run = platform.obs / "bucket" / "run"
    (run / "samples").mkdir(parents=True)
    for name in ("state_0000002.safetensors", "state_0000004.safetensors", "log.jsonl", "model.safetensors",
                 "samples/step_0000002.png"):
        (run / name).write_text(name)
    act = "(output / 'state_0000002.safetensors').unlink(); (output / 'state_0000006.safetensors').write_text('6')"
    done = platform.boot("--data_url=obs://bucket/photos", "--train_url=obs://bucket/run/", ACT=act)
    assert done.returncode == 0, done.stderr
    assert platform.started()["here"] == ["log.jsonl", "state_0000002.safetensors", "state_0000004.safetensors"]
    assert "--resume auto" in " ".join(platform.started()["argv"])
    assert platform.stored("run") == {"state_0000004.safetensors", "state_0000006.safetensors", "log.jsonl",
                                      "model.safetensors", "samples/step_0000002.png"}


def test_several_hosts_start_from_the_state_that_all_of_them_can_have(platform):
    """In a container that is kept, host 0 may hold a state that it could not send before it was killed."""
    (platform.obs / "bucket" / "run").mkdir()
    (platform.obs / "bucket" / "run" / "state_0000002.safetensors").write_text("2")
    output = platform.folder / "host0" / "work" / "output" / "obs_bucket_run"
    output.mkdir(parents=True)
    for hosts, here in ((1, ["state_0000002.safetensors", "state_0000004.safetensors"]),
                        (2, ["state_0000002.safetensors"])):
        (output / "state_0000004.safetensors").write_text("4")
        done = platform.boot("--train_url=obs://bucket/run", MA_NUM_HOSTS=str(hosts), MA_NUM_GPUS="1",
                             VC_TASK_INDEX="0", VC_WORKER_HOSTS=",".join(["localhost", "other"][:hosts]))
        assert done.returncode == 0, done.stderr
        assert platform.started()["here"] == here
        (platform.obs / "bucket" / "run" / "state_0000004.safetensors").unlink(missing_ok=True)


def test_local_paths_are_used_as_they_are_and_need_no_moxing(platform):
    data, output = platform.obs / "bucket" / "photos", platform.folder / "results"
    (data / "validation").mkdir()
    done = platform.boot("--data_url", str(data), "--train_url", str(output), "data.validation=validation",
                         "data.path=one.png", PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    argv = platform.started()["argv"]
    assert argv[-3:] == [f"data.path={data}/one.png", f"data.validation={data}/validation", f"training.output={output}"]


@pytest.mark.parametrize("module", [None, "version = 'another package of that name'"])
def test_obs_without_moxing_is_told_in_one_line(platform, module):
    (platform.folder / "lib" / "moxing.py").unlink()
    if module:
        (platform.folder / "lib" / "moxing.py").write_text(module)
    done = platform.boot("--data_url=obs://bucket/photos")
    assert done.returncode == 2 and re.search(r"^error: obs://bucket/photos needs moxing", done.stderr, re.M)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments, message", [
    (["--data_url=obs://bucket/nothing"], "nothing at obs://bucket/nothing"),
    (["--data_url=/nothing/there"], "no such file or folder: /nothing/there"),
    (["--config=configs/none.yaml"], "no such config in the code folder: configs/none.yaml"),
])
def test_a_mistake_ends_the_job_before_it_trains(platform, arguments, message):
    done = platform.boot(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (platform.folder / "note0").exists()


def test_where_the_platform_runs_the_boot_file_once_a_card_the_first_does_all(platform):
    assert platform.boot("--data_url=obs://bucket/photos", ASCEND_DEVICE_ID="3").returncode == 0
    assert not (platform.folder / "note0").exists()


def test_torchrun_is_refused(platform):
    done = platform.boot("--data_url=obs://bucket/photos", MA_RUN_METHOD="torchrun")
    assert done.returncode == 2 and done.stderr.startswith("error: the platform was told to start this file by torch")
    assert not (platform.folder / "note0").exists()


def test_of_ranks_that_the_platform_starts_by_msrun_one_fetches_and_sends(platform, moxing, monkeypatch, tmp_path):
    (platform.obs / "bucket" / "run").mkdir()
    (platform.obs / "bucket" / "run" / "state_0000002.safetensors").write_text("state")
    monkeypatch.setattr(sys, "argv", ["train.py", "--config=configs/quickstart.yaml", f"--work_dir={tmp_path / 'w'}",
                                      "--data_url=obs://bucket/photos", "--train_url=obs://bucket/run"])
    for name, value in (("MS_ROLE", "MS_WORKER"), ("MA_NUM_GPUS", "2"), ("RANK_TABLE_FILE", "table.json")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boot, "install_requirements", lambda: started.append("installed"))
    monkeypatch.setattr(boot, "run", lambda *arguments: started.append(arguments) or 3)
    started = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            boot.main()
        assert ended.value.code == 3
    assert started[0] == "installed"
    (command, environ, _, logs, mirror), (same, _, _, _, none) = started[1:]
    assert command == same and logs is None and none is None
    assert command[1:3] == ["-m", "palette_ms.train"] and mirror.url == "obs://bucket/run"
    photos, output = (next(word.partition("=")[2] for word in command if word.startswith(f"{key}="))
                      for key in ("data.path", "training.output"))
    assert os.listdir(photos) == ["one.png"] and os.listdir(output) == ["state_0000002.safetensors"]
    assert environ["MS_ROLE"] == "MS_WORKER" and "RANK_TABLE_FILE" not in environ


def test_a_rank_hands_on_sigterm_and_ends_with_its_trainings_status(tmp_path):
    train = ("import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
             "pathlib.Path('ready').touch(); time.sleep(60)")
    start = ("import os, sys; from pathlib import Path; from palette_ms.modelarts import boot; "
             f"sys.exit(boot.run([sys.executable, '-c', {train!r}], dict(os.environ), Path('.'), None))")
    rank = subprocess.Popen([sys.executable, "-c", start], cwd=tmp_path)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    rank.send_signal(signal.SIGTERM)
    assert rank.wait(30) == 143


def test_the_status_of_msrun_is_the_jobs_and_results_are_sent_all_the_same(platform):
    done = platform.boot("--train_url=obs://bucket/run", ACT="(output / 'log.jsonl').write_text(''); sys.exit(7)")
    assert done.returncode == 7
    assert platform.stored("run") == {"log.jsonl"}


def test_sigterm_lets_the_workers_save_and_sends_what_they_saved(platform):
    # As msrun does: a scheduler in the launcher's session, a worker that leads its own.
    worker = dedent("""
        import pathlib, signal, sys, time
        def save(*_):
            pathlib.Path(sys.argv[1], "state_0000001.safetensors").write_text("saved")
            sys.exit(130)
        signal.signal(signal.SIGTERM, save)
        pathlib.Path(sys.argv[1], "ready").touch()
        time.sleep(60)
    """)
    act = dedent(f"""
        scheduler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        worker = subprocess.Popen([sys.executable, "-c", {worker!r}, output], start_new_session=True)
        status = worker.wait()
        alive = scheduler.poll() is None
        scheduler.kill()
        sys.exit(1 if status == 130 and alive else 99)
    """)
    work = platform.folder / "host0" / "work"
    command = platform.command("--config", "configs/quickstart.yaml", "--train_url=obs://bucket/run", "--work_dir",
                               str(work))
    process = subprocess.Popen(command, env=platform.environ(ACT=act), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (work / "output" / "obs_bucket_run" / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert platform.stored("run") == {"ready", "state_0000001.safetensors"}


def test_a_rank_that_does_not_end_after_sigterm_is_killed(monkeypatch, tmp_path, capsys):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('ready', 'w'); time.sleep(60)"
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {deaf!r}], start_new_session=True)"
    monkeypatch.setattr(launch, "_SAVE_SECONDS", 0.2)
    told = []

    def tell():
        if not told and (tmp_path / "ready").exists():
            told.append(signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None))

    started = time.monotonic()
    assert launch.run([sys.executable, "-c", launcher], tmp_path, tell, cwd=tmp_path) == 143
    assert time.monotonic() - started < 50
    assert capsys.readouterr().err.count("killed") == 1


def test_a_rank_that_still_waits_for_the_others_ends_at_once_on_sigterm(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # in the scheduler's place
        meet = ("import signal, sys; from palette_ms import runtime; print('here', flush=True); "
                "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); runtime.setup('CPU')")  # as every verb has it
        environ = {**os.environ, "MS_ROLE": "MS_WORKER", "MS_SCHED_HOST": "127.0.0.1", "MS_WORKER_NUM": "2",
                   "MS_SCHED_PORT": str(silent.getsockname()[1]), "MS_NODE_ID": "0"}
        rank = subprocess.Popen([sys.executable, "-c", meet], env=environ, cwd=tmp_path, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL)
        rank.stdout.readline()
        silent.accept()  # it looks for the scheduler
        rank.send_signal(signal.SIGTERM)
        assert rank.wait(60) == -signal.SIGTERM


def test_states_are_sent_while_the_training_goes_on(platform, moxing, monkeypatch, tmp_path):
    monkeypatch.setattr(boot, "SEND_SECONDS", 0.05)
    mirror = Mirror(tmp_path / "output", "obs://bucket/run")
    # Ends only once the state has arrived.
    wait = dedent(f"""
        import pathlib, time
        pathlib.Path("output/state_0000001.safetensors").write_text("state")
        pathlib.Path("output/state_0000002.safetensors.1.part").write_text("half a sta")
        while not pathlib.Path({str(platform.obs)!r}, "bucket/run/state_0000001.safetensors").exists():
            time.sleep(0.05)
    """)
    assert boot.run([sys.executable, "-c", wait], dict(os.environ), tmp_path, tmp_path, mirror) == 0
    assert platform.stored("run") == {"state_0000001.safetensors"}


def test_a_send_that_fails_is_tried_again_and_at_last_fails_the_job(platform, moxing, monkeypatch, tmp_path):
    import moxing

    monkeypatch.setattr(boot, "SEND_SECONDS", 0.05)
    failures, copy = [], moxing.file.copy

    def unreliable(source, target):
        if len(failures) < most:
            failures.append(target)
            raise ConnectionError("no route")
        copy(source, target)

    monkeypatch.setattr(moxing.file, "copy", unreliable)
    for most, status in ((2, 0), (99, 1)):
        failures.clear()
        mirror = Mirror(tmp_path / "output", f"obs://bucket/run{most}")
        (mirror.folder / "log.jsonl").write_text("{}")
        assert boot.run([sys.executable, "-c", ""], dict(os.environ), tmp_path, tmp_path, mirror) == status
        assert platform.stored(f"run{most}") == ({"log.jsonl"} if status == 0 else set())


def test_a_whole_copy_is_not_fetched_twice_and_a_broken_off_one_is(platform, moxing, monkeypatch, tmp_path):
    import moxing

    copies, copy = [], moxing.file.copy_parallel
    monkeypatch.setattr(moxing.file, "copy_parallel", lambda *paths: copies.append(paths) or copy(*paths))
    (tmp_path / "data" / "obs_bucket_photos" / "photos").mkdir(parents=True)  # what was there when the job was killed
    for _ in range(2):
        folder = fetch("obs://bucket/photos", tmp_path / "data")
        assert [path.name for path in folder.iterdir()] == ["one.png"]
    assert len(copies) == 1


TABLE = {"version": "1.0", "server_count": "2", "status": "completed", "server_list": [
    {"server_id": f"192.168.0.{host}", "device": [
        {"device_id": str(card), "device_ip": f"29.0.{host}.{card}", "rank_id": str(2 * host + card)}
        for card in range(2)]} for host in range(2)]}


@pytest.mark.parametrize("environ, cluster", [
    ({}, (1, 1, 0, "127.0.0.1")),
    ({"MA_NUM_GPUS": "8"}, (1, 8, 0, "127.0.0.1")),
    ({"MA_NUM_HOSTS": "3", "MA_NUM_GPUS": "8", "VC_TASK_INDEX": "2", "VC_WORKER_HOSTS": "a,b,c"}, (3, 8, 2, "a")),
    ({"RANK_TABLE_FILE": TABLE, "RANK_ID": "2"}, (2, 2, 1, "192.168.0.0")),
    ({"RANK_TABLE_FILE": {"server_list": TABLE["server_list"][:1]}, "RANK_ID": "0"}, (1, 2, 0, "127.0.0.1")),
])
def test_the_cluster_is_read_from_the_platforms_environment(tmp_path, environ, cluster):
    if "RANK_TABLE_FILE" in environ:
        (tmp_path / "table.json").write_text(json.dumps(environ["RANK_TABLE_FILE"]))
        environ = {**environ, "RANK_TABLE_FILE": str(tmp_path / "table.json")}
    assert boot.read_cluster(environ) == cluster


@pytest.mark.parametrize("environ, message", [
    ({"MA_NUM_GPUS": "eight"}, "whole numbers.*eight"),
    ({"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "0", "VC_WORKER_HOSTS": "a"}, "is 2, VC_WORKER_HOSTS names 1"),
    ({"MA_NUM_HOSTS": "2", "VC_WORKER_HOSTS": "a,b"}, "VC_TASK_INDEX is not set"),
    ({"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "2", "VC_WORKER_HOSTS": "a,b"}, "VC_TASK_INDEX is 2"),
    ({"RANK_TABLE_FILE": "/no/such/table"}, "/no/such/table is not a rank table"),
])
def test_an_environment_that_does_not_fit_together_is_refused(environ, message):
    with pytest.raises(UserError, match=message):
        boot.read_cluster(environ)


def test_a_host_whose_name_is_not_known_yet_is_waited_for(monkeypatch):
    answers = [OSError("not known"), OSError("not known"), ["address"]]

    def look_up(*_):
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(boot.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(boot.time, "sleep", lambda seconds: None)
    assert boot.wait_for_name("job-worker-0") == ["address"]
    answers[:] = [OSError("not known")]
    monkeypatch.setattr(boot, "_NAME_SECONDS", -1)
    with pytest.raises(UserError, match="job-worker-0, is not to be found"):
        boot.wait_for_name("job-worker-0")


def test_only_missing_packages_are_installed_and_mindspore_never(monkeypatch):
    commands, found, version = [], {"mindspore", *boot._PACKAGES}, "2.7.0rc1"
    monkeypatch.setattr(boot.importlib.util, "find_spec", lambda name: name if name in found else None)
    monkeypatch.setattr(boot.importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(boot.subprocess, "run", lambda command: commands.append(command) or Done())

    class Done:
        returncode = 0

    boot.install_requirements()
    assert not commands
    found.remove("safetensors")
    boot.install_requirements()
    # Without the project, for whose sake pip would replace a MindSpore 2.7.0rc1.
    assert commands == [[sys.executable, "-m", "pip", "install", "--quiet", "numpy<2", "safetensors>=0.4"]]
    wanted = (boot.CODE / "pyproject.toml").read_text()
    assert all(f'"{package}"' in wanted for package in ("numpy<2", *boot._PACKAGES.values()))
    Done.returncode = 1
    with pytest.raises(UserError, match="pip could not install safetensors"):
        boot.install_requirements()
    version = "2.3.1"
    with pytest.raises(UserError, match="has MindSpore 2.3.1"):
        boot.install_requirements()
    found.remove("mindspore")
    with pytest.raises(UserError, match="has no MindSpore"):
        boot.install_requirements()


def tiny_config(folder):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({
        "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": [],
                  "norm_groups": 4},
        "tasks": [{"name": "colorization"}], "data": {"image_size": 16, "workers": 1},
        "training": {"batch_size": 2, "sample_every": 0, "save_every": 2}}))
    return path


def test_the_boot_file_trains_with_the_real_msrun_saves_on_sigterm_and_goes_on(platform, tmp_path):
    (platform.folder / "bin" / "msrun").unlink()
    config = tiny_config(tmp_path)
    arguments = ["--config", str(config), "--data_url=obs://bucket/photos", "--train_url=obs://bucket/run",
                 "--device=CPU"]
    run, work = platform.obs / "bucket" / "run", platform.folder / "host0" / "work"
    for _ in range(3):  # beside other tests, the rank and MindSpore's scheduler have failed to meet
        process = subprocess.Popen(platform.command(*arguments, "--work_dir", str(work)), env=platform.environ(),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(work.glob("output/*/state_*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143
        if list(run.glob("state_*.safetensors")):
            break
    step = Checkpoint(max(run.glob("state_*.safetensors"))).step
    done = platform.boot(*arguments, f"--training.steps={step + 2}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"resumed from \S*state_{step:07d}.safetensors at step {step}$", done.stdout, re.M)
    assert Checkpoint(run / "model.safetensors").step == step + 2
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps[-2:] == [step, step + 2]


@pytest.fixture
def two_hosts():
    """Two network namespaces on one cable, in place of machines: (name, address) of each."""
    hosts = [(f"palette{os.getpid()}_{host}", f"10.99.0.{host + 1}") for host in (0, 1)]
    (first, _), (second, _) = hosts
    commands = [f"netns add {first}", f"netns add {second}",
                f"link add eth0 netns {first} type veth peer name eth0 netns {second}"]
    for name, address in hosts:
        commands += [f"-n {name} addr add {address}/24 dev eth0", f"-n {name} link set eth0 up",
                     f"-n {name} link set lo up"]
    try:
        for command in commands:
            try:
                subprocess.run(["ip", *command.split()], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("this machine gives no network namespaces")
        yield hosts
    finally:
        for name, _ in hosts:
            with suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_hosts_train_together_with_the_real_msrun(platform, two_hosts, tmp_path):
    (platform.folder / "bin" / "msrun").unlink()
    addresses = ",".join(address for _, address in two_hosts)
    processes = []
    for host, (name, _) in enumerate(two_hosts):
        command = platform.command("--config", str(tiny_config(tmp_path)), "--data_url=obs://bucket/photos",
                                   "--train_url=obs://bucket/run", "--device=CPU", "--training.steps=2",
                                   "--work_dir", str(platform.folder / f"host{host}" / "work"))
        environ = platform.environ(host, MA_NUM_HOSTS="2", MA_NUM_GPUS="1", VC_TASK_INDEX=str(host),
                                   VC_WORKER_HOSTS=addresses)
        processes.append(subprocess.Popen(["ip", "netns", "exec", name, *command], env=environ, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    output = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    assert all(f"rank {host} of 2" in text for host, text in enumerate(output))
    model = Checkpoint(platform.obs / "bucket" / "run" / "model.safetensors")
    assert (model.step, model.pictures) == (2, 2 * 2 * 2)


# Submitting


class Api(BaseHTTPRequestHandler):
    """The three calls that are made, of a job that is queued, runs and ends."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        if self.server.refuse:
            self.answer(400, {"error_code": "ModelArts.2797", "error_msg": "flavor not found"})
        else:
            self.answer(201, {"kind": "job", "metadata": {"id": "job-1", "name": body["metadata"]["name"]}})

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers), None))
        if self.path.endswith("/logs/preview"):
            log = "step 1 é\nstep 2\n"[:9 * self.server.looks]
            size = len(log.encode())
            self.answer(200, {"content": log, "current_size": size, "full_size": size})
            return
        self.server.looks += 1
        if self.server.looks == 2 and not self.server.stumbled:
            self.server.looks, self.server.stumbled = 1, True
            self.answer(503, {"error_code": "ModelArts.0102", "error_msg": "busy"})
            return
        phase = ("Pending", "Running", self.server.end)[min(self.server.looks, 3) - 1]
        failed = [{"task": "worker-0", "exit_code": 2, "message": "no pictures"}] if phase == "Failed" else []
        tasks = [] if phase == "Pending" else ["worker-0"]
        self.answer(200, {"metadata": {"id": "job-1"},
                          "status": {"phase": phase, "tasks": tasks, "task_statuses": failed}})

    def answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def api():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.seen, server.looks, server.refuse, server.end, server.stumbled = [], 0, False, "Completed", False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


JOB = {"name": "test-job", "endpoint": "http://127.0.0.1:1", "code": "obs://bucket/code/palette",
       "config": "configs/quickstart.yaml", "overrides": ["training.steps=9"], "data": "obs://bucket/photos",
       "output": "obs://bucket/run", "flavor": "ascend.8", "hosts": 2, "restarts": 2,
       "engine": {"name": "Ascend-Powered-Engine", "version": "mindspore"}}
CREDENTIALS = {"HUAWEICLOUD_SDK_AK": "the-key", "HUAWEICLOUD_SDK_SK": "the-secret",
               "HUAWEICLOUD_SDK_PROJECT_ID": "project-1"}


def submit(repository, folder, job, *arguments, credentials=CREDENTIALS):
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in job.items() if value is not None}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HUAWEICLOUD_")}
    return subprocess.run([sys.executable, "-m", "palette_ms.modelarts", "submit", "--config", str(path), "--poll",
                           "0.01", *arguments], env={**kept, **credentials}, cwd=repository, capture_output=True,
                          text=True)


def test_a_job_is_submitted_and_followed_to_its_end(repository, tmp_path, api):
    done = submit(repository, tmp_path, {**JOB, "endpoint": f"http://127.0.0.1:{api.server_port}"})
    assert done.returncode == 0, done.stderr
    path, headers, body = api.seen[0]
    assert path == "/v2/project-1/training-jobs"
    assert re.match(r"SDK-HMAC-SHA256 Access=the-key, SignedHeaders=.*, Signature=[0-9a-f]{64}$",
                    headers["Authorization"])
    assert body["algorithm"] == {
        "code_dir": "/bucket/code/palette/", "boot_file": "/bucket/code/palette/scripts/modelarts/train.py",
        "engine": {"engine_name": "Ascend-Powered-Engine", "engine_version": "mindspore"},
        "parameters": [{"name": name, "value": value} for name, value in (
            ("config", "configs/quickstart.yaml"), ("data_url", "obs://bucket/photos"),
            ("train_url", "obs://bucket/run"), ("overrides", "training.steps=9"))]}
    assert body["spec"] == {"resource": {"flavor_id": "ascend.8", "node_count": 2}}
    assert body["metadata"] == {"name": "test-job", "annotations": {"fault-tolerance/job-retry-num": "2"}}
    assert done.stdout == "step 1 é\nstep 2\n"
    assert re.findall(r"job job-1: (\w+)", done.stderr) == ["Pending", "Running", "Completed"]
    assert done.stderr.count("no answer, asking again") == 1
    sent = json.dumps([seen for seen in api.seen])
    assert "the-secret" not in sent and "the-secret" not in done.stdout + done.stderr


AWKWARD = ["training.steps=9", "training.init_from=obs://bucket/a model, and more.safetensors", "data.path=a'b$c"]


def test_the_request_keeps_the_documented_rules(repository, tmp_path):
    """Those of ModelArts' API reference, "Creating a training job", and of its console's help on hyperparameters."""
    for job in (JOB, {**JOB, "engine": None, "image": "mine/image:1", "hours": 5, "logs": "obs://bucket/logs"}):
        done = submit(repository, tmp_path, {**job, "overrides": AWKWARD}, "--dry-run")
        request = json.loads(done.stdout)
        metadata, algorithm, spec = request["metadata"], request["algorithm"], request["spec"]
        assert request["kind"] == "job"
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", metadata["name"])
        assert re.fullmatch(r"/[^/].*/", algorithm["code_dir"])
        for parameter in algorithm.get("parameters", ()):
            assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", parameter["name"]) and isinstance(parameter["value"], str)
            assert not re.search(r"[\s'\"$`\\;|&<>()]", parameter["value"])  # whatever shell it goes through
        assert "boot_file" not in algorithm or algorithm["boot_file"].startswith(algorithm["code_dir"])
        assert ("command" in algorithm) == ("image_url" in algorithm["engine"]) != ("boot_file" in algorithm)
        assert spec["resource"]["node_count"] >= 1 and spec["resource"]["flavor_id"]
        assert spec.get("auto_stop", {}).get("time_unit", "HOURS") == "HOURS"


def test_what_the_job_passes_is_what_the_boot_file_takes(repository, tmp_path):
    assert boot.split_overrides(boot.join_overrides(AWKWARD)) == AWKWARD
    done = submit(repository, tmp_path, JOB, "--dry-run")
    parameters = json.loads(done.stdout)["algorithm"]["parameters"]
    for argv in ([word for p in parameters for word in (f"--{p['name']}", p["value"])],
                 [f"--{p['name']}={p['value']}" for p in parameters]):
        named, overrides = boot.parse(argv)
        assert (named.config, named.data_url, named.train_url, overrides) == (
            JOB["config"], JOB["data"], JOB["output"], JOB["overrides"])
    done = submit(repository, tmp_path, {**JOB, "engine": None, "image": "mine/image:1", "hours": 5}, "--dry-run")
    request = json.loads(done.stdout)
    command = subprocess.run(["bash", "-c", "printf '%s\\n' " + request["algorithm"]["command"]], text=True,
                             capture_output=True, env={"MA_JOB_DIR": "/job", "PATH": os.environ["PATH"]}).stdout
    words = command.splitlines()
    assert words[:2] == ["python", "/job/palette/scripts/modelarts/train.py"]
    assert boot.parse(words[2:])[1] == JOB["overrides"]
    assert request["spec"]["auto_stop"] == {"time_unit": "HOURS", "duration": 5}


def test_a_dry_run_sends_nothing_and_needs_no_credentials(repository, tmp_path, api):
    job = {**JOB, "endpoint": f"http://127.0.0.1:{api.server_port}"}
    done = submit(repository, tmp_path, job, "--dry-run", credentials={})
    assert done.returncode == 0 and json.loads(done.stdout)["metadata"]["name"] == "test-job"
    assert not api.seen


@pytest.mark.parametrize("missing, message", [
    ("HUAWEICLOUD_SDK_SK", "no credentials: set HUAWEICLOUD_SDK_AK and HUAWEICLOUD_SDK_SK"),
    ("HUAWEICLOUD_SDK_PROJECT_ID", "set HUAWEICLOUD_SDK_PROJECT_ID"),
])
def test_without_credentials_nothing_is_sent(repository, tmp_path, api, missing, message):
    credentials = {name: value for name, value in CREDENTIALS.items() if name != missing}
    done = submit(repository, tmp_path, {**JOB, "endpoint": f"http://127.0.0.1:{api.server_port}"},
                  credentials=credentials)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not api.seen


def test_a_job_that_fails_ends_with_its_message(repository, tmp_path, api):
    api.end = "Failed"
    done = submit(repository, tmp_path, {**JOB, "endpoint": f"http://127.0.0.1:{api.server_port}"})
    assert done.returncode == 1
    assert done.stderr.endswith("the job ended as Failed\nworker-0 ended with status 2: no pictures\n")


def test_a_refused_job_and_a_silent_server_are_told_in_one_line(repository, tmp_path, api):
    api.refuse = True
    done = submit(repository, tmp_path, {**JOB, "endpoint": f"http://127.0.0.1:{api.server_port}"})
    assert done.returncode == 2 and done.stderr == (
        "error: ModelArts refused the job: flavor not found (ModelArts.2797)\n")
    done = submit(repository, tmp_path, JOB)
    assert done.returncode == 2 and done.stderr.startswith("error: ModelArts does not answer")


@pytest.mark.parametrize("change, message", [
    ({"ak": "the-key"}, "unknown key ak"),
    ({"flavor": None}, "flavor must be given"),
    ({"data": "/home/me/photos"}, "data must be a path in OBS"),
    ({"region": "cn-north-4"}, "either region or endpoint"),
    ({"engine": None}, "either engine or image"),
    ({"endpoint": None, "region": "cn-north-44"}, "no region cn-north-44; did you mean cn-north-4"),
    ({"hosts": 0}, "hosts must be at least 1"),
    ({"name": "my job"}, "name must be of up to 64 letters, digits, - and _, not 'my job'"),
    ({"overrides": ["training.stepz=9"]}, "unknown key training.stepz; did you mean steps"),
])
def test_a_mistake_in_the_jobs_yaml_is_told_before_anything_is_sent(repository, tmp_path, change, message):
    done = submit(repository, tmp_path, {**JOB, **change})
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
