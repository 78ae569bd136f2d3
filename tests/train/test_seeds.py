"""Several nets at once are the nets that `train` would make one at a time, batches included."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fastweights.errors import ConfigError
from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.base import Data
from fastweights.tasks.batches import batch_rows, train_batches
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Config, Optim, Train, evaluate_run, seeds, train
from fastweights.train.seeds import Nets, fresh_nets, keep_best, make_scoring, train_seeds


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Six updates, evaluated every two."""
    return Config(
        task=Retrieval(pairs=2),
        model=RetrievalModel(cell="irnn", hidden=9, embed=5, expand=7, head=8, start="unit"),
        optim=Optim(lr=1e-2, schedule="cosine", decay_steps=6, warmup=1),
        train=Train(steps=6, batch=100, eval_every=2, checkpoint_every=2, log_every=2),
        data=Data(dir=str(tmp_path_factory.getbasetemp().parent / "tfds")),
    )


@pytest.fixture(scope="module")
def outcomes(config, tmp_path_factory):
    return train_seeds(Nets(config, (3, 5)), tmp_path_factory.mktemp("nets") / "run", quiet=True)


@pytest.mark.parametrize("index", [0, 1])
def test_a_net_is_the_one_train_would_make(config, outcomes, index, tmp_path):
    alone = dataclasses.replace(config, seed=(3, 5)[index])
    history = train(alone, tmp_path / "run", quiet=True).history
    outcome = outcomes[index]
    losses = {
        split: [line[f"{split}/loss"] for line in history if f"{split}/loss" in line]
        for split in ("train", "validation")
    }
    assert outcome.train_loss == pytest.approx(losses["train"][-1], rel=2e-5)
    np.testing.assert_allclose([p["loss"] for p in outcome.curve], losses["validation"], rtol=2e-5)
    test = evaluate_run(tmp_path / "run", which="last")
    assert outcome.last["loss"] == pytest.approx(test["loss"], rel=2e-5)
    assert evaluate_run(tmp_path / "run", which="best")["step"] == outcome.best_step


def test_the_nets_differ(outcomes):
    assert [o.seed for o in outcomes] == [3, 5]
    assert outcomes[0].last["loss"] != outcomes[1].last["loss"]
    assert not any(o.diverged for o in outcomes)


def test_side_by_side_is_one_after_the_other(config, outcomes, tmp_path, monkeypatch):
    """What an accelerator does, `vmap`, gives what a CPU does."""
    monkeypatch.setattr(seeds, "over_nets", lambda function, *trees: jax.vmap(function)(*trees))
    again = train_seeds(Nets(config, (3, 5)), tmp_path / "run", quiet=True)
    for a, b in zip(again, outcomes, strict=True):
        assert a.last["loss"] == pytest.approx(b.last["loss"], rel=2e-5)


def test_a_stopped_run_ends_where_an_unbroken_one_does(config, outcomes, tmp_path):
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4))
    first = train_seeds(Nets(half, (3, 5)), tmp_path / "run", quiet=True)
    ended = train_seeds(Nets(config, (3, 5)), tmp_path / "run", quiet=True)
    assert [o._replace(seconds=0.0) for o in ended] == [o._replace(seconds=0.0) for o in outcomes]
    assert ended[0].seconds > first[0].seconds > 0


def test_a_run_of_other_seeds_is_not_gone_on_with(config, tmp_path):
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    train_seeds(Nets(short, (3,)), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="seeds"):
        train_seeds(Nets(short, (4,)), tmp_path / "run", quiet=True)


def test_a_net_that_diverges_is_marked_and_keeps_its_weights(config, tmp_path):
    wild = dataclasses.replace(config, optim=Optim(lr=1e30, clip=None))
    (outcome,) = train_seeds(Nets(wild, (3,)), tmp_path / "run", quiet=True)
    assert outcome.diverged


def test_the_best_weights_are_kept_for_each_net_alone(config):
    """Scores 2, 1 and then 1, 2: the first net moves on, the second keeps what it had."""
    state = keep_best(fresh_nets(config, (0, 1)), 10, np.array([2.0, 1.0]))
    moved = jax.tree.map(lambda x: x + 1, state.now.model)
    later = keep_best(state._replace(now=state.now._replace(model=moved)), 20, np.array([1.0, 2.0]))
    assert list(later.best_step) == [20, 10] and list(later.best_score) == [1, 1]
    for new, old, kept in zip(
        *(jax.tree.leaves(tree) for tree in (moved, state.best, later.best)), strict=True
    ):
        np.testing.assert_array_equal(kept, np.stack([new[0], old[1]]))


def test_rows_of_a_batch_are_those_of_the_iterator():
    table = {"target": np.arange(23)}
    batches = train_batches(table, 5, seed=7)
    for step in range(11):
        np.testing.assert_array_equal(next(batches)["target"], batch_rows(7, step, 23, 5))


@pytest.mark.parametrize(
    ("change", "text"),
    [({"eval_every": 3}, "eval_every is 3"), ({"steps": 5}, "steps is 5")],
)
def test_rhythms_that_do_not_fit_are_refused(config, change, text, tmp_path):
    bad = dataclasses.replace(config, train=dataclasses.replace(config.train, **change))
    with pytest.raises(ConfigError, match=text):
        train_seeds(Nets(bad, (1,)), tmp_path, quiet=True)


def test_a_run_stopped_between_two_calls_is_not_taken_for_a_finished_one(config, tmp_path):
    """6 updates are no multiple of 4: the next call would end beyond the 8 that are asked for."""
    train_seeds(Nets(config, (1,)), tmp_path, quiet=True)
    plan = dataclasses.replace(config.train, steps=8, eval_every=4, checkpoint_every=4, log_every=4)
    with pytest.raises(ConfigError, match="stopped at update 6, no multiple of train.log_every"):
        train_seeds(Nets(dataclasses.replace(config, train=plan), (1,)), tmp_path, quiet=True)


@pytest.mark.parametrize("given", [(), (1, 1), (-1,)])
def test_seeds_that_make_no_sense_are_refused(config, given, tmp_path):
    with pytest.raises(ConfigError, match="seeds are"):
        train_seeds(Nets(config, given), tmp_path, quiet=True)


def test_metrics_name_the_seed(config, tmp_path):
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    train_seeds(Nets(short, (8,)), tmp_path / "run", quiet=True)
    (line,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert {"train/loss/8", "validation/error/8"} <= set(line)


def test_scores_are_weighted_where_a_task_weights_its_examples():
    """Of 5 examples in batches of 2: by hand, sum of weight times score over the sum of weights."""

    class Weighted(Retrieval):
        def measure(self, model, batch):
            return {"loss": model * batch["target"], "weight": batch["weight"]}

    table = {"target": np.arange(1.0, 6.0), "weight": np.array([1.0, 0.5, 0.0, 0.25, 0.25])}
    found = make_scoring(Weighted(), 2)(np.array([1.0, 10.0]), table)
    np.testing.assert_allclose(found["loss"], np.array([1, 10]) * (1 + 1 + 1 + 1.25) / 2)
    assert set(found) == {"loss"}
