# Sourced by the other scripts: a virtual environment in .venv with this project and the extras named.
#
#   . scripts/environment.sh tests
#
# PYTHON names the interpreter to make it with (default: the first of python3.11, python3.10, python3.12, python3.9
# and python3 that MindSpore has a wheel for).

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.10 python3.12 python3.9 python3 python}; do
        if "$candidate" -c 'import sys, venv; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.9 to 3.12 with venv found (looked at: ${PYTHON:-python3.11, 3.10, 3.12, 3.9, python3})." \
         "MindSpore has wheels for these; set PYTHON to one." >&2
    return 2
}

if [ ! -x .venv/bin/python ]; then
    python=$(find_python) || exit 2
    echo "Making a virtual environment in .venv with $("$python" --version) ..."
    "$python" -m venv .venv || { rm -rf .venv; echo "error: could not make .venv (Debian: apt-get install python3-venv)" >&2; exit 2; }
fi
echo "Installing (MindSpore is a download of about 0.8 GB the first time) ..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$1]" || {
    echo "error: the installation failed; see pip's message above" >&2
    exit 2
}
. .venv/bin/activate
