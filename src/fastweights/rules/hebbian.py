"""Hebbian fast weights with a settling read (Ba et al. 2016, arXiv 1610.06258).

The state is a matrix A beside the activity. With z the "sustained boundary condition" (what the
slow weights send, W h + C x in the paper), f = ReLU, decay λ and fast learning rate η:

    read     h_0 = f(z),   h_{s+1} = f(norm(z + A h_s)),   s = 0 .. S-1
    write    A <- λ A + η h hᵀ,   h = h_S                  (after settling, once per token)

Because A = η Σ_i λ^i h_i h_iᵀ over the past h (newest first), A h = η Σ_i λ^i h_i (h_i · h):
attention over the recent past with no softmax and weights that fade. That gives two forms of one
meaning, chosen by `Form`: the explicit matrix costs (2S+3) H² FLOPs a token, the attention form
4 S t H at token t. A `ChunkState` has both: the state before a chunk in its own form, and the
chunk's writes as activities.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import Rule, Slot, scan, select, sequence_length
from fastweights.rules.settle import layer_norm, settle

#: steps of a chunk of a recurrent net that has the matrix before it
MATRIX_CHUNK = 16
#: fewest steps of a chunk, and most chunks, with a history that grows; each chunk is compiled
MIN_CHUNK, MAX_CHUNKS = 8, 6


class Form(enum.Enum):
    """How the fast matrix is kept: as itself, or as the activities it is made of."""

    AUTO = "auto"
    MATRIX = "matrix"
    ATTENTION = "attention"


class Matrix(NamedTuple):
    """The fast weights as a matrix."""

    S: Array  # [H, H] float32, the paper's A
    gain: Array | None = None  # [H], of the layer norm; None is 1
    bias: Array | None = None  # [H], of the layer norm; None is 0


class History(NamedTuple):
    """The fast weights as the last M activities written, in a ring; unused rows are zero."""

    keys: Array  # [M, H] float32
    count: Array  # [] int32, writes so far; the next one goes to row count mod M
    gain: Array | None = None  # [H], as of `Matrix`
    bias: Array | None = None


class ChunkState(NamedTuple):
    """Fast weights while a chunk of tokens is read: the state before it, and the chunk's writes.

    `past` goes through a scan over the chunk unchanged, and JAX saves an array that does not change
    once for the backward pass, not once per token.
    """

    past: Matrix | History
    recent: History
    #: [] int32, writes of the chunk before its last document start, -1 before the first; None where
    #: no document can start
    start: Array | None = None


Fast = Matrix | History | ChunkState


class Token(NamedTuple):
    """One time step as the rule sees it."""

    boundary: Array  # [H], z = W h + C x, added at every settling step
    store: Array | None = None  # [] bool, False leaves the state as it is; None always stores
    start: Array | None = None  # [H], h_0 of the settling; None is f(boundary)


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
    slots = {"boundary": Slot("K", "drive")}
    token_type = Token

    def __post_init__(self):
        object.__setattr__(self, "form", Form(self.form))

    def problems(self) -> list[str]:
        """See `Rule.problems`."""
        checks = [
            (0 <= self.decay <= 1, f"decay is {self.decay}; it must be from 0 to 1"),
            (self.lr >= 0, f"lr is {self.lr}; it must not be negative"),
            (self.steps >= 1, f"steps is {self.steps}; it must be at least 1"),
        ]
        return [text for good, text in checks if not good]

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
        self,
        K: int,
        V: int | None = None,
        *,
        length: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        gain: Array | None = None,
        bias: Array | None = None,
    ) -> Matrix | History:
        """Empty fast weights for K = H units and at most `length` writes.

        A `History` keeps the last `length` writes: after that it is the matrix without the terms
        that have faded below λ^length.

        Args:
            K: number of units H.
            V: the same number, or None.
            length: the most writes there will be; None is unknown.
            dtype: of the fast weights.
            gain: `[H]`, of the layer norm; None is 1.
            bias: `[H]`, of the layer norm; None is 0.

        Raises:
            ValueError: K and V differ, the attention form was asked for without a length, `steps`
                is not positive, or `decay` or `lr` is out of its range.
        """
        self._check()
        if V not in (None, K):
            raise ValueError(f"the fast matrix of activities is square, got {K} x {V}")
        if self.choose(K, length) is Form.MATRIX:
            return Matrix(jnp.zeros((K, K), dtype), gain, bias)
        if length is None:
            raise ValueError("the attention form needs the number of writes: init(K, length=...)")
        return History(jnp.zeros((length, K), dtype), jnp.zeros((), jnp.int32), gain, bias)

    def parameters(self, K: int, V: int) -> dict[str, Callable[[Array], Array]]:
        """Gain and bias of the layer norm, shared by all settling steps."""
        del V
        return {"gain": lambda key: jnp.ones(K), "bias": lambda key: jnp.zeros(K)}

    def reset(self, state: Fast) -> Fast:
        """No writes; gain and bias stay."""
        if isinstance(state, ChunkState):
            return state._replace(start=state.recent.count)
        if isinstance(state, Matrix):
            return state._replace(S=jnp.zeros_like(state.S))
        return state._replace(keys=jnp.zeros_like(state.keys), count=jnp.zeros_like(state.count))

    def begin(self, state: Matrix | History, length: int, *, documents: bool = False) -> ChunkState:
        """The same fast weights at the start of a chunk of `length` tokens; `flush` ends it.

        Args:
            state: the fast weights.
            length: tokens of the chunk.
            documents: whether documents may start inside of the chunk.
        """
        like = jax.tree.leaves(state)[0]
        keys = jnp.zeros((length, like.shape[-1]), like.dtype)
        recent = History(keys, jnp.zeros((), jnp.int32))
        return ChunkState(state, recent, jnp.full((), -1, jnp.int32) if documents else None)

    def flush(self, state: ChunkState) -> Matrix | History:
        """Fold a chunk's writes into the state before it: a matrix, or a history longer by them.

        Of histories every row must have been written once, so no token of theirs was masked, and
        no document has started.
        """
        past, recent, _ = state
        if isinstance(past, Matrix):
            return past._replace(S=self.matrix(state))
        return past._replace(
            keys=jnp.concatenate([past.keys, recent.keys]), count=past.count + recent.count
        )

    def matrix(self, state: Fast) -> Array:
        """The matrix A `[H, H]` that any form stands for."""
        if isinstance(state, Matrix):
            return state.S
        if isinstance(state, ChunkState):
            recent = self._sum(state.recent.keys, self._recent_fading(state))
            return self.kept(state) * self.matrix(state.past) + recent
        return self._sum(state.keys, self.fading(state))

    def _sum(self, keys: Array, weights: Array) -> Array:
        return jnp.einsum("i,ij,ik->jk", weights, keys, keys)

    def fading(self, state: History) -> Array:
        """How much of each kept activity's write is left, `[M]`."""
        return fading(len(state.keys), state.count, self.decay, self.lr, state.keys.dtype)

    def _recent_fading(self, state: ChunkState) -> Array:
        """`fading` of a chunk's writes: 0 for the documents before the present one."""
        weights = self.fading(state.recent)
        if state.start is None:
            return weights
        return jnp.where(jnp.arange(len(weights)) >= state.start, weights, 0)

    def kept(self, state: ChunkState) -> Array:
        """The factor of the past after the chunk's writes so far, λ^writes or 0: `[]`."""
        left = self.decay ** state.recent.count.astype(state.recent.keys.dtype)
        return left if state.start is None else jnp.where(state.start < 0, left, 0)

    def recall(self, state: Fast, h: Array) -> Array:
        """A h, `[H] -> [H]`, in the state's own form."""
        if isinstance(state, Matrix):
            return state.S @ h
        if isinstance(state, ChunkState):
            recent = recall_history(state.recent.keys, self._recent_fading(state), h)
            return self.kept(state) * self.recall(state.past, h) + recent
        return recall_history(state.keys, self.fading(state), h)

    def write(self, state: Fast, token: Array) -> Fast:
        """Store the settled activity `[H]`."""
        if isinstance(state, Matrix):
            h = token.astype(state.S.dtype)
            return state._replace(S=write_matrix(state.S, h, self.decay, self.lr))
        if isinstance(state, ChunkState):
            return state._replace(recent=self._append(state.recent, token))
        return self._append(state, token)

    def _append(self, state: History, h: Array) -> History:
        keys = write_history(state.keys, state.count, h.astype(state.keys.dtype))
        return state._replace(keys=keys, count=state.count + 1)

    def read(self, state: Fast, query: Array | Token) -> Array:
        """The activity `[H]` that settles under a boundary `[H]`, or under a token's; see `settle`.

        The result has the boundary's dtype.
        """
        token = query if isinstance(query, Token) else Token(query)
        boundary = token.boundary
        past = state.past if isinstance(state, ChunkState) else state
        dtype = jax.tree.leaves(past)[0].dtype
        h = settle(
            lambda h: self.recall(state, h.astype(dtype)),
            boundary.astype(dtype),
            steps=self.steps,
            norm=lambda x: layer_norm(x, past.gain, past.bias),
            start=token.start,
        )
        return h.astype(boundary.dtype)

    def step(self, state: Fast, token: Token) -> tuple[Fast, Array]:
        """Read with what was stored before, then write the settled activity."""
        h = self.read(state, token)
        written = self.write(state, h)
        return select(token.store, written, state), h

    def mask(self, tokens: Token, valid: Array) -> Token:
        """Tokens that store nothing where `valid` is False."""
        store = valid if tokens.store is None else tokens.store & valid
        return tokens._replace(store=store)

    def chunk(
        self, state: Matrix | History, tokens: Token, starts: Array | None = None
    ) -> tuple[Matrix | History, Array]:
        """Attention inside the chunk, the matrix only at its borders.

        Equal to `scan`; a chunk of C tokens saves one matrix for the backward pass instead of C.
        """
        if isinstance(state, History):
            return scan(self, state, tokens, starts)
        begun = self.begin(state, sequence_length(tokens), documents=starts is not None)
        inside, hs = scan(self, begun, tokens, starts)
        return self.flush(inside), hs

    def recur(
        self,
        state: Matrix | History,
        carry: Any,
        body: Callable[[Any, Any, Any], tuple[Any, Any, Any]],
        xs: Any,
        *,
        fresh: bool = False,
    ) -> tuple[Matrix | History, Any, Any]:
        """A scan whose tokens depend on earlier outputs, chunk by chunk; see `Rule.recur`.

        For the backward pass it saves the fast weights at the borders of chunks. A scan saves one
        copy a step, which takes most of its time.
        """
        length, size, pieces, first = sequence_length(xs), 0, [], 0

        def one_chunk(pair: tuple[Any, Any], xs: Any) -> tuple[tuple[Any, Any], Any]:
            begun = self.begin(pair[0], sequence_length(xs))
            inside, carry, ys = super(Hebbian, self).recur(begun, pair[1], body, xs)
            return (self.flush(inside), carry), ys

        pair = (state, carry)
        if isinstance(state, Matrix):
            size = min(length, MATRIX_CHUNK)
            first = length // size * size
            whole = jax.tree.map(lambda x: x[:first].reshape(-1, size, *x.shape[1:]), xs)
            pair, ys = jax.lax.scan(one_chunk, pair, whole)
            pieces.append(jax.tree.map(lambda y: y.reshape(first, *y.shape[2:]), ys))
        elif fresh:
            # a scan's carry has one size; this one grows, so early steps do not pay for late ones
            pair = (state._replace(keys=state.keys[:0]), carry)
            size = max(MIN_CHUNK, -(-length // MAX_CHUNKS))
        else:  # a ring of activities, some of them written: its rows stay where they are
            return super().recur(state, carry, body, xs)
        for at in range(first, length, size):
            pair, ys = one_chunk(pair, jax.tree.map(lambda x, at=at: x[at : at + size], xs))
            pieces.append(ys)
        return pair[0], pair[1], jax.tree.map(lambda *ys: jnp.concatenate(ys), *pieces)

    def example(
        self, key: Array, length: int, extreme: bool = False, size: tuple[int, int] = (5, 5)
    ) -> tuple[Fast, Token]:
        """A random start and `length` tokens for `size` units; see `Rule.example`."""
        old, new, store, norm = jax.random.split(key, 4)
        units = size[0]
        gain, bias = jax.random.normal(norm, (2, units)) / 4
        state = self.init(units, length=2 * length, gain=1 + gain, bias=bias)
        for h in jax.random.uniform(old, (length, units)):
            state = self.write(state, h)
        boundary = jax.random.normal(new, (length, units))
        if extreme:
            # from exactly zero, where the norm divides by its epsilon alone, to a thousand
            boundary = boundary * jnp.asarray([0.0, 1e-6, 1.0, 1e3])[jnp.arange(length) % 4, None]
        return state, Token(boundary, jax.random.bernoulli(store, 0.7, (length,)))
