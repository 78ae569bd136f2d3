"""Hebbian fast weights with a settling read (Ba et al. 2016, arXiv 1610.06258).

The state is a matrix A beside the activity. With z the "sustained boundary condition" (what the
slow weights send, W h + C x in the paper), f = ReLU, decay λ and fast learning rate η:

    read     h_0 = f(z),   h_{s+1} = f(norm(z + A h_s)),   s = 0 .. S-1
    write    A <- λ A + η h hᵀ,   h = h_S                  (after settling, once per token)

Because A = η Σ_i λ^i h_i h_iᵀ over the past h (newest first), A h = η Σ_i λ^i h_i (h_i · h):
attention over the recent past with no softmax and weights that fade. That gives two forms of one
meaning, chosen by `Form`: the explicit matrix costs (2S+3) H² FLOPs a token, the attention form
4 S t H at token t. A `Block` has both: what was before a block of tokens in its own form, and what
the block wrote as activities.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import Rule, scan, sequence_length

Norm = Callable[[Array], Array]
Recall = Callable[[Array], Array]


class Form(enum.Enum):
    """How the fast matrix is kept: as itself, or as the activities it is made of."""

    AUTO = "auto"
    MATRIX = "matrix"
    ATTENTION = "attention"


class Matrix(NamedTuple):
    """The fast weights as a matrix."""

    A: Array  # [H, H] float32


class History(NamedTuple):
    """The fast weights as the last M activities written, in a ring; unused rows are zero."""

    keys: Array  # [M, H] float32
    count: Array  # [] int32, writes so far; the next one goes to row count mod M


class Block(NamedTuple):
    """Fast weights while a block of tokens is read: as they were before it, and the block's writes.

    `past` goes through a scan over the block unchanged, and JAX saves what does not change once for
    the backward pass, not once per token.
    """

    past: Matrix | History
    recent: History


Fast = Matrix | History | Block


class Token(NamedTuple):
    """One time step as the rule sees it."""

    boundary: Array  # [H], z = W h + C x, added at every settling step
    store: Array | None = None  # [] bool, False leaves the state as it is; None always stores


def layer_norm(x: Array, eps: float = 1e-5) -> Array:
    """Zero mean, unit population variance over the last axis (Ba, Kiros, Hinton 2016), no gain."""
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)


def write_matrix(A: Array, h: Array, decay: float, lr: float) -> Array:
    """λ A + η h hᵀ: `[H, H]`, `[H]` -> `[H, H]`."""
    return decay * A + lr * jnp.outer(h, h)


def write_history(keys: Array, count: Array, h: Array) -> Array:
    """Put `h [H]` in row `count` mod M of `keys [M, H]`, over the oldest."""
    return jax.lax.dynamic_update_index_in_dim(keys, h, count % len(keys), 0)


def fading(length: int, count: Array, decay: float, lr: float, dtype=jnp.float32) -> Array:
    """What `count` writes left of each row's, η λ^age: `[length]`, 0 where unused."""
    age = (count - 1 - jnp.arange(length)) % length
    return jnp.where(age < count, lr * decay ** age.astype(dtype), 0.0)


def recall_history(keys: Array, weights: Array, h: Array) -> Array:
    """A h without A: Σ_i weights_i keys_i (keys_i · h), `[M, H]`, `[M]`, `[H]` -> `[H]`."""
    return (weights * (keys @ h)) @ keys


def settle(
    recall: Recall,
    boundary: Array,
    *,
    steps: int,
    norm: Norm = layer_norm,
    start: Array | None = None,
) -> Array:
    """The settling loop: `steps` times h <- f(norm(boundary + recall(h))), f = ReLU.

    Args:
        recall: h `[H]` -> A h `[H]`, the fast weights' part; fixed while settling.
        boundary: `[H]`, what the slow weights send; added at every step.
        steps: number S of settling steps.
        norm: applied to the summed input inside f; the paper's layer norm by default.
        start: h_0 `[H]`; f(boundary), without norm, by default.
    """
    h = jax.nn.relu(boundary) if start is None else start
    for _ in range(steps):
        h = jax.nn.relu(norm(boundary + recall(h)))
    return h


@dataclasses.dataclass(frozen=True)
class Hebbian(Rule):
    """Fast weights of Ba et al. 2016.

    Attributes:
        decay: λ in [0, 1], how much of the matrix a write keeps.
        lr: η >= 0, how strongly an activity is written; 0 switches the fast weights off and leaves
            the two-stage update, the control of the paper's claim.
        steps: S >= 1, settling steps a read takes.
        form: explicit matrix or attention over the activities, a `Form` or its value; `auto` takes
            the cheaper one.

    Raises:
        ValueError: no such form.
    """

    decay: float = 0.9
    lr: float = 0.5
    steps: int = 1
    form: Form = Form.AUTO

    citation = "Ba, Hinton, Mnih, Leibo, Ionescu 2016, arXiv:1610.06258"

    def __post_init__(self):
        object.__setattr__(self, "form", Form(self.form))

    def _check(self) -> None:
        """Refuse values that mean nothing; not when made, so that a config can name all at once."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        # a traced value, as of a gradient to it, cannot be looked at
        known = lambda x: isinstance(x, int | float)
        if known(self.decay) and not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {self.decay}")
        if known(self.lr) and not self.lr >= 0:
            raise ValueError(f"lr must not be negative, got {self.lr}")

    def choose(self, size: int, length: int | None) -> Form:
        """The form `auto` stands for: attention while T < (1 + 1/S) H, where it needs fewer FLOPs.

        Over T tokens attention reads an average of T/2 activities, 2 S T H FLOPs a token; the
        matrix, in blocks, costs 2 S H² to read and 2 H² to write. Measured at H = 64 and 128, they
        cross between 1.5 and 2.3 H at S = 1 and between 0.9 and 1.7 H at S = 3
        (docs/performance.md). An unknown length (None) means a state that must take any number of
        writes: the matrix.
        """
        if self.form is not Form.AUTO:
            return self.form
        short = length is not None and length < (1 + 1 / self.steps) * size
        return Form.ATTENTION if short else Form.MATRIX

    def init(
        self, size: int, length: int | None = None, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> Matrix | History:
        """Empty fast weights for `size` = H units and at most `length` writes.

        A `History` keeps the last `length` writes and no more: after that it is the matrix without
        the terms that have faded below λ^length.

        Raises:
            ValueError: the attention form was asked for without a length, `steps` is not positive,
                or `decay` or `lr` is out of its range.
        """
        self._check()
        if self.choose(size, length) is Form.MATRIX:
            return Matrix(jnp.zeros((size, size), dtype))
        if length is None:
            raise ValueError("the attention form needs the number of writes: init(size, length)")
        return History(jnp.zeros((length, size), dtype), jnp.zeros((), jnp.int32))

    def open(self, state: Matrix | History, length: int) -> Block:
        """The same fast weights at the start of a block of `length` tokens; `close` ends it."""
        like = jax.tree.leaves(state)[0]
        keys = jnp.zeros((length, like.shape[-1]), like.dtype)
        return Block(state, History(keys, jnp.zeros((), jnp.int32)))

    def close(self, block: Block) -> Matrix | History:
        """Fold the block's writes into what was before: a matrix, or a history longer by the block.

        Of histories every row must have been written once, so no token of theirs was masked.
        """
        past, recent = block
        if isinstance(past, Matrix):
            return Matrix(self.matrix(block))
        return History(jnp.concatenate([past.keys, recent.keys]), past.count + recent.count)

    def matrix(self, state: Fast) -> Array:
        """The matrix A `[H, H]` that any form stands for."""
        if isinstance(state, Matrix):
            return state.A
        if isinstance(state, Block):
            return self.kept(state) * self.matrix(state.past) + self.matrix(state.recent)
        return jnp.einsum("i,ij,ik->jk", self.fading(state), state.keys, state.keys)

    def fading(self, state: History) -> Array:
        """How much of each kept activity's write is left, `[M]`."""
        return fading(len(state.keys), state.count, self.decay, self.lr, state.keys.dtype)

    def kept(self, block: Block) -> Array:
        """What the writes of a block so far left of its past, λ^writes: `[]`."""
        return self.decay ** block.recent.count.astype(block.recent.keys.dtype)

    def recall(self, state: Fast, h: Array) -> Array:
        """A h, `[H] -> [H]`, in the state's own form."""
        if isinstance(state, Matrix):
            return state.A @ h
        if isinstance(state, Block):
            return self.kept(state) * self.recall(state.past, h) + self.recall(state.recent, h)
        return recall_history(state.keys, self.fading(state), h)

    def write(self, state: Fast, observation: Array) -> Fast:
        """Store the settled activity `[H]`."""
        if isinstance(state, Matrix):
            h = observation.astype(state.A.dtype)
            return Matrix(write_matrix(state.A, h, self.decay, self.lr))
        keys, count = state.recent if isinstance(state, Block) else state
        history = History(write_history(keys, count, observation.astype(keys.dtype)), count + 1)
        return Block(state.past, history) if isinstance(state, Block) else history

    def read(
        self,
        state: Fast,
        query: Array,
        *,
        norm: Norm = layer_norm,
        start: Array | None = None,
    ) -> Array:
        """The activity `[H]` that settles under the boundary `query [H]`; see `settle`."""
        dtype = jax.tree.leaves(state)[0].dtype
        h = settle(
            lambda h: self.recall(state, h.astype(dtype)),
            query.astype(dtype),
            steps=self.steps,
            norm=norm,
            start=start,
        )
        return h.astype(query.dtype)

    def step(self, state: Fast, token: Token) -> tuple[Fast, Array]:
        """Read with what was stored before, then write the settled activity."""
        h = self.read(state, token.boundary)
        written = self.write(state, h)
        store = token.store
        if store is not None:
            # what no write touches must stay the same array, or a scan saves it for every token
            pick = lambda new, old: old if new is old else jnp.where(store, new, old)
            written = jax.tree.map(pick, written, state)
        return written, h

    def mask(self, tokens: Token, valid: Array) -> Token:
        """Tokens that store nothing where `valid` is False."""
        store = valid if tokens.store is None else tokens.store & valid
        return tokens._replace(store=store)

    def chunk(self, state: Matrix | History, tokens: Token) -> tuple[Matrix | History, Array]:
        """Attention inside the chunk, the matrix only at its borders.

        Equal to `scan`; a chunk of C tokens saves one matrix for the backward pass instead of C.
        """
        if isinstance(state, History):
            return scan(self, state, tokens)
        block, hs = scan(self, self.open(state, sequence_length(tokens)), tokens)
        return self.close(block), hs

    def example(
        self, key: Array, length: int, extreme: bool = False, size: int = 5
    ) -> tuple[Fast, Token]:
        """A random start and `length` tokens for `size` units; see `Rule.example`."""
        old, new, store = jax.random.split(key, 3)
        state = self.init(size, 2 * length)
        for h in jax.random.uniform(old, (length, size)):
            state = self.write(state, h)
        boundary = jax.random.normal(new, (length, size))
        if extreme:
            # from exactly zero, where the norm divides by its epsilon alone, to a thousand
            boundary = boundary * jnp.asarray([0.0, 1e-6, 1.0, 1e3])[jnp.arange(length) % 4, None]
        return state, Token(boundary, jax.random.bernoulli(store, 0.7, (length,)))
