"""A training job for ModelArts: described in YAML, submitted through the official SDK, followed to its end."""

import json
import logging
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

from palette_ms.config import from_dict, load_config, read_yaml
from palette_ms.errors import UserError, did_you_mean
from palette_ms.modelarts.boot import join_overrides

BOOT_FILE = "scripts/modelarts/train.py"
_ENDED = ("Completed", "Failed", "Abnormal", "Terminated")


@dataclass(frozen=True)
class Engine:
    """One of the platform's own images, as the console names it."""

    name: str
    version: str


@dataclass(frozen=True)
class JobConfig:
    """What a job's YAML holds. Credentials are not part of it."""

    name: str
    code: str  # where this repository lies in OBS
    config: str  # the training's YAML in it
    data: str  # pictures in OBS, see data.path
    output: str  # folder in OBS for states, log and model; a job goes on from a training state there
    flavor: str  # machine
    overrides: Tuple[str, ...] = ()  # section.key=value, as for palette_ms.train
    hosts: int = 1
    region: Optional[str] = None
    endpoint: Optional[str] = None  # of a cloud that is none of the SDK's regions
    engine: Optional[Engine] = None
    image: Optional[str] = None  # of one's own in SWR, with MindSpore and moxing, instead of an engine
    pool: Optional[str] = None  # id of a dedicated one
    logs: Optional[str] = None  # folder in OBS for the platform's own log
    restarts: int = 3  # by the platform, after a fault
    hours: Optional[int] = None  # the platform stops the job after so many


def load_job(path):
    """A `JobConfig` from a YAML file, checked, and with it the training config that it names.

    Raises:
        UserError: see `palette_ms.config.load_config`; a path that is not in OBS, a choice that is missing.
    """
    job = from_dict(JobConfig, read_yaml(path), str(path))
    for key in ("code", "data", "output", "logs"):
        value = getattr(job, key)
        if value is not None and not value.startswith("obs://"):
            raise UserError(f"{path}: {key} must be a path in OBS, obs://bucket/…, not {value}")
    if not re.fullmatch(r"[\w-]{1,64}", job.name, re.ASCII):
        raise UserError(f"{path}: name must be of up to 64 letters, digits, - and _, not {job.name!r}")
    for first, second in (("region", "endpoint"), ("engine", "image")):
        if (getattr(job, first) is None) == (getattr(job, second) is None):
            raise UserError(f"{path}: give either {first} or {second}")
    for key, least in (("hosts", 1), ("restarts", 0), ("hours", 1)):
        value = getattr(job, key)
        if value is not None and value < least:
            raise UserError(f"{path}: {key} must be at least {least}")
    load_config(Path(job.config), job.overrides)  # a typing mistake costs less here than there
    return job


def sdk():
    """The SDK's module of ModelArts. Raises UserError where it is not installed."""
    try:
        from huaweicloudsdkmodelarts import v1
    except ImportError:
        raise UserError("ModelArts' SDK is not installed: pip install huaweicloudsdkmodelarts") from None
    return v1


def create_request(job):
    """The SDK's request for a `JobConfig`."""
    v1 = sdk()
    code = "/" + job.code[len("obs://"):].strip("/") + "/"  # the API names buckets so
    parameters = [("config", job.config), ("data_url", job.data), ("train_url", job.output)]
    if job.overrides:  # in one, since a parameter's name has no dot
        parameters.append(("overrides", join_overrides(job.overrides)))
    if job.image:
        # A custom image starts with a command of one's own; the code lies in MA_JOB_DIR, under its folder's name.
        words = [word for name, value in parameters for word in (f"--{name}", value)]
        boot_file = f"${{MA_JOB_DIR}}/{shlex.quote(Path(code).name)}/{BOOT_FILE}"
        algorithm = v1.JobAlgorithm(code_dir=code, command=f"python {boot_file} {shlex.join(words)}",
                                    engine=v1.JobEngine(image_url=job.image))
    else:
        algorithm = v1.JobAlgorithm(code_dir=code, boot_file=code + BOOT_FILE,
                                    parameters=[v1.Parameters(name=name, value=value) for name, value in parameters],
                                    engine=v1.JobEngine(engine_name=job.engine.name, engine_version=job.engine.version))
    spec = v1.Spec(resource=v1.SpecResource(flavor_id=job.flavor, node_count=job.hosts, pool_id=job.pool),
                   log_export_path=v1.LogExportPath(obs_url=job.logs) if job.logs else None,
                   auto_stop=v1.AutoStop(time_unit="HOURS", duration=job.hours) if job.hours else None)
    retries = {"fault-tolerance/job-retry-num": str(job.restarts)} if job.restarts else None
    metadata = v1.JobMetadata(name=job.name, annotations=retries)
    return v1.CreateTrainingJobRequest(body=v1.Job(kind="job", metadata=metadata, algorithm=algorithm, spec=spec))


def request_json(request):
    """The body of a request as it would be sent, as text."""
    from huaweicloudsdkcore.utils.http_utils import sanitize_for_serialization

    return json.dumps(sanitize_for_serialization(request.body), indent=2, ensure_ascii=False)


def connect(job):
    """The SDK's client, with credentials from the SDK's environment variables and nowhere else.

    Raises:
        UserError: no credentials, an unknown region, or an endpoint without a project.
    """
    v1 = sdk()
    from huaweicloudsdkcore.auth.provider import EnvCredentialProvider
    from huaweicloudsdkcore.exceptions.exceptions import ApiValueError, SdkException
    from huaweicloudsdkmodelarts.v1.region.modelarts_region import ModelArtsRegion

    # Without a handler Python would print the SDK's own lines about errors that are told here.
    logging.getLogger("HuaweiCloud-SDK-ModelArtsClient").addHandler(logging.NullHandler())
    try:
        credentials = EnvCredentialProvider.get_basic().get_credentials()
    except ApiValueError:
        raise UserError("no credentials: set HUAWEICLOUD_SDK_AK and HUAWEICLOUD_SDK_SK to your access key and secret "
                        "key in the environment") from None
    builder = v1.ModelArtsClient.new_builder().with_credentials(credentials)
    if job.endpoint:
        if not credentials.project_id:
            raise UserError("an endpoint needs your project's id in the environment: set HUAWEICLOUD_SDK_PROJECT_ID")
        return builder.with_endpoint(job.endpoint).build()
    try:
        region = ModelArtsRegion.value_of(job.region)
    except KeyError:
        raise UserError(f"the SDK knows no region {job.region}"
                        f"{did_you_mean(job.region, ModelArtsRegion.static_fields)}") from None
    try:
        return builder.with_region(region).build()  # asks for the project's id where none is set
    except SdkException as error:
        raise UserError(f"cannot reach region {job.region}: {error.error_msg}") from None


def submit(client, request):
    """Create the job; returns its id. Raises UserError where it is refused or nobody answers."""
    from huaweicloudsdkcore.exceptions.exceptions import SdkException, ServiceResponseException

    try:
        return client.create_training_job(request).metadata.id
    except ServiceResponseException as error:
        raise UserError(f"ModelArts refused the job: {error.error_msg} ({error.error_code})") from None
    except SdkException as error:
        raise UserError(f"ModelArts does not answer: {error.error_msg}") from None


def follow(client, job_id, seconds):
    """Print a job's state on stderr as it changes and its log on stdout as it grows, till the job ends.

    Args:
        client: from `connect`.
        job_id: from `submit`.
        seconds: between questions.

    Returns: the state that it ended in, and what the platform says of its tasks where they failed.

    Raises:
        UserError: the platform refuses to tell. Where it does not answer, it is asked again.
    """
    from huaweicloudsdkcore.exceptions.exceptions import SdkException

    request = sdk().ShowTrainingJobDetailsRequest(training_job_id=job_id)
    phase, shown = None, 0
    while True:
        try:
            status = client.show_training_job_details(request).status
            if status.tasks:
                shown = _show_log(client, job_id, status.tasks[0], shown)
        except SdkException as error:
            if getattr(error, "status_code", None) in (400, 401, 403, 404):
                raise UserError(f"ModelArts does not tell of job {job_id}: {error.error_msg}") from None
            print(f"no answer, asking again: {error.error_msg}", file=sys.stderr)
        else:
            if status.phase != phase:
                phase = status.phase
                print(f"job {job_id}: {phase}", file=sys.stderr)
            if phase in _ENDED:
                failed = [f"{task.task} ended with status {task.exit_code}: {task.message or 'no message'}"
                          for task in status.task_statuses or () if task.exit_code]
                return phase, failed
        time.sleep(seconds)


def _show_log(client, job_id, task, shown):
    """Print what a task's log has more than `shown` bytes; returns its bytes."""
    from huaweicloudsdkcore.exceptions.exceptions import ServiceResponseException

    request = sdk().ShowTrainingJobLogsPreviewRequest(training_job_id=job_id, task_id=task)
    try:
        log = client.show_training_job_logs_preview(request)
    except ServiceResponseException:  # none yet
        return shown
    content, size = (log.content or "").encode(), log.full_size or 0
    new = content[max(0, len(content) - (size - shown)):] if size > shown else b""  # of a long log, the end alone comes
    sys.stdout.write(new.decode(errors="replace"))
    sys.stdout.flush()
    return size
