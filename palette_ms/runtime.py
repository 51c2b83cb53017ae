"""The one place that knows the machine: environment, device, mode, seeds, ranks.

Ranks are the processes that msrun starts, one a card; a process that it did not start is rank 0 of 1.
"""

import os

# oneDNN in MindSpore 2.9 and 2.10 sends 3×3 convolutions on AVX-512 processors to its reference kernel, which was
# measured 100 times slower than the AVX2 one. It reads this at its first convolution, and only CPU kernels do. A value
# that the user set wins.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# Errors only: MindSpore's warnings about missing accelerators fill pages on a machine that has none.
os.environ.setdefault("GLOG_v", "3")
# Seconds for which ranks on CPUs wait for each other. The 30 of MindSpore end a training while rank 0 makes sample
# pictures; HCCL waits 1800 as well.
os.environ.setdefault("MS_CPU_COMM_OP_TIMEOUT", "1800")
# When it is imported, ONNX Runtime (1.32) would write the machine's number and a record for its makers into the home
# folder and the temporary one.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import glob  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import re  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from contextlib import contextmanager, suppress  # noqa: E402

from palette_ms.errors import UserError  # noqa: E402

DEVICES = ("Ascend", "GPU", "CPU")
RUNTIMES = ("auto", "mindspore", "onnx", "openvino")
PRECISIONS = ("auto", "float32", "float16", "bfloat16")
# Chips of before the Atlas A2 series, by the names that CANN gives them.
_BEFORE_A2 = re.compile(r"Ascend(310.*|910(A|B|ProA|ProB|PremiumA))")
_FEW_CORES = 12  # below these, MindSpore launches kernels from a single thread: 0.18 of the cores, rounded down
# What a runtime needs to be installed, by its pip names.
_PACKAGES = {"openvino": ("openvino", "onnx"), "onnx": ("onnxruntime", "onnx"), "mindspore": ("mindspore",)}

_rank, _ranks, _met = 0, 1, False


def processors():
    """How many of the machine's processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory():
    """Bytes of memory that this process may fill: the machine's, or its container's where that has less."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(limit, encoding="ascii") as file:
            found = min(found, int(file.read()))
    return found


def max_memory():
    """Bytes that restoring a picture may take: half of `memory`, or what PALETTE_MS_MAX_MEMORY says, such as 8G.

    Raises:
        UserError: it says no such thing.
    """
    wanted = os.environ.get("PALETTE_MS_MAX_MEMORY")
    if not wanted:
        return memory() // 2
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([MGT])(i?B)?", wanted, re.I)
    if not found:
        raise UserError(f"the most memory to take must be like 500M or 8G, not {wanted!r}")
    return int(float(found[1]) * 2 ** {"M": 20, "G": 30, "T": 40}[found[2].upper()])


def device():
    """The device MindSpore computes on: "Ascend", "GPU" or "CPU"."""
    import mindspore as ms

    return ms.get_context("device_target")


def card():
    """The name of the Ascend card's chip, such as Ascend910B2."""
    import mindspore as ms

    if simulated():
        return "a simulated card"
    return ms.hal.get_device_name(0, "Ascend")  # of what MindSpore means to end in ms.hal, the one without a successor


def before_a2():
    """Whether the device is an Ascend card of before the Atlas A2 series. Neither such cards nor later were at hand."""
    return device() == "Ascend" and _BEFORE_A2.fullmatch(card()) is not None


def simulated():
    """Whether MindSpore compiles for Ascend cards that are not there (tests/ascend), and launches nothing."""
    return "MS_SIMULATION_LEVEL" in os.environ


def has_fused_attention():
    """Whether the device has MindSpore's fused attention: Ascend from the Atlas A2 series on."""
    return device() == "Ascend" and not before_a2()


def wants_few_kernels():
    """Whether many small kernels are slower than a few on buffers that must be put together first: a card waits for
    the host to launch each; a CPU calls them at no cost, and would wait for the copies."""
    return device() == "Ascend"


def wants_few_graphs():
    """Whether each size that a network is given takes minutes to compile, so that padding to fewer of them pays."""
    return device() == "Ascend"


def precision_obstacle(precision, training=True):
    """Why the device cannot train, or else make pictures, in "float32", "float16" or "bfloat16"; or None."""
    if precision == "bfloat16" and device() == "CPU":
        return "MindSpore has no bfloat16 on CPU"
    if precision == "bfloat16" and before_a2():
        return f"{card()} has no bfloat16: cards have it from the Atlas A2 series on"
    if precision == "float16" and training and before_a2():
        return (f"{card()} puts the largest number in the place of infinity, so that the loss scale of float16 would "
                "not see an overflow: cards tell it from the Atlas A2 series on")
    return None


def sampling_precision(wanted):
    """The precision to make pictures in.

    Args:
        wanted: one of `PRECISIONS`; "auto" is float16 where the device has fused attention for it, else float32.

    Raises:
        UserError: an unknown precision, or one that the device has not.
    """
    if wanted not in PRECISIONS:
        raise UserError(f"unknown precision {wanted!r}: {', '.join(PRECISIONS)}")
    if wanted == "auto":
        return "float16" if has_fused_attention() else "float32"
    obstacle = precision_obstacle(wanted, training=False)
    if obstacle:
        raise UserError(f"{obstacle}; --precision auto takes what there is")
    return wanted


def runtime_obstacle(name, precision="auto"):
    """Why pictures cannot be made on a CPU by a runtime, "openvino", "onnx" or "mindspore", in a precision; or None."""
    missing = [package for package in _PACKAGES[name] if importlib.util.find_spec(package) is None]
    if missing:
        are = "are" if missing[1:] else "is"
        return f"{' and '.join(missing)} {are} not installed: pip install {' '.join(missing)}"
    if name == "onnx" and precision not in ("auto", "float32"):
        return f"ONNX Runtime computes in float32 here, and {precision} was asked for"
    if name == "openvino" and precision not in ("auto", "float32") and not (
            precision == "bfloat16" and computes_bfloat16()):
        return f"OpenVINO does not compute in {precision} on this processor"
    return None


@contextmanager
def whole_processor():
    """Without what is set above for MindSpore's oneDNN: OpenVINO's own, which reads it once, is slower by it, computes
    in no bfloat16, and crashes in normalisations of odd sizes (2026.4)."""
    isa = os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
    try:
        yield
    finally:
        if isa is not None:
            os.environ["ONEDNN_MAX_CPU_ISA"] = isa


def openvino():
    """OpenVINO's module, imported without the part that tells its makers of the import and leaves their number in the
    home folder: restoring writes nothing but results, and asks no network."""
    part = "openvino_telemetry"
    known = sys.modules.get(part)
    sys.modules[part] = None  # which Python takes for a module that is not installed
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[part]
        if known is not None:
            sys.modules[part] = known


def computes_bfloat16():
    """Whether OpenVINO says that this processor computes in bfloat16 natively."""
    with whole_processor():
        return "BF16" in openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def setup_sampling(device="auto", runtime="auto", precision="auto", bfloat16=False):
    """Choose what makes pictures, and say in one line on stderr what it is and why. MindSpore is imported only where it
    is what computes, or where there is an accelerator that it may find.

    Args:
        device: as of `setup`.
        runtime: one of `RUNTIMES`; "auto": on a CPU OpenVINO if it is installed, else ONNX Runtime, else MindSpore.
        precision: one of `PRECISIONS`; "auto": as `sampling_precision` says, and on a CPU float32, or bfloat16.
        bfloat16: whether that rounds a model's pictures too little to be seen, so that "auto" may take it where
            OpenVINO computes in it.

    Returns: (runtime, precision).

    Raises:
        UserError: an unknown one, or one that cannot be had.
    """
    for what, value, known in (("runtime", runtime, RUNTIMES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise UserError(f"unknown {what} {value!r}: {', '.join(known)}")
    if started_by_msrun() or (device.lower() != "cpu" and (device.lower() != "auto" or _may_accelerate())):
        name, why = setup(device, quiet=True)
    else:
        name, why = "CPU", "as asked" if device.lower() == "cpu" else "auto: no Ascend or GPU found"
    if name != "CPU":
        if runtime not in ("auto", "mindspore"):
            raise UserError(f"--runtime {runtime} is for a CPU, and the device is {name}; --runtime auto takes what "
                            "there is")
        chosen = "mindspore"
    elif runtime == "auto":
        chosen = next((one for one in _PACKAGES if runtime_obstacle(one, precision) is None), "mindspore")
        if chosen == "mindspore" and importlib.util.find_spec("mindspore") is None:
            installed = next((one for one in _PACKAGES if runtime_obstacle(one) is None), None)
            raise UserError("nothing is installed that runs a network: pip install openvino onnx" if installed is None
                            else f"{runtime_obstacle(installed, precision)}; --precision auto takes what there is")
    else:
        chosen, obstacle = runtime, runtime_obstacle(runtime, precision)
        if obstacle:
            raise UserError(f"{obstacle}; --runtime auto takes what there is")
    if chosen == "mindspore":
        if name == "CPU":
            setup("CPU", quiet=True)
        precision = sampling_precision(precision)
    elif precision == "auto":
        rounds = bfloat16 and chosen == "openvino" and runtime_obstacle(chosen, "bfloat16") is None
        precision = "bfloat16" if rounds else "float32"
    _tell(name, why, f", {_NAMES[chosen]}, {precision}")
    return chosen, precision


_NAMES = {"openvino": "OpenVINO", "onnx": "ONNX Runtime", "mindspore": "MindSpore"}


def _may_accelerate():
    """Whether there may be a card of Ascend's or a GPU: their drivers' files, or MindSpore's simulation."""
    return simulated() or any(glob.glob(pattern) for pattern in ("/dev/davinci*", "/dev/nvidia[0-9]*"))


def _available(name):
    import mindspore as ms

    context = ms.device_context.ascend if name == "Ascend" else ms.device_context.gpu
    # GLOG_v silences this only where palette_ms was imported before MindSpore.
    logging.disable(logging.WARNING)
    try:
        return context.is_available() and (simulated() or context.device_count() > 0)
    finally:
        logging.disable(logging.NOTSET)


def setup(wanted="auto", seed=None, repeatable=False, quiet=False):
    """Choose MindSpore's device, switch to graph mode and say in one line on stderr which device it is and why.

    Where msrun started this process, the other ranks are met here.

    Args:
        wanted: "auto" (Ascend, then GPU, then CPU), or one of `DEVICES` in any case.
        seed: seeds MindSpore's own generators (weights' initial values) where given.
        repeatable: computing the same again is to give the same to the last bit, on Ascend too, where that may take
            slower kernels. It counts from the process's first call that asks for it.
        quiet: say nothing.

    Returns: the device's name; if quiet, and why it is that.

    Raises:
        UserError: the wanted device is unknown or not there.
    """
    names = {name.lower(): name for name in DEVICES}
    if wanted.lower() not in ("auto", *names):
        raise UserError(f"unknown device {wanted!r}: auto, {', '.join(DEVICES)}")
    import mindspore as ms

    if wanted.lower() == "auto":
        name = next(name for name in DEVICES if name == "CPU" or _available(name))
        missing = DEVICES[: DEVICES.index(name)]
        why = f"auto: no {' or '.join(missing)} found by MindSpore {ms.__version__}" if missing else "auto: found"
    else:
        name, why = names[wanted.lower()], "as asked"
        if name != "CPU" and not _available(name):
            raise UserError(f"device {name} was asked for, but MindSpore {ms.__version__} finds none here "
                            "(driver and toolkit installed? card visible?); --device auto takes what there is")
    running_on = device()
    try:
        ms.set_device(name)
    except RuntimeError:  # the process has computed already, and MindSpore's device is set once
        if running_on != name:
            raise UserError(f"this process already computes on {running_on}; {name} needs a new one") from None
    ms.set_context(mode=ms.GRAPH_MODE)
    if name == "Ascend":
        _prepare_ascend(repeatable)
    _meet()
    if seed is not None:
        ms.set_seed(seed)
    if quiet:
        return name, why
    _tell(name, why)
    return name


def _tell(name, why, by=""):
    among = f", rank {_rank} of {_ranks}" if _ranks > 1 else ""
    print(f"device: {name} ({why}){by}{among}", file=sys.stderr)


def _prepare_ascend(repeatable):
    """What must be set before the first graph is compiled and before ranks meet.

    MindSpore takes each of it once a process; where the user has set it, or an earlier `setup`, that holds.
    """
    import mindspore as ms

    precision = ms.device_context.ascend.op_precision
    calls = [(precision.conv_allow_hf32, False), (precision.matmul_allow_hf32, False)]  # float32 is to be float32
    if processors() < _FEW_CORES:
        # By a single thread, MindSpore 2.10 runs no graph with a branch, which a training step has.
        calls.append((ms.runtime.dispatch_threads_num, 2))
    if repeatable:
        calls.append((ms.set_deterministic, True))
    for call, value in calls:
        with suppress(RuntimeError):
            call(value)
    if before_a2():
        print(f"warning: {card()} is of before the Atlas A2 series: such cards are not supported", file=sys.stderr)


def started_by_msrun():
    """Whether this process is one of several ranks, which meet in `setup`."""
    return "MS_ROLE" in os.environ or (simulated() and os.environ.get("RANK_SIZE", "1") != "1")


# How other launchers tell a process how many there are and which it is, besides msrun.
_LAUNCHERS = (("mpirun", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_RANK",)), ("mpirun", "PMI_SIZE", ("PMI_RANK",)),
              ("torchrun", "WORLD_SIZE", ("RANK", "LOCAL_RANK")), ("srun", "SLURM_NTASKS", ("SLURM_PROCID",)),
              ("a launcher", "RANK_SIZE", ("RANK_ID",)))


def check_launcher():
    """Raises UserError where another launcher than msrun started this process as one of several, which would all do the
    same and write over each other."""
    if started_by_msrun():
        return
    for launcher, size, ranks in _LAUNCHERS:
        count = os.environ.get(size, "")
        if count.isdecimal() and int(count) > 1 and any(name in os.environ for name in ranks):
            raise UserError(f"{launcher} started this as one of {count} processes ({size}), and they would not find "
                            f"each other: start them by msrun --worker_num {count} --local_worker_num …, or unset "
                            f"{size} to run alone")


def _meet():
    global _rank, _ranks, _met
    if _met or not started_by_msrun():
        return
    from mindspore import communication

    # In here Python hears of no SIGTERM, and where a rank is missing this waits half an hour: nothing is to be saved
    # yet, so it may end the process at once.
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        communication.init()  # msrun's scheduler ends in here
    finally:
        signal.signal(signal.SIGTERM, previous)
    _rank, _ranks = communication.get_rank(), communication.get_group_size()
    _met = True


def rank():
    """This process's place among the ranks, from 0; known after `setup`."""
    return _rank


def ranks():
    """How many processes compute together; known after `setup`."""
    return _ranks


def sum_over_ranks(values):
    """Sums over all ranks, which all must call it, as an array of the same shape, float32.

    The call returns once every rank has made it, so that it serves as a meeting point too.
    """
    import numpy as np

    values = np.asarray(values, np.float32)
    if _ranks == 1:
        return values
    from mindspore import Tensor, ops

    return ops.AllReduce()(Tensor(values.reshape(-1))).asnumpy().reshape(values.shape)


def gather(values):
    """The arrays of all ranks, which all must call it with the same shape, one after the other: (ranks, …)."""
    if _ranks == 1:
        return values[None]
    from mindspore import Tensor, ops

    return ops.AllGather()(Tensor(values.reshape(-1))).asnumpy().reshape((_ranks, *values.shape))


def share(value):
    """What each rank gives, anything that JSON can hold, as a list in their order; all must call it."""
    import numpy as np

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = gather(np.float32([len(text)])).astype(int).ravel()
    padded = np.pad(text, (0, lengths.max() - len(text))).astype(np.float32)
    return [json.loads(row[:length].astype(np.uint8).tobytes()) for row, length in zip(gather(padded), lengths)]
