"""Continued pretraining of a real checkpoint with and without in-place TTT: loss by position.

    python benchmarks/real_checkpoint.py fetch --out SMOLLM2
    python benchmarks/continued.py --checkpoint SMOLLM2 --data DIR --search   # settings, one seed
    python benchmarks/continued.py --checkpoint SMOLLM2 --data DIR            # the table
    python benchmarks/continued.py --checkpoint SMOLLM2 --data DIR --quick   # and --search

DIR holds the books of `configs/books.py`. Attention sees 512 tokens, so that a longer memory can
help; other arms see 1,024 or all. Trained arms have the same rows, updates and learning rate, and
train all parameters; arms with writes have the convolutions and projections of the targets besides.
Settings are chosen by the loss of the validation book, with another seed than those of the table:
the learning rate by the arm without writes, η by each form. A run that is done is in the JSON and
is not run again; one that was stopped goes on from its checkpoint. A run takes minutes on a GPU and
hours on a core; on a CPU, `--batch 1 --steps 40` is the smallest that shows a difference.
"""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import books
import books_long
import harness
import jax
import jax.numpy as jnp
import numpy as np
import real_checkpoint
import tyro
from jax import Array

import fastweights as fw
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.needle_eval import NeedleEval, evaluate, summary
from fastweights.nn.in_place import InPlaceTTT
from fastweights.nn.in_place_state import Fast
from fastweights.pretrained import Pretrained, checkpoint_tokenizer, ends, without_ttt
from fastweights.tasks.base import Data
from fastweights.tasks.language import Language
from fastweights.train import Config, Optim, Train, train

OUT = books.RESULTS / "continued.json"
SEARCH = books.RESULTS / "continued_search.json"
#: tokens that attention sees; of a training row; of a window of the table; of one write
SIGHT, ROW, WINDOW, CHUNK = 512, 2048, 32_768, 256
#: tokens that the checkpoint was made for, with full attention
LIMIT = 8192
LAYERS = (2, 8, 14, 20, 26)
PARTS = (0, 256, 512, 1024, 2048, 4096, 8192, 16_384)
#: convolutions and projections start at zero or near it and have a short run to grow
NEW_LR = 1e-3
NEW = ("*.mlp.conv", "*.mlp.proj")
#: of the swapped-memory control: tokens read before, and parts of the text after them
BEFORE, AFTER = 4096, (0, 128, 256, 512, 1024)


#: of the needles: tokens of a prompt
NEEDLES = NeedleEval(
    kinds=("single", "multi-key"), lengths=(1024, 4096), questions=48, batch=24, max_new_tokens=16
)

released = InPlaceTTT(layers=LAYERS, chunk=CHUNK, lr=3.0)
plain = dataclasses.replace(released, proj=False, lr=0.1)
#: no text completes a chunk: the layers of the others as an MLP that is not written
SILENT = dataclasses.replace(plain, chunk=WINDOW)


class Arm(NamedTuple):
    """A model and how it is trained."""

    ttt: InPlaceTTT = SILENT
    lr: float | None = 1e-4  # None is the checkpoint as it is
    sight: int | None = SIGHT  # tokens that attention sees; None is all
    trained: Literal["all", "convolutions"] = "all"

    @property
    def writes(self) -> bool:
        """Its in-place layers learn while they read."""
        return self.ttt != SILENT


BASE, CONTROL = "checkpoint", "continued"
#: of the search: arms without writes, whose best learning rate all arms of the table have
RATES = {f"{CONTROL}, rate {lr:g}": Arm(lr=lr) for lr in (3e-5, 1e-4, 3e-4)}
#: the released form, and forms that are not
AS_RELEASED = {
    f"released, η {lr:g}": Arm(dataclasses.replace(released, lr=lr)) for lr in (0.1, 0.3, 1, 3)
}
OTHERS = {
    f"{name}, η {lr:g}": Arm(dataclasses.replace(ttt, lr=lr))
    for name, ttt, rates in (
        ("released, cap 0.02", dataclasses.replace(released, cap=0.02), (0.3, 3)),
        ("no projection", plain, (0.03, 0.1)),
        ("no projection, decay 0.9", dataclasses.replace(plain, decay=0.9), (0.1,)),
        ("no projection, cap 0.02", dataclasses.replace(plain, cap=0.02), (0.1, 0.3)),
        ("no projection, cap 0.05", dataclasses.replace(plain, cap=0.05), (0.1, 0.3)),
    )
    for lr in rates
}
SEARCHED = RATES | AS_RELEASED | OTHERS


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        checkpoint: directory of SmolLM2 in Hugging Face layout, float32.
        data: folder of the books.
        seeds: runs an arm, seeds 1, 2, ...; the search has seed 0.
        search: compare settings on the validation book.
        arms: only these.
        steps: updates.
        batch: rows of an update.
        windows: windows of each book.
        questions: of each kind and length of needles; 48 by default.
        quick: 2 updates, one window of 2,048 tokens, one seed.
        chosen: the JSON of the search that settings are taken from.
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
    batch: int = 4
    windows: int = 8
    questions: int | None = None
    quick: bool = False
    chosen: Path | None = None
    out: Path | None = None
    runs: Path = Path("runs/continued")
    keep: bool = False


def best(runs: list[dict[str, Any]], arms: dict[str, Arm]) -> Arm:
    """The arm of the search with the least loss from 1,024 tokens on, over the validation book.

    A search that is not whole chooses from the runs that it has.

    Raises:
        SystemExit: none was searched.
    """
    found = {}
    for run in runs:
        if run["arm"] in arms:
            (parts,) = run["validation_losses"].values()
            found[run["arm"]] = weighted(parts, PARTS.index(1024))
    if not found:
        raise SystemExit(f"the search has no run of {' or '.join(arms)}: run one, with --search")
    return arms[min(found, key=found.__getitem__)]


def weighted(parts: list[list[float]], first: int) -> float:
    """Mean loss a token of the parts from one on, from the numbered one on."""
    widths = np.diff([*PARTS, WINDOW])[first : len(parts)]
    return float(np.average(np.mean(parts[first:], 1), weights=widths))


def table_arms(runs: list[dict[str, Any]]) -> dict[str, Arm]:
    """The arms of the table, with the settings that a search has chosen."""
    lr = best(runs, RATES).lr
    form, other = (best(runs, x).ttt for x in (AS_RELEASED, OTHERS))
    arms = {BASE: Arm(lr=None), "checkpoint, full attention": Arm(lr=None, sight=None)}
    for sight, name in ((SIGHT, ""), (None, ", full attention"), (1024, ", sees 1,024")):
        arms |= {
            f"{CONTROL}{name}": Arm(lr=lr, sight=sight),
            f"{CONTROL}{name}, writes as released": Arm(form, lr, sight),
            f"{CONTROL}{name}, best writes": Arm(other, lr, sight),
        }
    name = "checkpoint, best writes, convolutions trained"
    return arms | {name: Arm(other, trained="convolutions")}


def table(record: dict[str, Any]) -> str:
    """A line for each book and arm: losses without writes by position, and differences to them.

    A difference is between runs of the same seeds. Errors are over windows, of the mean over seeds.
    """
    runs, lines = record["runs"], []
    searched = all(run["arm"] in SEARCHED for run in runs)
    key, control = "losses", CONTROL
    if searched:
        key, control = "validation_losses", f"{CONTROL}, rate {Arm().lr:g}"
    losses = {(run["arm"], run["seed"]): run[key] for run in runs}
    seeds = lambda arm: {seed for name, seed in losses if name == arm}
    mean = lambda arm, seeds, book: np.mean([losses[arm, seed][book] for seed in sorted(seeds)], 0)
    if not seeds(control):
        return f"{control} has no run yet."
    for book in losses[control, min(seeds(control))]:
        base = mean(control, seeds(control), book)
        ends = [*PARTS[1:], WINDOW][: len(base)]
        if not lines:
            heads = [f"{start:,}–{end:,}" for start, end in zip(PARTS, ends, strict=False)]
            lines.append(f"| book | arm | seeds | {' | '.join(heads)} |")
            lines.append(f"|---|---|---|{len(ends) * '---|'}")
        for arm in dict.fromkeys(run["arm"] for run in runs):
            shared = seeds(arm) & seeds(control)
            if not shared:
                continue
            own = mean(arm, shared, book)
            less = own - mean(control, shared, book)[: len(own)]
            error = less.std(1, ddof=1) / less.shape[1] ** 0.5
            cells = [f"{m:+.3f} ± {e:.3f}" for m, e in zip(less.mean(1), error, strict=True)]
            if arm == control:
                cells = [f"{x:.3f}" for x in base.mean(1)]
            cells += ["–"] * (len(base) - len(cells))
            name = book.removesuffix(".txt").replace("_", " ")
            lines.append(f"| {name} | {arm} | {len(shared)} | {' | '.join(cells)} |")
    run = runs[0]
    size = (
        f"{max(r['updates'] for r in runs)} updates of {run['batch']} rows of {run['row']:,} tokens"
    )
    device, made = run["machine"]["device"], f"jax {run['versions']['jax']}; {run['date'][:10]}."
    return "\n".join([*lines, "", f"{size}, {run['windows']} windows of a book; {device}; {made}"])


def with_sight(checkpoint: Path, runs: Path, sight: int | None) -> Path:
    """A copy of the checkpoint in which attention sees that many tokens; itself for all of them."""
    if sight is None:
        return checkpoint
    folder = runs / f"sees-{sight}"
    if not folder.exists():
        # processes beside this one may make it too
        partial = folder.with_name(f"{folder.name}.partial{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint, partial)
        real_checkpoint.put_window(partial, sight)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(partial)
    return folder


def factors(lr: float, arm: Arm) -> tuple[tuple[str, float], ...]:
    """The factor of the learning rate of each parameter; see `Optim.rates`."""
    new = NEW_LR / lr if arm.writes else 0.0
    names = NEW if arm.ttt.proj else NEW[:1]
    return (*((name, new) for name in names), ("*", float(arm.trained == "all")))


def run_config(arm: Arm, options: Options, seed: int) -> Config:
    """The config of a run."""
    start = with_sight(options.checkpoint, options.runs, arm.sight)
    known = books.base_config(options.data, None).task
    assert isinstance(known, Language)
    steps = options.steps
    return Config(
        task=dataclasses.replace(known, length=ROW, tokenizer=str(start), drift=False),
        model=dataclasses.replace(
            fw.hf.inspect(start), ttt=arm.ttt, remat="block", max_length=WINDOW
        ),
        optim=Optim(
            lr=arm.lr or 0.0,
            schedule="cosine",
            decay_steps=steps,
            warmup=min(10, steps // 10),
            clip=1.0,
            rates=() if arm.lr is None else factors(arm.lr, arm),
        ),
        train=Train(
            steps=steps,
            batch=options.batch,
            eval_every=steps,
            eval_examples=2,
            checkpoint_every=20 if jax.default_backend() == "cpu" else steps,
            log_every=5,
            keep_last=1,
        ),
        data=Data(dir=str(options.data)),
        seed=seed,
        start=str(start),
    )


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


def needles(model: Decoder, tokenizer: Path, length: int, questions: int) -> list[dict[str, Any]]:
    """Recall of needles by kind and length of a prompt, as `fastweights eval` reports it."""
    if model.config.ttt and model.config.ttt.chunk == SILENT.chunk:
        model = without_ttt(model)  # its state would keep the keys of a chunk
    lengths = tuple(n for n in NEEDLES.lengths if n <= length)
    if not lengths:
        return []
    asked_for = questions or NEEDLES.questions
    settings = dataclasses.replace(
        NEEDLES, lengths=lengths, questions=asked_for, batch=min(NEEDLES.batch, asked_for)
    )
    asked = Pretrained(model, checkpoint_tokenizer(tokenizer), ends(tokenizer))
    return summary(evaluate(asked, settings))["cells"]


def run(arm: Arm, config: Config, folder: Path, options: Options, length: int) -> dict[str, Any]:
    """Train one run, or go on with it, and measure it."""
    history: list[dict[str, float]] = []
    assert config.start is not None
    assert isinstance(config.model, DecoderConfig)
    if arm.lr is None:
        model = books_long.with_config(fw.hf.load(config.start, ttt=arm.ttt), config.model)
    else:
        result = train(config, folder, quiet=True)
        model, history = result.state.model, result.history
    # a model that attends to all reads no more than it was made for
    read = length if arm.sight else min(length, LIMIT)
    losses = lambda model, split: books_long.losses_by_part(
        model, config, split, options.windows, length, PARTS, 1, read
    )
    found: dict[str, Any] = {
        "updates": config.train.steps if arm.lr else 0,
        "batch": options.batch,
        "row": ROW,
        "seed": config.seed,
        "windows": options.windows,
        "rate": arm.lr,
        "sight": arm.sight,
        "trained": arm.trained,
        "ttt": dataclasses.asdict(arm.ttt) if arm.writes else None,
        "validation_losses": losses(model, "validation"),
        "history": history,
    }
    if options.search:
        return found
    found["losses"] = losses(model, "test")
    if config.seed == 1:
        found["needles"] = needles(model, Path(config.start), read, options.questions)
    if arm.writes:
        silent = books_long.with_options(model, {"chunk": WINDOW})
        found["losses_without_writes"] = losses(silent, "test")
        if arm.sight:
            found["swapped"] = swapped(model, config, min(4, options.windows))
    return found


def main(options: Options) -> None:
    """Run what is missing and save after each."""
    length = LIMIT if options.search else WINDOW
    if options.quick:
        options = dataclasses.replace(options, steps=2, batch=1, windows=1, seeds=1)
        length = ROW
    default = SEARCH if options.search else OUT
    out = options.out or (options.runs / default.name if options.quick else default)
    chosen = options.chosen or (options.runs / SEARCH.name if options.quick else SEARCH)
    of = lambda file: json.loads(file.read_text())["runs"] if file.exists() else []
    read = lambda: of(out)
    arms = SEARCHED if options.search else table_arms(of(chosen))
    if unknown := set(options.arms) - set(arms):
        raise SystemExit(f"no arm {unknown.pop()!r}; there are {', '.join(arms)}")
    books_long.same_settings(read(), out, windows=options.windows, batch=options.batch)
    for seed in (0,) if options.search else range(1, options.seeds + 1):
        for name in options.arms or arms:
            arm = arms[name]
            if arm.lr is None and seed > 1:
                continue  # no seed changes the checkpoint
            if (name, seed) in {(r["arm"], r["seed"]) for r in read()}:
                continue
            about = books_long.circumstances(options.data, options.runs)
            about["command"] = about["command"].replace(str(options.checkpoint), "SMOLLM2")
            begun = time.monotonic()
            config = run_config(arm, options, seed)
            folder = options.runs / f"{books_long.folder_name(name)}-seed{seed}"
            result = run(arm, config, folder, options, length)
            minutes = round((time.monotonic() - begun) / 60, 1)
            done = about | {"arm": name, "minutes": minutes} | result
            harness.save(about | {"runs": [*read(), done]}, out)
            print(f"{name}, seed {seed}: {minutes} minutes", flush=True)
            if not options.keep:
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
