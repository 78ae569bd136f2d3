"""A hybrid of gated delta memories on held-out books, beside a window and in-place TTT.

    python benchmarks/books_mixers.py --data DIR           # three runs, an hour on two cores
    python benchmarks/books_mixers.py --data DIR --quick   # 30 updates and few windows, in minutes

DIR holds the books of `configs/books.py`. All arms have its data, order and optimiser, four layers
and the same number of parameters: the MLPs of smaller arms are wider. An arm is trained on rows of
1,024 bytes and reads windows of 16,384 bytes of the two test books.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import books
import books_long
import harness
import jax
import numpy as np
import tyro
from flax import nnx

from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.rules import GatedDelta
from fastweights.train import Config
from fastweights.train.state import parameter_count

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "books_mixers.json"
LAYERS, WINDOW = 4, 64

Change = Callable[[DecoderConfig], DecoderConfig]
BASELINE = "sliding window"
HYBRID = "3 gated delta layers, 1 of attention"
plain = functools.partial(dataclasses.replace, ttt=None)
ARMS: dict[str, Change] = {
    BASELINE: plain,
    "in-place TTT": lambda model: model,
    HYBRID: lambda model: plain(model, mixers=(*3 * (GatedDelta(),), "attention")),
}


#: arms that are another one, trained, with a decay put on afterwards
AFTERWARDS = {"in-place TTT, decay 0.9 afterwards": ("in-place TTT", {"decay": 0.9})}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        data: folder of the books.
        arms: only these.
        seed: of weights and data order.
        steps: updates.
        windows: windows of each test book.
        quick: 30 updates, two windows of 2,048 bytes.
        out: the JSON; in `runs` if quick.
        runs: directory of the run directories.
    """

    data: Path
    arms: tuple[str, ...] = ()
    seed: int = 0
    steps: int = 1000
    windows: int = 24
    quick: bool = False
    out: Path | None = None
    runs: Path = Path("runs/books_mixers")


def parameters(model: DecoderConfig) -> int:
    """Parameters of a decoder, which is not made for it."""
    return parameter_count(jax.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))))


def equal_parameters(models: dict[str, DecoderConfig]) -> dict[str, DecoderConfig]:
    """The arms with MLPs so wide that every arm has the parameters of the largest, within 1 %."""
    largest = max(map(parameters, models.values()))

    def widened(model: DecoderConfig) -> DecoderConfig:
        while parameters(model) < largest:
            model = dataclasses.replace(model, intermediate=model.intermediate + 4)
        return model

    return {name: widened(model) for name, model in models.items()}


def arms(options: Options) -> dict[str, Config]:
    """The config of every arm."""
    base = books.base_config(options.data, options.steps)
    model = dataclasses.replace(base.model, layers=LAYERS, windows=LAYERS * (WINDOW,))
    ttt = dataclasses.replace(model.ttt, layers=tuple(range(LAYERS)))
    models = {name: change(dataclasses.replace(model, ttt=ttt)) for name, change in ARMS.items()}
    config = lambda model: dataclasses.replace(base, model=model, seed=options.seed)
    found = {name: config(model) for name, model in equal_parameters(models).items()}
    return found | {name: found[trained] for name, (trained, _) in AFTERWARDS.items()}


def run(arm: str, config: Config, folder: Path, windows: int, length: int) -> dict[str, Any]:
    """Train one arm, or continue its run, and measure it on the test books."""
    model, history = books_long.trained(config, folder, AFTERWARDS.get(arm, ("", None))[1])
    lines = [x for x in history if "train/loss" in x]
    return {
        "arm": arm,
        "seed": config.seed,
        "updates": config.train.steps,
        "windows": windows,
        "parameters": parameter_count(model),
        "train_loss": [round(x["train/loss"], 4) for x in lines],
        # by book: a list for each part of a window, of the mean loss in every window
        "losses": books_long.losses_by_part(model, config, "test", windows, length),
    }


def curve(run: dict[str, Any], book: str) -> np.ndarray:
    """Mean loss of a run in each part of a window."""
    return np.array([np.mean(part) for part in run["losses"][book]])


def table(runs: list[dict[str, Any]]) -> str:
    """A line for each arm and book: loss by position, and its difference to the baseline."""
    found = {run["arm"]: run for run in runs}
    spans = books_long.spans(len(next(iter(runs[0]["losses"].values()))))
    lines = [
        f"| book | arm | parameters | {' | '.join(spans)} |",
        "|---|---|---|" + len(spans) * "---|",
    ]
    for book in runs[0]["losses"]:
        base = curve(found[BASELINE], book) if BASELINE in found else None
        for arm in [name for name in (*ARMS, *AFTERWARDS) if name in found]:
            values = curve(found[arm], book)
            cells = [f"{x:.3f}" for x in values]
            if base is not None and arm != BASELINE:
                cells = [f"{x:.3f} ({x - b:+.3f})" for x, b in zip(values, base, strict=True)]
            name = book.removesuffix(".txt").replace("_", " ")
            lines.append(f"| {name} | {arm} | {found[arm]['parameters']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(options: Options) -> None:
    """Run the missing arms, save after each, print the table."""
    import json

    length = books_long.LENGTH
    if options.quick:
        options, length = dataclasses.replace(options, steps=30, windows=2), 2048
    out = options.out or (options.runs / "books_mixers.json" if options.quick else OUT)
    read = lambda: json.loads(out.read_text())["runs"] if out.exists() else []
    settings = {"updates": options.steps, "windows": options.windows, "seed": options.seed}
    books_long.same_settings(read(), out, **settings)
    for arm, config in arms(options).items():
        if (options.arms and arm not in options.arms) or arm in {r["arm"] for r in read()}:
            continue
        about = books_long.circumstances(options.data, options.runs)
        trained = AFTERWARDS.get(arm, (arm,))[0]
        folder = (
            options.runs / f"{books_long.folder_name(trained)}-{options.steps}-seed{options.seed}"
        )
        begun = time.monotonic()
        result = run(arm, config, folder, options.windows, length)
        result["minutes"] = round((time.monotonic() - begun) / 60, 1)
        harness.save(about | {"runs": [*read(), result | about]}, out)
        print(f"{arm}: {result['minutes']} minutes", flush=True)
    print("\n" + table(read()))


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
