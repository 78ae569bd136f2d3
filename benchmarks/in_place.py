"""One in-place layer beside the down projection it stands for, and beside its other forms.

    python benchmarks/in_place.py            five minutes; rewrites the JSON and the page
    python benchmarks/in_place.py --quick    small sizes; writes build/in_place.json only

Times are of the layer alone, from z and v to y. Memory is XLA's plan for one layer of Qwen3-4B's
size over 32k tokens, compiled and never run. Every contender is checked against a float64
reference, outputs and gradients, and dropped if it is wrong.
"""

import dataclasses
import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import compiled
import harness
import in_place_jax
import in_place_page
import in_place_reference as reference
import jax
import numpy as np
import tyro
from harness import Contender
from in_place_reference import Problem, Size

ROOT = Path(__file__).parents[1]
PACKAGES = ("fastweights", "jax", "jaxlib", "flax", "numpy", "torch")
SIZES = (Size(4096, 256, 256, 1024), Size(4096, 1024, 256, 1024), Size(2048, 512, 512, 2048))
LARGE = 32_768, 2560, 9728  # T, d, f: the MLP of Qwen3-4B
TOLERANCE = 1e-5  # norm ratio to float64


@dataclasses.dataclass(frozen=True)
class Options:
    """Side-by-side times and memory of one in-place layer.

    Attributes:
        quick: small sizes and few rounds; leaves the documentation as it is.
        out: the JSON file; benchmarks/results/in_place.json, or build/in_place.json if quick.
        rounds: rounds per size, each contender once a round.
        seed: of the inputs.
        cores: that all contenders run on; None is all there are.
    """

    quick: bool = False
    out: Path | None = None
    rounds: int = 9
    seed: int = 0
    cores: int | None = 1


def learns(name: str) -> bool:
    """Whether a contender is an in-place layer."""
    return "plain" not in name


def make(name: str, size: Size, p: Problem, training: bool) -> Contender:
    """A contender by its name."""
    if name.startswith("torch"):
        import in_place_torch

        return in_place_torch.contender(size, p, training, learns(name))
    arrays = (jax.numpy.asarray(x) for x in p)
    return compiled.contender(in_place_jax.function(name, size, training), *arrays)


def result(outcome: Any, training: bool) -> list[np.ndarray]:
    """What is compared with the reference: outputs, or gradients."""
    if isinstance(outcome, list):
        return [x.detach().numpy() for x in outcome]
    return [np.asarray(x) for x in (outcome[1] if training else [outcome])]


def contenders(
    names: list[str], size: Size, training: bool, seed: int
) -> tuple[dict[str, Contender], dict[str, float]]:
    """Contenders that agree with the reference, and the norm ratio of those that do not."""
    found: dict[str, Contender] = {}
    dropped: dict[str, float] = {}
    p = reference.problem(size, seed)
    for name in names:
        one = make(name, size, p, training)
        expected = (
            reference.gradients(p, size, learns(name))
            if training
            else [reference.outputs(p, size, learns(name))]
        )
        one.error = harness.norm_ratio(result(one.run(), training), expected)
        if one.error <= TOLERANCE:
            found[name] = one
        else:
            dropped[name] = one.error
            print(f"  dropped {name}: {one.error:.2g} from float64, allowed {TOLERANCE:.0e}")
    return found, dropped


def measure(
    names: list[str], size: Size, training: bool, options: Options, rounds: int, repeats: int
) -> dict[str, Any]:
    """One group of rows: contenders at one size, forward or train, and their ratios to plain."""
    found, dropped = contenders(names, size, training, options.seed)
    seconds = harness.interleave({n: c.run for n, c in found.items()}, rounds, repeats)
    rows = {
        name: {
            **harness.summary(seconds[name]),
            "compile_s": None if one.compile_seconds is None else round(one.compile_seconds, 2),
            "temp_bytes": one.temp_bytes,
            "error": one.error,
        }
        for name, one in found.items()
    }
    return {
        **size._asdict(),
        "mode": "train" if training else "forward",
        "rounds": rounds,
        "products": round(in_place_jax.products(size, training), 3),
        "contenders": rows,
        "over_plain": {n: harness.ratio(seconds, n, "plain") for n in found if n != "plain"},
        "over_ours": {n: harness.ratio(seconds, n, "ours") for n in found if n != "ours"},
        "dropped": dropped,
    }


def memory(chunk: int, length: int, d: int, f: int) -> dict[str, Any]:
    """XLA's plan of temporary bytes, outputs and all gradients, float32; nothing is run."""
    size = Size(length, chunk, d, f)
    shapes = (d, f), (length, f), (length, d), (length, d)
    inputs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]

    def plan(name: str) -> int | None:
        layer = in_place_jax.LAYERS[name](size)

        def both(w0, z, v, dy):
            y, pull = jax.vjp(layer, w0, z, v)
            return y, pull(dy)

        return compiled.temporary(jax.jit(both).lower(*inputs).compile())

    names = ("plain", "ours", "materialised")
    return {**size._asdict(), "temp_bytes": {name: plan(name) for name in names}}


def main(options: Options) -> dict[str, Any]:
    """Run everything; returns the record that was written."""
    names = ["plain", "ours", "materialised"]
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(harness.cores())
        names += ["torch plain", "torch eager"]
    else:
        print("torch is not installed, so its contender is left out: pip install '.[bench]'")
    record = harness.circumstances(PACKAGES)
    record |= {"seed": options.seed, "rounds": options.rounds, "dtype": "float32"}
    record |= {"backend": jax.default_backend(), "groups": [], "memory": []}
    sizes = (Size(45, 8, 6, 10), Size(64, 16, 8, 12)) if options.quick else SIZES
    for size, training in itertools.product(sizes, (False, True)):
        print(*size, "train" if training else "forward", flush=True)
        record["groups"].append(measure(names, size, training, options, options.rounds, 2))
    for training in (False, True):  # an order of magnitude slower: for the record
        few = min(3, options.rounds)
        found = measure(["plain", "ours", "scores"], sizes[0], training, options, few, 1)
        record["groups"].append(found)
    length, d, f = (64, 8, 12) if options.quick else LARGE
    for chunk in (8, 16) if options.quick else (512, 1024, 4096):
        print("memory, C", chunk, flush=True)
        record["memory"].append(memory(chunk, length, d, f))
    out = options.out or ROOT / ("build" if options.quick else "benchmarks/results")
    out = out if out.suffix else out / "in_place.json"
    harness.save(record, out)
    page = in_place_page.tables(record)
    print(page)
    if not options.quick:
        docs = ROOT / "docs" / "performance.md"
        docs.write_text(harness.between_markers(docs.read_text(), "in_place", page))
    return record


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    harness.keep_to(arguments.cores)
    main(arguments)
    sys.exit(0)
