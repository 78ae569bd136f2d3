"""In-Place TTT with any inner loss and optimiser: the general form.

With D the sum of the steps since a document's start, where the weights were W0, a chunk of C
tokens is

    read     y_t = (W0 + D) z_t                              for every token t of the chunk
    write    g = ∇_W Σ_t loss(W z_t, v_t) at W0 + D          once, when the chunk is complete
             D <- D + step of the optimiser along g

The optimiser sees D as its weights, so weight decay is forgetting: it leads back to W0. A state
that waits for the rest of its chunk carries the sum of the gradients so far.

The rule of the paper is −⟨W z, v⟩ with gradient descent, which has a reversible scan of its own. In
the general case the write of a chunk depends on the weights, so the backward pass computes the
weights again.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import Rule, select, sequence_length
from fastweights.rules.drive import by_chunks, document_starts, run
from fastweights.rules.inner import inner_step
from fastweights.rules.losses import Loss
from fastweights.rules.mini_batch import in_blocks, root, stored_tokens
from fastweights.rules.optimizers import Optimizer

Learner = tuple[Loss, Optimizer]


def chunk_gradient(loss: Loss, weights: Array, z: Array, v: Array, chosen: Array) -> Array:
    """∇_W Σ_t loss(W z_t, v_t) of some tokens: `[d, f]`, `[C, f]`, `[C, d]`, `[C]` -> `[d, f]`."""
    z, v = z.astype(weights.dtype), v.astype(weights.dtype)

    def total(weights: Array) -> Array:
        return jnp.sum(jnp.where(chosen, jax.vmap(loss)(z @ weights.T, v), 0))

    return jax.grad(total)(weights)


def complete(optimizer: Optimizer, state: Any, full: Array) -> Any:
    """The state with the step of its chunk taken, if it is `full`."""
    added = state.weights - state.slow
    step, after = inner_step(optimizer, added, state.optimizer, state.pending, full)
    return state._replace(
        weights=jnp.where(full, state.weights + step.astype(added.dtype), state.weights),
        pending=jnp.where(full, 0, state.pending),
        count=jnp.where(full, 0, state.count),
        optimizer=after,
    )


def write(learner: Learner, chunk_size: int, state: Any, token: Any) -> Any:
    """The state with one token in its chunk, unless its `store` is False."""
    loss, optimizer = learner
    g = chunk_gradient(loss, state.weights, token.z[None], token.v[None], jnp.ones(1, bool))
    added = state._replace(pending=state.pending + g, count=state.count + 1)
    return select(token.store, complete(optimizer, added, added.count >= chunk_size), state)


def block(
    rule: Rule,
    learner: Learner,
    chunk_size: int,
    state: Any,
    tokens: Any,
    starts: Array | None,
    *,
    aligned: bool = False,
) -> tuple[Any, Array]:
    """At most C tokens, which lie in two chunks: one gradient and one product with W for each.

    Args:
        rule: the rule, for its `reset` and `read`.
        learner: the inner loss and optimiser.
        chunk_size: C.
        state: the state before the block.
        tokens: leaves `[n, ...]`.
        starts: `[n]` bool, document starts, or None.
        aligned: the block begins with a chunk, so it is no more than one.
    """
    loss, optimizer = learner
    stored = stored_tokens(tokens)
    before = state.count + jnp.cumsum(stored, dtype=jnp.int32) - stored

    def part(state: Any, here: Array) -> tuple[Any, Array]:
        """The state with the tokens `here`, of one chunk, added; and their outputs."""
        read = lambda state: jax.vmap(lambda z: rule.read(state, z))(tokens.z)
        ys, newest = read(state), here
        if starts is not None:
            begun, begins = rule.reset(state), jnp.cumsum(here & starts)
            ys = jnp.where((begins > 0)[:, None], read(begun), ys)
            state = select(begins[-1] > 0, begun, state)
            newest = here & (begins == begins[-1])
        g = chunk_gradient(loss, state.weights, tokens.z, tokens.v, stored & newest)
        count = state.count + jnp.sum(stored & here, dtype=jnp.int32)
        return state._replace(pending=state.pending + g, count=count), ys

    first = before < chunk_size
    state, ys = part(state, first)
    state = complete(optimizer, state, state.count >= chunk_size)
    if not aligned:
        state, more = part(state, ~first)
        ys = jnp.where(first[:, None], ys, more)
    return state, ys


def chunk(
    rule: Rule,
    learner: Learner,
    chunk_size: int,
    state: Any,
    tokens: Any,
    starts: Array | None,
) -> tuple[Any, Array]:
    """Any number of tokens from any place in a chunk; the backward pass computes each again."""
    form = functools.partial(block, rule, learner, chunk_size)
    return in_blocks(rule, chunk_size, form, state, tokens, starts)


def sequence(
    rule: Rule,
    learner: Learner,
    chunk_size: int,
    state: Any,
    tokens: Any,
    segment_ids: Array | None,
) -> Array:
    """Outputs of a row from its start; it holds about √n matrices W, of n chunks."""
    size = root(sequence_length(tokens), chunk_size)
    if tokens.store is not None:
        return run(rule, state, tokens, chunk=size, segment_ids=segment_ids)[1]
    starts = None
    if segment_ids is not None:
        starts, valid = document_starts(segment_ids)
        tokens = rule.pad(tokens, valid)  # padding takes its places: chunks stay on their grid
    aligned = functools.partial(block, rule, learner, chunk_size, aligned=True)
    form = functools.partial(in_blocks, rule, chunk_size, aligned)
    return by_chunks(rule, state, tokens, starts, size, form)[1]
