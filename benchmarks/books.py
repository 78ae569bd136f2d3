"""What test-time training is worth on held-out books: loss against position, an arm a line.

    python benchmarks/books.py --data DIR               # four arms, 3 seeds: hours on 2 cores
    python benchmarks/books.py --data DIR --ablations   # one change each, one seed, 1,000 updates
    python benchmarks/books.py --data DIR --quick       # 100 updates of the arms, in minutes
    python benchmarks/books.py --data DIR --arms "in-place TTT"   # a process of its own for some

DIR holds the books of `configs/books.py`, whose model, data, order and number of updates all arms
share. Losses are of windows cut evenly from the books held out for test; every arm reads the same
ones, so arms are compared window by window. A run that is done is in the JSON and is not run again;
one that was stopped goes on from its checkpoint.
"""

import dataclasses
import functools
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
import tyro

from fastweights.config_file import load_config
from fastweights.tasks import context_loss
from fastweights.tasks.base import Data
from fastweights.tasks.batches import evenly
from fastweights.train import Config, train
from fastweights.train.state import parameter_count

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BINS = 8
#: bytes in each of the parts of a window
WIDTH = 128
#: updates of the ablations, a third of the config's: there are many of them
SHORT = 1000
#: tokens read, and tokens predicted after them, beyond the length of training
LONG = {"block": 128, "contexts": (0, 128, 256, 512, 1024, 2048, 3968)}


def in_place(config: Config, **change: Any) -> Config:
    """The config with something else in its in-place layers."""
    ttt = dataclasses.replace(config.model.ttt, **change)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, ttt=ttt))


def plain(config: Config, **change: Any) -> Config:
    """The config without test-time training."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, ttt=None, **change))


def wider(config: Config) -> Config:
    """The config without test-time training and with at least its parameters, in wider MLPs.

    In-place layers add a convolution of 5 taps a channel and a square projection of the target;
    a gated MLP is three matrices. The width is rounded up to a multiple of 16.
    """
    hidden, width = config.model.hidden, config.model.intermediate
    added = (hidden * 5 + hidden**2) * len(config.model.ttt.layers) / config.model.layers
    return plain(config, intermediate=math.ceil((width + added / (3 * hidden)) / 16) * 16)


BASELINE, OURS, WIDER = "sliding window", "in-place TTT", "sliding window, wider"
ARMS: dict[str, Callable[[Config], Config]] = {
    BASELINE: plain,
    OURS: lambda config: config,
    WIDER: wider,
    "full attention": lambda config: plain(config, windows=()),
}
#: C = 1024 needs no run: a row of 1,024 is one chunk, nothing is read after its write
ABLATIONS: dict[str, Callable[[Config], Config]] = {
    "C = 64": lambda config: in_place(config, chunk=64),
    "C = 256": lambda config: in_place(config, chunk=256),
    "C = 512": lambda config: in_place(config, chunk=512),
    "η / 3": lambda config: in_place(config, lr=config.model.ttt.lr / 3),
    "3 η": lambda config: in_place(config, lr=3 * config.model.ttt.lr),
    "no convolution": lambda config: in_place(config, conv=False),
    "no projection": lambda config: in_place(config, proj=False),
    "forward window": lambda config: in_place(config, window="forward"),
    "hidden states as target": lambda config: in_place(config, target="hidden_states"),
    "last layer only": lambda config: in_place(config, layers=(config.model.layers - 1,)),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        data: folder of the books.
        seeds: runs an arm, seeds 0, 1, ...
        ablations: run the ablations and what they are compared with, all with seed 0.
        arms: only these.
        steps: updates; those of the config by default, 1,000 for ablations.
        rows: windows of the test books.
        quick: 100 updates, one seed, 16 windows.
        out: the JSON; books.json or books_ablations.json in benchmarks/results by default, in
            `runs` if quick.
        runs: directory of the run directories.
    """

    data: Path
    seeds: int = 3
    ablations: bool = False
    arms: tuple[str, ...] = ()
    steps: int | None = None
    rows: int = 192
    quick: bool = False
    out: Path | None = None
    runs: Path = Path("runs/books")


def base_config(data: Path, steps: int | None) -> Config:
    """`configs/books.py`, with its cosine as long as the run."""
    config: Config = load_config(str(ROOT / "configs" / "books.py"))
    steps = steps or config.train.steps
    return dataclasses.replace(
        config,
        data=Data(dir=str(data)),
        train=dataclasses.replace(config.train, steps=steps),
        # a run of a few updates has no time for the whole warmup
        optim=dataclasses.replace(
            config.optim, decay_steps=steps, warmup=min(config.optim.warmup, steps // 10)
        ),
    )


def run(arm: str, config: Config, seed: int, folder: Path, rows: int) -> dict[str, Any]:
    """Train one (arm, seed), or go on with it, and measure it on the test books."""
    config = dataclasses.replace(config, seed=seed)
    result = train(config, folder, quiet=True)
    model, task = result.state.model, config.task
    losses = functools.partial(jax.jit(task.losses), model)
    documents = [document.tokens for document in task.documents("test", config.data)]
    table, _ = context_loss.windows(documents, task.length)
    chosen = evenly(len(table["target"]), rows)
    found = context_loss.table_losses(losses, {k: v[chosen] for k, v in table.items()})
    parts = found.reshape(len(found), BINS, -1).mean(-1)
    longest = max(LONG["contexts"]) + LONG["block"]
    whole, _ = context_loss.windows(documents, longest)
    few = evenly(len(whole["target"]), max(1, rows // 4))
    texts = [np.append(whole["inputs"][i], whole["target"][i, -1]) for i in few]
    curve = context_loss.final_block(losses, texts, batch=4, **LONG)
    lines = [x for x in result.history if "train/loss" in x]
    pace = [
        (b["wall_time"] - a["wall_time"]) / (b["step"] - a["step"])
        for a, b in itertools.pairwise(lines)
    ]
    validation = [x for x in result.history if "validation/loss" in x][-1]
    return {
        "arm": arm,
        "seed": seed,
        "updates": config.train.steps,
        "parameters": parameter_count(model),
        "validation_loss": round(validation["validation/loss"], 4),
        "drift": {k: round(v, 4) for k, v in validation.items() if "drift" in k},
        # a line a window: nats a byte in each eighth of it
        "losses": [" ".join(f"{x:.4f}" for x in row) for row in parts],
        "long": {
            "windows": curve.documents,
            "context": [int(x) for x in curve.start],
            "loss": [round(float(x), 4) for x in curve.mean],
            "error": [round(float(x), 4) for x in curve.error],
        },
        # the median, which neither a pause nor an evaluation in between has a part in
        "seconds_per_update": round(statistics.median(pace), 3),
    }


def wanted(options: Options) -> list[tuple[str, Callable[[Config], Config], int]]:
    """(arm, its change, seed) of every run asked for, seeds outermost."""
    beside = {name: arm for name, arm in ARMS.items() if name != WIDER}
    arms = beside | ABLATIONS if options.ablations else ARMS
    unknown = set(options.arms) - set(arms)
    if unknown:
        raise SystemExit(f"no arm {unknown.pop()!r}; there are {', '.join(arms)}")
    seeds = 1 if options.quick or options.ablations else options.seeds
    names = options.arms or tuple(arms)
    return [(name, arms[name], seed) for seed in range(seeds) for name in names]


def matrix(run: dict[str, Any]) -> np.ndarray:
    """Losses of a run, `[windows, BINS]`."""
    return np.array([[float(x) for x in row.split()] for row in run["losses"]])


def compared(
    runs: list[dict[str, Any]], arm: str, baseline: str = BASELINE
) -> dict[str, Any] | None:
    """An arm against the baseline of the same seeds: arm minus baseline, in nats a byte.

    "first" and "end" are of the first eighth and the second half of a window, "curve" of every
    eighth: (mean, standard error over windows). "seeds" are the differences at the end, one a seed.
    """
    own = {run["seed"]: matrix(run) for run in runs if run["arm"] == arm}
    base = {run["seed"]: matrix(run) for run in runs if run["arm"] == baseline}
    both = sorted(own.keys() & base.keys())
    if not both or arm == baseline:
        return None
    each = np.stack([own[seed] - base[seed] for seed in both])  # [seeds, windows, BINS]
    mean = each.mean(0)

    def summary(values: np.ndarray) -> list[float]:
        return [float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)]

    return {
        "first": summary(mean[:, 0]),
        "end": summary(mean[:, BINS // 2 :].mean(1)),
        "curve": [summary(mean[:, i]) for i in range(BINS)],
        "seeds": [float(x) for x in each[:, :, BINS // 2 :].mean((1, 2))],
    }


def position_curves(runs: list[dict[str, Any]]) -> dict[str, context_loss.Curve]:
    """Mean loss of each arm by part of the window; the error is over windows."""
    found = {}
    for arm in ARMS:
        mine = [matrix(run) for run in runs if run["arm"] == arm]
        if mine:
            found[arm] = context_loss.by_position(np.mean(mine, 0), bins=BINS)
    return {arm: curve._replace(start=curve.start * WIDTH) for arm, curve in found.items()}


def difference_curves(runs: list[dict[str, Any]]) -> dict[str, context_loss.Curve]:
    """Each arm less the baseline, by part of the window."""
    curves = {}
    for arm in ARMS:
        if found := compared(runs, arm):
            mean, error = np.transpose(found["curve"])
            start = np.arange(BINS) * WIDTH
            curves[arm] = context_loss.Curve(start, mean, error, len(matrix(runs[0])))
    return curves


def long_curves(runs: list[dict[str, Any]]) -> dict[str, context_loss.Curve]:
    """Loss of a final block as the context grows, mean over seeds; the error is over windows."""
    curves = {}
    for arm in ARMS:
        mine = [run["long"] for run in runs if run["arm"] == arm]
        if mine:
            mean, error = (np.mean([x[k] for x in mine], 0) for k in ("loss", "error"))
            context = np.asarray(mine[0]["context"])
            curves[arm] = context_loss.Curve(context, mean, error, mine[0]["windows"])
    return curves


def table(runs: list[dict[str, Any]]) -> str:
    """An arm a row: losses, and differences to the baseline with standard errors over windows."""
    lines = [
        "| arm | seeds | parameters | first eighth | second half | first eighth, difference | "
        "second half, difference | each seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in [name for name in (*ARMS, *ABLATIONS) if any(r["arm"] == name for r in runs)]:
        mine = [r for r in runs if r["arm"] == arm]
        losses = np.stack([matrix(r) for r in mine])
        first, end = losses[:, :, 0].mean(), losses[:, :, BINS // 2 :].mean()
        cells = ["–", "–", "–"]
        if found := compared(runs, arm):
            cells = [f"{found[k][0]:+.4f} ± {found[k][1]:.4f}" for k in ("first", "end")]
            cells.append(", ".join(f"{x:+.4f}" for x in found["seeds"]))
        lines.append(
            f"| {arm} | {len(mine)} | {mine[0]['parameters']:,} | {first:.4f} | {end:.4f} | "
            f"{' | '.join(cells)} |"
        )
    if found := compared(runs, OURS, WIDER):
        first, end = (f"{found[k][0]:+.4f} ± {found[k][1]:.4f}" for k in ("first", "end"))
        lines.append(
            f"\nIn-place TTT against *{WIDER}*, which has no fewer parameters: "
            f"first eighth {first}, second half {end}; seeds {len(found['seeds'])}."
        )
    return "\n".join(lines)


def ablation_table(runs: list[dict[str, Any]]) -> str:
    """An arm a row, beside the baseline and beside in-place TTT, and after a context too long."""
    context = runs[0]["long"]["context"][-1]
    lines = [
        f"| arm | parameters | first eighth | second half | it less {BASELINE}'s | "
        f"it less {OURS}'s | after {context:,} bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in sorted(runs, key=lambda run: [*ARMS, *ABLATIONS].index(run["arm"])):
        losses = matrix(run)
        cells = [f"{losses[:, 0].mean():.4f}", f"{losses[:, BINS // 2 :].mean():.4f}"]
        for other in (BASELINE, OURS):
            found = compared(runs, run["arm"], other)
            cells.append("{:+.4f} ± {:.4f}".format(*found["end"]) if found else "–")
        cells.append(f"{run['long']['loss'][-1]:.4f}")
        lines.append(f"| {run['arm']} | {run['parameters']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(options: Options) -> None:
    """Run what is missing, save after each, print the table."""
    steps = options.steps or (100 if options.quick else SHORT if options.ablations else None)
    base, rows = base_config(options.data, steps), 16 if options.quick else options.rows
    name = "books_ablations.json" if options.ablations else "books.json"
    out = options.out or (options.runs if options.quick else RESULTS) / name
    read = lambda: json.loads(out.read_text())["runs"] if out.exists() else []
    for arm, change, seed in wanted(options):
        if {(r["updates"], r["rows"]) for r in read()} - {(base.train.steps, rows)}:
            raise SystemExit(
                f"{out} has runs of other updates or windows than {base.train.steps} and {rows}, "
                "and arms are compared run by run: give --out another file"
            )
        if (arm, seed) in {(r["arm"], r["seed"]) for r in read()}:
            continue
        about = harness.circumstances(("fastweights", "jax", "jaxlib", "flax", "optax", "numpy"))
        about["command"] = about["command"].replace(str(options.data), "DIR")
        label = arm.replace(" ", "-").replace("/", "over")
        begun = time.monotonic()
        folder = options.runs / f"{label}-updates{base.train.steps}-seed{seed}"
        result = run(arm, change(base), seed, folder, rows) | {"rows": rows}
        # another process may have added runs since
        harness.save(about | {"runs": [*read(), result | about]}, out)
        end = statistics.fmean(matrix(result)[:, BINS // 2 :].mean(1))
        print(
            f"{arm}, seed {seed}: validation {result['validation_loss']:.4f}, test end {end:.4f}, "
            f"{(time.monotonic() - begun) / 60:.1f} minutes",
            flush=True,
        )
    show = ablation_table if options.ablations else table
    print("\n" + show(read()))


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
