"""Several tasks in one run: what is kept of each, and what a policy can still learn.

    python benchmarks/fst_continual.py --rates 3e-4 1e-3 --sweep   # seed 100
    python benchmarks/fst_continual.py                             # 3 seeds of both arms

Before the first task and after each, a run is scored on all tasks, and a fresh run of RL only, from
the seed prompt, learns a rule that none of them has from its weights: the probe. A stage that is
done is in the JSON and not done again; one that was stopped goes on from its checkpoint. The peaks
that it is compared with are those of fast-slow training on one task, of fst_TASK.json.
"""

import contextlib
import dataclasses
import json
import os
import statistics
from pathlib import Path
from typing import Any

import fst
import harness
import tyro

from fastweights import pretrained
from fastweights.cli import load_config
from fastweights.errors import ConfigError
from fastweights.fastslow.config import FastSlow, arm
from fastweights.fastslow.loop import evaluate, fingerprint, train_fast_slow
from fastweights.fastslow.report import load
from fastweights.fastslow.run import Run, begin
from fastweights.tasks.continual import Continual
from fastweights.tasks.programs import Programs

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "fst_continual.json"
ARMS = ("fst", "rl")
#: a rule that no task of the run has
PROBE = Programs(odd="wt", even="ri")
#: evaluations of a run and of a probe that are kept
KEPT = ("accuracy_own", "accuracy_seed", "kl_sequence_own", "kl_sequence_seed")
#: of its single-task peak, the share that counts as having learned a task
SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        arms: which arms.
        sweep: one seed at every rate instead.
        rates: learning rates of the sweep.
        seeds: runs of each arm, seeds 0, 1, ...
        updates: of a task; those of the config by default.
        probe: updates of a probe.
        base: of every run.
        out: the JSON.
        runs: directory of the run directories.
    """

    arms: tuple[str, ...] = ARMS
    sweep: bool = False
    rates: tuple[float, ...] = fst.RATES
    seeds: int = 3
    updates: int | None = None
    probe: int = 60
    base: str = "runs/fst_base"
    out: Path = OUT
    runs: Path = Path("runs/fst_continual")


def config_of(options: Options) -> FastSlow:
    """The continual config with what the options change."""
    config = load_config(str(ROOT / "configs" / "fst_continual.py"))
    task = dataclasses.replace(config.task, updates=options.updates or config.task.updates)
    return dataclasses.replace(config, task=task, base=options.base)


def until(config: FastSlow, updates: int) -> FastSlow:
    """A config that ends after so many updates."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=updates))


def names(task: Continual) -> list[str]:
    """The tasks, as the tables name them."""
    return [type(x).__name__ for x in task.tasks]


def row(run: Run) -> dict[str, dict[str, float]]:
    """Test scores of a policy on every task, under its best prompt and the seed prompt."""
    task = run.config.task
    assert isinstance(task, Continual)
    scores = [evaluate(run, task.stage(i), "test") for i in range(len(task.tasks))]
    return {
        name: {key: round(found[key], 4) for key in KEPT}
        for name, found in zip(names(task), scores, strict=True)
    }


def probe(base: str, options: Options, seed: int, folder: Path) -> list[list[float]]:
    """(updates, accuracy) of fresh RL on a new rule."""
    config = FastSlow(task=PROBE, base=base, order="slow", seed=seed)
    config = until(dataclasses.replace(config, optim=fst_rate(config, 1e-3)), options.probe)
    history = train_fast_slow(config, folder, quiet=True).history
    kept = [line for line in history if "validation/accuracy_own" in line]
    return [[line["updates"], round(line["validation/accuracy_own"], 4)] for line in kept]


def fst_rate(config: FastSlow, lr: float) -> Any:
    """The optimiser at a rate."""
    return dataclasses.replace(config.optim, lr=lr)


def stage(config: FastSlow, number: int, folder: Path, options: Options) -> dict[str, Any]:
    """One task of a run, trained to its end, and what is known and can be learned then."""
    task = config.task
    assert isinstance(task, Continual)
    first, last = number * task.updates, (number + 1) * task.updates
    history = train_fast_slow(until(config, last), folder / "run", quiet=True).history
    inside = [
        line
        for line in history
        if "validation/accuracy_own" in line and first < line["updates"] <= last
    ]
    run, _ = load(folder / "run")
    with contextlib.closing(run):
        found = {
            "task": names(task)[number],
            "curve": [[x["updates"], round(x["validation/accuracy_own"], 4)] for x in inside],
            "scores": row(run),
            "prompt": dict(run.population.best().components),
        }
    return found | {
        "probe": probe(str(folder / "run"), options, config.seed, folder / f"probe{number}")
    }


def start(config: FastSlow, options: Options, folder: Path) -> dict[str, Any]:
    """The base model: what it is worth before the first task."""
    run = begin(config)
    return {
        "scores": row(run),
        "probe": probe(options.base, options, config.seed, folder / "probe"),
    }


def wanted(options: Options, done: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    """(arm, learning rate, seed) of every run asked for, seeds outermost."""
    if unknown := set(options.arms) - set(ARMS):
        raise SystemExit(f"no arm {sorted(unknown)[0]!r} here; there are {', '.join(ARMS)}")
    if options.sweep:
        return [(name, lr, fst.SWEEP_SEED) for lr in options.rates for name in options.arms]
    rate = {name: best_rate(done, name) or FastSlow.optim.lr for name in options.arms}
    return [(name, rate[name], seed) for seed in range(options.seeds) for name in options.arms]


def complete(run: dict[str, Any]) -> bool:
    """Whether all tasks are done."""
    return len(run["stages"]) == len(run["tasks"])


def worth(run: dict[str, Any]) -> float:
    """Mean over a run's evaluations of the accuracy on the task that was trained on then."""
    return statistics.fmean(y for stage in run["stages"] for _, y in stage["curve"])


def best_rate(runs: list[dict[str, Any]], name: str) -> float | None:
    """The learning rate with which an arm is worth most in the sweep."""
    mine = [r for r in runs if (r["arm"], r["seed"]) == (name, fst.SWEEP_SEED) and complete(r)]
    return max(mine, key=worth)["lr"] if mine else None


def reported(runs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """An arm's complete runs at the rate that the sweep chose, the sweep's own left out."""
    rate = best_rate(runs, name)
    return [
        r
        for r in runs
        if r["arm"] == name
        and r["seed"] != fst.SWEEP_SEED
        and complete(r)
        and rate in (None, r["lr"])
    ]


def percent(values: list[float]) -> str:
    """Mean, and range if there is one, in percent."""
    low, high = (round(100 * f(values)) for f in (min, max))
    return f"{100 * statistics.fmean(values):.1f} ({low}-{high})"


def peaks(results: Path) -> dict[str, float]:
    """Task -> mean over seeds of the best accuracy of fast-slow training on it alone."""
    found = {}
    for file, task in (
        ("programs", "Programs"),
        ("conventions", "Conventions"),
        ("star_graph", "StarGraph"),
    ):
        path = results / f"fst_{file}.json"
        runs = fst.reported(json.loads(path.read_text())["runs"], "fst") if path.exists() else []
        if runs:
            best = [max(fst.column(run, "accuracy_own")) for run in runs]
            found[task] = statistics.fmean(best)
    return found


def arrival(stage: dict[str, Any], first: int, level: float | None) -> int | None:
    """Updates of a task until its accuracy is at a level; None if never, or no level is known."""
    return next((x - first for x, y in stage["curve"] if level is not None and y >= level), None)


def table(runs: list[dict[str, Any]], peak: dict[str, float]) -> str:
    """After each task a row an arm: accuracy on every task, how fast it came, and the probe."""
    tasks = runs[0]["tasks"]
    head = ["after", "arm", "seeds", *tasks, f"updates to {SHARE:.0%} of the peak", "probe"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    bases = {json.dumps(run["start"], sort_keys=True): run["start"] for run in runs}.values()
    first = next(iter(bases))
    cells = [percent([first["scores"][t]["accuracy_own"]]) for t in tasks]
    ends = [run["start"]["probe"][-1][1] for run in runs]
    lines.append("| " + " | ".join(["nothing", "–", "–", *cells, "–", percent(ends)]) + " |")
    for number, task in enumerate(tasks):
        for name in ARMS:
            mine = reported(runs, name)
            if not mine:
                continue
            stages = [run["stages"][number] for run in mine]
            cells = [percent([s["scores"][t]["accuracy_own"] for s in stages]) for t in tasks]
            level = SHARE * peak[task] if task in peak else None
            begun = number * mine[0]["updates"]
            reached = (
                fst.there([arrival(s, begun, level) for s in stages])
                if level is not None
                else "not measured"
            )
            ends = percent([s["probe"][-1][1] for s in stages])
            row_cells = [task, f"{name}, lr {mine[0]['lr']:g}", str(len(mine)), *cells]
            lines.append("| " + " | ".join([*row_cells, reached, ends]) + " |")
    return "\n".join(lines)


def main(options: Options) -> None:
    """Run what is missing, save after each stage, print the table."""
    base = config_of(options)
    task = base.task
    assert isinstance(task, Continual)
    origin = fingerprint(pretrained.load(options.base).model)[:12]
    read = lambda: json.loads(options.out.read_text())["runs"] if options.out.exists() else []
    if others := {(x["updates"], x["base"]) for x in read()} - {(task.updates, origin)}:
        raise SystemExit(
            f"{options.out} has runs of another experiment: (updates, base model) "
            f"{sorted(others)[0]} where this has {(task.updates, origin)}; give another --out"
        )
    for name, lr, seed in wanted(options, read()):
        try:
            config = arm(base, name)
        except ConfigError as error:
            raise SystemExit(str(error)) from error
        config = dataclasses.replace(config, optim=fst_rate(config, lr), seed=seed)
        folder = options.runs / f"{name}-lr{lr:g}-{task.updates}-seed{seed}"
        key = (name, lr, seed)
        while True:
            runs = read()
            mine = next((r for r in runs if (r["arm"], r["lr"], r["seed"]) == key), None)
            if mine is not None and complete(mine):
                break
            load_before = os.getloadavg()[0]
            if mine is None:
                mine = {"arm": name, "lr": lr, "seed": seed, "updates": task.updates}
                mine |= {"tasks": names(task), "base": origin, "stages": []}
                mine["start"] = start(config, options, folder)
            number = len(mine["stages"])
            mine["stages"] = [*mine["stages"], stage(config, number, folder, options)]
            shown = harness.circumstances(
                ("fastweights", "jax", "jaxlib", "flax", "optax", "numpy")
            )
            mine |= shown | {"load": [round(load_before, 2), round(os.getloadavg()[0], 2)]}
            # another process may have added runs since
            others = [r for r in read() if (r["arm"], r["lr"], r["seed"]) != key]
            harness.save(shown | {"runs": [*others, mine]}, options.out)
            said = mine["stages"][-1]
            print(
                f"{name}, lr {lr:g}, seed {seed}, after {said['task']}: "
                + ", ".join(f"{k} {v['accuracy_own']:.3f}" for k, v in said["scores"].items())
                + f"; probe {said['probe'][-1][1]:.3f}",
                flush=True,
            )
    print("\n" + table(read(), peaks(options.out.parent)))


if __name__ == "__main__":
    main(tyro.cli(Options))
