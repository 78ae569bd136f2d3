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


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    yield tables
    for name in ("tables", "harness", "catch", "books", "fst"):
        sys.modules.pop(name, None)


def test_a_changed_number_would_be_noticed(tables, monkeypatch):
    """The check compares text, so a page with another number fails it."""
    page = (ROOT / "docs" / "fast_weight_rnn.md").read_text()
    load = tables.load

    def changed(name):
        record = load(name)
        if name == "retrieval":
            record["runs"][0]["test_best"]["error"] += 0.01
        if name == "retrieval_table":
            record["cells"][0]["seeds"][0]["test"]["error"] += 0.01
        return record

    monkeypatch.setattr(tables, "load", changed)
    for name in ("results", "retrieval_table"):
        assert tables.harness.between_markers(page, name, tables.render(name)) != page


def facts(record):
    """The parts of a record that must say how they were made: command, date, machine, versions."""
    if "cells" in record:
        return record["cells"]
    return [record]


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_every_result_says_how_it_was_made(path):
    record = json.loads(path.read_text())
    for part in facts(record):
        assert part["command"].startswith(("python benchmarks/", "fastweights train configs/"))
        assert part["date"] and part["machine"]["cpu"] and part["versions"]["jax"]
    for run in record.get("runs", []):
        if "starts" in run:
            assert run["starts"][0]["command"].startswith("fastweights train configs/")
            assert "seed" in run["config"]
        else:
            assert run["command"].startswith("python benchmarks/") and run["date"]
            assert isinstance(run["seed"], int)
    for cell in record.get("cells", []):
        assert len(cell["seeds"]) >= 3 and all("seed" in seed for seed in cell["seeds"])
