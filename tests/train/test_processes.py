"""Two processes that train together, from the command line: one run, one directory, one end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from support import ROOT

MESH = ["--mesh.data", "2"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder for the retrieval data, shared by the workers of one test session."""
    return tmp_path_factory.getbasetemp().parent / "tfds"


def start(run_dir, prepared, *more, count=1, index=0, port=0):
    """One process of `count`, with one CPU device, or one process alone with two."""
    command = [sys.executable, "-m", "fastweights.cli", "train", "configs/retrieval.py"]
    command += ["--data.dir", prepared, "--train.batch", 1_000, "--model.hidden", 8, *MESH]
    command += ["--train.eval-every", 1_000, "--run-dir", run_dir, *more]
    place = {"JAX_NUM_CPU_DEVICES": "2"}
    if count > 1:
        command.append("--distributed")
        place = {
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | place,
    )


def pair(run_dir, prepared, *more):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start(run_dir, prepared, *more, count=2, index=i, port=port) for i in (0, 1)]


def ended(process, code=0):
    """Standard output and error of a process that ends with a code."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return output, errors


def losses(run_dir):
    lines = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {x["step"]: x["train/loss"] for x in lines if "train/loss" in x}


def test_two_processes_are_one_run(prepared, tmp_path):
    """They do what one process with as many devices does; stopped, they go on as if they had not.

    One process is told to stop, and both save the same update.
    """
    often = ["--train.log-every", 1, "--train.checkpoint-every", 1_000, "--train.steps"]
    ended(start(tmp_path / "alone", prepared, *often, 8))
    processes = pair(tmp_path / "pair", prepared, *often, 8)
    (output, errors), (silent, _) = map(ended, processes)
    assert json.loads(output.splitlines()[-1])["step"] == 8 and "run_dir" not in silent
    assert "mesh {'data': 2" in errors
    alone, together = losses(tmp_path / "alone"), losses(tmp_path / "pair")
    assert list(together) == list(range(1, 9))  # nobody else has written
    np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=1e-5)

    stopped = tmp_path / "stopped"
    processes = pair(stopped, prepared, *often, 2_000)
    while not ((stopped / "metrics.jsonl").exists() and losses(stopped)):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    told = [ended(process, code=75)[1] for process in processes]
    assert all("stopped by SIGTERM at step" in text for text in told)
    at = max(losses(stopped))
    assert 1 <= at < 2_000
    saved = [int(x.stem) for x in (stopped / "checkpoints").glob("*.json")]
    assert saved == [at]

    (_, errors), _ = map(ended, pair(stopped, prepared, *often, at + 2))
    assert f"resumed at step {at} of {at + 2}" in errors
    assert list(losses(stopped)) == list(range(1, at + 3))


def test_processes_that_cannot_share_a_mesh_are_told(prepared, tmp_path):
    processes = pair(tmp_path, prepared, "--train.steps", 2, "--mesh.data", 1)
    for process in processes:
        _, errors = ended(process, code=2)
        assert "2 processes with 2 devices do not share a mesh of 1 x 1 x 1" in errors


def test_a_place_that_is_no_number_is_told(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ | {"JAX_NUM_PROCESSES": "two"})
    process = start(tmp_path, prepared, "--distributed")
    _, errors = ended(process, code=2)
    assert "do not find each other" in errors and "'two'" in errors and "Traceback" not in errors
