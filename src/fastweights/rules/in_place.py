"""In-Place Test-Time Training (Feng et al. 2026, arXiv 2604.06169): the definition.

The fast weights are a matrix W, the down projection of a transformer's MLP. With z what the MLP
computes for a token and v the target its output is pulled towards, a chunk of C tokens is read
first and written after it:

    read     y_t = W z_t                  for every token t of the chunk
    write    W <- W + η Σ_t v_t z_tᵀ      once, when the chunk is complete

The write is one gradient step on `inner_loss`, -Σ_t <W z_t, v_t>, which is linear in W. So what a
chunk writes does not depend on W, and reading is linear attention in which z is key and query, v
the value, and no token sees its own chunk. Three forms of one meaning:

    `InPlace`          token by token, the definition
    `chunk_scan`       a matrix product per chunk, flat memory (in_place_scan.py)
    `attention`        no fast matrix at all: cheaper for the first 2 d f / (d + f) tokens
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from fastweights.rules.base import Rule, run, sequence_length


class Token(NamedTuple):
    """One time step as the rule sees it."""

    z: Array  # [f], key and query
    v: Array  # [d], value
    store: Array | None = None  # [] bool, False writes nothing and takes no place in the chunk


class State(NamedTuple):
    """Fast weights and the part of a chunk that waits for the rest of it."""

    weights: Array  # [d, f] float32, read by every token of the present chunk
    pending: Array  # [d, f] float32, η Σ v zᵀ of the tokens since the last write
    count: Array  # [] int32, number of those tokens
    limit: Array | None  # [] float32, largest norm of what a chunk writes; None: no limit


def inner_loss(weights: Array, z: Array, v: Array) -> Array:
    """-<Z Wᵀ, V>, summed over the tokens: `[d, f]`, `[C, f]`, `[C, d]` -> `[]`.

    One step of gradient descent on it, of size η, is one chunk's write.
    """
    return -jnp.sum((z @ weights.T) * v)


def frobenius(x: Array, axis_name: str | None = None) -> Array:
    """sqrt(Σ x²), with gradient 0 at 0; `axis_name` as in `clip_norm`."""
    square = jnp.sum(x * x)
    if axis_name is not None:
        square = jax.lax.psum(square, axis_name)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def clip_norm(delta: Array, limit: Array | None, axis_name: str | None = None) -> Array:
    """`delta` scaled down to Frobenius norm `limit` if it is longer; None leaves it.

    With `axis_name` it is a part of a matrix, of which each index of that mapped axis has another,
    and the norm is that of the whole: one number is summed over the axis.
    """
    if limit is None:
        return delta
    norm = frobenius(delta, axis_name)
    long = norm > limit
    # a write of nothing within a limit of 0 must not be divided by, or its gradient is NaN
    return delta * jnp.where(long, limit / jnp.where(long, norm, 1), 1).astype(delta.dtype)


def write_limit(
    w0: Array,
    lr: float,
    tau: float | None,
    *,
    relative: bool = False,
    after_lr: bool = True,
    axis_name: str | None = None,
) -> Array | None:
    """What `tau` means as a limit on the norm of η Σ v zᵀ: `[] float32`; None if it is None.

    Args:
        w0: `[d, f]`, the weights a sequence starts from.
        lr: η.
        tau: the largest norm of a write.
        relative: `tau` is in units of the norm of `w0`; gradients flow to it.
        after_lr: `tau` limits η Σ v zᵀ; otherwise it limits Σ v zᵀ.
        axis_name: `w0` is a part of the weights; see `clip_norm`.
    """
    if tau is None:
        return None
    dtype = jnp.promote_types(w0.dtype, jnp.float32)
    size = frobenius(w0.astype(dtype), axis_name) if relative else jnp.ones((), dtype)
    return size * (tau if after_lr else tau * abs(lr))


def attention(w0: Array, z: Array, v: Array, *, chunk: int, lr: float) -> Array:
    """Y = Z W0ᵀ + η M(Z Zᵀ) V, with M keeping the pairs whose value is of an earlier chunk.

    Its memory grows with T², and it has no state to hand on: for short prefixes. Writes cannot be
    clipped in this form.

    Args:
        w0: `[d, f]`, the weights the sequence starts from.
        z: `[T, f]` keys and queries.
        v: `[T, d]` values.
        chunk: tokens C per chunk.
        lr: η.

    Returns:
        `[T, d]`.

    Raises:
        ValueError: `chunk` is not positive, or `z` and `v` differ in length.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    place = jnp.arange(sequence_length((z, v))) // chunk
    scores = jnp.where(place[:, None] > place[None, :], z @ z.T, 0)
    return z @ w0.T.astype(z.dtype) + lr * (scores @ v)


@dataclasses.dataclass(frozen=True)
class InPlace(Rule):
    """In-Place Test-Time Training, token by token.

    Attributes:
        lr: η, how strongly a token is written. Writes are sums over the chunk, not means.
        chunk_size: C, tokens per write.
        clip: largest Frobenius norm τ of one chunk's write; None for no limit, as in the released
            code. The paper clips at inference.
        clip_relative: τ is in units of the norm of the weights a sequence starts from.
        clip_after_lr: τ limits η Σ v zᵀ; otherwise it limits Σ v zᵀ.

    Raises:
        ValueError: `chunk_size` or `clip` is not positive.
    """

    lr: float = 0.3
    chunk_size: int = 1024
    clip: float | None = None
    clip_relative: bool = False
    clip_after_lr: bool = True

    citation = "Feng, Luo, Hua, Zhang, He, Huang, Cai 2026, arXiv:2604.06169"

    def __post_init__(self):
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive or None, got {self.clip}")

    def init(self, w0: Array, dtype: DTypeLike = jnp.float32) -> State:
        """Fast weights that start at `w0 [d, f]`."""
        w0 = w0.astype(dtype)
        limit = write_limit(
            w0, self.lr, self.clip, relative=self.clip_relative, after_lr=self.clip_after_lr
        )
        return State(w0, jnp.zeros_like(w0), jnp.zeros((), jnp.int32), limit)

    def write(self, state: State, observation: Token) -> State:
        """Remember one token, unless its `store` is False; the last one of a chunk writes it."""
        dtype, store = state.pending.dtype, observation.store
        z, v = observation.z.astype(dtype), observation.v.astype(dtype)
        written = self._close(state, self.lr * jnp.outer(v, z), jnp.ones((), jnp.int32))
        if store is None:
            return written
        return jax.tree.map(lambda new, old: jnp.where(store, new, old), written, state)

    def _close(self, state: State, delta: Array, tokens: Array) -> State:
        """Add `tokens` tokens' η Σ v zᵀ to the pending ones, and write them if that is a chunk."""
        pending, count = state.pending + delta, state.count + tokens
        full = count >= self.chunk_size
        return State(
            jnp.where(full, state.weights + clip_norm(pending, state.limit), state.weights),
            jnp.where(full, 0, pending),
            jnp.where(full, 0, count),
            state.limit,
        )

    def read(self, state: State, query: Array) -> Array:
        """W z: `[f] -> [d]`."""
        return (state.weights @ query.astype(state.weights.dtype)).astype(query.dtype)

    def step(self, state: State, token: Token) -> tuple[State, Array]:
        """Read, then write: a token never reads its own chunk."""
        y = self.read(state, token.z)
        return self.write(state, token), y

    def mask(self, tokens: Token, valid: Array) -> Token:
        """Tokens that store nothing where `valid` is False."""
        store = valid if tokens.store is None else tokens.store & valid
        return tokens._replace(store=store)

    def chunk(self, state: State, tokens: Token) -> tuple[State, Array]:
        """A matrix product per write instead of an outer product per token; equal to `scan`.

        It takes any number of tokens from any place in a chunk. Whole sequences from the start of
        a chunk are cheaper with `chunk_scan`.
        """
        length, dtype = sequence_length(tokens), state.weights.dtype
        if length > self.chunk_size:
            # below, each chunk that has a token in the block takes a product with the whole block
            return run(self, state, tokens, chunk=self.chunk_size)
        store = jnp.ones(length, bool) if tokens.store is None else tokens.store
        # how many tokens of the first chunk, counted from its start, are before each of these
        place = state.count + jnp.cumsum(store) - store
        z, v = tokens.z.astype(dtype), tokens.v.astype(dtype)

        def one_write(state, index):
            here = place // self.chunk_size == index
            stored = jnp.where((here & store)[:, None], v, 0)
            y = jnp.where(here[:, None], z @ state.weights.T, 0)
            tokens_here = jnp.sum(here & store, dtype=jnp.int32)
            return self._close(state, self.lr * (stored.T @ z), tokens_here), y

        # C tokens or fewer lie in two chunks at most
        state, ys = jax.lax.scan(one_write, state, jnp.arange(2))
        return state, jnp.sum(ys, 0).astype(tokens.z.dtype)

    def example(
        self, key: Array, length: int, extreme: bool = False, size: tuple[int, int] = (3, 4)
    ) -> tuple[State, Token]:
        """A random start inside a chunk and `length` tokens for W `[*size]`; see `Rule.example`."""
        keys = jax.random.split(key, 5)
        d, f = size
        before = self.init(jax.random.normal(keys[0], (d, f)))
        pending = 0.1 * jax.random.normal(keys[1], (d, f)) if self.chunk_size > 1 else 0.0
        count = jnp.asarray(self.chunk_size // 2, jnp.int32)
        state = before._replace(pending=before.pending + pending, count=count)
        z = jax.random.normal(keys[2], (length, f))
        v = jax.random.normal(keys[3], (length, d))
        if extreme:
            scale = jnp.asarray([0.0, 1e-6, 1.0, 1e3])[jnp.arange(length) % 4, None]
            z, v = z * scale, v * scale
        return state, Token(z, v, jax.random.bernoulli(keys[4], 0.7, (length,)))
