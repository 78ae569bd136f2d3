"""Fast-slow training against its arms: accuracy and divergence by updates, rollouts and time.

    python benchmarks/fst.py --task programs --sweep        # the learning rates of every arm
    python benchmarks/fst.py --task programs                # 5 seeds of the three arms, 3 of others
    python benchmarks/fst.py --task programs --arms fst rl  # only these
    python benchmarks/fst.py --task programs --quick        # three arms, one seed, in minutes

The base model is trained first: `fastweights train configs/fst_base.py --run-dir runs/fst_base`,
for the task in_place that of `configs/fst_base_in_place.py`.
The sweep's seed, 100, is not among those reported; an arm runs at the rate with the largest mean
accuracy over its evaluations there. A run that is done is in the JSON and is not run again; one
that was stopped goes on from its checkpoint.
"""

import contextlib
import dataclasses
import json
import math
import os
import statistics
from pathlib import Path
from typing import Any, Literal, NamedTuple

import harness
import tyro

from fastweights import pretrained
from fastweights.config_file import load_config
from fastweights.errors import ConfigError, FastWeightsError
from fastweights.fastslow.config import ARMS, FastSlow, arm, check
from fastweights.fastslow.loop import fingerprint, train_fast_slow
from fastweights.fastslow.report import load, two_by_two

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: those with five seeds; the others have three
MAIN = ("fst", "rl", "evolution")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SWEEP_SEED = 100
#: no weights move
UNTRAINED = ("evolution",)
#: below this accuracy RL only has learned nothing that others could be compared with
LEARNED = 0.05
#: scores of an evaluation that are kept
KEPT = ("accuracy_own", "accuracy_seed", "kl_token_own", "kl_sequence_own", "kl_sequence_seed")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        task: which config, configs/fst_TASK.py.
        arms: which arms, all by default.
        sweep: the learning rates instead, one seed.
        seeds: runs of each of the three arms, seeds 0, 1, ...
        others: of each other arm.
        updates: of a run; those of the config by default.
        proposer: who writes the prompts.
        quick: three arms, one seed, 60 updates.
        base: of every run; that of the config by default.
        out: the JSON; benchmarks/results/fst_TASK.json by default.
        runs: directory of the run directories.
    """

    task: Literal["programs", "conventions", "star_graph", "short_prompts", "in_place"] = "programs"
    arms: tuple[str, ...] = ()
    sweep: bool = False
    seeds: int = 5
    others: int = 3
    updates: int | None = None
    proposer: Literal["blind", "directed", "inductive", "self"] = "inductive"
    quick: bool = False
    base: str | None = None
    out: Path | None = None
    runs: Path = Path("runs/fst")


def base_config(options: Options) -> FastSlow:
    """The task's config with what the options change."""
    config = load_config(str(ROOT / "configs" / f"fst_{options.task}.py"))
    updates = options.updates or (60 if options.quick else config.train.steps)
    return dataclasses.replace(
        config,
        base=options.base or config.base,
        proposer=options.proposer,
        train=dataclasses.replace(config.train, steps=updates),
    )


def origin_of(base: str) -> str:
    """What tells a base model from others: runs of two are not compared."""
    try:
        model = pretrained.load(base).model
    except FastWeightsError as error:
        raise SystemExit(
            f"{error}\nThe header of the config says how to train its base."
        ) from error
    return fingerprint(model)[:12]


def run(config: FastSlow, folder: Path) -> dict[str, Any]:
    """One run, or the rest of it, and what became of it."""
    before = os.getloadavg()[0]
    history = train_fast_slow(config, folder, quiet=True).history
    curve = [line for line in history if "validation/accuracy_own" in line]
    found, at = load(folder)
    channels = two_by_two(found, found.task(at.updates))
    names = ("updates", "rollouts_slow", "rollouts_fast", "seconds", *KEPT)
    return {
        "names": names,
        "curve": [
            [line["updates"], line["rollouts_slow"], line["rollouts_fast"]]
            + [round(line["wall_time"], 1)]
            + [round(line[f"validation/{name}"], 4) for name in KEPT]
            for line in curve
        ],
        "two_by_two": {k: round(v, 4) for k, v in channels.items()},
        "prompts": [dict(m.components) for m in found.population.members],
        # of the run's own log: this process may have done only a part of it
        "wall_seconds": round(history[-1]["wall_time"], 1),
        "load": [round(before, 2), round(os.getloadavg()[0], 2)],
    }


def column(run: dict[str, Any], name: str) -> list[float]:
    """One column of a run's curve."""
    return [row[run["names"].index(name)] for row in run["curve"]]


def rollouts(run: dict[str, Any]) -> list[float]:
    """Rollouts of both loops at every evaluation."""
    both = zip(column(run, "rollouts_slow"), column(run, "rollouts_fast"), strict=True)
    return [a + b for a, b in both]


def points(run: dict[str, Any]) -> list[tuple[float, float, float]]:
    """(rollouts, accuracy, nats an answer to the base) at each evaluation, under its own prompt."""
    accuracy, apart = column(run, "accuracy_own"), column(run, "kl_sequence_own")
    return list(zip(rollouts(run), accuracy, apart, strict=True))


def best_rate(runs: list[dict[str, Any]], name: str) -> float | None:
    """The learning rate of an arm in the sweep: largest mean accuracy over its evaluations.

    Other proposers than the one swept with run at its rate.
    """
    found = swept(runs, name)
    return max(found, key=lambda lr: found[lr]) if found else None


def swept(runs: list[dict[str, Any]], name: str) -> dict[float, float]:
    """Learning rate -> mean accuracy over the evaluations of an arm's run of the sweep."""
    return {
        r["lr"]: statistics.fmean(column(r, "accuracy_own"))
        for r in runs
        if (r["arm"], r["seed"], r["proposer"]) == (name, SWEEP_SEED, "inductive")
    }


def rate_cell(runs: list[dict[str, Any]], name: str) -> str:
    """An arm's learning rate, and whether a larger one might have been better still."""
    tried, rate = swept(runs, name), reported(runs, name)[0]["lr"]
    if name in UNTRAINED:
        return "–"
    return f"{rate:g}" + (", largest tried" if tried and rate == max(tried) else "")


def possible(config: FastSlow) -> tuple[str, ...]:
    """The arms that a task can have: not every task has easier problems to mix in."""
    found = []
    for name in ARMS:
        with contextlib.suppress(ConfigError):
            check(arm(config, name))
            found.append(name)
    return tuple(found)


def wanted(
    options: Options, arms: tuple[str, ...], done: list[dict[str, Any]]
) -> list[tuple[str, float, int]]:
    """(arm, learning rate, seed) of every run asked for, seeds outermost."""
    if unknown := set(options.arms) - set(arms):
        raise SystemExit(f"no arm {sorted(unknown)[0]!r} here; there are {', '.join(arms)}")
    names = options.arms or (MAIN if options.quick else arms)
    if options.sweep:
        tried = lambda name: RATES[:1] if name in UNTRAINED else RATES
        return [(name, lr, SWEEP_SEED) for name in names for lr in tried(name)]
    count = lambda name: 1 if options.quick else options.seeds if name in MAIN else options.others
    rate = lambda name: best_rate(done, name) or FastSlow.optim.lr
    most = max(count(name) for name in names)
    return [(n, rate(n), seed) for seed in range(most) for n in names if seed < count(n)]


def reported(
    runs: list[dict[str, Any]], name: str, proposer: str = "inductive"
) -> list[dict[str, Any]]:
    """An arm's runs at the rate that the sweep chose, the sweep's own left out."""
    rate = best_rate(runs, name)
    mine = [r for r in runs if (r["arm"], r["proposer"]) == (name, proposer)]
    return [r for r in mine if r["seed"] != SWEEP_SEED and rate in (None, r["lr"])]


def peak(runs: list[dict[str, Any]]) -> float | None:
    """What RL only reaches: the best accuracy of each seed's curve, the mean over seeds.

    None where it was not run.
    """
    best = [max(column(r, "accuracy_own")) for r in reported(runs, "rl")]
    return statistics.fmean(best) if best else None


class Arrival(NamedTuple):
    """What a run had used, and how far it was, at the first evaluation with some accuracy."""

    updates: float
    rollouts: float
    seconds: float
    divergence: float  # nats an answer, under its own prompt


def arrival(run: dict[str, Any], accuracy: float | None) -> Arrival | None:
    """See `Arrival`; None if it never has that accuracy, or nobody has said which."""
    updates, seconds, apart, reached = (
        column(run, name) for name in ("updates", "seconds", "kl_sequence_own", "accuracy_own")
    )
    rows = zip(updates, rollouts(run), seconds, apart, reached, strict=True)
    found = (Arrival(*row) for *row, y in rows if accuracy is not None and y >= accuracy)
    return next(found, None)


def table(runs: list[dict[str, Any]]) -> str:
    """An arm a row, the sweep left out: accuracy, cost, divergence, and which channel knows it.

    "to RL's peak" is the median of the rollouts, evolution's included, to the accuracy that RL only
    reaches at best; a seed that never gets there is above every other.
    """
    lines = [
        "| arm | lr | seeds | final accuracy | rollouts | to RL's peak | KL, own prompt | "
        "KL, seed prompt | seed prompt: base, trained | evolved prompt: base, trained |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    reached = peak(runs)
    level = reached if reached is None or reached >= LEARNED else None
    rows = [(name, who) for name in ARMS for who in ("inductive", "directed", "blind", "self")]
    for name, who in rows:
        mine = reported(runs, name, who)
        if not mine:
            continue
        last = lambda what, mine=mine: [column(r, what)[-1] for r in mine]
        mean = lambda key, mine=mine: statistics.fmean(r["two_by_two"][key] for r in mine)
        pair = lambda prompt, mean=mean: (
            f"{100 * mean(f'base_{prompt}'):.1f}, {100 * mean(f'trained_{prompt}'):.1f} %"
        )
        cells = [
            name + ("" if who == "inductive" else f", {who} proposer"),
            rate_cell(runs, name) if who == "inductive" else f"{mine[0]['lr']:g}",
            str(len(mine)),
            spread(last("accuracy_own")),
            f"{statistics.fmean(rollouts(r)[-1] for r in mine):,.0f}",
            "–"
            if level is None
            else there([at and at.rollouts for at in (arrival(r, level) for r in mine)]),
            f"{statistics.fmean(last('kl_sequence_own')):.2f}",
            f"{statistics.fmean(last('kl_sequence_seed')):.2f}",
            pair("seed"),
            pair("evolved"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if reached is not None:
        lines += ["", f"RL's peak: {100 * reached:.1f} %, the mean of its seeds' best accuracies."]
    if reached is not None and level is None:
        lines[-1] += " RL only has learned nothing, so that no costs are compared."
    elif reached is not None:
        lines += ratio_lines(matched(runs))
    return "\n".join(lines)


def ratio_lines(pairs: list[Arrival | None]) -> list[str]:
    """The pairs of `matched` as text and a table of ratios; of no pairs, no lines."""
    lines, known = [], [x for x in pairs if x is not None]
    missed = len(pairs) - len(known)
    if known:

        def middle(name: str) -> str:
            values = [getattr(x, name) for x in known]
            worst = math.inf if name == "divergence" else 0.0
            median = statistics.median([*values, *[worst] * missed])
            return f"{median:.2g} ({min(values):.2g}-{max(values):.2g})"

        lines += [
            "",
            "RL only against fast-slow training of the same seed, both at the best accuracy of "
            "that seed's RL run, each under its own prompt; median and range over seeds:",
            "",
            "| seeds | updates, RL / fst | rollouts, RL / fst | seconds, RL / fst | "
            "divergence, fst / RL |",
            "|---|---|---|---|---|",
            f"| {len(pairs)} | {' | '.join(map(middle, Arrival._fields))} |",
        ]
    if missed:
        lines += [
            "",
            f"Fast-slow training never reaches that accuracy with {missed} of {len(pairs)} seeds. "
            "The median counts such a seed as worse than all others; the range leaves it out.",
        ]
    return lines


def matched(runs: list[dict[str, Any]]) -> list[Arrival | None]:
    """RL only at its own peak against fast-slow training with that seed at the same accuracy.

    What RL has used over what the other has; and the other's divergence over RL's. None for a seed
    with which fast-slow training never has that accuracy.
    """
    others: dict[int, dict[str, Any]] = {r["seed"]: r for r in reported(runs, "fst")}
    found: list[Arrival | None] = []
    for run in reported(runs, "rl"):
        if run["seed"] not in others:
            continue
        best = max(column(run, "accuracy_own"))
        mine, other = arrival(run, best), arrival(others[run["seed"]], best)
        if other is None:
            found.append(None)
        # at update 0 nothing has been used yet
        elif mine and other.updates:
            found.append(
                Arrival(
                    mine.updates / other.updates,
                    mine.rollouts / other.rollouts,
                    mine.seconds / other.seconds,
                    other.divergence / mine.divergence,
                )
            )
    return found


def there(found: list[float | None]) -> str:
    """The median, never being above every number, and how many never got there."""
    missed = found.count(None)
    middle = statistics.median(math.inf if x is None else x for x in found)
    if missed == len(found):
        return "never"
    if middle == math.inf:
        return f"never, {len(found) - missed} of {len(found)} did"
    return f"{middle:,.0f}" + (f", {missed} never" if missed else "")


def spread(values: list[float]) -> str:
    """Mean and range in percent."""
    low, high = 100 * min(values), 100 * max(values)
    return f"{100 * statistics.fmean(values):.1f} % ({low:.0f}-{high:.0f})"


def key_of(run: dict[str, Any]) -> tuple[Any, ...]:
    """What sets a run of the JSON apart."""
    return tuple(run[k] for k in ("arm", "lr", "seed", "proposer"))


def main(options: Options) -> None:
    """Run what is missing, save after each, print the table."""
    base = base_config(options)
    out = options.out or (options.runs if options.quick else RESULTS) / f"fst_{options.task}.json"
    origin = origin_of(base.base)
    read = lambda: json.loads(out.read_text())["runs"] if out.exists() else []
    if others := {(x["updates"], x["base"]) for x in read()} - {(base.train.steps, origin)}:
        raise SystemExit(
            f"{out} has runs of another experiment: (updates, base model) {sorted(others)[0]} "
            f"where this has {(base.train.steps, origin)}; give another --out"
        )
    for name, lr, seed in wanted(options, possible(base), read()):
        config = arm(base, name)
        optim = dataclasses.replace(config.optim, lr=lr)
        config = dataclasses.replace(config, optim=optim, seed=seed)
        about = {
            "arm": name,
            "lr": lr,
            "seed": seed,
            "updates": config.train.steps,
            "proposer": config.proposer,
            "base": origin,
        }
        if key_of(about) in {key_of(x) for x in read()}:
            continue
        folder = f"{options.task}-{name}-{config.proposer}-lr{lr:g}-{config.train.steps}-seed{seed}"
        result = about | run(config, options.runs / folder)
        shown = harness.circumstances(("fastweights", "jax", "jaxlib", "flax", "optax", "numpy"))
        # another process may have added runs since
        record = shown | {"task": options.task, "runs": [*read(), result | shown]}
        harness.save(record, out)
        print(
            f"{name}, lr {lr:g}, seed {seed}: accuracy {column(result, 'accuracy_own')[-1]:.3f}, "
            f"{rollouts(result)[-1]:,} rollouts, {result['wall_seconds']:.0f} s",
            flush=True,
        )
    print("\n" + table(read()))


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
