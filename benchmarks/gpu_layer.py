"""Sections of `gpu.py` without a model: the device's ceilings, and one in-place layer."""

import gc
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import compiled
import harness
import in_place_jax
import in_place_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
from gpu_sizes import Scale
from in_place_reference import Problem, Size
from jax import Array

CALLS = 10  # of what takes less than a millisecond, before it is waited for
#: norm ratio to float64 of a small layer in bfloat16, whose numbers have 8 bits
TOLERANCE = 2e-2


def attempt(function: Callable[[], Any]) -> Any:
    """What the function returns; None where it needs more memory than the device has."""
    try:
        return function()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "ut of memory" not in str(error):
            raise
    gc.collect()  # beyond the handler: the error's frames hold arrays
    return None


def ceilings(scale: Scale, seed: int) -> dict[str, Any]:
    """Bytes a second of a copy, read and written, and FLOP/s of bfloat16 products."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], scale.copied, jnp.bfloat16)
    runs = {"copy": compiled.contender(jnp.negative, x, calls=CALLS).run}
    for n in scale.gemms:
        a, b = (jax.random.normal(key, (n, n), jnp.bfloat16) for key in keys[1:])
        runs[f"gemm {n}"] = compiled.contender(jnp.dot, a, b, calls=CALLS).run
    seconds = harness.interleave(runs, scale.rounds, 1)
    each = {name: statistics.median(s) / CALLS for name, s in seconds.items()}
    products = {str(n): 2 * n**3 / each[f"gemm {n}"] for n in scale.gemms}
    return {"copy_bytes_s": 2 * x.nbytes / each["copy"], "gemm_flops_s": products}


def inputs(size: Size, seed: int) -> tuple[Array, ...]:
    """W0, z, v, dy of a layer, bfloat16 normal, made on the device."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = (size.d, size.f), (size.length, size.f), *[(size.length, size.d)] * 2
    w0, *rest = (jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(keys, shapes, strict=True))
    return (w0 / size.f**0.5, *rest)


def check(size: Size, seed: int) -> dict[str, float]:
    """Norm ratios of a small bfloat16 layer and its gradients to float64, forward and train.

    Raises:
        ValueError: one is larger than bfloat16 explains.
    """
    arrays = inputs(size, seed)
    p = Problem(*(np.asarray(x, np.float32) for x in arrays))
    found = {}
    for name, training in itertools.product(("ours", "materialised"), (False, True)):
        outcome = compiled.contender(in_place_jax.function(name, size, training), *arrays).run()
        actual = list(outcome[1]) if training else [outcome]
        expected = reference.gradients(p, size) if training else [reference.outputs(p, size)]
        ratio = harness.norm_ratio([np.asarray(x, np.float32) for x in actual], expected)
        if ratio > TOLERANCE:
            raise ValueError(f"{name} is {ratio:.2g} from float64, allowed {TOLERANCE}")
        found[f"{name}, {'train' if training else 'forward'}"] = ratio
    return found


def layers(scale: Scale, seed: int) -> dict[str, Any]:
    """The in-place layer, forward and train, beside plain and materialised, at every C."""
    groups = []
    for chunk, training in itertools.product(scale.chunks, (False, True)):
        size = Size(scale.layer[0], chunk, *scale.layer[1:])
        groups.append(one_layer(size, training, scale.rounds, seed))
        gc.collect()
    return {"errors": check(Size(512, 128, 64, 256), seed), "groups": groups}


def one_layer(size: Size, training: bool, rounds: int, seed: int) -> dict[str, Any]:
    """Milliseconds, temporary bytes and FLOP/s of each contender at one size."""
    arrays = inputs(size, seed)
    found: dict[str, harness.Contender] = {}
    for name in ("plain", "ours", "materialised"):
        function = in_place_jax.function(name, size, training)

        def started(function: Callable[..., Any] = function) -> harness.Contender:
            one = compiled.contender(function, *arrays)
            one.run()
            return one

        one = attempt(started)
        if one is not None:
            found[name] = one
    seconds = harness.interleave({n: c.run for n, c in found.items()}, rounds, 1)
    # one product of the plain layer is 2 T d f; ours has this many times as many
    plain = 2.0 * size.length * size.d * size.f * (3 if training else 1)
    products = {"plain": 1.0, "ours": in_place_jax.products(size, training)}
    return {
        **size._asdict(),
        "mode": "train" if training else "forward",
        "contenders": {
            name: harness.summary(seconds[name])
            | {
                "us_per_chunk": 1e6 * statistics.median(seconds[name]) / size.chunks,
                "temp_bytes": one.temp_bytes,
                "flops_s": plain * products[name] / statistics.median(seconds[name])
                if name in products
                else None,
            }
            for name, one in found.items()
        },
        "over_plain": {n: harness.ratio(seconds, n, "plain") for n in found if n != "plain"},
        "out_of_memory": [n for n in ("plain", "ours", "materialised") if n not in found],
    }
