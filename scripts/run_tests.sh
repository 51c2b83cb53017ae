#!/usr/bin/env bash
# From nothing: environment, installation, lint, tests. Arguments go to pytest.
set -euo pipefail
. "$(dirname "$0")/environment.sh" tests
ruff check .
# Most of the time goes into compiling, on one core. A file stays with one worker, so that its fixtures compile once.
python -m pytest -n 2 --dist loadfile "$@"
