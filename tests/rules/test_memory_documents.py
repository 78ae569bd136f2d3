"""Packed documents and padding of linear attention and the delta rules."""

import jax
import jax.numpy as jnp
import numpy as np
from tolerances import assert_close

from fastweights.rules import run
from rules.memory_cases import (
    K,
    V,
    check,
    every_rule,
    example,
    expected,
    extremes,
    outcome,
    packed_rows,
    segment_ids,
    stack,
)


@every_rule
def test_packed_documents_equal_the_equations(rule):
    """Documents that end inside a chunk, several in one, padding between and at the end."""
    segments = np.stack([segment_ids(row) for row in packed_rows()])
    rows = [example(rule, seed, 150) for seed in range(len(segments) - 1)]
    # the last row has hard gates as well
    rows.append(example(rule, 9, 150, **extremes(150)["gates in turn"]))
    check(rule, stack(*rows), segments)


@every_rule
def test_packed_documents_equal_each_document_alone(rule):
    row = [(1, 20), (0, 5), (2, 20), (3, 20), (4, 20), (0, 40), (5, 20), (6, 20)]
    case = example(rule, 5, 165)
    together = outcome(rule, stack(case), segment_ids(row)[None], 64)
    at = 0
    for document, length in row:
        piece = lambda x, a=at, n=length: x[a : a + n]
        if document:
            start = case["S"] if document == 1 else 0 * case["S"]
            alone = {"S": start, "tokens": jax.tree.map(piece, case["tokens"])}
            # the final state is that of the last document
            alone |= {"d_S": case["d_S"] * (at + length == 165), "d_ys": piece(case["d_ys"])}
            result = outcome(rule, stack(alone), None, 64)
            for name in ("y", *(f"d{slot}" for slot in rule.slots)):
                assert_close(piece(together[name][0]), result[name][0], what=f"{name}, {document}")
        at += length
    assert_close(together["S"], result["S"])


@every_rule
def test_starts_of_documents_are_arguments_of_a_chunk(rule):
    """A document may start at the first token of a chunk, and at every token."""
    case = example(rule, 2, 9)
    state = rule.init(K, V)._replace(S=jnp.asarray(case["S"], jnp.float32))
    tokens = rule.token(**jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), case["tokens"]))
    for starts in (np.arange(9) == 0, np.arange(9) % 4 == 0, np.ones(9, bool)):
        final, ys = rule.chunk(state, tokens, jnp.asarray(starts))
        ids, fresh = 1 + np.cumsum(starts), case | {"S": 0 * case["S"]}
        wanted = expected(rule, stack(fresh), ids[None])
        assert_close(ys, wanted["y"][0])
        assert_close(final.S, wanted["S"][0])


@every_rule
def test_masked_tokens_leave_the_state_bitwise_unchanged(rule):
    """Whatever they hold, and padding behind a sequence leaves its final state as it is."""
    rng = np.random.default_rng(0)
    start = rule.init(K, V)._replace(S=jnp.asarray(rng.normal(size=(K, V)), jnp.float32))
    for value in (1e3, -np.inf, np.nan):
        sizes = {"K": (9, K), "V": (9, V), "": (9,)}
        tokens = rule.token(**{n: jnp.full(sizes[s.axis], value) for n, s in rule.slots.items()})
        nothing = rule.mask(tokens, jnp.zeros(9, bool))
        for chunk in (None, 4, 16):
            final, ys = run(rule, start, nothing, chunk=chunk)
            np.testing.assert_array_equal(final.S, start.S)
            assert np.isfinite(ys).all()
