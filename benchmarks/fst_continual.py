"""Several tasks in one run: what is kept of each, and what a policy can still learn.

    python benchmarks/fst_continual.py --sweep   # the learning rates of every arm, seed 100
    python benchmarks/fst_continual.py           # 3 seeds of every arm

Before the first task and after each, a run is scored on all tasks, and a fresh run of RL only, from
the seed prompt, learns a rule that none of them has from its weights: the probe. A stage that is
done is in the JSON and not done again; one that was stopped goes on from its checkpoint. The peaks
that it is compared with are those of fast-slow training on one task with the same base model, of
fst_TASK.json.
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

from fastweights.config_file import load_config
from fastweights.fastslow.config import FastSlow, arm
from fastweights.fastslow.loop import evaluate, train_fast_slow
from fastweights.fastslow.report import load
from fastweights.fastslow.run import Run, begin
from fastweights.tasks.continual import Continual
from fastweights.tasks.programs import Programs

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "fst_continual.json"
ARMS = ("fst", "rl", "evolution-rl")
#: a rule that no task of the run has, and the rate it is learned at
PROBE, PROBE_RATE = Programs(odd="wt", even="ri"), 1e-3
#: task -> NAME of the fst_NAME.json that has its runs alone
ALONE = {"Programs": "programs", "Conventions": "conventions", "StarGraph": "star_graph"}
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


def config_of(options: Options) -> tuple[FastSlow, Continual]:
    """The continual config with what the options change, and its task."""
    config = load_config(str(ROOT / "configs" / "fst_continual.py"))
    task = dataclasses.replace(config.task, updates=options.updates or config.task.updates)
    return dataclasses.replace(config, task=task, base=options.base), task


def at_rate(config: FastSlow, lr: float) -> FastSlow:
    """A config with another learning rate."""
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=lr))


def until(config: FastSlow, updates: int) -> FastSlow:
    """A config that ends after so many updates."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=updates))


def names(task: Continual) -> list[str]:
    """The tasks, as the tables name them."""
    return [type(x).__name__ for x in task.tasks]


def row(run: Run, task: Continual) -> dict[str, dict[str, float]]:
    """Test scores of a policy on every task, under its best prompt and the seed prompt."""
    scores = [evaluate(run, task.stage(i), "test") for i in range(len(task.tasks))]
    return {
        name: {key: round(found[key], 4) for key in KEPT}
        for name, found in zip(names(task), scores, strict=True)
    }


def probe(base: str, options: Options, seed: int, folder: Path) -> list[list[float]]:
    """(updates, accuracy) of fresh RL on a new rule."""
    config = at_rate(FastSlow(task=PROBE, base=base, order="slow", seed=seed), PROBE_RATE)
    history = train_fast_slow(until(config, options.probe), folder, quiet=True).history
    kept = [line for line in history if "validation/accuracy_own" in line]
    return [[line["updates"], round(line["validation/accuracy_own"], 4)] for line in kept]


def stage(
    config: FastSlow, task: Continual, number: int, folder: Path, options: Options
) -> dict[str, Any]:
    """One task of a run, trained to its end, and what is known and can be learned then."""
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
            # updates, accuracy, rollouts of both loops since the start of the run
            "curve": [
                [
                    x["updates"],
                    round(x["validation/accuracy_own"], 4),
                    x["rollouts_slow"] + x["rollouts_fast"],
                ]
                for x in inside
            ],
            "scores": row(run, task),
            "prompt": dict(run.population.best().components),
        }
    return found | {
        "probe": probe(str(folder / "run"), options, config.seed, folder / f"probe{number}")
    }


def start(config: FastSlow, task: Continual, folder: Path, options: Options) -> dict[str, Any]:
    """The base model: what it is worth before the first task."""
    with contextlib.closing(begin(config)) as run:
        scores = row(run, task)
    return {
        "scores": scores,
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
    return statistics.fmean(y for stage in run["stages"] for _, y, _ in stage["curve"])


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


def peaks(results: Path, base: str) -> dict[str, float]:
    """Task -> mean over seeds of the best accuracy of fast-slow training on it alone.

    Only of tasks that were measured with this base model, by its fingerprint.
    """
    found = {}
    for task, name in ALONE.items():
        path = results / f"fst_{name}.json"
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        mine = [run for run in fst.reported(runs, "fst") if run["base"] == base]
        if mine:
            found[task] = statistics.fmean(max(fst.column(run, "accuracy_own")) for run in mine)
    return found


def arrival(run: dict[str, Any], number: int, level: float) -> tuple[int, int] | None:
    """Updates and rollouts of a stage until its accuracy is at a level, None if never."""
    before = run["stages"][number - 1]["curve"][-1] if number else [0, 0.0, 0]
    curve = run["stages"][number]["curve"]
    rows = ((x - before[0], n - before[2]) for x, y, n in curve if y >= level)
    return next(rows, None)


def table(runs: list[dict[str, Any]], peak: dict[str, float]) -> str:
    """After each task a row an arm: accuracy on every task, how fast it came, and the probe."""
    tasks = runs[0]["tasks"]
    head = [
        "after",
        "arm",
        "seeds",
        *tasks,
        f"updates, rollouts to {SHARE:.0%} of the peak",
        "probe",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def line(first: list[str], mine: list[dict[str, Any]], reached: str) -> str:
        known = [fst.spread([x["scores"][t]["accuracy_own"] for x in mine]) for t in tasks]
        ends = fst.spread([x["probe"][-1][1] for x in mine])
        return "| " + " | ".join([*first, *known, reached, ends]) + " |"

    arms = {name: mine for name in ARMS if (mine := reported(runs, name))}
    # both arms of a seed have the same start
    starts = {run["seed"]: run["start"] for mine in arms.values() for run in mine}
    if starts:
        lines.append(line(["nothing", "–", str(len(starts))], list(starts.values()), "–"))
    for number, task in enumerate(tasks):
        for name, mine in arms.items():
            stages, reached = [run["stages"][number] for run in mine], "not measured"
            if task in peak:
                found = [arrival(run, number, SHARE * peak[task]) for run in mine]
                reached = " / ".join(fst.there([at and at[i] for at in found]) for i in (0, 1))
            who = [task, f"{name}, lr {mine[0]['lr']:g}", str(len(mine))]
            lines.append(line(who, stages, reached))
    return "\n".join(lines)


def rate_table(runs: list[dict[str, Any]]) -> str:
    """Every arm of the sweep at every rate, its one seed: what it learned, and what it kept.

    `reported` compares the arms at rates that differ tenfold; a row here has one rate for all.
    """
    swept = [run for run in runs if run["seed"] == fst.SWEEP_SEED and complete(run)]
    if not swept:
        return "Not run yet."
    *first, final = tasks = swept[0]["tasks"]
    head = ["lr", "arm"]
    head += [f"{task}, {when}" for task in first for when in ("when learned", "at the end")]
    head += [f"{final}, at the end", f"mean of {len(tasks)} at the end"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for run in sorted(swept, key=lambda run: (run["lr"], ARMS.index(run["arm"]))):
        known = [[s["scores"][t]["accuracy_own"] for t in tasks] for s in run["stages"]]
        pairs = [known[at][i] for i in range(len(first)) for at in (i, -1)]
        cells = [*pairs, known[-1][-1], statistics.fmean(known[-1])]
        numbers = [f"{100 * x:.1f} %" for x in cells]
        lines.append("| " + " | ".join([f"{run['lr']:g}", run["arm"], *numbers]) + " |")
    return "\n".join(lines)


def main(options: Options) -> None:
    """Run what is missing, save after each stage, print the table."""
    base, task = config_of(options)
    origin = fst.origin_of(options.base)
    read = lambda: json.loads(options.out.read_text())["runs"] if options.out.exists() else []
    ours = {"updates": task.updates, "probe_updates": options.probe, "base": origin}
    for run in read():
        if theirs := {k: run[k] for k in ours if run[k] != ours[k]}:
            raise SystemExit(
                f"{options.out} has runs of another experiment: {theirs} where this has {ours}; "
                "give another --out"
            )
    for name, lr, seed in wanted(options, read()):
        config = dataclasses.replace(at_rate(arm(base, name), lr), seed=seed)
        folder = options.runs / f"{name}-lr{lr:g}-{task.updates}-seed{seed}"
        about = {"arm": name, "lr": lr, "seed": seed}
        is_mine = lambda run, about=about: about.items() <= run.items()
        while True:
            runs, load_before = read(), os.getloadavg()[0]
            mine = next(filter(is_mine, runs), None)
            if mine is None:
                same = (run["start"] for run in runs if run["seed"] == seed)
                begun = next(same, None) or start(config, task, folder, options)
                mine = about | ours | {"tasks": names(task), "start": begun, "stages": []}
            if complete(mine):
                break
            done = stage(config, task, len(mine["stages"]), folder, options)
            shown = harness.circumstances(
                ("fastweights", "jax", "jaxlib", "flax", "optax", "numpy")
            )
            mine = mine | shown | {"stages": [*mine["stages"], done]}
            mine["load"] = [round(load_before, 2), round(os.getloadavg()[0], 2)]
            # another process may have added runs since
            others = [run for run in read() if not is_mine(run)]
            harness.save(shown | {"runs": [*others, mine]}, options.out)
            scores = ", ".join(f"{k} {v['accuracy_own']:.3f}" for k, v in done["scores"].items())
            print(
                f"{name}, lr {lr:g}, seed {seed}, after {done['task']}: {scores}; "
                f"probe {done['probe'][-1][1]:.3f}",
                flush=True,
            )
    print("\n" + table(read(), peaks(options.out.parent, origin)))


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
