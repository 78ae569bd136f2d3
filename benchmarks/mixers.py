"""Time and memory of mixers of equal width: update rules beside attention.

    python benchmarks/mixers.py            ten minutes on one core; rewrites the JSON and the page
    python benchmarks/mixers.py --quick    small sizes; writes build/mixers.json only

A mixer is one layer from `[B, T, D]` to `[B, T, D]` with all its projections. A training step is
the loss and the gradients to input and weights. Memory is XLA's plan: temporaries beside arguments
and results.
"""

import dataclasses
from pathlib import Path
from typing import Any

import compiled
import harness
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from harness import Contender
from in_place_page import circumstances

from fastweights import rules
from fastweights.nn import Attention, Rope
from fastweights.nn.layer import Reading
from fastweights.nn.memory import MemoryLayer

ROOT = Path(__file__).parents[1]
PACKAGES = ("fastweights", "jax", "jaxlib", "flax", "optax", "numpy")
WINDOW = 256


@dataclasses.dataclass(frozen=True)
class Options:
    """Side-by-side times and memory of mixers.

    Attributes:
        quick: one small size and few rounds; leaves the documentation as it is.
        out: the JSON file; benchmarks/results/mixers.json, or build/mixers.json if quick.
        rounds: rounds a length, each contender once a round.
        seed: of weights and inputs.
        cores: that all contenders run on; None is all there are.
    """

    quick: bool = False
    out: Path | None = None
    rounds: int = 7
    seed: int = 0
    cores: int | None = 1


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of a layer: batch, tokens, width and heads; keys and values have D / heads numbers."""

    batch: int
    length: int
    width: int
    heads: int


SIZES = (Size(1, 1024, 256, 4), Size(1, 4096, 256, 4))
QUICK = (Size(1, 128, 32, 2),)


def mixers(size: Size, seed: int) -> dict[str, nnx.Module]:
    """The layers by name, of one width and one number of heads."""
    head = size.width // size.heads
    rngs = lambda: nnx.Rngs(seed)

    def memory(rule: rules.Rule) -> MemoryLayer:
        return MemoryLayer(size.width, rule, size.heads, head, head, rngs=rngs())

    def attention(window: int | None) -> Attention:
        return Attention(
            size.width, size.heads, size.heads, head, rope=Rope(), window=window, rngs=rngs()
        )

    return {
        "attention": attention(None),
        f"attention, window {WINDOW}": attention(WINDOW),
        "LinearAttention": memory(rules.LinearAttention()),
        "Delta": memory(rules.Delta()),
        "GatedDelta": memory(rules.GatedDelta()),
        "TTTLinear": memory(rules.TTTLinear()),
        "TTTMLP": memory(rules.TTTMLP()),
    }


def loss(layer: Any, x: jax.Array) -> jax.Array:
    """A number that depends on every output."""
    length = x.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], x.shape[:2])
    return jnp.sum(jnp.sin(layer.advance(x, Reading(x, positions))[0]))


def make(layer: Any, x: jax.Array, training: bool) -> Contender:
    """One compiled contender."""
    function = jax.grad(loss, argnums=(0, 1)) if training else loss
    return compiled.contender(function, layer, x)


def group(size: Size, training: bool, options: Options) -> dict[str, Any]:
    """Times and memory of all mixers at one size."""
    rng = np.random.default_rng(options.seed)
    x = jnp.asarray(rng.normal(size=(size.batch, size.length, size.width)), jnp.float32)
    layers = mixers(size, options.seed)
    contenders = {name: make(layer, x, training) for name, layer in layers.items()}
    runs = {name: contender.run for name, contender in contenders.items()}
    seconds = harness.interleave(runs, options.rounds, 1)
    count = lambda layer: sum(p.size for p in jax.tree.leaves(layer))
    return {
        "size": dataclasses.asdict(size),
        "mode": "train" if training else "forward",
        "parameters": {name: count(layer) for name, layer in layers.items()},
        "compile_seconds": {n: c.compile_seconds for n, c in contenders.items()},
        "temp_bytes": {n: c.temp_bytes for n, c in contenders.items()},
        "times": {n: harness.summary(s) for n, s in seconds.items()},
        "over_attention": {n: harness.ratio(seconds, n, "attention") for n in seconds},
    }


def main(options: Options) -> None:
    """Measure, save, print the table."""
    harness.keep_to(options.cores)
    about = harness.circumstances(PACKAGES)
    sizes, rounds = (QUICK, 2) if options.quick else (SIZES, options.rounds)
    options = dataclasses.replace(options, rounds=rounds)
    groups = [group(size, mode, options) for size in sizes for mode in (False, True)]
    folder = ROOT / ("build" if options.quick else "benchmarks/results")
    record = about | {"seed": options.seed, "rounds": rounds, "groups": groups}
    harness.save(record, options.out or folder / "mixers.json")
    print(tables(record))


def tables(record: dict[str, Any]) -> str:
    """A mixer a row: time and memory of forward pass and training step, a table a length."""
    lines = [f"{circumstances(record)}, {record['rounds']} rounds, float32."]
    groups = record["groups"]
    for forward, train in zip(groups[::2], groups[1::2], strict=True):
        size = forward["size"]
        lines.append(
            f"\nT = {size['length']:,}, D = {size['width']}, {size['heads']} heads:\n\n"
            "| mixer | parameters | forward, ms | training step, ms | over attention | "
            "temporaries of a training step, MiB |\n|---|---|---|---|---|---|"
        )
        for name in forward["times"]:
            ms = lambda group, name=name: f"{group['times'][name]['median_ms']:.1f}"
            lines.append(
                f"| {name} | {forward['parameters'][name]:,} | {ms(forward)} | {ms(train)} | "
                f"{train['over_attention'][name]['of_medians']:.2f} | "
                f"{train['temp_bytes'][name] / 2**20:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Options))
