"""Step time of one recurrent layer over whole sequences, beside PyTorch and an LSTM.

    python benchmarks/rnn.py            half an hour on two cores; rewrites the JSON and the page
    python benchmarks/rnn.py --quick    two minutes, small sizes; writes build/rnn.json only

"train" is the value of a random projection of the activities with its gradients to parameters and
inputs. Every contender is checked against a float64 reference first and dropped if it is wrong.
"""

import dataclasses
import importlib.util
import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
import rnn_jax
import rnn_page
import rnn_reference as reference
import tyro
from harness import Contender

from fastweights.rules import Form

ROOT = Path(__file__).parents[1]
PACKAGES = ("fastweights", "jax", "jaxlib", "flax", "numpy", "torch")
SIZES = ((128, 11, 50), (128, 30, 100), (16, 64, 128), (16, 256, 128))  # batch, T, H
TOLERANCE = 1e-4  # norm ratio to float64; float32 rounding is fed back through the recurrence
COMPILE_WHOLE = 64  # longest sequence torch.compile gets whole: it unrolls, minutes beyond this


@dataclasses.dataclass(frozen=True)
class Options:
    """Side-by-side step times of one recurrent layer.

    Attributes:
        quick: small sizes and few rounds; leaves the documentation as it is.
        out: the JSON file; benchmarks/results/rnn.json, or build/rnn.json if quick.
        rounds: rounds per size, each contender once a round.
        seed: of parameters and inputs.
    """

    quick: bool = False
    out: Path | None = None
    rounds: int = 15
    seed: int = 0


def problem(size: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs `[B, T, 100]` and the weights `[B, T, H]` of the projection, float32 normal."""
    batch, length, hidden = size
    rng = np.random.default_rng(seed + 1)
    shapes = (batch, length, reference.FEATURES), (batch, length, hidden)
    xs, d = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return xs, d


def makers(size: tuple[int, int, int], training: bool, with_torch: bool):
    """Name -> (kind of layer, function of (p, xs, d) that makes the contender)."""
    _, length, hidden = size
    make: dict[str, tuple[str, Callable[..., Contender]]] = {}

    def ours(layer):
        return lambda p, xs, d: rnn_jax.contender(layer, p, xs, d, training)

    for form in Form:
        make[f"ours {form.value}"] = "fast", ours(rnn_jax.fast_layer(form, hidden, 1))
    for form in (Form.MATRIX, Form.ATTENTION):
        layer = rnn_jax.fast_layer(form, hidden, 1, blocks=False)
        make[f"plain scan {form.value}"] = "fast", ours(layer)
    make["flax LSTM"] = "lstm", ours(rnn_jax.lstm_layer(hidden))
    if with_torch:
        import rnn_torch

        def theirs(layer, compiled=False):
            return lambda p, xs, d: rnn_torch.contender(layer, p, xs, d, training, compiled)

        matrix, attention = rnn_torch.matrix_layer(1), rnn_torch.attention_layer(1, length)
        make["torch eager matrix"] = "fast", theirs(matrix)
        make["torch eager attention"] = "fast", theirs(attention)
        if length <= COMPILE_WHOLE:
            make["torch compile matrix"] = "fast", theirs(matrix, True)
            make["torch compile attention"] = "fast", theirs(attention, True)
        else:
            make["torch compile matrix"] = "fast", theirs(rnn_torch.matrix_layer(1, True))
        make["torch LSTM"] = "lstm", theirs(rnn_torch.lstm_layer(hidden))
    return make


def expected(kind: str, size: tuple[int, int, int], seed: int, training: bool):
    """Parameters of a kind of layer, and its float64 result.

    Activities come from the NumPy loop. Gradients come from JAX in float64, after its activities
    there were found to be the loop's.
    """
    hidden, (xs, d) = size[2], problem(size, seed)
    if kind == "fast":
        p = reference.fast_parameters(hidden, seed)
        hs = reference.fast_weights(p, xs, 1)
        layer = rnn_jax.fast_layer(Form.MATRIX, hidden, 1, blocks=False)
    else:
        p = reference.lstm_parameters(hidden, seed)
        hs, layer = reference.lstm(p, xs), rnn_jax.lstm_layer(hidden)
    return p, rnn_jax.float64_gradients(layer, p, xs, d) if training else [hs]


def contenders(
    size: tuple[int, int, int], training: bool, seed: int, with_torch: bool
) -> tuple[dict[str, Contender], dict[str, float]]:
    """Contenders that agree with the reference, and the norm ratio of those that do not."""
    found: dict[str, Contender] = {}
    dropped: dict[str, float] = {}
    targets = {kind: expected(kind, size, seed, training) for kind in ("fast", "lstm")}
    for name, (kind, make) in makers(size, training, with_torch).items():
        p, target = targets[kind]
        one = make(p, *problem(size, seed))
        outcome = one.run()
        if name.startswith("torch"):
            values = [x.detach().numpy() for x in outcome]
        else:
            values = rnn_jax.result(outcome, training)
        one.error = harness.norm_ratio(values, target)
        if one.error <= TOLERANCE:
            found[name] = one
        else:
            dropped[name] = one.error
            print(f"  dropped {name}: {one.error:.2g} from float64, allowed {TOLERANCE:.0e}")
    return found, dropped


def measure(size: tuple[int, int, int], training: bool, options: Options, with_torch: bool):
    """One row group of the result: every contender at one size, forward or train."""
    found, dropped = contenders(size, training, options.seed, with_torch)
    repeats = 3 if size[1] < 64 else 1
    seconds = harness.interleave({n: c.run for n, c in found.items()}, options.rounds, repeats)
    rows = {
        name: {
            **harness.summary(seconds[name]),
            "compile_s": None if one.compile_seconds is None else round(one.compile_seconds, 2),
            "temp_bytes": one.temp_bytes,
            "error": one.error,
        }
        for name, one in found.items()
    }
    best = lambda prefix: min(
        (n for n in found if n.startswith(prefix)),
        key=lambda n: statistics.median(seconds[n]),
        default=None,
    )
    ratios = {}
    for label, slow, fast in [
        ("plain matrix / ours attention", "plain scan matrix", "ours attention"),
        ("plain matrix / ours matrix", "plain scan matrix", "ours matrix"),
        ("plain attention / ours attention", "plain scan attention", "ours attention"),
        ("torch eager / ours auto", best("torch eager"), "ours auto"),
        ("torch compile / ours auto", best("torch compile"), "ours auto"),
        ("flax LSTM / ours auto", "flax LSTM", "ours auto"),
        ("torch LSTM / ours auto", best("torch LSTM"), "ours auto"),
    ]:
        if slow in found and fast in found:
            ratios[label] = {"slow": slow, **harness.ratio(seconds, slow, fast)}
    return {
        "batch": size[0],
        "length": size[1],
        "hidden": size[2],
        "mode": "train" if training else "forward",
        "contenders": rows,
        "ratios": ratios,
        "dropped": dropped,
    }


def crossover(hidden: int, steps: int, training: bool, options: Options) -> dict[str, Any]:
    """Matrix time over attention time as T grows; they cross where it falls below 1."""
    batch = 32 if hidden < 128 else 16
    points, ratios = [], []
    for factor in (0.5, 2.5) if options.quick else (0.5, 1.0, 1.5, 2.0, 3.0):
        size = batch, int(factor * hidden), hidden
        p = reference.fast_parameters(hidden, options.seed)
        xs, d = problem(size, options.seed)
        found = {}
        for form in (Form.MATRIX, Form.ATTENTION):
            layer = rnn_jax.fast_layer(form, hidden, steps)
            found[form.value] = rnn_jax.contender(layer, p, xs, d, training)
        rounds = 3 if options.quick else 7
        seconds = harness.interleave({n: c.run for n, c in found.items()}, rounds, 1)
        ratio = harness.ratio(seconds, "matrix", "attention")
        ratios.append((size[1], ratio["median"]))
        points.append(
            {
                "length": size[1],
                "matrix_over_attention": ratio,
                **{n + "_ms": harness.summary(seconds[n])["median_ms"] for n in found},
                **{n + "_temp_bytes": c.temp_bytes for n, c in found.items()},
            }
        )
    return {
        "batch": batch,
        "hidden": hidden,
        "steps": steps,
        "mode": "train" if training else "forward",
        "points": points,
        "crosses_at": crossing(ratios),
    }


def crossing(points: list[tuple[int, float]]) -> float | None:
    """Where the ratio falls through 1, between two points on logarithmic axes; None if nowhere."""
    for (t0, r0), (t1, r1) in itertools.pairwise(points):
        if r0 >= 1 > r1:
            share = np.log(r0) / (np.log(r0) - np.log(r1))
            return round(float(t0 * (t1 / t0) ** share), 1)
    return None


def main(options: Options) -> dict[str, Any]:
    """Run everything; returns the record that was written."""
    with_torch = importlib.util.find_spec("torch") is not None
    if with_torch:
        import torch

        torch.set_num_threads(harness.cores())
        torch.manual_seed(options.seed)
    else:
        print("torch is not installed, so its contenders are left out: pip install '.[bench]'")
    record = harness.circumstances(PACKAGES)
    sizes = ((4, 5, 8), (2, 17, 8)) if options.quick else SIZES
    record |= {"seed": options.seed, "rounds": options.rounds, "features": reference.FEATURES}
    record |= {"dtype": "float32", "backend": jax.default_backend(), "settling_steps": 1}
    record["layers"], record["crossover"] = [], []
    for size, training in itertools.product(sizes, (False, True)):
        print("batch, T, H:", *size, "train" if training else "forward", flush=True)
        record["layers"].append(measure(size, training, options, with_torch))
    widths = (8,) if options.quick else (32, 64, 128)
    for hidden, steps, training in itertools.product(widths, (1, 3), (False, True)):
        print(f"crossover H {hidden}, S {steps},", "train" if training else "forward", flush=True)
        record["crossover"].append(crossover(hidden, steps, training, options))
    out = options.out or ROOT / ("build" if options.quick else "benchmarks/results") / "rnn.json"
    harness.save(record, out)
    page = rnn_page.tables(record)
    print(page)
    if not options.quick:
        docs = ROOT / "docs" / "performance.md"
        docs.write_text(harness.between_markers(docs.read_text(), "rnn", page))
    return record


if __name__ == "__main__":
    main(tyro.cli(Options))
    sys.exit(0)
