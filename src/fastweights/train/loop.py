"""The training loop: everything a run does, in the order it does it."""

import contextlib
import functools
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fastweights.errors import ConfigError, DataError, NumericalError
from fastweights.tasks.batches import eval_batches, evenly, train_batches
from fastweights.train import processes
from fastweights.train import run_dir as runs
from fastweights.train.checkpoint import Checkpoints, Restored
from fastweights.train.config import Config, check
from fastweights.train.mesh import fitting_mesh, make_mesh, put_batch
from fastweights.train.metrics import Metrics, read
from fastweights.train.progress import Progress, warn
from fastweights.train.signals import StopRequest, preempted
from fastweights.train.start import check_start, start_state
from fastweights.train.state import TrainState, abstract_state, init_state, parameter_count
from fastweights.train.step import make_eval_step, make_train_step

Table = Mapping[str, np.ndarray]


class Result(NamedTuple):
    """What a finished run gives back."""

    state: TrainState
    history: list[dict[str, Any]]  # the lines of metrics.jsonl
    run_dir: Path


def train(config: Config, run_dir: str | Path, *, quiet: bool = False) -> Result:
    """Train until `train.steps` updates are done; goes on where the run in `run_dir` stopped.

    Args:
        config: what to do.
        run_dir: the run's directory, made if absent. Holds `config.json`, `starts.jsonl`
            (versions), `metrics.jsonl` and `checkpoints/`.
        quiet: show no progress.

    Raises:
        ConfigError: the config cannot run, or `run_dir` holds a run of another config.
        DataError: the task's data is missing or damaged.
        CheckpointError: the run directory cannot be written, or no checkpoint in it can be trusted;
            or the one in `config.start` does not fit.
        NumericalError: loss or gradient was not finite; the state before that update is saved,
            if the run got there.
        Preempted: a signal asked the run to stop; its state is saved.
    """
    check(config)
    check_start(config, Path(run_dir))
    mesh = make_mesh(config.mesh)
    directory = Path(run_dir)
    processes.first_alone(lambda: runs.open_run(directory, config))
    plan, first = config.train, processes.is_first()
    with (
        runs.lock(directory),
        StopRequest() as stop,
        Progress(plan.steps, quiet or not first) as progress,
        Checkpoints(
            directory / "checkpoints", keep_last=plan.keep_last, report=warn
        ) as checkpoints,
    ):
        load = lambda split: config.task.load(split, config.data)
        with progress.working("loading data"):
            if jax.process_count() > 1:  # what is made at the first use is made once
                processes.first_alone(lambda: load("train"))
            tables = {split: load(split) for split in ("train", "validation")}
            if plan.eval_examples is not None:
                few = evenly(len(tables["validation"]["target"]), plan.eval_examples)
                tables["validation"] = {k: v[few] for k, v in tables["validation"].items()}
        check_batch(config, tables["train"])
        data = fingerprint(tables["train"])
        batches = train_batches(
            tables["train"],
            plan.batch,
            config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        restored = checkpoints.restore(abstract_state(config, mesh), batches)
        start, best = 0, math.inf
        if restored is not None:
            check_data(restored.extra, data, directory)
            state, start = restored.state, restored.step
            best = best_so_far(restored.extra)
            progress.note(f"resumed at step {start} of {plan.steps}")
        elif config.start is not None:
            with progress.working(f"loading {config.start}"):
                state = start_state(config, mesh)
        else:
            state = init_state(config, mesh)
        runs.record_start(directory, config)
        progress.note(
            f"{parameter_count(state.model):,} parameters, mesh {dict(mesh.shape)}, "
            f"{len(tables['train']['target']):,} training examples"
        )
        train_step = make_train_step(config)
        evaluate = functools.partial(
            evaluate_table, make_eval_step(config.task), mesh=mesh, batch=plan.batch
        )
        # step and score of the last evaluation
        scored: tuple[int, float | None] = (start, None)
        pending: list[dict[str, Any]] = []

        def save(step: int, prune: bool = True) -> None:
            score = scored[1] if scored[0] == step else None
            extra = {"data": data, "best": best if math.isfinite(best) else None}
            checkpoints.save(step, state, batches, score=score, extra=extra, prune=prune)

        def read_scores(step: int) -> list[dict[str, Any]]:
            """The updates since the last log; here alone the loop waits for the device."""
            values = jax.device_get(pending)
            bad = [bool(v["not_finite"]) for v in values]
            if any(bad):
                first = step - len(values) + 1 + bad.index(True)
                moved = first > start + 1 or not all(bad)
                if moved:  # else these are the weights that it started from
                    save(step, prune=False)
                raise diverged(first, values[bad.index(True)]["loss"], kept=moved or start > 0)
            return values

        with (
            runs.writing(directory),
            contextlib.closing(Metrics(directory, start, plan.tensorboard)) as metrics,
        ):
            for step in range(start + 1, plan.steps + 1):
                batch = put_batch(mesh, next(batches))
                if step == start + 1:
                    with progress.working("compiling the update"):
                        state, scores = train_step(state, batch)
                        jax.block_until_ready(scores)
                    progress.start(step)
                else:
                    state, scores = train_step(state, batch)
                pending.append(scores)
                last, better = step == plan.steps, False
                logging = step % plan.log_every == 0 or last
                # asked once: a signal that comes later is for the next update. Several processes
                # tell each other of it where they log
                alone = jax.process_count() == 1
                stopping = processes.heard_by_any(stop.name) if alone or logging else None
                if logging or stopping:
                    means = means_of(read_scores(step))
                    pending = []
                    metrics.write(step, {f"train/{k}": v for k, v in means.items()})
                    progress.update(
                        step, {k: means[k] for k in ("loss", "error") if k in means}, last
                    )
                if step % plan.eval_every == 0 or last:
                    result = evaluate(state.model, tables["validation"])
                    score = result[config.task.select_by]
                    scored, better, best = (step, score), score < best, min(best, score)
                    metrics.write(step, {f"validation/{k}": v for k, v in result.items()})
                    progress.note(
                        f"step {step}: validation "
                        + ", ".join(f"{k} {v:.4f}" for k, v in result.items())
                    )
                if step % plan.checkpoint_every == 0 or better or last or stopping:
                    read_scores(step)
                    save(step)
                if stopping and not last:
                    checkpoints.wait()
                    raise preempted(stopping, f"step {step} of {plan.steps}", directory)
            checkpoints.wait()
        if start >= plan.steps:
            progress.note(
                f"nothing to do: the run has {start} updates and train.steps is {plan.steps}"
            )
        return Result(state, read(directory), directory)


def check_batch(config: Config, table: Table) -> None:
    """A batch larger than the training split would never be filled.

    Raises:
        ConfigError: it is.
    """
    count = len(table["target"])
    if config.train.batch > count:
        raise ConfigError(
            f"train.batch is {config.train.batch}, but the training split has {count} examples",
            next="a smaller --train.batch",
        )


def fingerprint(table: Table) -> str:
    """SHA-256 over a table's columns, so that a run is never resumed on other data."""
    digest = hashlib.sha256()
    for name in sorted(table):
        column = np.ascontiguousarray(table[name])
        digest.update(f"{name} {column.dtype} {column.shape}".encode())
        digest.update(column.data)
    return digest.hexdigest()


def check_data(extra: Any, data: str, run_dir: Path) -> None:
    """The data a run goes on with must be the data it began with.

    Raises:
        DataError: it is not.
    """
    if (extra or {}).get("data", data) != data:
        raise DataError(
            "the training data is not what this run was trained on so far",
            where=run_dir,
            cause="another --data.dir, or a data set that was prepared anew",
            next="train with the run's own --data.dir, or start a new --run-dir",
        )


def best_so_far(extra: Any) -> float:
    """The least score of a run up to a checkpoint, from what was saved beside it."""
    best = (extra or {}).get("best")
    return math.inf if best is None else best


def means_of(values: list[dict[str, Any]]) -> dict[str, float]:
    """Means of the scores of finite updates."""
    names = [name for name in values[0] if name != "not_finite"]
    return {name: float(np.mean([v[name] for v in values])) for name in names}


def diverged(step: int, loss: Any, kept: bool) -> NumericalError:
    """The end of a run at an update that was not finite; it changed nothing.

    Args:
        step: of the update.
        loss: its loss.
        kept: whether weights of the run are saved.
    """
    return NumericalError(
        "loss or gradient is not finite",
        where=f"step {step}, loss {loss}",
        cause="a learning rate too high for this model, or bad input",
        next="a new --run-dir with a lower --optim.lr or --optim.clip; the weights of the last "
        "good update are saved in this one, and running it again goes on from them"
        if kept
        else "a lower --optim.lr or --optim.clip",
    )


def evaluate_table(
    eval_step: Any, model: Any, table: Table, *, mesh: Any, batch: int
) -> dict[str, float]:
    """Exact means of every score over a whole split, in float64 on the host."""
    sums = [
        eval_step(model, put_batch(mesh, b))
        for b in eval_batches(
            table, batch, process_index=jax.process_index(), process_count=jax.process_count()
        )
    ]
    total = {
        k: float(np.sum([s[k] for s in jax.device_get(sums)], dtype=np.float64)) for k in sums[0]
    }
    count = total.pop("count")
    return {k: v / count for k, v in total.items()}


def evaluate_run(run_dir: str | Path, split: str = "test", which: str = "best") -> dict[str, Any]:
    """Scores of a run's checkpoint on one split.

    Args:
        run_dir: the run.
        split: "train", "validation" or "test".
        which: "best" by the task's validation score, or "last".

    Returns:
        The step evaluated and the mean of every score.

    It uses the mesh that the run was trained on, or one device where there are not as many.

    Raises:
        ConfigError: there is no run, or it has no checkpoint yet.
        CheckpointError: the checkpoint is damaged.
        DataError: the data is missing, damaged, or not what the run was trained on.
    """
    config = runs.load_config(Path(run_dir))
    mesh = fitting_mesh(config.mesh)
    restored = restore_run(run_dir, config, mesh, which)
    table = config.task.load(split, config.data)
    if "data" in (restored.extra or {}):
        trained = table if split == "train" else config.task.load("train", config.data)
        check_data(restored.extra, fingerprint(trained), Path(run_dir))
    scores = evaluate_table(
        make_eval_step(config.task),
        restored.state.model,
        table,
        mesh=mesh,
        batch=config.train.batch,
    )
    return {"step": restored.step, "split": split, **scores}


def restore_run(
    run_dir: str | Path, config: Config, mesh: jax.sharding.Mesh, which: str = "best"
) -> Restored:
    """A run's checkpoint, on any mesh.

    Args:
        run_dir: the run.
        config: the run's own.
        mesh: where the state goes.
        which: "best" by the task's validation score, or "last", which is also taken where none was
            scored.

    Raises:
        ConfigError: the run has no checkpoint yet.
        CheckpointError: the checkpoint is damaged.
    """
    with Checkpoints(Path(run_dir) / "checkpoints", report=warn) as checkpoints:
        best = [info.step for info in checkpoints.infos() if info.best] if which == "best" else []
        state = abstract_state(config, mesh)
        restored = checkpoints.restore(state, step=best[0] if best else None)
    if restored is None:
        raise ConfigError(
            "this run has no checkpoint yet",
            where=run_dir,
            next="train it further; --train.checkpoint-every says how often it is saved",
        )
    return restored
