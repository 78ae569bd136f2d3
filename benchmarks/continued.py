"""Continued pretraining of a real checkpoint with and without in-place TTT: loss by position.

    python benchmarks/real_checkpoint.py fetch SMOLLM2
    python benchmarks/continued.py --checkpoint SMOLLM2 --data DIR            # hours on a core
    python benchmarks/continued.py --checkpoint SMOLLM2 --data DIR --search   # settings, one seed
    python benchmarks/continued.py --checkpoint SMOLLM2 --data DIR --quick

DIR holds the books of `configs/books.py`. Attention sees 512 tokens, so that a longer memory can
help. All trained arms have the same rows, updates and learning rate, and train the same parameters:
all norms and the MLPs of the five layers that learn in place. Arms with writes also train the
convolutions and projections of the targets. Settings are chosen by the loss of the validation book,
with another seed than those of the table. A run that is done is in the JSON and is not run again;
one that was stopped goes on from its checkpoint.
"""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import books
import books_long
import harness
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

import fastweights as fw
from fastweights.models.decoder import Decoder
from fastweights.nn.in_place import InPlaceTTT
from fastweights.nn.in_place_state import Fast
from fastweights.tasks.base import Data
from fastweights.tasks.language import Language
from fastweights.train import Config, Optim, Train, train

OUT = books.RESULTS / "continued.json"
SEARCH = books.RESULTS / "continued_search.json"
#: tokens that attention sees; of a training row; of a window of the table; of one write
SIGHT, ROW, WINDOW, CHUNK = 512, 2048, 32_768, 256
LAYERS = (2, 8, 14, 20, 26)
PARTS = (0, 256, 512, 1024, 2048, 4096, 8192, 16_384)
#: convolutions and projections start at zero or near it and have a short run to grow
RATES = (
    ("*.mlp.conv", 10.0),
    ("*.mlp.proj", 10.0),
    ("*norm*", 1.0),
    ("blocks.2.mlp.*", 1.0),
    ("*", 0.0),
)
#: of the swapped-memory control: tokens read before, and parts of the text after them
BEFORE, AFTER = 4096, (0, 128, 256, 512, 1024)


released = InPlaceTTT(layers=LAYERS, chunk=CHUNK, lr=3.0)
plain = dataclasses.replace(released, proj=False, lr=0.1)
#: no text completes a chunk: the layers of the others as an MLP that is not written
SILENT = dataclasses.replace(plain, chunk=WINDOW)


class Arm(NamedTuple):
    """A model and how it is trained."""

    ttt: InPlaceTTT = SILENT
    updates: bool = True  # False is the checkpoint as it is
    full: bool = False  # attention sees all tokens

    @property
    def writes(self) -> bool:
        """Its in-place layers learn while they read."""
        return self.ttt != SILENT


BASE, CONTROL = "checkpoint", "continued"
RELEASED, BEST = "continued, writes as released", "continued, writes with a cap"
ARMS = {
    BASE: Arm(updates=False),
    CONTROL: Arm(),
    RELEASED: Arm(released),
    BEST: Arm(dataclasses.replace(plain, cap=0.02)),
    "checkpoint, full attention": Arm(updates=False, full=True),
    "continued, full attention": Arm(full=True),
}
#: the same number of settings for either form
SEARCHED = {
    f"{name}, η {lr:g}": Arm(dataclasses.replace(ttt, lr=lr))
    for name, ttt, rates in (
        ("released", released, (0.3, 3.0)),
        ("no projection", plain, (0.03, 0.1)),
        ("no projection, cap 0.02", dataclasses.replace(plain, cap=0.02), (0.1, 0.3)),
        ("no projection, cap 0.05", dataclasses.replace(plain, cap=0.05), (0.1, 0.3)),
    )
    for lr in rates
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        checkpoint: directory of SmolLM2 in Hugging Face layout, float32.
        data: folder of the books.
        seeds: runs an arm, seeds 1, 2, ...; the search has seed 0.
        search: compare settings on the validation book.
        arms: only these.
        steps: updates of one row.
        windows: windows of each book.
        quick: 2 updates, one window of 2,048 tokens, one seed.
        out: the JSON.
        runs: directory of the run directories.
        keep: leave the checkpoints of runs that are done.
    """

    checkpoint: Path
    data: Path
    seeds: int = 3
    search: bool = False
    arms: tuple[str, ...] = ()
    steps: int = 100
    windows: int = 4
    quick: bool = False
    out: Path | None = None
    runs: Path = Path("runs/continued")
    keep: bool = False


def with_sight(checkpoint: Path, runs: Path, full: bool) -> Path:
    """A copy of the checkpoint in which attention sees `SIGHT` tokens, or all of them."""
    if full:
        return checkpoint
    folder = runs / f"sees-{SIGHT}"
    if not (folder / "config.json").exists():
        model = fw.hf.load(checkpoint)
        config = dataclasses.replace(model.config, windows=(SIGHT,) * model.config.layers)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        fw.hf.save(books_long.with_config(model, config), partial, like=checkpoint)
        shutil.copy(checkpoint / "tokenizer.json", partial)
        partial.rename(folder)
    return folder


def run_config(arm: Arm, options: Options, seed: int) -> Config:
    """The config of a run."""
    start = with_sight(options.checkpoint, options.runs, arm.full)
    known = books.base_config(options.data, None).task
    assert isinstance(known, Language)
    still = () if arm.writes else ("*.mlp.conv",)
    still += () if arm.ttt.proj else ("*.mlp.proj",)
    rates = tuple(pair for pair in RATES if pair[0] not in still)
    if not arm.writes:  # the convolutions are in blocks.2.mlp too
        rates = (("*.mlp.conv", 0.0), *rates)
    steps = options.steps
    return Config(
        task=dataclasses.replace(known, length=ROW, tokenizer=str(start), drift=False),
        model=dataclasses.replace(
            fw.hf.inspect(start), ttt=arm.ttt, remat="block", max_length=WINDOW
        ),
        optim=Optim(
            lr=1e-4,
            schedule="cosine",
            decay_steps=steps,
            warmup=min(10, steps // 10),
            clip=1.0,
            rates=rates,
        ),
        train=Train(
            steps=steps,
            batch=1,
            eval_every=steps,
            eval_examples=2,
            checkpoint_every=20,
            log_every=5,
            keep_last=1,
        ),
        data=Data(dir=str(options.data)),
        seed=seed,
        start=str(start),
    )


def losses_by_part(
    model: Decoder, config: Config, split: str, windows: int, length: int
) -> dict[str, list[list[float]]]:
    """As that of `books_long`, a window at a time."""
    return books_long.losses_by_part(model, config, split, windows, length, PARTS, 1)


@jax.jit
def read_piece(model: Decoder, layers: Any, inputs: Array, target: Array, before: Array):
    """States and losses `[1, T]` after a piece of one row."""
    count = jnp.asarray([inputs.shape[1]])
    layers, features = model.advance(layers, inputs, before, count, fresh=False, commits=True)
    return layers, model.head_losses(features, target)


def read_on(model: Decoder, layers: Any, tokens: np.ndarray) -> tuple[Any, np.ndarray]:
    """States and losses after whole chunks of one row that begins at place 0."""
    found = []
    for start in range(0, len(tokens) - CHUNK, CHUNK):
        inputs, target = (
            tokens[None, start + shift : start + shift + CHUNK].astype(np.int32) for shift in (0, 1)
        )
        layers, losses = read_piece(model, layers, inputs, target, jnp.asarray([start]))
        found.append(np.asarray(losses[0]))
    return layers, np.concatenate(found)


def swapped(model: Decoder, config: Config, places: int) -> dict[str, list[list[float]]]:
    """Losses of a text's beginning with the memory of no text, of another book, of its own past.

    Only the fast weights are handed on: attention starts with an empty cache in each case.

    Returns:
        By memory: for each part of `AFTER`, the mean loss at every place of both books.
    """
    documents = [d.tokens for d in config.task.documents("test", config.data)]
    room = BEFORE + AFTER[-1]
    fresh = lambda: model.empty(1, room)

    def memory(text: np.ndarray) -> Any:
        layers, _ = read_on(model, fresh(), text[: BEFORE + 1])
        hand_on = lambda new, old: (
            new._replace(weights=old.weights, written=old.written) if isinstance(new, Fast) else new
        )
        is_state = lambda x: isinstance(x, tuple) and hasattr(x, "_fields")
        return jax.tree.map(hand_on, fresh(), layers, is_leaf=is_state)

    found: dict[str, list[list[float]]] = {"none": [], "another book": [], "its own past": []}
    for own, other in (documents, documents[::-1]):
        for at in np.linspace(BEFORE, len(own) - AFTER[-1] - 2, places + 2)[1:-1].astype(int):
            away = int(at / len(own) * (len(other) - BEFORE - 2))
            memories = {
                "none": fresh(),
                "another book": memory(other[away:]),
                "its own past": memory(own[at - BEFORE :]),
            }
            for name, layers in memories.items():
                _, losses = read_on(model, layers, own[at : at + AFTER[-1] + 1])
                parts = [losses[a:b].mean() for a, b in zip(AFTER, AFTER[1:], strict=False)]
                found[name].append([round(float(x), 4) for x in parts])
    return {name: np.transpose(rows).tolist() for name, rows in found.items()}


def run(arm: Arm, config: Config, folder: Path, windows: int, length: int) -> dict[str, Any]:
    """Train one run, or go on with it, and measure it."""
    history: list[dict[str, float]] = []
    if arm.updates:
        result = train(config, folder, quiet=True)
        model, history = result.state.model, result.history
    else:
        assert config.start is not None
        model = fw.hf.load(config.start, ttt=arm.ttt)
    # a model that attends to all is measured within the length that it was made for
    if arm.full:
        length = min(length, 8192)
    found: dict[str, Any] = {
        "updates": config.train.steps if arm.updates else 0,
        "seed": config.seed,
        "windows": windows,
        "validation_losses": losses_by_part(model, config, "validation", windows, length),
        "history": history,
    }
    return found | {"model": model, "length": length}


def main(options: Options) -> None:
    """Run what is missing and save after each."""
    length = 8192 if options.search else WINDOW
    if options.quick:
        options, length = dataclasses.replace(options, steps=2, windows=1, seeds=1), 2048
    default = SEARCH if options.search else OUT
    out = options.out or (options.runs / default.name if options.quick else default)
    read = lambda: json.loads(out.read_text())["runs"] if out.exists() else []
    arms = {CONTROL: ARMS[CONTROL]} | SEARCHED if options.search else ARMS
    if unknown := set(options.arms) - set(arms):
        raise SystemExit(f"no arm {unknown.pop()!r}; there are {', '.join(arms)}")
    books_long.same_settings(read(), out, windows=options.windows)
    for seed in (0,) if options.search else range(1, options.seeds + 1):
        for name in options.arms or arms:
            arm = arms[name]
            if not arm.updates and seed > 1:
                continue  # no seed changes the checkpoint
            if (name, seed) in {(r["arm"], r["seed"]) for r in read()}:
                continue
            about = books_long.circumstances(options.data, options.runs)
            about["command"] = about["command"].replace(str(options.checkpoint), "SMOLLM2")
            begun = time.monotonic()
            config = run_config(arm, options, seed)
            folder = options.runs / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}"
            result = run(arm, config, folder, options.windows, length)
            model, measured = result.pop("model"), result.pop("length")
            if not options.search:
                result["losses"] = losses_by_part(model, config, "test", options.windows, measured)
                if arm.writes:
                    result["swapped"] = swapped(model, config, places=1 if options.quick else 3)
            minutes = round((time.monotonic() - begun) / 60, 1)
            done = about | {"arm": name, "minutes": minutes} | result
            harness.save(about | {"runs": [*read(), done]}, out)
            print(f"{name}, seed {seed}: {minutes} minutes", flush=True)
            del model
            if not options.keep:
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
