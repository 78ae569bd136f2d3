"""Whole runs, in processes of their own: exact resume, preemption, what a run leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from support import ROOT, real_data

from fastweights.train import run_dir as runs
from fastweights.train.checkpoint import Checkpoints
from fastweights.train.config import Config
from fastweights.train.mesh import make_mesh
from fastweights.train.state import init_state


def fastweights(*arguments, check=True, **environment):
    """The command line in a fresh process, on one CPU device."""
    command = [sys.executable, "-m", "fastweights.cli", *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def final_bytes(run_dir):
    """Step and every leaf of a run's newest checkpoint, as bytes."""
    config = runs.load_config(run_dir)
    assert isinstance(config, Config)
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        restored = checkpoints.restore(init_state(config, make_mesh(config.mesh)))
    assert restored is not None
    raw = lambda x: (
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    )
    return restored.step, [
        np.asarray(raw(leaf)).tobytes() for leaf in jax.tree.leaves(restored.state)
    ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the retrieval data, shared by the workers of one test session."""
    return tmp_path_factory.getbasetemp().parent / "tfds"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of short made texts under the names that the books config holds out, and another."""
    folder = tmp_path_factory.mktemp("texts")
    for i, name in enumerate(("pride_and_prejudice", "middlemarch", "moby_dick", "other")):
        words = np.random.default_rng(i).choice(["the", "sea", "a", "whale", "of", "was"], 1_500)
        (folder / f"{name}.txt").write_text(" ".join(words))
    return folder


def arguments_of(config, prepared, texts=None):
    rhythm = ["--train.log-every", 1, "--train.eval-every", 100, "--train.checkpoint-every", 100]
    if (
        config == "books"
    ):  # two chunks a row: the second is read with weights that were just written
        folder, size = texts, ["--train.batch", 2, "--task.length", 256]
    else:
        folder = prepared if config == "retrieval" else real_data("tfds")
        size = ["--train.batch", 64]
    return [f"configs/{config}.py", "--data.dir", folder, *size, *rhythm]


@pytest.mark.parametrize("config", ["retrieval", "glimpses", "glimpses_convnet", "books"])
def test_resume_in_a_new_process_is_exact(config, prepared, texts, tmp_path):
    """6 updates are, bit for bit, 3 updates, a new process and 3 more."""
    common = ["train", *arguments_of(config, prepared, texts)]
    fastweights(*common, "--train.steps", 6, "--run-dir", tmp_path / "whole")
    fastweights(*common, "--train.steps", 3, "--run-dir", tmp_path / "parts")
    first = final_bytes(tmp_path / "parts")
    resumed = fastweights(*common, "--train.steps", 6, "--run-dir", tmp_path / "parts")
    assert "resumed at step 3 of 6" in resumed.stderr
    whole, parts = final_bytes(tmp_path / "whole"), final_bytes(tmp_path / "parts")
    assert whole[0] == parts[0] == 6
    assert whole[1] == parts[1]
    assert first[1] != parts[1]
    assert training_losses(tmp_path / "whole") == training_losses(tmp_path / "parts")


def training_losses(run_dir):
    lines = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def test_sigterm_saves_and_the_rest_is_exact(prepared, tmp_path):
    """A run that is told to stop exits with 75, resumes, and ends where an unstopped one ends."""
    common = ["train", *arguments_of("retrieval", prepared), "--train.steps"]
    fastweights(*common, 400, "--run-dir", tmp_path / "whole")
    command = [sys.executable, "-m", "fastweights.cli", *map(str, common), "400"]
    process = subprocess.Popen(
        [*command, "--run-dir", str(tmp_path / "stopped")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "stopped by SIGTERM" in errors and "Traceback" not in errors
    stopped_at, _ = final_bytes(tmp_path / "stopped")
    assert 0 < stopped_at < 400
    fastweights(*common, 400, "--run-dir", tmp_path / "stopped")
    assert final_bytes(tmp_path / "stopped") == final_bytes(tmp_path / "whole")
    assert training_losses(tmp_path / "stopped") == training_losses(tmp_path / "whole")


def test_the_newest_checkpoint_damaged_falls_back_and_trains_on(prepared, tmp_path):
    """A flipped bit in the newest step is reported; the run goes on from the one before."""
    run = tmp_path / "run"
    common = ["train", *arguments_of("retrieval", prepared), "--train.checkpoint-every", 2]
    fastweights(*common, "--train.steps", 4, "--run-dir", run)
    good = final_bytes(run)
    step4 = run / "checkpoints" / "00000004"
    victim = max((p for p in step4.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    verified = fastweights("ckpt", "verify", run, check=False)
    assert verified.returncode == 4 and "step 2: ok" in verified.stdout
    assert "Traceback" not in verified.stderr
    resumed = fastweights(*common, "--train.steps", 4, "--run-dir", run)
    assert "warning:" in resumed.stderr and "resumed at step 2 of 4" in resumed.stderr
    assert final_bytes(run) == good
    assert fastweights("ckpt", "verify", run).returncode == 0


def test_eval_of_a_finished_run_and_its_files(prepared, tmp_path):
    """Eval scores the best checkpoint on the test split; the run directory is as promised."""
    run = tmp_path / "run"
    common = ["train", *arguments_of("retrieval", prepared), "--train.eval-every", 2]
    fastweights(*common, "--train.checkpoint-every", 2, "--train.steps", 4, "--run-dir", run)
    scores = json.loads(fastweights("eval", "--run-dir", run).stdout)
    assert scores["split"] == "test" and 0.5 < scores["error"] <= 1 and scores["loss"] > 0
    validation = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    errors = {x["step"]: x["validation/error"] for x in validation if "validation/error" in x}
    assert set(errors) == {2, 4}
    assert errors[scores["step"]] == min(errors.values())
    assert json.loads((run / "config.json").read_text())["train"]["batch"] == 64
    start = json.loads((run / "starts.jsonl").read_text())
    assert start["jax"] == jax.__version__ and start["devices"]
    listed = fastweights("ckpt", "ls", run).stdout
    assert "best" in listed and " 4 " in listed
