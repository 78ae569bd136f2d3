"""Several nets of one config, alike but for their seed, trained at once.

The nets of Ba et al. 2016 are so small that handing one batch to a device costs more than the
update does. Here the data lies on the device and one jitted scan does `train.log_every` updates of
every net. A net sees the batches and starts from the weights that `train` would give its seed.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fastweights.errors import ConfigError
from fastweights.tasks.base import Task
from fastweights.tasks.batches import batch_rows
from fastweights.train import processes
from fastweights.train import run_dir as runs
from fastweights.train.checkpoint import Checkpoints
from fastweights.train.config import Config, check
from fastweights.train.loop import check_batch, check_data, fingerprint
from fastweights.train.metrics import Metrics, read
from fastweights.train.progress import Progress, warn
from fastweights.train.signals import StopRequest, preempted
from fastweights.train.state import TrainState, fresh_state
from fastweights.train.step import make_evaluation, make_update

Scores = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Nets:
    """What a run of several nets does: `config` for every one of `seeds`; its own seed is unused.

    `config.train.log_every` is the updates of one jitted scan: the other rhythms are multiples.
    """

    config: Config
    seeds: tuple[int, ...]


class NetsState(NamedTuple):
    """The state of S nets; every leaf has a leading axis S."""

    now: TrainState
    best: Any  # the models with the least validation score so far
    best_step: Array  # [S] int32, 0 before the first evaluation
    best_score: Array  # [S]


class Outcome(NamedTuple):
    """What one net reached."""

    seed: int
    best_step: int
    best: dict[str, float]  # test scores of the checkpoint with the best validation score
    last: dict[str, float]  # test scores at the end
    validation: float  # that best validation score
    train_loss: float | None  # mean over the last `log_every` updates; None if not finite
    diverged: bool  # a loss or gradient was not finite: from there on nothing was changed
    curve: list[dict[str, float]]  # validation scores, a line an evaluation
    seconds: float  # wall time of training all nets, whatever stopped it in between


def over_nets(function: Callable[..., Any], *trees: Any) -> Any:
    """`function` of every net's part of `trees`, stacked.

    One after the other on a CPU, where side by side is no faster (1.75 against 1.94 ms an update
    and net, three fast-weight RNNs of 50 units on one core); `vmap` where it fills a device.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda parts: function(*parts), trees)
    return jax.vmap(function)(*trees)


def make_updates(config: Config, table: dict[str, Array]) -> Callable[..., tuple[Any, Scores]]:
    """(states, rows `[N, S, batch]`) -> states after N updates and the mean scores `[S]`."""
    update = make_update(config)

    def one(state: TrainState, rows: Array) -> tuple[TrainState, Scores]:
        return update(state, {name: column[rows] for name, column in table.items()})

    def updates(states: TrainState, rows: Array) -> tuple[TrainState, Scores]:
        states, scores = jax.lax.scan(lambda s, r: over_nets(one, s, r), states, rows)
        return states, {name: jnp.mean(x, 0) for name, x in scores.items()}

    return jax.jit(updates, donate_argnums=0)


def make_scoring(task: Task, batch: int) -> Callable[[Any, dict[str, np.ndarray]], Any]:
    """(models, one split) -> the mean of every score over the split, float64 `[S]`."""
    evaluate = make_evaluation(task)

    @jax.jit
    def sums(models: Any, batches: dict[str, Array]) -> Scores:
        return over_nets(
            lambda model: jax.lax.map(functools.partial(evaluate, model), batches), models
        )

    def score(models: Any, table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = len(table["target"])
        rows = np.arange(-(-count // batch) * batch).reshape(-1, batch)
        batches = {name: column[np.minimum(rows, count - 1)] for name, column in table.items()}
        found = jax.device_get(sums(models, {**batches, "mask": rows < count}))
        totals = {name: np.sum(x, 1, dtype=np.float64) for name, x in found.items()}
        weight = totals.pop("count")
        return {name: np.asarray(x / weight) for name, x in totals.items()}

    return score


def check_nets(nets: Nets) -> None:
    """Check before anything is allocated.

    Raises:
        ConfigError: with the first problem found.
    """
    check(nets.config)
    plan = nets.config.train
    if not nets.seeds or min(nets.seeds) < 0 or len(set(nets.seeds)) < len(nets.seeds):
        raise ConfigError(f"the seeds are {nets.seeds}; give at least one, none twice, none < 0")
    for name in ("steps", "eval_every", "checkpoint_every"):
        if getattr(plan, name) % plan.log_every:
            raise ConfigError(
                f"train.{name} is {getattr(plan, name)}, no multiple of train.log_every, "
                f"{plan.log_every}",
                next="several nets at once do train.log_every updates in one go; change either",
            )


def train_seeds(nets: Nets, run_dir: str | Path, *, quiet: bool = False) -> list[Outcome]:
    """Train every net to the end, or go on where the run in `run_dir` stopped; score them.

    Raises:
        ConfigError: the config cannot run, or `run_dir` holds another run.
        DataError: the task's data is missing or damaged, or not that of the run so far.
        CheckpointError: the run directory cannot be written, or no checkpoint can be trusted.
        Preempted: a signal asked the run to stop; its state is saved.
    """
    check_nets(nets)
    processes.only_one("training of several nets at once")
    config, plan, seeds = nets.config, nets.config.train, nets.seeds
    task = cast(Task, config.task)
    directory = runs.open_run(Path(run_dir), nets)
    tables = {
        split: dict(task.load(split, config.data)) for split in ("train", "validation", "test")
    }
    check_batch(config, tables["train"])
    data, count = fingerprint(tables["train"]), len(tables["train"]["target"])
    updates = make_updates(config, jax.device_put(tables["train"]))
    score = make_scoring(task, plan.batch)
    with (
        runs.lock(directory),
        StopRequest() as stop,
        Progress(plan.steps, quiet) as progress,
        Checkpoints(directory / "checkpoints", keep_last=1, keep_best=False, report=warn) as saves,
    ):
        state, start = fresh_nets(config, seeds), 0
        restored = saves.restore(state)
        if restored is not None:
            check_data(restored.extra, data, directory)
            state, start = restored.state, restored.step
            runs.check_rhythm(start, plan, directory)
        runs.record_start(directory, nets)
        progress.start(start)
        with runs.writing(directory), contextlib.closing(Metrics(directory, start)) as metrics:
            for step in range(start + plan.log_every, plan.steps + 1, plan.log_every):
                rows = np.array(
                    [
                        [batch_rows(seed, at, count, plan.batch) for seed in seeds]
                        for at in range(step - plan.log_every, step)
                    ],
                    np.int32,
                )
                now, scores = updates(state.now, rows)
                state = state._replace(now=now)
                # asked once: a signal that comes later is for the next call
                last, stopping = step == plan.steps, stop.name
                line = {f"train/{k}": scores[k] for k in ("loss", "error", "not_finite")}
                if step % plan.eval_every == 0 or last:
                    found = score(now.model, tables["validation"])
                    state = keep_best(state, step, found[task.select_by])
                    line |= {f"validation/{k}": v for k, v in found.items()}
                line = {k: np.asarray(v) for k, v in line.items()}
                metrics.write(
                    step,
                    {
                        f"{k}/{seed}": float(v[i])
                        for k, v in line.items()
                        for i, seed in enumerate(seeds)
                    },
                )
                shown = {
                    k.split("/")[1]: float(line[k].mean()) for k in ("train/loss", "train/error")
                }
                progress.update(step, shown, last)
                if step % plan.checkpoint_every == 0 or last or stopping:
                    saves.save(step, state, extra={"data": data})
                if stopping:  # after the last call too: a sweep has more to do
                    saves.wait()
                    raise preempted(stopping, f"update {step} of {plan.steps}", directory)
            saves.wait()
    best, end = (score(models, tables["test"]) for models in (state.best, state.now.model))
    return outcomes(nets, state, best, end, read(directory))


def fresh_nets(config: Config, seeds: tuple[int, ...]) -> NetsState:
    """S untrained nets, each that of its seed."""

    def init(seeds: Array) -> NetsState:
        states = over_nets(lambda seed: fresh_state(config, seed), seeds)
        nothing = jnp.zeros(len(seeds), jnp.int32)
        # a copy: the update takes the memory of the weights it moves
        best = jax.tree.map(jnp.copy, states.model)
        return NetsState(states, best, nothing, jnp.full(len(seeds), jnp.inf))

    return jax.jit(init)(jnp.asarray(seeds))


@jax.jit
def keep_best(state: NetsState, step: int, score: Array) -> NetsState:
    """Take the present weights of each net whose score `[S]` is less than its best."""
    better = score < state.best_score

    def pick(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return NetsState(
        state.now,
        jax.tree.map(pick, state.now.model, state.best),
        jnp.where(better, step, state.best_step),
        jnp.where(better, score, state.best_score),
    )


def outcomes(
    nets: Nets,
    state: NetsState,
    best: dict[str, np.ndarray],
    last: dict[str, np.ndarray],
    history: list[dict[str, Any]],
) -> list[Outcome]:
    """The result of every net, from the scores of its two checkpoints and the run's metrics."""
    select = cast(Task, nets.config.task).select_by
    found = []
    for i, seed in enumerate(nets.seeds):
        curve = [
            {"step": line["step"], **{k: line[f"validation/{k}/{seed}"] for k in (select, "loss")}}
            for line in history
            if f"validation/loss/{seed}" in line
        ]
        found.append(
            Outcome(
                seed,
                int(state.best_step[i]),
                {k: float(v[i]) for k, v in best.items()},
                {k: float(v[i]) for k, v in last.items()},
                float(state.best_score[i]),
                history[-1][f"train/loss/{seed}"],
                any(line.get(f"train/not_finite/{seed}", 0) for line in history),
                curve,
                history[-1]["wall_time"],
            )
        )
    return found
