"""In-place TTT to 16 times its training length: loss by position, an arm a line.

    python benchmarks/books_long.py --data DIR            # 8 runs and 3 seeds: days on 2 cores
    python benchmarks/books_long.py --data DIR --quick    # 30 updates and few windows, in minutes

DIR holds the books of `configs/books.py`, whose model, data and order all arms share. An arm is
trained on rows of 1,024 bytes and reads windows of 16,384 bytes of the two test books; those of the
validation book are there to choose a decay or a cap by. A run that is done is in the JSON and is
not run again; one that was stopped goes on from its checkpoint.
"""

import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import books
import harness
import jax
import numpy as np
import tyro
from flax import nnx

from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.tasks import context_loss
from fastweights.tasks.batches import evenly
from fastweights.train import Config, train
from fastweights.train.state import parameter_count

OUT = books.RESULTS / "books_long.json"
LENGTH = 16_384
#: positions in a window at which the parts of a curve begin
PARTS = (0, 128, 512, 1024, 2048, 4096, 8192)
BASELINE, RELEASED = books.WIDER, books.OURS
#: runs; every one has at least the parameters of in-place TTT
RUNS: dict[str, Callable[[Config], Config]] = {
    BASELINE: books.wider,
    RELEASED: lambda config: config,
    "in-place TTT, decay 0.9": lambda config: books.in_place(config, decay=0.9),
    "in-place TTT, no projection, decay 0.9": lambda config: books.in_place(
        config, proj=False, decay=0.9
    ),
    "in-place TTT, learned decay": lambda config: books.in_place(
        config, decay=0.9, decay_learned=True
    ),
    "in-place TTT, learned η": lambda config: books.in_place(config, lr_learned=True),
    "in-place TTT, residual": lambda config: books.in_place(config, residual=True, lr=1.0),
    "in-place TTT, state passing": lambda config: dataclasses.replace(
        config, task=dataclasses.replace(config.task, passed=1.0)
    ),
}
#: options of in-place layers that are put on a trained run
Change = dict[str, Any]
OPTIONS: dict[str, Change] = {
    **{f"decay {x}": {"decay": x} for x in (0.8, 0.9, 0.95)},
    **{f"cap {x}": {"cap": x} for x in (0.05, 0.1, 0.2)},
    "decay 0.9, cap 0.1": {"decay": 0.9, "cap": 0.1},
    "row norm": {"row_norm": True},
}
#: arms that are another one, trained, with options put on afterwards
AFTERWARDS = {
    f"{RELEASED}, {name} afterwards": (RELEASED, change) for name, change in OPTIONS.items()
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        data: folder of the books.
        seeds: runs an arm, seeds 0, 1, ...
        arms: only these.
        steps: updates.
        windows: windows of each book.
        quick: 30 updates, two windows of 2,048 bytes, one seed.
        out: the JSON; in `runs` if quick.
        runs: directory of the run directories.
    """

    data: Path
    seeds: int = 3
    arms: tuple[str, ...] = ()
    steps: int = 3000
    windows: int = 24
    quick: bool = False
    out: Path | None = None
    runs: Path = Path("runs/books_long")


def with_config(model: Decoder, config: DecoderConfig) -> Decoder:
    """The arrays of a model under another config that has the same ones."""
    abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.split(abstract)[0], nnx.state(model))


def with_options(model: Decoder, change: Change) -> Decoder:
    """A model with other options of its in-place layers, such as `{"decay": 0.9}`."""
    ttt = model.config.ttt
    assert ttt is not None
    ttt = dataclasses.replace(ttt, **change)
    return with_config(model, dataclasses.replace(model.config, ttt=ttt))


def losses_by_part(
    model: Decoder,
    config: Config,
    split: str,
    windows: int,
    length: int = LENGTH,
    parts: tuple[int, ...] | None = None,
    batch: int = 2,
    read: int | None = None,
) -> dict[str, list[list[float]]]:
    """By book of a split: for each part of a window, the mean loss in every window.

    Args:
        model: the decoder.
        config: of its run, for its task and data.
        split: of the data.
        windows: windows of each book, evenly spread.
        length: tokens of a window.
        parts: first positions of the parts; those of the table by default.
        batch: windows read at a time.
        read: tokens of each window that are read, from its start; None is all.
    """
    losses, read = functools.partial(jax.jit(config.task.losses), model), read or length
    starts = [start for start in parts or PARTS if start < read]
    found = {}
    for document in config.task.documents(split, config.data):
        table, _ = context_loss.windows([document.tokens], length)
        chosen = evenly(len(table["target"]), windows)
        rows = {k: v[chosen][:, :read] for k, v in table.items()}
        each = context_loss.table_losses(losses, rows, batch)
        ends = [*starts[1:], read]
        found[document.name] = [
            [round(float(x), 4) for x in each[:, a:b].mean(1)]
            for a, b in zip(starts, ends, strict=True)
        ]
    return found


def folder_name(arm: str) -> str:
    """An arm's name without what a path may not have."""
    return arm.replace(" ", "-").replace(",", "")


def trained(
    config: Config, folder: Path, change: Change | None
) -> tuple[Decoder, list[dict[str, float]]]:
    """The model and history of a run, trained or continued; `change` is put on afterwards."""
    result = train(config, folder, quiet=True)
    model = result.state.model
    return (model if change is None else with_options(model, change)), result.history


def circumstances(data: Path, runs: Path) -> dict[str, Any]:
    """Command, versions and machine, without this machine's folders."""
    about = harness.circumstances(("fastweights", "jax", "jaxlib", "flax", "optax", "numpy"))
    command = about["command"].replace(str(data), "DIR").replace(f" --runs {runs}", "")
    about["command"] = re.sub(r" --out \S+", "", command)
    about["machine"]["device"] = jax.devices()[0].device_kind
    return about | {"matmul_precision": jax.config.jax_default_matmul_precision or "default"}


def run(arm: str, config: Config, folder: Path, windows: int, length: int) -> dict[str, Any]:
    """Train one run, or continue it, and measure an arm of it."""
    model, _ = trained(config, folder, AFTERWARDS.get(arm, ("", None))[1])
    return {
        "arm": arm,
        "seed": config.seed,
        "updates": config.train.steps,
        "windows": windows,
        "parameters": parameter_count(model),
        "losses": losses_by_part(model, config, "test", windows, length),
        "validation_losses": losses_by_part(model, config, "validation", windows, length),
    }


def spans(parts: int) -> list[str]:
    """The parts of a window as a table heads them."""
    ends = [*PARTS[1:], LENGTH][:parts]
    return [f"{a:,}–{b:,}" for a, b in zip(PARTS, ends, strict=False)]


def paired(
    runs: list[dict[str, Any]], arm: str, key: str
) -> tuple[list[int], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seeds that both an arm and the baseline have, and by book the means over them of both.

    Means are `[parts, windows]`; without such a seed there is no book.
    """
    by_seed = {x: {r["seed"]: r[key] for r in runs if r["arm"] == x} for x in (arm, BASELINE)}
    seeds = sorted(by_seed[arm].keys() & by_seed[BASELINE].keys())
    books_there = by_seed[arm][seeds[0]] if seeds else ()
    mean = lambda x: {b: np.mean([by_seed[x][s][b] for s in seeds], 0) for b in books_there}
    return seeds, mean(arm), mean(BASELINE)


def table(runs: list[dict[str, Any]], key: str = "losses") -> str:
    """A line for each book and arm: the baseline's loss by position, and differences to it.

    Errors are over windows, of the mean over seeds.
    """
    lines: list[str] = []
    for book in runs[0][key] if runs else ():
        for arm in (*RUNS, *AFTERWARDS):
            seeds, own, base = paired(runs, arm, key)
            if not seeds:
                continue
            if not lines:
                heads = spans(len(base[book]))
                lines.append(f"| book | arm | seeds | {' | '.join(heads)} |")
                lines.append("|---|---|---|" + len(heads) * "---|")
            less = own[book] - base[book]
            mean, error = less.mean(1), less.std(1, ddof=1) / less.shape[1] ** 0.5
            cells = [f"{m:+.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True)]
            if arm == BASELINE:
                cells = [f"{x:.3f}" for x in base[book].mean(1)]
            name = book.removesuffix(".txt").replace("_", " ")
            lines.append(f"| {name} | {arm} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines) or f"{BASELINE} has no run yet."


def same_settings(runs: list[dict[str, Any]], out: Path, **settings: int) -> None:
    """Runs of one file are compared window by window, so they have the same settings.

    Raises:
        SystemExit: a run has others.
    """
    for name, value in settings.items():
        if others := {run[name] for run in runs} - {value}:
            raise SystemExit(
                f"{out} has runs with {name} = {others.pop()}, not {value}, and arms are compared "
                "run by run: give --out another file"
            )


def main(options: Options) -> None:
    """Run what is missing, save after each, print the tables."""
    length = LENGTH
    if options.quick:
        options, length = dataclasses.replace(options, steps=30, windows=2, seeds=1), 2048
    out = options.out or (options.runs / "books_long.json" if options.quick else OUT)
    read = lambda: json.loads(out.read_text())["runs"] if out.exists() else []
    arms = {arm: (arm, change) for arm, change in RUNS.items()}
    arms |= {arm: (source, RUNS[source]) for arm, (source, _) in AFTERWARDS.items()}
    if unknown := set(options.arms) - set(arms):
        raise SystemExit(f"no arm {unknown.pop()!r}; there are {', '.join(arms)}")
    base = books.base_config(options.data, options.steps)
    same_settings(read(), out, updates=base.train.steps, windows=options.windows)
    for seed in range(options.seeds):
        for arm in options.arms or arms:
            if (arm, seed) in {(r["arm"], r["seed"]) for r in read()}:
                continue
            source, change = arms[arm]
            about = circumstances(options.data, options.runs)
            folder = options.runs / f"{folder_name(source)}-{options.steps}-seed{seed}"
            begun = time.monotonic()
            config = dataclasses.replace(change(base), seed=seed)
            result = run(arm, config, folder, options.windows, length)
            result["minutes"] = round((time.monotonic() - begun) / 60, 1)
            # another process may have added runs since
            harness.save(about | {"runs": [*read(), result | about]}, out)
            print(f"{arm}, seed {seed}: {result['minutes']} minutes", flush=True)
    print(f"\nvalidation book:\n\n{table(read(), 'validation_losses')}")
    print(f"\ntest books:\n\n{table(read())}")


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
