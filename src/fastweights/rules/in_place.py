"""In-Place Test-Time Training (Feng et al. 2026, arXiv 2604.06169): the definition.

The fast weights are a matrix W, the down projection of a transformer's MLP. With z what the MLP
computes for a token and v the target its output is pulled towards, a chunk of C tokens is read
first and written after it:

    read     y_t = W z_t                  for every token t of the chunk
    write    W <- W + η Σ_t v_t z_tᵀ      once, when the chunk is complete

As released, W - W0 grows with every chunk. Options that the paper has not bound it. With a decay λ
the write is W <- W0 + λ (W - W0) + η Σ_t v_t z_tᵀ, so a chunk's write counts λⁿ after n more of
them. With a cap or a row norm W stays the sum, and a read takes another matrix than W; a
residual write takes off what D = W - W0 already says of the chunk (in_place_write.py).

The write is one gradient step on `inner_loss`, -Σ_t <W z_t, v_t>, which is linear in W. So what a
chunk writes does not depend on W, and reading is linear attention in which z is key and query, v
the value, and no token sees its own chunk. Three forms of one meaning:

    `InPlace`          token by token, the definition
    `chunk_scan`       a matrix product per chunk, flat memory (in_place_scan.py)
    `attention`        no fast matrix: cheaper for the first 2 d f / (d + f) tokens

Another inner loss or optimiser makes it another rule, with forms of its own (in_place_general.py).

In a packed row chunks are counted from the start of the row, and a document begins anew wherever it
starts: its first tokens read W0 until a chunk of the row completes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from fastweights.rules import in_place_general as general
from fastweights.rules.base import Rule, scan, select, sequence_length
from fastweights.rules.drive import run
from fastweights.rules.in_place_general import Learner
from fastweights.rules.in_place_scan import scan_chunks
from fastweights.rules.in_place_write import (
    Plan,
    Scales,
    Total,
    attention,
    check_options,
    clip_norm,
    commit,
    effective,
    errors,
    inner_loss,
    over_energy,
    read_scales,
    remaining,
    summed,
    write_limit,
)
from fastweights.rules.losses import Loss, dot_product
from fastweights.rules.optimizers import SGD, Optimizer

__all__ = [
    "InPlace",
    "Scales",
    "State",
    "Token",
    "attention",
    "clip_norm",
    "commit",
    "inner_loss",
    "write_limit",
]


class Token(NamedTuple):
    """One time step as the rule sees it."""

    z: Array  # [f], key and query
    v: Array  # [d], value
    store: Array | None = None  # [] bool, False writes nothing and takes no place in the chunk


class State(NamedTuple):
    """Fast weights and the part of a chunk that waits for the rest of it."""

    weights: Array  # [d, f] float32, read by every token of the present chunk
    #: [d, f] float32, of the tokens since the last write: η Σ v zᵀ, with the error of D for v in a
    #: residual write, or the sum of the gradients of the inner loss if the rule has a loss or an
    #: optimiser of its own
    pending: Array
    count: Array  # [] int32, number of those tokens
    scales: Scales  # numbers of the sequence that options need
    slow: Array  # [d, f] float32, W0, the weights that a document starts from
    optimizer: Any = ()  # state of the inner optimiser, if the rule has one
    energy: Array | None = None  # [] float32, Σ|z|² of the pending tokens, for a residual write


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
        decay: λ, from 0 to 1: before a write, W - W0 is multiplied by it. The paper has none.
        spectral: Σ v zᵀ is divided by its largest singular value, before the clip: η is the norm
            of a write (arXiv 2606.21803).
        residual: a write takes off what D = W - W0 says of the chunk's own keys, and is divided by
            their squared norm: η / Σ|z|² Σ (v - λ D z) zᵀ. An η below 2 is stable for any z,
            without `spectral`.
        cap: r, the largest ‖W - W0‖ / ‖W0‖ at a read; None for no cap.
        row_norm: a read scales the rows of W to the norms of those of W0 (arXiv 2606.21803).
        total: sums an array over all columns of W, for a caller that has a part of them.
        loss: the inner loss, of an output `[d]` and a value `[d]`; None is −⟨W z, v⟩.
        optimizer: the inner optimiser, as of `Online`; None is gradient descent of rate η, and with
            another one `lr` has no meaning. It sees what was added to W0 as its weights:
            `optax.add_decayed_weights(w)` before `sgd` is a `decay` of 1 - η w. Its
            `clip_by_global_norm` takes the place of `clip`: before `sgd` for
            `clip_after_lr=False`, after it for True.

    With neither loss nor optimiser the rule is the released one, which has a reversible scan; see
    `in_place_general.py` for the others.

    Raises:
        ValueError: `chunk_size`, `clip` or `cap` is not positive, `decay` is not from 0 to 1, or
            `clip`, `decay`, `spectral`, `residual` or `total` is given with a loss or an optimiser.
    """

    lr: float = 0.3
    chunk_size: int = 1024
    clip: float | None = None
    clip_relative: bool = False
    clip_after_lr: bool = True
    decay: float = 1.0
    spectral: bool = False
    residual: bool = False
    cap: float | None = None
    row_norm: bool = False
    total: Total = dataclasses.field(default=jnp.sum, repr=False)
    loss: Loss | None = dataclasses.field(default=None, repr=False)
    optimizer: Optimizer | None = dataclasses.field(default=None, repr=False)

    token_type = Token
    citation = "Feng, Luo, Hua, Zhang, He, Huang, Cai 2026, arXiv:2604.06169"

    def __post_init__(self):
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive or None, got {self.clip}")
        check_options(self.decay, self.cap)
        others = self.clip is not None or self.decay != 1 or self.spectral or self.residual
        if self.learner and (others or self.total is not jnp.sum):
            raise ValueError(
                "clip, decay, spectral, residual and total go without loss and optimizer, which "
                "have them"
            )

    @property
    def learner(self) -> Learner | None:
        """Inner loss and optimiser of the general form; None for the released rule."""
        if self.loss is None and self.optimizer is None:
            return None
        return self.loss or dot_product, self.optimizer or SGD(self.lr)

    @property
    def plan(self) -> Plan:
        """Constants of a scan whose last write is not wanted."""
        how = self.decay, self.spectral, self.residual
        return Plan(self.chunk_size, self.lr, False, self.total, *how)

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        w0: Array,
        dtype: DTypeLike = jnp.float32,
        decay: Array | None = None,
        gain: Array | None = None,
    ) -> State:
        """Fast weights that start at `w0 [d, f]`; for `decay` and `gain` see `scales`."""
        w0 = w0.astype(dtype)
        pending, count = jnp.zeros_like(w0), jnp.zeros((), jnp.int32)
        scales = self.scales(w0, decay, gain)
        energy = jnp.zeros((), dtype) if self.residual else None
        return State(w0, pending, count, scales, w0, self._new_optimizer(w0), energy)

    def _new_optimizer(self, w0: Array) -> Any:
        return self.learner[1].init(jnp.zeros_like(w0)) if self.learner else ()

    def scales(self, w0: Array, decay: Array | None = None, gain: Array | None = None) -> Scales:
        """Numbers that the writes and reads of a sequence need.

        Args:
            w0: `[d, f]`, the weights it starts from.
            decay: `[]`, a learned λ in place of the rule's.
            gain: `[]`, learned: η is `lr` times it.
        """
        limit = write_limit(
            w0,
            self.lr,
            self.clip,
            relative=self.clip_relative,
            after_lr=self.clip_after_lr,
            total=self.total,
        )
        if limit is not None and gain is not None and not self.clip_after_lr:
            limit = limit * gain
        return Scales(limit, *read_scales(w0, self.cap, self.row_norm, self.total), decay, gain)

    def reset(self, state: State) -> State:
        """W0, without pending tokens, a new optimiser state; the place in the chunk stays."""
        return state._replace(
            weights=state.slow,
            pending=jnp.zeros_like(state.pending),
            optimizer=self._new_optimizer(state.slow),
            energy=None if state.energy is None else jnp.zeros_like(state.energy),
        )

    def write(self, state: State, token: Token) -> State:
        """Remember one token, unless its `store` is False; the last one of a chunk writes it."""
        if self.learner:
            return general.write(self.learner, self.chunk_size, state, token)
        dtype = state.pending.dtype
        z, v = token.z.astype(dtype), token.v.astype(dtype)
        delta = self.lr * jnp.outer(self._pulled(state, z[None], v[None])[0], z)
        written = self._add(state, delta, z * z, jnp.ones((), jnp.int32))
        return select(token.store, written, state)

    def _pulled(self, state: State, z: Array, v: Array) -> Array:
        """What tokens `[n, f]`, `[n, d]` of the pending chunk write: `[n, d]`."""
        if not self.residual:
            return v
        left = remaining(self.plan, state.scales, state.slow, state.weights)
        return errors(left, z, v, self.total)

    def _add(self, state: State, delta: Array, squares: Array, tokens: Array) -> State:
        """Add `tokens` tokens to the pending ones, and commit them if that is a chunk.

        `delta [d, f]` is their η Σ v zᵀ; `squares` are those of their z.
        """
        pending, count = state.pending + delta, state.count + tokens
        energy = None if state.energy is None else state.energy + self.total(squares)
        full = count >= self.chunk_size
        ready = pending if energy is None else over_energy(pending, energy)
        after = commit(self.plan, state.scales, state.slow, state.weights, ready)
        return state._replace(
            weights=jnp.where(full, after, state.weights),
            pending=jnp.where(full, 0, pending),
            count=jnp.where(full, 0, count),
            energy=None if energy is None else jnp.where(full, 0, energy),
        )

    def write_chunk(self, weights: Array, z: Array, v: Array, scales: Scales, slow: Array) -> Array:
        """W after one chunk: `[d, f]`, `[C, f]`, `[C, d]`, scales and W0 `[d, f]` -> `[d, f]`."""
        delta = summed(self.plan, scales, slow, weights, z, v)
        return commit(self.plan, scales, slow, weights, delta)

    def matrix(self, state: State) -> Array:
        """The matrix that tokens read: W, or W with cap or row norm: `[d, f]`."""
        return effective(state.scales, state.slow, state.weights, self.total)

    def read(self, state: State, query: Array) -> Array:
        """The product of that matrix and z: `[f] -> [d]`."""
        matrix = self.matrix(state)
        return (matrix @ query.astype(matrix.dtype)).astype(query.dtype)

    def step(self, state: State, token: Token) -> tuple[State, Array]:
        """Read, then write: a token never reads its own chunk."""
        y = self.read(state, token.z)
        return self.write(state, token), y

    def mask(self, tokens: Token, valid: Array) -> Token:
        """Tokens that store nothing where `valid` is False."""
        store = valid if tokens.store is None else tokens.store & valid
        return tokens._replace(store=store)

    def pad(self, tokens: Token, valid: Array) -> Token:
        """Padding takes its place in the row's chunks and adds zeros to their writes."""
        if self.learner or self.residual:  # the gradient of any loss of W z is 0 at z = 0
            tokens = tokens._replace(z=jnp.where(valid[..., None], tokens.z, 0))
        return tokens._replace(v=jnp.where(valid[..., None], tokens.v, 0))

    def sequence(self, state: State, tokens: Token, segment_ids: Array | None) -> Array | None:
        """The reversible scan over chunks, or the general form; None for tokens with a `store`."""
        if self.learner:
            return general.sequence(self, self.learner, self.chunk_size, state, tokens, segment_ids)
        if tokens.store is not None:
            return None
        return self._scan(state, tokens, segment_ids, final=False)[0]

    def sequence_and_end(
        self, state: State, tokens: Token, segment_ids: Array | None = None
    ) -> tuple[Array, Array]:
        """Outputs of a row and the weights after its last complete chunk.

        Args:
            state: at the start of a chunk.
            tokens: leaves `[T, ...]`, without `store`.
            segment_ids: as in `sequence`.

        Returns:
            `[T, d]`, and `[d, f]` of the last document.

        Raises:
            ValueError: the rule has a loss or an optimiser of its own, or tokens have a `store`.
        """
        if self.learner or tokens.store is not None:
            raise ValueError("the end of a row is of the released rule, without `store`")
        y, end = self._scan(state, tokens, segment_ids, final=True)
        assert end is not None
        return y, end

    def _scan(
        self, state: State, tokens: Token, segment_ids: Array | None, *, final: bool
    ) -> tuple[Array, Array | None]:
        plan = self.plan._replace(final=final)
        w0, start = state.slow, state.weights
        return scan_chunks(plan, w0, start, state.scales, tokens.z, tokens.v, segment_ids)

    def chunk(
        self, state: State, tokens: Token, starts: Array | None = None
    ) -> tuple[State, Array]:
        """A matrix product per write instead of an outer product per token; equal to `scan`.

        It takes any number of tokens from any place in a chunk. A row from the start of a chunk is
        cheaper with `sequence`, and so is a packed row, which is read token by token here.
        """
        if self.learner:
            return general.chunk(self, self.learner, self.chunk_size, state, tokens, starts)
        if starts is not None:
            return scan(self, state, tokens, starts)
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
            y = jnp.where(here[:, None], z @ self.matrix(state).T, 0)
            stored = (here & store)[:, None]
            pulled = jnp.where(stored, self._pulled(state, z, v), 0)
            delta, squares = self.lr * (pulled.T @ z), jnp.where(stored, z * z, 0)
            return self._add(state, delta, squares, jnp.sum(stored, dtype=jnp.int32)), y

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
        if state.energy is not None and self.chunk_size > 1:
            state = state._replace(energy=state.energy + 0.3)
        z = jax.random.normal(keys[2], (length, f))
        v = jax.random.normal(keys[3], (length, d))
        if extreme:
            scale = jnp.asarray([0.0, 1e-6, 1.0, 1e3])[jnp.arange(length) % 4, None]
            z, v = z * scale, v * scale
        return state, Token(z, v, jax.random.bernoulli(keys[4], 0.7, (length,)))
