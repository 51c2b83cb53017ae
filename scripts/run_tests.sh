#!/usr/bin/env bash
# From nothing: environment, installation, lint, tests. Arguments go to pytest.
set -euo pipefail
. "$(dirname "$0")/environment.sh" tests
ruff check .
python -m pytest "$@"
