"""Learning curves of Catch (Ba et al. 2016, figure 5): RNN + fast weights, LSTM, ReLU RNN.

    python benchmarks/catch.py --size 16          # N = 16, M = 3, 5 seeds an arm
    python benchmarks/catch.py --size 24          # N = 24, M = 5
    python benchmarks/catch.py --quick            # N = 8, one seed: minutes, the same pipeline
    python benchmarks/catch.py --size 16 --grid   # one seed of every learning rate of the grid

Every arm plays the same number of games with the same losses. The learning rates in `CHOSEN`, and
λ and η of the fast weights, are provisional: they come from single short runs, with more settings
tried for fast weights than for the others. Before a figure is published they are to be chosen by
`--grid`, whose seed, 100, is not among those reported. A run that is done is in the JSON and is
not run again; one that was stopped goes on from its checkpoint.
"""

import dataclasses
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import harness
import tyro

from fastweights.models.catch import CatchModel
from fastweights.nn import CellName
from fastweights.rules import Hebbian
from fastweights.tasks.catch import Catch
from fastweights.train import Optim, Train
from fastweights.train.agent import AgentConfig, train_agent

ARMS: dict[str, CellName] = {"RNN + fast weights": "fast-weights", "LSTM": "lstm", "RNN": "irnn"}
#: learning rates tried for every arm
GRID = {
    "RNN + fast weights": (3e-3, 1e-2, 2e-2),
    "LSTM": (1e-3, 2e-3, 4e-3, 1e-2),
    "RNN": (3e-4, 5e-4, 1e-3),
}
#: the one taken at each size
CHOSEN = {
    8: {"RNN + fast weights": 1e-2, "LSTM": 4e-3, "RNN": 1e-3},
    16: {"RNN + fast weights": 1e-2, "LSTM": 4e-3, "RNN": 3e-4},
    24: {"RNN + fast weights": 1e-2, "LSTM": 2e-3, "RNN": 3e-4},
}
VISIBLE = {8: 2, 16: 3, 24: 5}
#: updates of 128 games
UPDATES = {8: 400, 16: 3_200, 24: 4_800}
#: a reward counts as reached when the mean over so many games does
WINDOW = 7_680
LEVELS = (0.0, 0.5, 0.9)
GRID_SEED = 100


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        size: N of the screen.
        seeds: runs an arm, seeds 0, 1, ...
        arms: which arms, all by default.
        updates: of 128 games each; by default 3,200 at N = 16 and 4,800 at N = 24.
        grid: try the learning rates instead, one seed each.
        quick: N = 8 and one seed.
        out: the JSON; benchmarks/results/catch_N.json by default.
        runs: directory of the run directories.
    """

    size: Literal[8, 16, 24] = 16
    seeds: int = 5
    arms: tuple[str, ...] = tuple(ARMS)
    updates: int | None = None
    grid: bool = False
    quick: bool = False
    out: Path | None = None
    runs: Path = Path("runs/catch")


def config_of(arm: str, lr: float, size: int, updates: int, seed: int) -> AgentConfig:
    """An arm's config; arms differ in cell and learning rate and in nothing else."""
    return AgentConfig(
        task=Catch(size=size, visible=VISIBLE[size]),
        model=CatchModel(cell=ARMS[arm], rule=Hebbian(decay=0.5, lr=0.1, steps=1)),
        optim=Optim(lr=lr, clip=1.0),
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


def run(arm: str, lr: float, size: int, updates: int, seed: int, runs: Path) -> dict[str, Any]:
    """Train one (arm, seed), or go on with it, and sum it up."""
    config = config_of(arm, lr, size, updates, seed)
    load, begun = os.getloadavg()[0], time.monotonic()
    folder = runs / f"{size}-{ARMS[arm]}-lr{lr:g}-updates{updates}-seed{seed}"
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
        "lr": lr,
        "seed": seed,
        "updates": updates,
        "games": curve[-1][0],
        "games_to": {str(level): games_to(curve, level, WINDOW) for level in LEVELS},
        "final_reward": round(statistics.fmean(reward for _, reward in curve[-5:]), 4),
        "greedy_reward": [x for x in history if "validation/reward" in x][-1]["validation/reward"],
        "frames_per_second": round(frames / seconds) if seconds > 0 else None,
        "wall_seconds": round(time.monotonic() - begun, 1),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "curve": [[games, round(reward, 4)] for games, reward in curve],
    }


def wanted(options: Options, size: int, updates: int) -> list[tuple[str, float, int]]:
    """(arm, learning rate, seed) of every run asked for, seeds outermost."""
    if options.grid:
        return [(arm, lr, GRID_SEED) for arm in options.arms for lr in GRID[arm]]
    seeds = range(1 if options.quick else options.seeds)
    return [(arm, CHOSEN[size][arm], seed) for seed in seeds for arm in options.arms]


def table(runs: list[dict[str, Any]]) -> str:
    """Games to each level, an arm a row: median (least-most) over seeds, in thousands."""
    lines = [
        "| arm | lr | seeds | to 0 | to 0.5 | to 0.9 | final reward | frames/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, lr in dict.fromkeys((r["arm"], r["lr"]) for r in runs):
        group = [r for r in runs if (r["arm"], r["lr"]) == (arm, lr)]
        cells = [spread([r["games_to"][str(level)] for r in group]) for level in LEVELS]
        final = statistics.fmean(r["final_reward"] for r in group)
        speed = statistics.median(r["frames_per_second"] or 0 for r in group)
        lines.append(
            f"| {arm} | {lr:g} | {len(group)} | {' | '.join(cells)} | {final:+.3f} | {speed:,.0f} |"
        )
    return "\n".join(lines)


def spread(games: list[int | None]) -> str:
    """Median and range in thousands; runs that never got there are counted, not left out."""
    there = sorted(g for g in games if g is not None)
    if not there:
        return "never"
    text = f"{statistics.median(there) / 1e3:.0f}k ({there[0] / 1e3:.0f}-{there[-1] / 1e3:.0f})"
    missed = len(games) - len(there)
    return f"{text}, {missed} never" if missed else text


def main(options: Options) -> None:
    """Run what is missing, write the JSON after every run, print the table."""
    if unknown := set(options.arms) - set(ARMS):
        raise SystemExit(f"no such arm: {sorted(unknown)[0]!r}; there are {', '.join(ARMS)}")
    size = 8 if options.quick else options.size
    updates = options.updates or UPDATES[size]
    name = f"catch_{size}" + ("_grid" if options.grid else "")
    default = options.runs if options.quick else Path(__file__).parent / "results"
    out = options.out or default / f"{name}.json"
    record = harness.circumstances(("fastweights", "jax", "jaxlib", "flax", "optax", "numpy"))
    record |= {"size": size, "visible": VISIBLE[size], "window": WINDOW, "grid": GRID}
    record["chance"] = Catch(size=size).chance
    record["runs"] = json.loads(out.read_text())["runs"] if out.exists() else []
    for arm, lr, seed in wanted(options, size, updates):
        key = (arm, lr, seed, updates)
        if any((r["arm"], r["lr"], r["seed"], r["updates"]) == key for r in record["runs"]):
            continue
        result = run(arm, lr, size, updates, seed, options.runs)
        record["runs"].append({**result, "date": record["date"]})
        harness.save(record, out)
        print(
            f"{arm}, lr {lr:g}, seed {seed}: games to 0.9 {result['games_to']['0.9']}, final "
            f"{result['final_reward']:+.3f}, {result['frames_per_second']} frames/s "
            f"at load {result['load']}",
            flush=True,
        )
    print(f"\nN = {size}, M = {VISIBLE[size]}, chance {record['chance']:+.3f}; games, thousands\n")
    print(table(record["runs"]))


if __name__ == "__main__":
    main(tyro.cli(Options))
