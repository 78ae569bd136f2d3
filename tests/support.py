"""What several test files share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: what a benchmark's record must say beside its numbers
CIRCUMSTANCES = ("command", "date", "machine", "versions", "load_start", "load_end", "seed")


def real_data(name: str) -> Path:
    """A file or folder of real data; skips the test on a machine without.

    Looked for in the folder FASTWEIGHTS_TEST_DATA, by default ``../shared/data`` from the root.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("FASTWEIGHTS_TEST_DATA", beside)) / name
    if not path.exists():
        pytest.skip(f"no real data: {path} does not exist; point FASTWEIGHTS_TEST_DATA at it")
    return path
