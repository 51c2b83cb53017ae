"""Stand-ins for CANN's libraries, from the names that the installed MindSpore wants of them.

    python tests/ascend/stand_ins.py FOLDER

MindSpore simulates an Ascend card where MS_SIMULATION_LEVEL is set, and then only compiles; but its Ascend backend does
not load without CANN. What is made here loads in CANN's place and does nothing: a single library under all the names
that are missing, whose functions return 0, which means success there, but for the few whose answer is looked at.
"""

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path

LIBRARY = "libascendcl.so"
# Opened by names that stand nowhere as a dependency.
OPENED = ("libacl_op_compiler.so", "libacl_tdt_channel.so", "libacl_tdt_queue.so", "liberror_manager.so",
          "libge_common.so", "libgmem.so", "libopapi.so", "liboptiling.so")
# Functions that are asked for by name while MindSpore runs, where they stand among a library's strings.
_ASKED_FOR = re.compile(rb"\0(acl[a-z]*[A-Z]\w+|aclnn\w+|Hc(?:cl|om)\w+|(?:hal|rt)[A-Z]\w+)(?=\0)")
# What no CPU code of the Ascend backend is in.
_LEFT_OUT = re.compile("/op_kernels/|/custom_|/gpu|/libcuda|/libmindspore_gpu")
_FILES = {
    "compiler/version.info": "Version=9.1.0\n",  # one that MindSpore does not know gets a warning
    "opp/version.info": "Version=9.1.0\n",
    "python/hccl/__init__.py": "",  # but no `te`, of which MindSpore would import more and more
    "python/hccl/manage/__init__.py": "",
    "python/hccl/sys_version.py": '__sys_version__ = "9.1.0"\n',
}
_NOTHINGS = ", ".join(["nothing"] * 30)
_HEAD = f"""
#include <string.h>
static long nothing(void) {{ return 0; }}
static char anything[4096];
static void *table[] = {{ {_NOTHINGS} }};
static void *factory[6] = {{0, 0, 0, &factory[1], &factory[1], 0}};  /* around a std::map without elements */
extern char _ZNSs4_Rep20_S_empty_rep_storageE[];
"""
# By C++'s mangled names, the first that fits. An object that is returned stands where the caller says, as with a
# constructor, and is a null pointer with its counter, or what is said.
_OBJECT = "void *{}(void **it) {{ it[0] = it[1] = 0; return it; }}"
_BODIES = (
    ("aclrtGetSocName$", 'char *{}(void) {{ return "Ascend910B2"; }}'),
    ("aclrtGetDeviceCount$", "int {}(unsigned *count) {{ *count = 8; return 0; }}"),
    ("aclsysGetCANNVersion$", """int {}(int package, char *it) {{  /* the whole and parts, of 128 and 64 bytes */
        memset(it, 0, 384); strcpy(it, "9.1.0"); it[128] = '9'; it[192] = '1'; it[256] = it[320] = '0';
        return 0; }}"""),
    ("acl(op)?Create|aclDup|aclGetDesc|acltdtCreate|aclmdlCreate|ConvertTensor",
     "void *{}(void) {{ return anything; }}"),
    ("_ZN2ge13StatusFactory8Instance", "void *{}(void) {{ return factory; }}"),
    ("_ZN2ge(8OperatorC|15OperatorFactory14Create)",  # virtual functions, then a pointer
     "void *{}(void **it) {{ it[0] = table; it[1] = it[2] = 0; return it; }}"),
    ("_ZNK2ge5Shape7GetDims", "void *{}(void **it) {{ it[0] = it[1] = it[2] = 0; return it; }}"),  # a std::vector
    ("_ZNK2ge(8Operator|5Graph)(7GetName|9GetOpType)Ev",  # a std::string of the old kind
     "void *{}(void **it) {{ it[0] = _ZNSs4_Rep20_S_empty_rep_storageE + 24; return it; }}"),
    (r"_ZN2ge\w+C[12]E|_ZNK2ge(\w+Get(Origin)?ShapeEv|6Tensor13GetTensorDesc|8Operator13GetOutputDesc)", _OBJECT),
    ("_ZTV", "void *{}[32] = {{0, 0, " + _NOTHINGS + "}};"),  # of a class's virtual functions
    ("_ZT", "void *{}[32];"),
    ("", "long {}(void) {{ return 0; }}"),
)


def obstacle():
    """Why stand-ins cannot be made here, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"stand-ins for CANN are for x86-64 Linux, not for {platform.machine()} {platform.system()}"
    missing = [tool for tool in ("g++", "nm", "readelf") if not shutil.which(tool)]
    if missing:
        return f"no {', '.join(missing)} to make stand-ins for CANN with: apt-get install g++ binutils"
    spec = importlib.util.find_spec("mindspore")
    if spec is None or not (Path(spec.origin).parent / "lib/plugin/ascend").is_dir():
        return "the installed MindSpore has no Ascend backend"
    return None


def build(folder):
    """Write the stand-ins into a folder; returns it. MindSpore is read and not imported."""
    home = Path(folder) / "cann"  # MindSpore takes what is called so for CANN's
    for name, text in _FILES.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (home / "lib64").mkdir(exist_ok=True)
    libraries, functions = _wanted()
    source = Path(folder) / "stand_ins.c"
    source.write_text(_HEAD + "\n".join(map(_definition, sorted(functions))) + "\n")
    _output("g++", "-x", "c", "-w", "-fno-builtin", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", source, "-o",
            home / "lib64" / LIBRARY, "-lstdc++")
    for name in libraries - {LIBRARY}:
        (home / "lib64" / name).symlink_to(LIBRARY)
    return Path(folder)


def _definition(name):
    return next(body for pattern, body in _BODIES if re.match(pattern, name)).format(name)


def _wanted():
    """(names of libraries, names of functions and objects) that MindSpore's Ascend backend wants and has not."""
    package = Path(importlib.util.find_spec("mindspore").origin).parent
    ours = [path for path in package.rglob("*.so*")
            if not path.is_symlink() and not _LEFT_OUT.search(str(path.relative_to(package.parent)))]
    backend = [path for path in ours if "/plugin/ascend/" in str(path) or re.search("ascend|ge_backend", path.name)]
    needed, undefined, asked_for = set(OPENED), set(), set()
    for path in backend:
        needed.update(re.findall(r"\(NEEDED\).*\[(.*)\]", _output("readelf", "-d", path)))
        undefined |= _symbols(path, "U")
        # In some the name of a pointer to the function is left: its own and an underscore.
        asked_for.update(name.decode().rstrip("_") for name in _ASKED_FOR.findall(path.read_bytes()))
    cpp = _output("g++", "-print-file-name=libstdc++.so.6").strip()
    defined = set().union(*(_symbols(path, "BDRTVWiu") for path in (*ours, cpp)))
    # aclnnAdd is asked for with aclnnAddGetWorkspaceSize, whose name is put together.
    asked_for |= {f"{name}GetWorkspaceSize" for name in asked_for if name.startswith("aclnn")}
    asked_for |= {"aclnnInit", "aclnnFinalize"}
    libraries = needed - {path.name for path in ours}
    return {name for name in libraries if not _loads(name)}, (undefined | asked_for) - defined


def _symbols(path, kinds):
    """A library's dynamic symbols of some of nm's kinds, without versions. Of the undefined ones (U), those that have a
    version are left out, since the system has them, and so are Python's."""
    found = re.findall(rf"^(?:[0-9a-f]+)? +([{kinds}]) ((?!_?Py|__)[^@\n]+)(@.*)?$", _output("nm", "-D", path), re.M)
    return {name for kind, name, version in found if kind != "U" or not version}


def _loads(name):
    with suppress(OSError):
        return bool(CDLL(name))
    return False


def _output(*command):
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()[:400]}")
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if obstacle():
        sys.exit(f"error: {obstacle()}")
    print(build(sys.argv[1]))
