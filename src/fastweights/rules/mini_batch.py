"""Mini-batches of inner learning: which weights each token of a block is learnt and read with.

A mini-batch is `batch` tokens of one document, counted from the document's start; a token that is
not stored takes no place in it. Gradients are taken at the weights of the mini-batch's start.

A block of at most `batch` tokens meets at most three sets of such weights, so its gradients are
three products and no loop:

    0   the state's weights: the rest of the mini-batch that the state has begun
    1   the weights after that mini-batch
    2   the weights that documents start from, for all documents that begin inside the block

No mini-batch of the last two can become complete inside the block.
"""

import abc
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import Rule, State, scan, sequence_length
from fastweights.rules.drive import by_chunks, run


class Token(NamedTuple):
    """One time step as the rule sees it."""

    q: Array  # [K], the query
    k: Array  # [K], the key
    v: Array  # [V], the target
    beta: Array | None = None  # [], multiplies the token's inner gradient; None is 1
    store: Array | None = None  # [] bool, False leaves the state as it is, mini-batch included


class Places(NamedTuple):
    """Where each token of a block stands."""

    group: Array  # [n] int32, which weights: 0, 1, 2 as above
    place: Array  # [n] int32, stored tokens of its mini-batch so far, the token itself included
    stored: Array  # [n] bool
    document: Array  # [n] int32, 0 for the one that goes on from the state
    full: Array  # [] bool, the state's mini-batch becomes complete


def stored_tokens(tokens: Token) -> Array:
    """`[n]` bool, which of several tokens are stored."""
    if tokens.store is None:
        return jnp.ones(sequence_length(tokens), bool)
    return tokens.store


def places(count: Array, stored: Array, starts: Array | None, batch: int) -> Places:
    """Place the tokens of a block.

    Args:
        count: `[]` int32, stored tokens of the state's mini-batch.
        stored: `[n]` bool, n <= batch.
        starts: `[n]` bool, document starts; the first one is taken as False, since the state has
            begun that document.
        batch: tokens of a mini-batch.
    """
    total = jnp.cumsum(stored, dtype=jnp.int32)
    placed = count + total
    group = (placed > batch).astype(jnp.int32)
    place = placed - batch * group
    document = jnp.zeros_like(total)
    if starts is not None:
        starts = starts.at[0].set(False)
        document = jnp.cumsum(starts, dtype=jnp.int32)
        before = jax.lax.cummax(jnp.where(starts, total - stored, 0))
        group = jnp.where(document > 0, 2, group)
        place = jnp.where(document > 0, total - before, place)
    own = jnp.sum(stored & (document == 0), dtype=jnp.int32)
    return Places(group, place, stored, document, count + own >= batch)


Form = Callable[[State, Any, Array | None], tuple[State, Array]]


def in_blocks(
    rule: Rule, batch: int, form: Form, state: State, tokens: Any, starts: Array | None
) -> tuple[State, Array]:
    """Run `form` on blocks of `batch` tokens in turn; the backward pass computes it a second time.

    A scan saves the intermediate values of every step for its backward pass. Here it saves the
    tokens and, of the states, only the first.
    """

    def whole(state: State, tokens: Any, starts: Array | None) -> tuple[State, Array]:
        if sequence_length(tokens) <= batch:
            return form(state, tokens, starts)
        return by_chunks(rule, state, tokens, starts, batch, form)

    return jax.checkpoint(whole)(state, tokens, starts)


def root(length: int, batch: int) -> int:
    """Tokens of √n mini-batches, of the n of a row, rounded.

    A row in pieces of this size, each one `in_blocks`, holds the √n states between the pieces and
    the intermediate values of √n inner steps inside of one piece.
    """
    return batch * max(1, math.isqrt(-(-length // batch)))


class MiniBatchRule(Rule):
    """A rule that learns in mini-batches of `batch` tokens, and its forms for many tokens."""

    batch: int

    def problems(self) -> list[str]:
        """See `Rule.problems`."""
        good = self.batch >= 1
        return [] if good else [f"batch is {self.batch}; it must be at least 1"]

    @abc.abstractmethod
    def block(
        self, state: State, tokens: Token, starts: Array | None, *, aligned: bool = False
    ) -> tuple[State, Array]:
        """At most `batch` tokens together; `aligned`: the state has no tokens that wait."""

    def mask(self, tokens: Token, valid: Array) -> Token:
        """Tokens with `store` False where `valid` is False."""
        return tokens._replace(store=valid if tokens.store is None else tokens.store & valid)

    def chunk(
        self, state: State, tokens: Token, starts: Array | None = None
    ) -> tuple[State, Array]:
        """A chunk that the backward pass computes a second time; equal to `scan`."""
        form = functools.partial(scan, self) if self.batch == 1 else self.block
        batch = sequence_length(tokens) if self.batch == 1 else self.batch
        return in_blocks(self, batch, form, state, tokens, starts)

    def sequence(self, state: State, tokens: Token, segment_ids: Array | None) -> Array | None:
        """A scan over pieces of √n mini-batches, of the n of a row, each in the form of `chunk`."""
        size = root(sequence_length(tokens), self.batch)
        if self.batch == 1 or segment_ids is not None or tokens.store is not None:
            return run(self, state, tokens, chunk=size, segment_ids=segment_ids)[1]
        aligned = functools.partial(self.block, aligned=True)
        form = functools.partial(in_blocks, self, self.batch, aligned)
        return by_chunks(self, state, tokens, None, size, form)[1]

    def example(
        self, key: Array, length: int, extreme: bool = False, size: tuple[int, int] = (4, 3)
    ) -> tuple[State, Token]:
        """A random state and `length` tokens, most of them stored; see `Rule.example`."""
        state, tokens = super().example(key, length, extreme, size)
        store = jax.random.bernoulli(jax.random.fold_in(key, 3), 0.7, (length,))
        return state, tokens._replace(store=store)
