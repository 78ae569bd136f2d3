"""Attention over the cache against its sums in float64, and what is put where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastweights.nn import attention_cached
from fastweights.nn.attention_cached import Cache, attend_cached
from fastweights.nn.layer import put

ROWS, KV, SLOTS, SIZE = 3, 2, 11, 4


def cache(seed, dtype=np.float32):
    """Keys and values of full rows."""
    keys = jax.random.split(jax.random.key(seed))
    return tuple(jax.random.normal(key, (ROWS, KV, SLOTS, SIZE), dtype) for key in keys)


def attended(q, k, v, positions, window):
    """`attend_cached` in the second layer of a stack of two."""
    stack = Cache(*(jnp.stack([jnp.full_like(x, jnp.nan), x]) for x in (k, v)))
    return attend_cached(q, stack, 1, jnp.asarray(positions), window)


def reference(q, k, v, positions, window):
    """A query, a head and a slot at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        head = n // (q.shape[2] // KV)
        first = 0 if window is None else max(0, positions[b, t] - window + 1)
        slots = [s for s in range(SLOTS) if first <= s <= positions[b, t]]
        scores = np.array([q[b, t, n] @ k[b, head, s] / SIZE**0.5 for s in slots])
        weights = np.exp(scores - scores.max())
        for weight, s in zip(weights / weights.sum(), slots, strict=True):
            out[b, t, n] += weight * v[b, head, s]
    return out


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("per_group", [1, 3])
@pytest.mark.parametrize(("tokens", "block"), [(1, 256), (1, 4), (1, 1), (4, 256)])
def test_attention_over_the_cache_is_its_sums(tokens, block, per_group, window, monkeypatch):
    """One token has products of its own, several have jax's; what is not seen yet is large.

    Slots are no multiple of the blocks, so that the last block has slots of the one before.
    """
    monkeypatch.setattr(attention_cached, "BLOCK", block)
    k, v = cache(0)
    q = 3 * jax.random.normal(jax.random.key(1), (ROWS, tokens, KV * per_group, SIZE))
    positions = np.array([[0], [5], [SLOTS - tokens]]) + np.arange(tokens)
    unseen = np.arange(SLOTS)[None, None, :, None] > positions.max(1)[:, None, None, None]
    found = attended(q, jnp.where(unseen, 1e9, k), jnp.where(unseen, 1e9, v), positions, window)
    wanted = reference(q, k, v, positions, window)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_a_row_that_has_no_slot_left_to_see_gives_numbers():
    """A full row that has ended goes on in the batch, beyond a window of one token."""
    k, v = cache(0)
    q = jnp.ones((ROWS, 1, KV, SIZE))
    found = attended(q, k, v, np.full((ROWS, 1), SLOTS), 1)
    assert np.isfinite(found).all()


def test_one_token_in_bfloat16_is_rounded_at_its_ends_only():
    k, v = cache(2, jnp.bfloat16)
    q = jax.random.normal(jax.random.key(3), (ROWS, 1, KV, SIZE), jnp.bfloat16)
    positions = np.full((ROWS, 1), SLOTS - 1)
    found = attended(q, k, v, positions, None)
    assert found.dtype == jnp.bfloat16
    wanted = reference(q, k, v, positions, None)
    # of weights, products and result, 8 bits each
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=2**-7, atol=2**-7)


def test_a_token_does_not_read_the_slots_after_it(monkeypatch):
    """Their blocks, on a CPU: what they hold costs no time, and NaN is not seen."""
    monkeypatch.setattr(attention_cached, "BLOCK", 4)
    k, v = cache(0)
    q = jnp.ones((ROWS, 1, KV, SIZE))
    after = jnp.arange(SLOTS)[None, None, :, None] >= 8
    filled = attended(
        q, *(jnp.where(after, jnp.nan, x) for x in (k, v)), np.full((ROWS, 1), 6), None
    )
    assert np.isfinite(filled).all()
    first = jnp.arange(SLOTS)[None, None, :, None] < 4
    near = attended(q, *(jnp.where(first, jnp.nan, x) for x in (k, v)), np.full((ROWS, 1), 6), 2)
    assert np.isfinite(near).all()


@pytest.mark.parametrize("axis", [2, 3])
def test_new_tokens_are_put_in_their_rows_slots_and_nowhere_else(axis):
    shape = (2, ROWS, KV, SLOTS, SIZE) if axis == 3 else (2, ROWS, SLOTS, KV, SIZE)
    x = np.asarray(jax.random.normal(jax.random.key(0), shape))
    new = np.asarray(jax.random.normal(jax.random.key(1), (ROWS, 2, KV, SIZE)))
    slots = np.array([[0, 1], [7, SLOTS], [SLOTS, SLOTS + 3]])  # from SLOTS on there are none
    wanted = x.copy()
    for b, t in np.ndindex(slots.shape):
        if slots[b, t] < SLOTS:
            at = (1, b, slots[b, t]) if axis == 2 else (1, b, slice(None), slots[b, t])
            wanted[at] = new[b, t]
    found = put(jnp.asarray(x), 1, jnp.asarray(slots), jnp.asarray(new), axis)
    np.testing.assert_array_equal(found, wanted)
