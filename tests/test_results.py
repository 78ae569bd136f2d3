"""Numbers in README and docs are those of the committed JSON; every JSON says how it was made."""

import json
import subprocess
import sys

import pytest
from support import ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_tables_say_what_the_json_says():
    done = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_number_would_be_noticed(tmp_path):
    """The check compares text, so a page with another number fails it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import harness
        import tables
    finally:
        sys.path.pop(0)
    page = (ROOT / "README.md").read_text()
    assert harness.between_markers(page, "results", tables.render()) == page
    record = json.loads((ROOT / "benchmarks" / "results" / "retrieval.json").read_text())
    record["runs"][0]["test_best"]["error"] += 0.01
    assert tables.table([record]).splitlines()[2] not in page


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_every_result_says_how_it_was_made(path):
    record = json.loads(path.read_text())
    assert record["command"].startswith("python benchmarks/")
    assert record["date"] and record["machine"]["cpu"] and record["versions"]["jax"]
    for run in record.get("runs", []):
        assert run["starts"][0]["command"].startswith("fastweights train configs/")
        assert "seed" in run["config"]
