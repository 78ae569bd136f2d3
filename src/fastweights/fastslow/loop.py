"""The two-speed loop: evolutions of the prompts between updates of the weights, and its run.

What a run does is a list of ticks (`config.timeline`), a checkpoint can follow any of them, and all
chance comes from the seed and the number of a tick. So a run stopped anywhere, in the middle of an
evolution too, goes on exactly as if it had not been.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastweights.errors import CheckpointError, ConfigError, FastWeightsError, NumericalError
from fastweights.fastslow import population as prompts
from fastweights.fastslow.config import FastSlow, Tick, check, timeline
from fastweights.fastslow.evaluation import divergence, held_out, score
from fastweights.fastslow.evolution import Event, Judged, tick
from fastweights.fastslow.prompt_log import PromptLog
from fastweights.fastslow.remote.reflection import Reflection, changeable
from fastweights.fastslow.run import Run, begin
from fastweights.fastslow.seeds import seed_of
from fastweights.fastslow.slow import batch_of, explore, make_update
from fastweights.tasks.prompted import Outcome, Prompt, Score
from fastweights.train import processes
from fastweights.train import run_dir as runs
from fastweights.train.checkpoint import Checkpoints
from fastweights.train.loop import Result
from fastweights.train.metrics import Metrics, read
from fastweights.train.progress import Progress, warn
from fastweights.train.signals import StopRequest, preempted
from fastweights.train.state import parameter_count

#: answers to each problem of an evaluation
EVALUATION_TIMES = 2


def evolve(run: Run, at: Tick) -> Event:
    """One tick of an evolution."""
    task, config = run.task(at.updates), run.config
    sampler, judge = run.sampler(task), run.judge(task)
    outcomes: list[Outcome] = []

    def evaluate(candidates: Any, problems: Any, samples: int, seed: int) -> Any:
        texts = [task.text(prompt, problem) for prompt in candidates for problem in problems]
        found = sampler(run.state.model, texts, samples, seed)
        asked = [x for _ in candidates for x in problems for _ in range(samples)]
        verdicts = judge.verify_many(asked, found.texts)
        outcomes.extend(verdicts)
        judged = map(Judged, found.texts, verdicts)
        return [[[next(judged) for _ in range(samples)] for _ in problems] for _ in candidates]

    assert at.cycle is not None
    run.population, event = tick(
        config.evolution,
        task,
        run.population,
        at.cycle,
        at.part,
        evaluate=evaluate,
        proposer=run.proposer(task),
        seed=config.seed,
    )
    tell_unscored(outcomes, f"part {at.part} of evolution {at.cycle}")
    run.counts["fast"] += event.rollouts
    run.reflected = run.reflection and run.reflection.to_json()
    if run.reflection and event.kind == "failed":
        # without new prompts the run is RL alone, and should not be so in silence
        warn(f"no new prompt: {event.text}")
    return event


def update(run: Run, at: Tick) -> dict[str, float]:
    """One update of the weights; the scores of its rollouts."""
    config, rl, task = run.config, run.config.rl, run.task(at.updates)
    seed = lambda use: seed_of(config.seed, use, at.updates)
    problems = task.problems("train", rl.problems, seed("problems"))
    easy = round(rl.easy * rl.problems)
    if easy:
        problems[:easy] = task.easier().problems("train", easy, seed("easy"))
    seen = explore(
        rl,
        task,
        [run.population.members[i].components for i in run.population.order],
        problems,
        run.state.model,
        run.sampler(task),
        run.judge(task),
        seed("rollouts"),
    )
    step = make_update(rl, config.optim)
    run.state, scores = step(run.state, run.base.model if rl.kl else None, batch_of(seen))
    if not scores["not_finite"]:  # an update that was refused is none, nor are its rollouts
        run.counts["slow"] += len(seen.rewards)
    tell_unscored(seen.outcomes, f"update {at.updates + 1}")
    scored = ~np.isnan(seen.rewards)
    return {name: float(x) for name, x in scores.items()} | {
        "reward": float(seen.rewards[scored].mean()) if scored.any() else math.nan,
        "accuracy": seen.correct,
        "used": float(seen.used.mean()),
        "unscored": float(1 - scored.mean()),
    }


def tell_unscored(outcomes: Sequence[Outcome], where: str) -> None:
    """Warn where no answer at all has a score: nothing is learned there, which has a reason."""
    if outcomes and not any(isinstance(x, Score) for x in outcomes):
        warn(f"{where}: none of {len(outcomes)} answers could be scored, the first: {outcomes[0]}")


def evaluate(run: Run, task: Any, split: str = "validation") -> dict[str, float]:
    """Accuracy on held-out problems of a task, and divergence from the base model.

    "own" is the best prompt of the population as last scored, "seed" the task's empty one; the
    divergences are under the same prompt for both models. Accuracy and reward are NaN where no
    answer could be scored.
    """
    model, problems = run.state.model, held_out(task, split, run.config.evaluation)

    def under(prompt: Prompt) -> dict[str, float]:
        how = (run.sampler(task), run.judge(task), EVALUATION_TIMES, 0)
        got = score(model, task, prompt, problems, *how)
        apart = divergence(model, run.base.model, got.rollouts, run.config.rl.temperature)
        return {
            "accuracy": got.accuracy,
            "reward": got.reward,
            "entropy": got.entropy,
            "unscored": got.unscored,
            "kl_token": apart.token,
            "kl_sequence": apart.sequence,
        }

    best, empty = run.population.best().components, task.seed_prompt
    own = under(best)
    seed = own if dict(best) == dict(empty) else under(empty)
    both = {"own": own, "seed": seed}
    return {f"{k}_{name}": v for name, values in both.items() for k, v in values.items()}


def fingerprint(model: Any) -> str:
    """SHA-256 of a model's numbers."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(model):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def train_fast_slow(config: FastSlow, run_dir: str | Path, *, quiet: bool = False) -> Result:
    """Do all of a config's timeline; goes on where the run in `run_dir` stopped.

    `metrics.jsonl` has a line for every tick that has something to say, whose step is the number of
    ticks done, with "updates", "rollouts_slow" and "rollouts_fast" so far. `prompts.jsonl` has the
    events of the evolutions and the population after each.

    Args:
        config: what to do.
        run_dir: the run's directory, made if absent.
        quiet: show no progress.

    Raises:
        ConfigError: the config cannot run, there is no base model, or `run_dir` holds a run of
            another config, or of one that cannot go on to these `train.steps`.
        CheckpointError: the run directory cannot be written, no checkpoint in it can be trusted, or
            the base model is not the one the run began with.
        BudgetError: the next call to a remote model could pass a limit; the state is saved.
        DataError: the transcript of the remote model is damaged, or, replayed, of another run.
        NumericalError: loss or gradient was not finite; the state before that update is saved.
        Preempted: a signal asked the run to stop; its state is saved.
    """
    check(config)
    processes.only_one("fast-slow training")
    run, plan = begin(config), config.train
    ticks = timeline(config)
    directory = runs.open_run(Path(run_dir), config, changeable)
    base = fingerprint(run.base.model)
    with (
        runs.lock(directory),
        contextlib.closing(run),
        StopRequest() as stop,
        Progress(len(ticks), quiet) as progress,
        Checkpoints(directory / "checkpoints", keep_last=plan.keep_last, report=warn) as saves,
    ):
        start = restore(run, saves, base, directory)
        runs.record_start(directory, config)
        if config.asks_remote:
            run.reflection = Reflection(config.remote, directory, run.reflected)
        if start >= len(ticks):
            progress.note(f"nothing to do: the run has {start} ticks and its config {len(ticks)}")
        elif start:
            progress.note(f"resumed at tick {start} of {len(ticks)}")
        devices = dataclasses.asdict(config.mesh)
        progress.note(
            f"{parameter_count(run.state.model):,} parameters, order {config.order}, mesh {devices}"
        )
        with runs.writing(directory):
            log = PromptLog(directory, start)
            metrics = Metrics(directory, start, plan.tensorboard)

        def save(done: int) -> None:
            extra = {
                "base": base,
                "population": prompts.to_json(run.population),
                "counts": run.counts,
                "last": run.last,
                "reflection": run.reflected,
            }
            saves.save(done, run.state, extra=extra)

        def measure(done: int, at: Tick, updates: int) -> None:
            # of the task that was trained on, also where the next one is about to begin
            values = evaluate(run, run.task(at.updates))
            metrics.write(done, standing(run, updates) | prefixed("validation", values))
            progress.note(
                f"{updates} updates, {sum(run.counts.values())} rollouts: accuracy "
                f"{values['accuracy_own']:.3f}, KL {values['kl_sequence_own']:.2f} nats, prompt "
                f"{shown(run.population.best().components)}"
            )

        try:
            if not start:
                measure(0, ticks[0], 0)
            for number in range(start, len(ticks)):
                at, done = ticks[number], number + 1
                last = done == len(ticks)
                if at.cycle is None:
                    scores = update(run, at)
                    updates = at.updates + 1
                    if scores.pop("not_finite"):
                        save(number)
                        saves.wait()
                        raise NumericalError(
                            "loss or gradient is not finite",
                            where=f"update {updates}",
                            cause="a learning rate too high for this model",
                            next="a new --run-dir with a lower --optim.lr; the weights of the last "
                            "good update are saved in this one",
                        )
                    run.last = at
                    if updates % plan.log_every == 0 or last:
                        metrics.write(done, standing(run, updates) | prefixed("train", scores))
                        progress.update(done, {"reward": scores["reward"]}, last)
                    ended = updates % plan.eval_every == 0 or last
                    saving = updates % plan.checkpoint_every == 0
                else:
                    try:
                        event = evolve(run, at)
                    except FastWeightsError:
                        # a limit, a transcript that ends, a file: what came before is not lost
                        if run.reflection:
                            run.reflected = run.reflection.broken_off(run.reflected)
                        save(number)
                        saves.wait()
                        raise
                    run.last, updates = at, at.updates
                    log.write(done, at.cycle, event, run.population)
                    ended = event.kind == "kept" and (config.order == "fast" or last)
                    saving = ended
                if ended:
                    measure(done, at, updates)
                # asked once: a signal that comes later is for the next tick
                stopping = stop.name
                if saving or last or stopping:
                    save(done)
                if stopping and not last:
                    saves.wait()
                    place = f"tick {done} of {len(ticks)}"
                    raise preempted(stopping, place, directory)
            saves.wait()
        except OSError as error:
            raise runs.cannot_write(directory, error) from error
        finally:
            metrics.close()
            log.close()
        return Result(run.state, read(directory), directory)


def restore(run: Run, saves: Checkpoints, base: str, directory: Path) -> int:
    """Put a run where its newest checkpoint is; the ticks done, 0 if there is none."""
    restored = saves.restore(run.state)
    if restored is None:
        return 0
    if restored.extra["base"] != base:
        raise CheckpointError(
            "the base model is not the one this run began with",
            where=run.config.base,
            cause="it was trained further, or replaced",
            next="give the base model of the run, or start a new --run-dir",
        )
    ticks = timeline(run.config)
    updates = sum(at.cycle is None for at in ticks[: restored.step])
    fits = int(restored.state.step) == updates * run.config.rl.passes
    # in all other orders the ticks of a shorter run are the first of a longer one's
    done = restored.step > len(ticks) and run.config.order != "slow then fast"
    if not fits and not done:
        raise ConfigError(
            "this run cannot be made longer or shorter: its evolutions come after its updates, and "
            "have begun",
            where=directory,
            cause="another --train.steps than the run's own",
            next="the run's own --train.steps, or a new --run-dir",
        )
    run.state = restored.state
    run.population = prompts.from_json(restored.extra["population"])
    run.counts = dict(restored.extra["counts"])
    run.reflected = restored.extra.get("reflection")
    if restored.step:
        # runs of older versions have not saved it
        last = restored.extra.get("last")
        run.last = Tick(*last) if last else ticks[: restored.step][-1]
    return restored.step


def standing(run: Run, updates: int) -> dict[str, float]:
    """What a run has used so far."""
    counts = {f"rollouts_{name}": count for name, count in run.counts.items()}
    used = run.reflection.measures() if run.reflection else {}
    return {"updates": updates, **counts, **used}


def prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    """Names with the part of the run they are of."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def shown(components: Any) -> str:
    """A prompt in one line: what its components say."""
    said = ", ".join(f"{name}: {text}" for name, text in components.items() if text)
    return f"({said})" if said else "(empty)"
