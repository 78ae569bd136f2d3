"""Why released writes fail beyond the training length: norms, ranks and keys by position.

    python benchmarks/books_why.py --data DIR          # after benchmarks/books_long.py

It takes a run of `books_long.py`, reads windows of 16,384 bytes chunk by chunk with other options
put on the same weights, and records for every in-place layer, D = W - W0 the sum of the writes:

    size        ‖D‖ / ‖W0‖ of the matrix that tokens read
    share       mean over tokens of ‖D z‖ / ‖W0 z‖
    rank        effective rank of D: exp of the entropy of its squared singular values
    straight    ‖D‖ over the sum of ‖ΔW‖: 1 if all writes point one way, n^-1/2 if n are independent
    collisions  mean cosine of a chunk's keys z with all earlier keys
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import books
import books_long
import harness
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from fastweights import plot
from fastweights.models.decoder import Decoder
from fastweights.nn.in_place import InPlaceMLP
from fastweights.nn.in_place_state import Fast
from fastweights.nn.layer import Stacked
from fastweights.tasks import context_loss
from fastweights.tasks.batches import evenly
from fastweights.tasks.language import Language

OUT = books.RESULTS / "books_why.json"
MEASURES = ("size", "share", "rank", "straight", "collisions", "loss")
#: options put on the trained run
ARMS: dict[str, books_long.Change] = {
    "as released": {},
    **{name: books_long.OPTIONS[name] for name in ("decay 0.9", "cap 0.1", "row norm")},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        data: folder of the books.
        runs: directory of the run directories of `books_long.py`.
        steps: updates of its runs.
        seed: of the run.
        windows: windows of each test book.
        length: bytes of a window.
        out: the JSON.
    """

    data: Path
    runs: Path = Path("runs/books_long")
    steps: int = 3000
    seed: int = 0
    windows: int = 4
    length: int = books_long.LENGTH
    out: Path = OUT


def fast_states(model: Decoder, states: Any) -> list[tuple[InPlaceMLP, Fast]]:
    """Each in-place layer and its state, in the order of the layers."""
    places = len(model.blocks)
    found = []
    for i in model.config.ttt_layers:
        mlp = model.layer(i).mlp
        assert isinstance(mlp, InPlaceMLP)
        state = Stacked(states[i % places]["mlp"], i // places)
        found.append((mlp, state.one()))
    return found


def effective_rank(matrix: Array) -> Array:
    """Exp of the entropy of the squared singular values, as shares: `[d, f] -> []`; 0 for zeros."""
    squares = jnp.linalg.svd(matrix, compute_uv=False) ** 2
    total = jnp.sum(squares)
    share = squares / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1)))
    return jnp.where(total > 0, jnp.exp(entropy), 0)


def measured(mlp: InPlaceMLP, before: Fast, z: Array, keys: Array, count: Array) -> dict[str, Any]:
    """Measures of one layer before a chunk of one row is written.

    Args:
        mlp: the layer.
        before: its state, one row.
        z: `[C, F]` keys of the chunk.
        keys: `[F]`, sum of all earlier keys of length 1.
        count: `[]`, number of these.
    """
    slow = mlp.slow.astype(jnp.float32)
    seen, added = before.weights[0] - slow, before.sum[0] - slow
    norm = lambda x: jnp.linalg.norm(x, axis=-1)
    unit = z / jnp.maximum(norm(z), 1e-12)[:, None]
    return {
        "size": jnp.linalg.norm(seen) / jnp.linalg.norm(slow),
        "share": jnp.mean(norm(z @ seen.T) / norm(z @ slow.T)),
        "rank": effective_rank(added),
        "norm": jnp.linalg.norm(added),
        "collisions": jnp.mean(unit @ keys) / jnp.maximum(count, 1),
        "keys": keys + unit.sum(0),
    }


@jax.jit
def read_chunk(model: Decoder, states: Any, inputs: Array, target: Array, start: Array, keys: Any):
    """One chunk of one row: states after its write, mean loss, and measures of each layer."""
    length = jnp.asarray([inputs.shape[1]])
    before = fast_states(model, states)
    states, features = model.advance(states, inputs, start, length, fresh=False)
    loss = jnp.mean(model.head_losses(features, target))
    found = [
        measured(mlp, fast, now.z[0].astype(jnp.float32), k, start[0])
        for (mlp, fast), (_, now), k in zip(before, fast_states(model, states), keys, strict=True)
    ]
    states = model.commit(states, jnp.asarray([True]))
    for each, (mlp, fast), (_, after) in zip(
        found, before, fast_states(model, states), strict=True
    ):
        slow, decay = mlp.slow.astype(jnp.float32), mlp.ttt.decay
        kept = slow + decay * (fast.sum[0] - slow)
        each["write"] = jnp.linalg.norm(after.sum[0] - kept)
    return states, loss, found


def curves(model: Decoder, tokens: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """Measures of one window: `[chunks, layers]` each, "loss" `[chunks]`."""
    ttt = model.config.ttt
    assert ttt is not None
    states = model.empty(1, length)
    keys = [jnp.zeros(model.config.intermediate) for _ in model.config.ttt_layers]
    rows: dict[str, list[Any]] = {name: [] for name in MEASURES}
    written = np.zeros(len(keys))
    for start in range(0, length, ttt.chunk):
        inputs, target = (
            tokens[None, start + shift : start + shift + ttt.chunk].astype(np.int32)
            for shift in (0, 1)
        )
        states, loss, found = read_chunk(model, states, inputs, target, jnp.asarray([start]), keys)
        keys = [each["keys"] for each in found]
        norms = np.array([float(each["norm"]) for each in found])
        rows["straight"].append(norms / np.maximum(written, 1e-12))
        written += [float(each["write"]) for each in found]
        rows["loss"].append(float(loss))
        for name in ("size", "share", "rank", "collisions"):
            rows[name].append([float(each[name]) for each in found])
    return {name: np.array(values) for name, values in rows.items()}


#: measures of the picture and their names on its axes
PANELS = {
    "loss": "loss, nats a byte",
    "size": "‖D‖ / ‖W0‖ at the read",
    "rank": "effective rank of D",
    "collisions": "mean cosine to earlier keys",
}
#: chunks that a point of the picture is the mean of
POINT = 8


def draw(record: dict[str, Any], figure: Any) -> None:
    """The measures by position, means over layers and `POINT` chunks, in a matplotlib figure."""
    for ax, (measure, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        curves = {}
        for arm, found in record["arms"].items():
            values = np.asarray(found[measure])
            by_chunk = values if values.ndim == 1 else values.mean(1)
            mean = by_chunk[: len(by_chunk) // POINT * POINT].reshape(-1, POINT).mean(1)
            start = np.arange(len(mean)) * POINT * record["chunk"]
            curves[arm] = context_loss.Curve(start, mean, 0 * mean, 1)
        plot.context_curves(ax, curves, label)
        ax.set_xlabel("bytes before")
        if measure != "size":
            ax.get_legend().remove()


def main(options: Options) -> None:
    """Measure every arm, save, print the ends."""
    base = books.base_config(options.data, options.steps)
    config = dataclasses.replace(base, seed=options.seed)
    task = config.task
    assert isinstance(task, Language)
    name = books_long.folder_name(books_long.RELEASED)
    folder = options.runs / f"{name}-{options.steps}-seed{options.seed}"
    model, _ = books_long.trained(config, folder, None)
    about = books_long.circumstances(options.data, options.runs)
    found: dict[str, Any] = {}
    for arm, change in ARMS.items():
        changed = books_long.with_options(model, change)
        windows = []
        for document in task.documents("test", config.data):
            last = len(document.tokens) - options.length - 1
            for start in evenly(last, options.windows):
                text = document.tokens[start : start + options.length + 1]
                windows.append(curves(changed, text, options.length))
        mean = {key: np.mean([w[key] for w in windows], 0) for key in MEASURES}
        found[arm] = {key: np.round(value, 5).tolist() for key, value in mean.items()}
        ends = {key: np.round(value[-1], 3).tolist() for key, value in mean.items()}
        print(arm, json.dumps(ends), flush=True)
    settings = {"seed": options.seed, "updates": options.steps, "windows": options.windows}
    harness.save(about | settings | {"chunk": config.model.ttt.chunk, "arms": found}, options.out)


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
