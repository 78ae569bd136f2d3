"""Every notebook runs, agrees with its text pair, and is committed with outputs fit to be read."""

import math
import os
import re
import socket
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_CELLS = 40
MOST_BYTES = 600_000
SECONDS_A_CELL = 600  # a stuck kernel ends; a slow machine does not fail

#: folders that only a machine has: a reader must not meet them
MACHINE_PATH = re.compile(r"/(work|root|tmp|home|Users|var|mnt|private|usr)/|[A-Z]:\\\\")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def printed(notebook):
    """Readable outputs; pictures are left out, in whose letters anything may occur."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from output.get("traceback", [])
            for kind, content in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield str(content)


def test_there_are_notebooks_and_each_has_its_pair():
    assert NOTEBOOKS
    assert {p.stem for p in NOTEBOOKS} == {p.stem for p in FOLDER.glob("*.py")}


@each_notebook
def test_it_runs(path, tmp_path, monkeypatch):
    """In a fresh kernel and the fast setting; the traceback shows the cell that failed."""
    monkeypatch.setenv("FASTWEIGHTS_FAST", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # most of the time is compilation, of programs that then run once
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for name in ("PYTHONWARNINGS", "MPLBACKEND", "XLA_FLAGS", "FASTWEIGHTS_BOOKS"):
        monkeypatch.delenv(name, raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    notebook = jupytext.read(path.with_suffix(".py"))
    NotebookClient(
        notebook,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(empty)}},
    ).execute()
    output = "".join(printed(notebook))
    assert "fast setting" in output and "all claims hold" in output
    assert os.listdir(empty) == []  # it leaves nothing where it is run


@each_notebook
def test_pair_agrees(path):
    """After an edit: `jupytext --sync` the pair, run the notebook in the full setting, save."""
    cells = lambda notebook: [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert cells(nbformat.read(path, 4)) == cells(jupytext.read(path.with_suffix(".py")))


@each_notebook
def test_committed_outputs_are_whole(path):
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    output = "".join(printed(notebook))
    assert "full setting" in output and "all claims hold" in output
    assert len(notebook.cells) <= MOST_CELLS
    assert path.stat().st_size < MOST_BYTES


@each_notebook
def test_no_machine_is_named(path):
    notebook = nbformat.read(path, 4)
    host = re.compile(rf"\b{re.escape(socket.gethostname())}\b")
    sources = [cell.source for cell in notebook.cells]
    for text in [*sources, *printed(notebook), str(notebook.metadata)]:
        assert not MACHINE_PATH.search(text), text
        assert not host.search(text), text


def test_reading_pays_in_the_committed_run():
    """As printed: a fact is news when it is told first, and known later only by who wrote it."""
    notebook = nbformat.read(FOLDER / "a_language_model_that_learns_while_it_reads.ipynb", 4)
    row = r"^(?:\d|3 or more) +\d+ +([\d.]+) +([\d.]+)$"
    table = re.findall(row, "".join(printed(notebook)), re.MULTILINE)
    (first_on, first_off), *later = [(float(on), float(off)) for on, off in table]
    floor = 3 * math.log(70)  # three syllables of 14 consonants and 5 vowels
    assert len(later) == 3
    assert 0.95 * floor < first_off < 1.1 * floor and 0.95 * floor < first_on < 1.2 * floor
    for on, off in later:
        assert on < 0.6 * floor and off > 0.95 * floor
