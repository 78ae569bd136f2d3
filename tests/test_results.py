"""Numbers in README and docs are those of the committed JSON; every JSON says how it was made."""

import json
import shlex
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
def tables(script):
    return script("tables")


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


def everything(record, key):
    """Every string under `key`, at any depth."""
    if isinstance(record, dict):
        if isinstance(record.get(key), str):
            yield record[key]
        record = list(record.values())
    if isinstance(record, list):
        for part in record:
            yield from everything(part, key)


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_the_commands_of_a_result_can_be_pasted(path):
    """A shell hands on rows with spaces in their names whole, and what is called is there."""
    record = json.loads(path.read_text())
    rows = {*everything(record, "arm"), *record.get("arms", ())}
    commands = set(everything(record, "command"))
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert (ROOT / words[1 if words[0] == "python" else 2]).is_file()
        if "--arms" in words:
            asked = words[words.index("--arms") + 1 :]
            options = [i for i, word in enumerate(asked) if word.startswith("--")]
            assert set(asked[: min(options, default=None)]) <= rows
