"""ModelArts' boot file: trains over all cards and hosts of a job. docs/modelarts.md walks through it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the platform runs this file from anywhere

from palette_ms import errors  # noqa: E402
from palette_ms.modelarts import boot  # noqa: E402

if __name__ == "__main__":
    errors.run(boot.main)
