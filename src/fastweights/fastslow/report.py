"""What a finished run has learned, and in which of its two memories."""

import contextlib
import math
from pathlib import Path
from typing import Any

import jax

from fastweights import pretrained
from fastweights.errors import ConfigError
from fastweights.fastslow.config import FastSlow, Tick
from fastweights.fastslow.evaluation import held_out, score
from fastweights.fastslow.loop import EVALUATION_TIMES, evaluate, fingerprint, restore
from fastweights.fastslow.run import Run, begin
from fastweights.tasks.prompted import Prompt
from fastweights.train import run_dir as runs
from fastweights.train.checkpoint import Checkpoints
from fastweights.train.config import from_json
from fastweights.train.mesh import fitting_mesh
from fastweights.train.progress import warn


def is_fast_slow(run_dir: str | Path) -> bool:
    """Whether a directory holds a run of fast-slow training."""
    return pretrained.kind_of(Path(run_dir)) == FastSlow.__name__


def load(run_dir: str | Path, mesh: jax.sharding.Mesh | None = None) -> tuple[Run, Tick]:
    """A run as its newest checkpoint has it, and the last thing that it has done.

    Args:
        run_dir: the run's directory.
        mesh: where it goes; None is the mesh it was trained on, or one device where there are not
            as many.

    Raises:
        ConfigError: it has no checkpoint yet, or its base model is not there.
        CheckpointError: none can be trusted, or its base model has changed.
    """
    folder = Path(run_dir)
    config = from_json(runs.load_json(folder / "config.json"), FastSlow)
    run = begin(config, mesh or fitting_mesh(config.mesh))
    with Checkpoints(folder / "checkpoints", report=warn) as saves:
        done = restore(run, saves, fingerprint(run.base.model), folder)
    if not done or run.last is None:
        raise ConfigError("this run has no checkpoint yet", where=folder, next="train it further")
    return run, run.last


pretrained.LOADERS[FastSlow.__name__] = lambda folder, mesh: load(folder, mesh)[0].policy


def two_by_two(run: Run, task: Any, split: str = "test") -> dict[str, float]:
    """Accuracy of {base, trained} weights under {seed, evolved} prompt: which channel knows what.

    The evolved prompt is the best of the population; "trained_population" is the mean over all of
    its prompts.
    """
    problems = held_out(task, split, run.config.evaluation)

    def accuracy(model: Any, prompt: Prompt) -> float:
        how = (run.sampler(task), run.judge(task), EVALUATION_TIMES, 0)
        return score(model, task, prompt, problems, *how).accuracy

    prompts = {"seed": task.seed_prompt, "evolved": run.population.best().components}
    found = {
        f"{weights}_{name}": accuracy(model, prompt)
        for weights, model in {"base": run.base.model, "trained": run.state.model}.items()
        for name, prompt in prompts.items()
    }
    members = [accuracy(run.state.model, m.components) for m in run.population.members]
    return found | {"trained_population": sum(members) / len(members)}


def evaluate_fast_slow(run_dir: str | Path, split: str = "test") -> dict[str, Any]:
    """Scores of a run's newest checkpoint on one split of the task it was last trained on.

    What is not known, as no answer could be scored, is None. Errors are those of `load`.
    """
    run, at = load(run_dir)
    task = run.task(at.updates)
    with contextlib.closing(run):
        found = {**evaluate(run, task, split), **two_by_two(run, task, split)}
        return {
            "updates": at.updates + (at.cycle is None),
            "split": split,
            "prompt": dict(run.population.best().components),
            **{name: None if math.isnan(x) else x for name, x in found.items()},
        }
