"""In-Place TTT: a write over its spectral norm, and numbers of a write that are learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.rules import InPlace, chunk_scan, outputs
from fastweights.rules.in_place import Token
from fastweights.rules.in_place_write import spectral_norm

D, F, LR = 3, 5, 0.4


def problem(seed, length):
    rng = np.random.default_rng(seed)
    w0 = rng.normal(size=(D, F))
    return w0, rng.normal(size=(length, F)), rng.normal(size=(length, D))


def power(matrix, start):
    """Five power iterations in NumPy, from a vector `[d]`."""
    left = start
    for _ in range(5):
        left = matrix @ (matrix.T @ left)
        left = left / np.linalg.norm(left)
    return np.linalg.norm(matrix.T @ left)


def loop(w0, z, v, chunk, ids, *, decay=1.0, gain=1.0, spectral=None, limit=np.inf, cap=np.inf):
    """The definition, a chunk at a time; `spectral` is where power iterations start."""
    y, W, owner = [], w0, None
    for first in range(0, len(z), chunk):
        rows = range(first, min(first + chunk, len(z)))
        for t in rows:
            D_ = W - w0 if ids[t] == owner or owner is None else 0 * w0
            size = np.linalg.norm(D_)
            y.append((w0 + D_ * min(1, cap * np.linalg.norm(w0) / max(size, 1e-300))) @ z[t])
        before, owner = owner, ids[rows[-1]]
        if owner != before and before is not None:
            W = w0
        delta = LR * sum(np.outer(v[t], z[t]) for t in rows if ids[t] == owner)
        if spectral is not None:
            delta = delta * LR / power(delta, spectral)
        delta = delta * gain
        delta = delta * min(1, limit / np.linalg.norm(delta))
        W = w0 + decay * (W - w0) + delta
    return np.array(y)


@pytest.mark.parametrize("ids", [[1] * 13, [1] * 6 + [2] * 7])
@pytest.mark.parametrize("more", [{}, {"clip": 0.3}, {"cap": 0.2}, {"decay": 0.7}])
def test_a_write_over_its_spectral_norm_is_the_loop(ids, more):
    w0, z, v = problem(0, 13)
    with jax.enable_x64(True):
        start = np.asarray(jax.random.normal(jax.random.key(0), (D,), jnp.float32))
        args = [jnp.asarray(x) for x in (w0, z, v)]
        segments = None if len(set(ids)) == 1 else jnp.asarray(ids)
        how = {"chunk": 4, "lr": LR, "spectral": True, "segments": segments}
        form = lambda *a: jnp.sum(jnp.sin(chunk_scan(*a, **how, **more, final=False)[0]))
        y, _ = chunk_scan(*args, **how, **more)
        grads = jax.jit(jax.grad(form, argnums=(0, 1, 2)))(*args)
    plain = {"limit" if k == "clip" else k: x for k, x in more.items()}
    value = lambda *a: loop(*a, 4, ids, spectral=start, **plain)
    # the last chunk of 13 is not complete: the loop writes it, and no token reads it
    assert_close(y, value(w0, z, v), "float64")
    for i, grad in enumerate(grads):
        way = np.random.default_rng(i).normal(size=grad.shape)
        ends = [
            np.sum(np.sin(value(*(x + s * way if j == i else x for j, x in enumerate((w0, z, v))))))
            for s in (1e-6, -1e-6)
        ]
        slope = (ends[0] - ends[1]) / 2e-6
        assert slope == pytest.approx(float(np.sum(np.asarray(grad) * way)), rel=1e-5, abs=1e-6)


def test_the_spectral_norm_is_the_largest_singular_value():
    """Exact for rank 1, never above it, and close where the second one is half of it."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=7), rng.normal(size=9)
    assert_close(spectral_norm(jnp.outer(jnp.asarray(a), b)), np.linalg.norm(a) * np.linalg.norm(b))
    for seed in range(5):
        left, right = (
            np.linalg.qr(np.random.default_rng(seed + s).normal(size=(8, 8)))[0] for s in (0, 9)
        )
        matrix = left @ np.diag(0.5 ** np.arange(8)) @ right
        found = float(spectral_norm(jnp.asarray(matrix, jnp.float32)))
        assert 0.999 <= found <= 1 + 1e-6
    assert spectral_norm(jnp.zeros((3, 4))) == 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"cap": 0.3}, {"clip": 0.5}, {"clip": 0.5, "clip_after_lr": False}]
)
def test_learned_decay_and_gain_have_the_slope_of_the_loop(options, packed):
    """Outputs, and the gradients to λ and to the gain of η, in float64."""
    w0, z, v = problem(1, 19)
    ids = [1] * 7 + [2] * 12 if packed else [1] * 19
    numbers = {"decay": 0.8, "gain": 1.3}

    def plain(decay, gain):
        limit = options.get("clip", np.inf)
        limit *= 1 if options.get("clip_after_lr", True) else LR * gain
        more = {"limit": limit, "cap": options.get("cap", np.inf)}
        return loop(w0, z, v, 3, ids, decay=decay, gain=gain, **more)

    with jax.enable_x64(True):
        rule = InPlace(lr=LR, chunk_size=3, **options)
        args = [jnp.asarray(x) for x in (w0, z, v)]
        segments = jnp.asarray(ids) if packed else None

        def ours(numbers):
            state = rule.init(args[0], jnp.float64, **numbers)
            return outputs(rule, state, Token(*args[1:]), segment_ids=segments)

        numbers_ = {k: jnp.asarray(x) for k, x in numbers.items()}
        y, slopes = ours(numbers_), jax.grad(lambda n: jnp.sum(jnp.sin(ours(n))))(numbers_)
        for name in numbers:  # each alone takes another way through the scans
            alone = ours({name: numbers_[name]})
            kept = {"decay": 1.0, "gain": 1.0} | {name: numbers[name]}
            assert_close(alone, plain(**kept), "float64", name)
    assert_close(y, plain(**numbers), "float64")
    for name, slope in slopes.items():
        ends = [np.sum(np.sin(plain(**numbers | {name: numbers[name] + s}))) for s in (1e-6, -1e-6)]
        assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7), name
