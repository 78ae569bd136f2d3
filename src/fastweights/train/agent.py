"""A run of the actor-critic: its config, and the loop around the jitted updates.

The run directory is that of any other run; scores are rewards instead of errors.
"""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

from fastweights.errors import ConfigError, NumericalError
from fastweights.models.catch import CatchModel
from fastweights.tasks.catch import Catch
from fastweights.train import processes
from fastweights.train import run_dir as runs
from fastweights.train.actor_critic import (
    ActorCritic,
    initial_state,
    make_evaluation,
    make_updates,
)
from fastweights.train.checkpoint import Checkpoints
from fastweights.train.config import Optim, Train, from_json
from fastweights.train.loop import Result, best_so_far
from fastweights.train.metrics import Metrics, read
from fastweights.train.optim import optimizer
from fastweights.train.progress import Progress, warn
from fastweights.train.signals import StopRequest, preempted
from fastweights.train.state import TrainState, parameter_count

#: greedy games of one evaluation
EVALUATION_GAMES = 1_024


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Everything that decides what a run of the actor-critic does.

    `train.batch` is games per update. `train.log_every` is the updates of one jitted scan, the
    shortest time between two things a run does: the other rhythms are multiples of it.
    """

    task: Catch = Catch()
    model: CatchModel = CatchModel()
    learn: ActorCritic = ActorCritic()
    optim: Optim = Optim(lr=1e-2, clip=1.0)
    train: Train = Train(steps=800, batch=128, eval_every=200, checkpoint_every=200, log_every=20)
    seed: int = 0


def check_agent(config: AgentConfig) -> None:
    """Check a config before anything is allocated.

    Raises:
        ConfigError: with every problem found, not only the first.
    """
    found, plan, learn = config.task.problems(config.model), config.train, config.learn
    lengths = ("steps", "batch", "eval_every", "checkpoint_every", "log_every", "keep_last")
    counts = {f"train.{name}": getattr(plan, name) for name in lengths}
    found += [f"{k} is {v}; it must be at least 1" for k, v in counts.items() if v < 1]
    for name in ("steps", "eval_every", "checkpoint_every"):
        value = getattr(plan, name)
        if plan.log_every > 0 and value % plan.log_every:
            found.append(
                f"train.{name} is {value}; it must be a multiple of train.log_every, "
                f"{plan.log_every}: so many updates are one call"
            )
    parts = {"learn.discount": learn.discount, "learn.trace": learn.trace}
    found += [f"{k} is {v}; it must be from 0 to 1" for k, v in parts.items() if not 0 <= v <= 1]
    weights = {"learn.entropy": learn.entropy, "learn.critic": learn.critic, "seed": config.seed}
    found += [f"{k} is {v}; it must not be negative" for k, v in weights.items() if v < 0]
    found += [f"optim.{text}" for text in config.optim.faults()]
    if found:
        raise ConfigError(
            "this config cannot run:" + "".join(f"\n  - {text}" for text in found),
            next="change the values above",
        )


def train_agent(config: AgentConfig, run_dir: str | Path, *, quiet: bool = False) -> Result:
    """Train until `train.steps` updates are done; goes on where the run in `run_dir` stopped.

    `metrics.jsonl` has "train/reward", the mean over all games played since the line before, and
    "validation/reward", that of greedy games.

    Raises:
        ConfigError: the config cannot run, or `run_dir` holds a run of another config.
        CheckpointError: the run directory cannot be written, or no checkpoint in it can be trusted.
        NumericalError: loss or gradient was not finite; the state before that update is saved.
        Preempted: a signal asked the run to stop; its state is saved.
    """
    check_agent(config)
    processes.only_one("a player's training")
    directory, plan = runs.open_run(Path(run_dir), config), config.train
    transform = optimizer(config.optim)
    with (
        runs.lock(directory),
        StopRequest() as stop,
        Progress(plan.steps, quiet) as progress,
        Checkpoints(directory / "checkpoints", keep_last=plan.keep_last, report=warn) as saves,
    ):
        state = initial_state(config.model, config.task, transform, config.seed)
        restored = saves.restore(state)
        start, best = 0, math.inf
        if restored is not None:
            state, start = restored.state, restored.step
            best = best_so_far(restored.extra)
            runs.check_rhythm(start, plan, directory)
            progress.note(f"resumed at update {start} of {plan.steps}")
        runs.record_start(directory, config)
        progress.note(f"{parameter_count(state.model):,} parameters, {plan.batch} games an update")
        updates = make_updates(config.task, config.learn, transform, plan.batch, plan.log_every)
        evaluate = make_evaluation(config.task, EVALUATION_GAMES)
        saved = start

        def save(step: int, score: float | None = None, prune: bool = True) -> None:
            extra = {"best": best if math.isfinite(best) else None}
            saves.save(step, state, score=score, extra=extra, prune=prune)

        with (
            runs.writing(directory),
            contextlib.closing(Metrics(directory, start, plan.tensorboard)) as metrics,
        ):
            for step in range(start + plan.log_every, plan.steps + 1, plan.log_every):
                state, scores = updates(state)
                means = {name: float(x.mean()) for name, x in scores.items()}
                if means["not_finite"]:
                    good = int(state.step)
                    if good != saved:
                        save(good, prune=False)
                        saves.wait()
                    raise diverged(good, directory)
                means.pop("not_finite")
                if step == start + plan.log_every:
                    progress.start(step)  # the first call is mostly compilation
                # asked once: a signal that comes later is for the next call
                last, stopping, better = step == plan.steps, stop.name, False
                metrics.write(step, {f"train/{k}": v for k, v in means.items()})
                progress.update(step, {k: means[k] for k in ("reward", "entropy")}, last)
                score = None
                if step % plan.eval_every == 0 or last:
                    reward = float(evaluate(state.model))
                    metrics.write(step, {"validation/reward": reward})
                    score = -reward  # of checkpoints the smallest score is the best
                    better, best = score < best, min(best, score)
                if step % plan.checkpoint_every == 0 or better or last or stopping:
                    save(step, score)
                    saved = step
                if stopping and not last:
                    saves.wait()
                    raise preempted(stopping, f"update {step} of {plan.steps}", directory)
            saves.wait()
        return Result(state, read(directory), directory)


def diverged(good: int, directory: Path) -> NumericalError:
    """The end of a run after whose update `good` a number was not finite."""
    kept = f"; the last good state is saved as step {good}" if good else ""
    return NumericalError(
        f"loss or gradient was not finite after update {good}",
        where=directory,
        cause="a learning rate that is too high",
        next=f"a new --run-dir with a smaller --optim.lr{kept}",
    )


def is_agent(run_dir: Path) -> bool:
    """Whether a directory holds a run of `train_agent`."""
    file = run_dir / "config.json"
    data = runs.load_json(file) if file.exists() else None
    return isinstance(data, dict) and data.get("type") == AgentConfig.__name__


def evaluate_agent(run_dir: Path, which: str = "best") -> dict[str, Any]:
    """Mean reward of greedy games played with a run's checkpoint.

    Args:
        run_dir: the run.
        which: "best" by reward at an evaluation, or "last".

    Raises:
        ConfigError, CheckpointError: as `load_agent`.
    """
    config, state = load_agent(run_dir, which)
    reward = float(make_evaluation(config.task, EVALUATION_GAMES)(state.model))
    return {"step": int(state.step), "games": EVALUATION_GAMES, "reward": reward}


def load_agent(run_dir: str | Path, which: str = "last") -> tuple[AgentConfig, TrainState]:
    """Config and newest, or best, good state of a run of `train_agent`.

    Raises:
        ConfigError: there is no such run there.
        CheckpointError: it has no checkpoint that can be trusted.
    """
    directory = Path(run_dir)
    file = directory / "config.json"
    if not file.exists():
        raise ConfigError("there is no run in this directory", where=directory)
    config: Any = from_json(runs.load_json(file), AgentConfig, str(file))
    state = initial_state(config.model, config.task, optimizer(config.optim), config.seed)
    with Checkpoints(directory / "checkpoints", report=warn) as saves:
        best = [info.step for info in saves.infos() if info.best] if which == "best" else []
        restored = saves.restore(state, step=best[0] if best else None)
    if restored is None:
        raise ConfigError(
            "this run has no checkpoint yet", where=directory, next="train it to its first one"
        )
    return config, restored.state
