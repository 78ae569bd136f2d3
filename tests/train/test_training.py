"""The loop around the updates, on tables of a few rows: what it saves, refuses and leaves alone."""

import dataclasses
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastweights.errors import CheckpointError, ConfigError, DataError, NumericalError, Preempted
from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.base import Data
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Config, Mesh, Optim, Train, evaluate_run, loop, train
from fastweights.train.agent import AgentConfig, train_agent
from fastweights.train.checkpoint import Checkpoints
from fastweights.train.progress import Progress, warn
from fastweights.train.run_dir import load_config, lock, open_run
from fastweights.train.seeds import Nets, train_seeds

CONFIG = Config(
    task=Retrieval(pairs=2),
    model=RetrievalModel(cell="irnn", hidden=4, embed=4, expand=4, head=4),
    optim=Optim(lr=1e-2),
    train=Train(steps=4, batch=8, eval_every=4, checkpoint_every=4, log_every=1),
)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """24 rows of chance instead of 100,000; a `data.dir` has others."""

    def load(self, split, data):
        rng = np.random.default_rng([len(split), *(data.dir or "").encode()])
        rows = rng.integers(0, 10, (24, 7)).astype(np.int32)
        return {"inputs": rows, "target": rows[:, 0]}

    monkeypatch.setattr(Retrieval, "load", load)


def with_plan(config=CONFIG, **plan):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **plan))


def steps(run_dir):
    """The steps saved, the best one last."""
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        infos = checkpoints.infos()
    return [info.step for info in infos], [info.step for info in infos if info.best]


def test_a_refused_resume_does_not_move_the_run_to_other_data(tmp_path):
    train(with_plan(steps=2), tmp_path, quiet=True)
    scores = evaluate_run(tmp_path)
    elsewhere = dataclasses.replace(CONFIG, data=Data(dir="elsewhere"))
    with pytest.raises(DataError, match="not what this run was trained on"):
        train(elsewhere, tmp_path, quiet=True)
    assert load_config(tmp_path).data.dir is None and evaluate_run(tmp_path) == scores


def test_other_data_is_not_scored(tmp_path, monkeypatch):
    train(with_plan(steps=2), tmp_path, quiet=True)
    real = Retrieval.load
    monkeypatch.setattr(Retrieval, "load", lambda self, split, data: real(self, split, Data("b")))
    for split in ("train", "test"):
        with pytest.raises(DataError, match="not what this run was trained on"):
            evaluate_run(tmp_path, split)


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_a_signal_at_any_time_stops_what_is_saved(tmp_path, monkeypatch, asked):
    """It comes when the loop asks for the n-th time: that update is logged, saved and the last."""

    class Stop:
        count = 0

        @property
        def name(self):
            self.count += 1
            return "SIGTERM" if self.count >= asked else None

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(loop, "StopRequest", Stop)
    plan = with_plan(log_every=4, eval_every=1, checkpoint_every=4)
    with pytest.raises(Preempted, match=f"stopped by SIGTERM at step {asked} of 4"):
        train(plan, tmp_path, quiet=True)
    assert steps(tmp_path)[0][-1] == asked
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [asked]


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_run_that_diverged_keeps_its_checkpoints_however_often_it_is_run(tmp_path, log_every):
    """Update 1 makes weights of 1e30. The next is not finite, nor is the first of another start."""
    plan = with_plan(steps=50, checkpoint_every=1, keep_last=1, log_every=log_every)
    wild = dataclasses.replace(plan, optim=Optim(lr=1e30, clip=None))
    for first in (2, 3, 3):
        with pytest.raises(NumericalError, match=f"where: step {first}.*\n.*\n.*are saved in this"):
            train(wild, tmp_path, quiet=True)
        assert steps(tmp_path)[0] == [1, 2]


def test_a_run_whose_first_update_is_not_finite_leaves_nothing(tmp_path, monkeypatch):
    real = Retrieval.measure
    spoilt = lambda self, *given: jax.tree.map(lambda x: x * jnp.nan, real(self, *given))
    monkeypatch.setattr(Retrieval, "measure", spoilt)
    with pytest.raises(NumericalError) as error:
        train(CONFIG, tmp_path, quiet=True)
    assert "saved" not in str(error.value) and not (tmp_path / "checkpoints").exists()
    open_run(tmp_path, dataclasses.replace(CONFIG, optim=Optim(lr=1e-3)))


def test_the_best_evaluation_is_kept_whenever_it_comes(tmp_path, monkeypatch):
    """Evaluated every update, saved by its number never: bests are, before and after a resume."""
    scores = iter([0.5, 0.2, 0.4, 0.3, 0.1, 0.1, 0.6])
    monkeypatch.setattr(loop, "evaluate_table", lambda *_, **__: {"loss": 0, "error": next(scores)})
    plan = {"eval_every": 1, "checkpoint_every": 100, "keep_last": 100}
    train(with_plan(steps=3, **plan), tmp_path, quiet=True)
    assert steps(tmp_path) == ([1, 2, 3], [2])
    train(with_plan(steps=7, **plan), tmp_path, quiet=True)
    assert steps(tmp_path) == ([1, 2, 3, 5, 7], [5])


def test_an_evaluation_takes_as_many_examples_as_it_is_told(tmp_path, monkeypatch):
    """Spread over the split from the first to the last; None is all."""
    seen = []

    def evaluate(step, model, table, *_, **__):
        seen.append(len(table["target"]))
        return {"loss": 0, "error": 0}

    monkeypatch.setattr(loop, "evaluate_table", evaluate)
    for name, rows in (("all", None), ("some", 5), ("more", 99)):
        train(with_plan(eval_examples=rows), tmp_path / name, quiet=True)
    assert seen == [24, 5, 24]
    with pytest.raises(ConfigError, match="train.eval_examples is 0"):
        train(with_plan(eval_examples=0), tmp_path / "none", quiet=True)


def test_a_start_that_cannot_be_may_be_mended_in_its_directory(tmp_path):
    with pytest.raises(ConfigError, match="training split has 24"):
        train(with_plan(batch=25), tmp_path, quiet=True)
    assert not (tmp_path / ".lock").exists()
    assert train(CONFIG, tmp_path, quiet=True).state.step == 4


@pytest.mark.parametrize(
    ("start", "config"),
    [(train, CONFIG), (train_seeds, Nets(CONFIG, (1,))), (train_agent, AgentConfig())],
)
def test_a_directory_in_use_is_left_alone(tmp_path, start, config):
    with lock(tmp_path), pytest.raises(ConfigError, match="another process is at work"):
        start(config, tmp_path, quiet=True)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]  # of the other process


def test_metrics_that_cannot_be_written_are_told_of(tmp_path):
    train(with_plan(steps=2), tmp_path, quiet=True)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match="cannot write to the run directory"):
        train(CONFIG, tmp_path, quiet=True)


def test_a_run_of_many_devices_is_scored_on_fewer(tmp_path, monkeypatch):
    train(dataclasses.replace(CONFIG, mesh=Mesh(data=2, fsdp=2)), tmp_path, quiet=True)
    there = evaluate_run(tmp_path)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    here = evaluate_run(tmp_path)
    assert here["step"] == 4 and here["error"] == there["error"]
    assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)


def test_a_run_goes_on_when_nobody_reads_its_progress(monkeypatch):
    """As in `2>&1 | head -1`: the reader of the pipe has ended."""
    for say in (warn, Progress(10).note, lambda text: Progress(10).update(1, {"loss": 1.0})):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            say("first")
            warn("second")
