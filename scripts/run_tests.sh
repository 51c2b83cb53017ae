#!/usr/bin/env bash
# From nothing: environment, installation, lint, tests. Arguments go to pytest.
set -euo pipefail
. "$(dirname "$0")/environment.sh" tests,docs
ruff check .
# Most of the time goes into compiling, on one core. A file stays with one worker, so that its fixtures compile once; in the
# order of names, since the files with the fewest tests, which xdist would keep for the end, are among the slowest.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
