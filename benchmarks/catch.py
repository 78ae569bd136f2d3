"""Learning curves of Catch (Ba et al. 2016, figure 5): RNN + fast weights, LSTM, ReLU RNN.

    python benchmarks/catch.py --size 16          # N = 16, M = 3, 5 seeds an arm
    python benchmarks/catch.py --size 24          # N = 24, M = 5
    python benchmarks/catch.py --quick            # N = 8, one seed: minutes, the same pipeline
    python benchmarks/catch.py --size 16 --grid   # every setting of the grid, 3 seeds each
    python benchmarks/catch.py --size 16 --search # twelve settings at random, one seed each
    python benchmarks/catch.py --size 16 --confirm # the best of these, with seeds of its own

Every arm plays the same number of games with the same losses, the same warmup and cosine, and has
four settings in its grid, tried at full length with seeds 100 to 102, not among those reported. The
setting with the largest mean reward over all their games is taken, from the grid's JSON. The search
is the paper's own way: settings drawn at random, and the mean of the five best runs. That picks
runs by what they show, so the setting of each arm's best run can be tried again with new seeds. A
run that is done is in the JSON and is not run again; one stopped goes on from its checkpoint.
"""

import dataclasses
import json
import math
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import harness
import tyro

from fastweights.models.catch import CatchModel
from fastweights.nn import CellName
from fastweights.rules import Hebbian
from fastweights.tasks.catch import Catch
from fastweights.train import Optim, Train
from fastweights.train.agent import AgentConfig, train_agent

ARMS: dict[str, CellName] = {"RNN + fast weights": "fast-weights", "LSTM": "lstm", "RNN": "irnn"}


class Setting(NamedTuple):
    """What is chosen: learning rate, and λ, η and S of the fast weights."""

    lr: float
    decay: float = 0.5
    fast_lr: float = 0.1
    steps: int = 1


#: settings tried for every arm, four each
GRID = {
    "RNN + fast weights": (
        Setting(1e-2, 0.5, 0.1),
        Setting(3e-3, 0.5, 0.1),
        Setting(1e-2, 0.9, 0.1),
        Setting(3e-3, 0.9, 0.5),
    ),
    "LSTM": (Setting(1e-3), Setting(2e-3), Setting(4e-3), Setting(8e-3)),
    "RNN": (Setting(3e-4), Setting(5e-4), Setting(1e-3), Setting(2e-3)),
}
#: taken where no grid was run
UNTUNED = {"RNN + fast weights": Setting(1e-2), "LSTM": Setting(4e-3), "RNN": Setting(1e-3)}
RESULTS = Path(__file__).parent / "results"
VISIBLE = {8: 2, 16: 3, 24: 5}
#: updates of 128 games
UPDATES = {8: 400, 16: 3_200, 24: 4_800}
#: a reward counts as reached when the mean over so many games does
WINDOW = 7_680
WARMUP = 50
LEVELS = (0.0, 0.5, 0.9)
GRID_SEEDS = (100, 101, 102)
#: the random search: draws of each arm, seed of the first, runs that are shown
DRAWS, FIRST_SEED, SHOWN = 12, 200, 5
#: learning rates it draws from, evenly on a logarithmic scale
RATES = {"RNN + fast weights": (1e-3, 1e-2), "LSTM": (1e-3, 1e-2), "RNN": (3e-4, 3e-3)}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        size: N of the screen.
        seeds: runs an arm, seeds 0, 1, ...
        arms: which arms, all by default.
        updates: of 128 games each; by default 3,200 at N = 16 and 4,800 at N = 24.
        grid: try the settings instead, three seeds each.
        search: try settings drawn at random instead, one seed each.
        confirm: take the setting of each arm's best run in that search.
        quick: N = 8 and one seed.
        out: the JSON; benchmarks/results/catch_N.json by default, or catch_N_search.json and so on.
        runs: directory of the run directories.
    """

    size: Literal[8, 16, 24] = 16
    seeds: int = 5
    arms: tuple[str, ...] = tuple(ARMS)
    updates: int | None = None
    grid: bool = False
    search: bool = False
    confirm: bool = False
    quick: bool = False
    out: Path | None = None
    runs: Path = Path("runs/catch")


def config_of(arm: str, setting: Setting, size: int, updates: int, seed: int) -> AgentConfig:
    """An arm's config; arms differ in cell and setting and in nothing else."""
    rule = Hebbian(decay=setting.decay, lr=setting.fast_lr, steps=setting.steps)
    return AgentConfig(
        task=Catch(size=size, visible=VISIBLE[size]),
        model=CatchModel(cell=ARMS[arm], rule=rule),
        optim=Optim(lr=setting.lr, schedule="cosine", warmup=WARMUP, decay_steps=updates, clip=1.0),
        train=Train(steps=updates, batch=128, eval_every=200, checkpoint_every=200, log_every=20),
        seed=seed,
    )


def games_to(curve: list[tuple[int, float]], level: float, window: int) -> int | None:
    """Games after which the mean reward over the last `window` games first is `level`, or None.

    `curve` holds (games played, mean reward since the point before), evenly spaced.
    """
    width = max(1, window // curve[0][0]) if curve else 1
    for i in range(width - 1, len(curve)):
        if statistics.fmean(reward for _, reward in curve[i - width + 1 : i + 1]) >= level:
            return curve[i][0]
    return None


def run(
    arm: str, setting: Setting, size: int, updates: int, seed: int, runs: Path
) -> dict[str, Any]:
    """Train one (arm, seed), or go on with it, and sum it up."""
    config = config_of(arm, setting, size, updates, seed)
    load, begun = os.getloadavg()[0], time.monotonic()
    chosen = "-".join(f"{name}{value:g}" for name, value in setting._asdict().items())
    folder = runs / f"{size}-{ARMS[arm]}-{chosen}-updates{updates}-seed{seed}"
    history = train_agent(config, folder, quiet=True).history
    trained = [line for line in history if "train/reward" in line]
    batch, moves = config.train.batch, config.task.moves
    curve = [(line["step"] * batch, line["train/reward"]) for line in trained]
    # the first line's time is mostly compilation
    first, last = trained[0], trained[-1]
    frames = (last["step"] - first["step"]) * batch * moves
    seconds = last["wall_time"] - first["wall_time"]
    return {
        "arm": arm,
        "setting": setting._asdict(),
        "seed": seed,
        "updates": updates,
        "games": curve[-1][0],
        "games_to": {str(level): games_to(curve, level, WINDOW) for level in LEVELS},
        "mean_reward": round(statistics.fmean(reward for _, reward in curve), 4),
        "final_reward": round(statistics.fmean(reward for _, reward in curve[-5:]), 4),
        "greedy_reward": [x for x in history if "validation/reward" in x][-1]["validation/reward"],
        "frames_per_second": round(frames / seconds) if seconds > 0 else None,
        "wall_seconds": round(time.monotonic() - begun, 1),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "curve": [[games, round(reward, 4)] for games, reward in curve],
    }


def drawn(arm: str) -> list[Setting]:
    """An arm's settings in the random search, always the same ones."""
    rng = random.Random(arm)

    def log_uniform(low: float, high: float) -> float:
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.2g}")

    def draw() -> Setting:
        lr = log_uniform(*RATES[arm])
        if ARMS[arm] != "fast-weights":
            return Setting(lr)
        decay = round(rng.uniform(0.3, 0.95), 2)
        return Setting(lr, decay, log_uniform(0.03, 0.5), rng.choice((1, 2)))

    return [draw() for _ in range(DRAWS)]


def wanted(options: Options, size: int, updates: int) -> list[tuple[str, Setting, int]]:
    """(arm, setting, seed) of every run asked for, seeds outermost."""
    if options.grid:
        return [(a, x, seed) for a in options.arms for x in GRID[a] for seed in GRID_SEEDS]
    if options.search:
        draws = {arm: drawn(arm) for arm in options.arms}
        return [(a, draws[a][i], FIRST_SEED + i) for i in range(DRAWS) for a in options.arms]
    seeds = range(1 if options.quick else options.seeds)
    best = found(size, options.arms) if options.confirm else chosen(size)
    return [(arm, best[arm], seed) for seed in seeds for arm in options.arms]


def key_of(run: dict[str, Any]) -> tuple[str, Setting, int, int]:
    """What sets a run of the JSON apart."""
    return run["arm"], Setting(**run["setting"]), run["seed"], run["updates"]


def runs_in(file: Path) -> list[dict[str, Any]]:
    """The runs of a JSON, none where there is none yet."""
    return json.loads(file.read_text())["runs"] if file.exists() else []


def chosen(size: int) -> dict[str, Setting]:
    """Every arm's best setting in the committed grid of that size: most reward over all games."""
    tried = runs_in(RESULTS / f"catch_{size}_grid.json")
    best = dict(UNTUNED)
    for arm in ARMS:
        rewards: dict[Setting, list[float]] = {}
        for run in tried:
            if run["arm"] == arm:
                rewards.setdefault(Setting(**run["setting"]), []).append(run["mean_reward"])
        if rewards:
            best[arm] = max(rewards, key=lambda setting: statistics.fmean(rewards[setting]))
    return best


def found(size: int, arms: tuple[str, ...]) -> dict[str, Setting]:
    """The setting of each arm's best run in the committed search of that size."""
    file = RESULTS / f"catch_{size}_search.json"
    best = {arm: best_runs(runs_in(file), arm) for arm in arms}
    if missing := [arm for arm in arms if not best[arm]]:
        raise SystemExit(
            f"no search of {', '.join(missing)} in {file}; run first: "
            f"python benchmarks/catch.py --size {size} --search"
        )
    return {arm: Setting(**runs[0]["setting"]) for arm, runs in best.items()}


def table(runs: list[dict[str, Any]]) -> str:
    """Games to each level in thousands, a setting a row: median (least-most) over seeds.

    Then the least and most reward over all games, and the mean reward at the end.
    """
    lines = [
        "| arm | lr | λ, η, S | seeds | to 0 | to 0.5 | to 0.9 | over all games | at the end | "
        "frames/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, setting in dict.fromkeys((r["arm"], Setting(**r["setting"])) for r in runs):
        group = [r for r in runs if (r["arm"], Setting(**r["setting"])) == (arm, setting)]
        cells = [spread([r["games_to"][str(level)] for r in group]) for level in LEVELS]
        rewards = sorted(r["mean_reward"] for r in group)
        final = statistics.fmean(r["final_reward"] for r in group)
        speed = statistics.median(r["frames_per_second"] or 0 for r in group)
        rule = f"{setting.decay:g}, {setting.fast_lr:g}, {setting.steps}"
        fast = rule if ARMS[arm] == "fast-weights" else "–"
        lines.append(
            f"| {arm} | {setting.lr:g} | {fast} | {len(group)} | {' | '.join(cells)} | "
            f"{rewards[0]:+.2f} to {rewards[-1]:+.2f} | {final:+.3f} | {speed:,.0f} |"
        )
    return "\n".join(lines)


def best_runs(runs: list[dict[str, Any]], arm: str) -> list[dict[str, Any]]:
    """The arm's runs with the most reward over all their games, best first."""
    mine = [run for run in runs if run["arm"] == arm]
    return sorted(mine, key=lambda run: -run["mean_reward"])[:SHOWN]


def best_table(runs: list[dict[str, Any]]) -> str:
    """The mean curve of each arm's best runs, and the games that the single ones needed."""
    lines = [
        "| arm | runs that get to 0.9 | mean curve to 0 | to 0.5 | to 0.9 | each of them to 0.9 | "
        "at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(run["arm"] for run in runs):
        group = best_runs(runs, arm)
        points = zip(*(run["curve"] for run in group), strict=True)
        curve = [(p[0][0], statistics.fmean(reward for _, reward in p)) for p in points]
        reached = [games_to(curve, level, WINDOW) for level in LEVELS]
        cells = ["never" if games is None else f"{games / 1e3:.0f}k" for games in reached]
        each = spread([run["games_to"]["0.9"] for run in group])
        final = statistics.fmean(run["final_reward"] for run in group)
        tried = [run["games_to"]["0.9"] for run in runs if run["arm"] == arm]
        there = f"{sum(games is not None for games in tried)} of {len(tried)}"
        lines.append(f"| {arm} | {there} | {' | '.join(cells)} | {each} | {final:+.3f} |")
    return "\n".join(lines)


def spread(games: list[int | None]) -> str:
    """Median and range in thousands; runs that never got there count as later than any other."""
    there = sorted(g for g in games if g is not None)
    if not there:
        return "never"
    middle = statistics.median(math.inf if g is None else g for g in games)
    text = "never" if middle == math.inf else f"{middle / 1e3:.0f}k"
    text += f" ({there[0] / 1e3:.0f}-{there[-1] / 1e3:.0f})"
    missed = len(games) - len(there)
    return f"{text}, {missed} never" if missed else text


def main(options: Options) -> None:
    """Run what is missing, write the JSON after every run, print the table."""
    if unknown := set(options.arms) - set(ARMS):
        raise SystemExit(f"no such arm: {sorted(unknown)[0]!r}; there are {', '.join(ARMS)}")
    kinds = [name for name in ("grid", "search", "confirm") if getattr(options, name)]
    if len(kinds) > 1:
        raise SystemExit(f"--{' and --'.join(kinds)} are different runs: give one of them")
    size = 8 if options.quick else options.size
    updates = options.updates or UPDATES[size]
    name = "_".join(["catch", str(size), *kinds])
    out = options.out or (options.runs if options.quick else RESULTS) / f"{name}.json"
    record = harness.circumstances(("fastweights", "jax", "jaxlib", "flax", "optax", "numpy"))
    record |= {"size": size, "visible": VISIBLE[size], "window": WINDOW}
    record["chance"] = Catch(size=size).chance
    record["runs"] = runs_in(out)
    for arm, setting, seed in wanted(options, size, updates):
        if (arm, setting, seed, updates) in {key_of(done) for done in record["runs"]}:
            continue
        result = run(arm, setting, size, updates, seed, options.runs)
        result |= {"command": record["command"], "date": record["date"]}
        record["runs"].append(result)
        harness.save(record, out)
        print(
            f"{arm}, {setting}, seed {seed}: games to 0.9 {result['games_to']['0.9']}, mean "
            f"{result['mean_reward']:+.3f}, final {result['final_reward']:+.3f}, "
            f"{result['frames_per_second']} frames/s at load {result['load']}",
            flush=True,
        )
    print(f"\nN = {size}, M = {VISIBLE[size]}, chance {record['chance']:+.3f}; games, thousands\n")
    alike = [run for run in record["runs"] if run["updates"] == updates]
    print((best_table if options.search else table)(alike))


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
