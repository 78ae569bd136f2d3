"""What a model keeps of the sequences it is reading: keys and values, and its fast weights.

Arrays are stacked as the decoder's blocks are: those of block j of the period lead with the number
of turns, `layers // period`. Rows of the batch are at places of their own, `lengths`; a chunk's
tokens wait in `pending` slots `0 .. lengths % chunk` until the last of them completes it. Slots
beyond hold anything, and are written before they are read.

Rows that have learned nothing of their own share one matrix: with G matrices and B rows, matrix g
belongs to rows g B/G to (g + 1) B/G. It is only copied when a row can complete a chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from fastweights.errors import ConfigError
from fastweights.models.decoder import Decoder
from fastweights.nn.in_place import InPlaceMLP
from fastweights.nn.mesh import BATCH, split


class Cache(NamedTuple):
    """Keys and values of S slots; every layer keeps all, those with a sliding window too.

    Heads come before slots: a product over one of them reads what lies together, and no token has
    the whole cache transposed for it.
    """

    k: Array  # [turns, B, K, S, h]
    v: Array  # [turns, B, K, S, h]


class Fast(NamedTuple):
    """Fast weights of a layer that learns in place, and the chunk it is reading."""

    weights: Array  # [turns, G, d, f] float32
    z: Array  # [turns, B, C, f], what the MLP computed
    target: Array  # [turns, B, C, d], what its output is pulled towards, before convolution


class State(NamedTuple):
    """All a model remembers of B sequences; a pytree that no function here changes in place."""

    lengths: Array  # [B] int32, tokens read
    logits: Array  # [B, vocab] float32, of the token after the last one read
    caches: tuple[Cache, ...]  # one per place in the period
    fast: tuple[Fast | None, ...]  # the same; None for layers that do not learn


def batch(state: State) -> int:
    """Rows B."""
    return state.lengths.shape[0]


def capacity(state: State) -> int:
    """Tokens a row can hold."""
    return state.caches[0].k.shape[3]


def empty(model: Decoder, rows: int, max_length: int) -> State:
    """The state before the first token.

    Args:
        model: whose.
        rows: B.
        max_length: tokens a row will be able to hold, prompt and answer together.
    """
    config = model.config
    turns, dtype = config.layers // config.period, jnp.dtype(config.dtype)
    slots = (turns, rows, config.kv_heads, max_length, config.head_dim)

    def fast(mlp: object) -> Fast | None:
        if not isinstance(mlp, InPlaceMLP):
            return None
        shape = (turns, rows, mlp.ttt.chunk)
        return Fast(
            slow_weights(mlp)[:, None],
            jnp.zeros((*shape, config.intermediate), dtype),
            jnp.zeros((*shape, config.hidden), dtype),
        )

    state = State(
        jnp.zeros(rows, jnp.int32),
        jnp.zeros((rows, config.vocab)),
        tuple(Cache(jnp.zeros(slots, dtype), jnp.zeros(slots, dtype)) for _ in model.blocks),
        tuple(fast(block.mlp) for block in model.blocks),
    )
    return laid_out(model, state)


def laid_out(model: Decoder, state: State) -> State:
    """A state on the mesh of the model's weights: split by rows, and as `tensor` splits layers."""
    on_mesh = functools.partial(split, mesh_of=model.embed.embedding[...])
    heads = lambda x: on_mesh(x, None, BATCH, "tensor", None, None)
    return State(
        on_mesh(state.lengths, BATCH),
        on_mesh(state.logits, BATCH, "tensor"),
        jax.tree.map(heads, state.caches),
        tuple(
            fast
            and Fast(
                on_mesh(fast.weights, None, BATCH, None, "tensor"),
                on_mesh(fast.z, None, BATCH, None, "tensor"),
                on_mesh(fast.target, None, BATCH, None, None),
            )
            for fast in state.fast
        ),
    )


def put(x: Array, turn: ArrayLike, slots: Array, new: Array, axis: int = 2) -> Array:
    """`x [turns, B, .., S, ..]` with `new [B, T, ..]` in one turn's `slots [B, T]`.

    S is at `axis`, and slots beyond it are dropped. At axis 2 it is
    `x.at[turn, arange(B)[:, None], slots].set(new, mode="drop")`, said so that XLA sees that
    a row only goes to its own row: rows that are split over devices stay where they are.
    """
    where = jnp.stack([jnp.broadcast_to(turn, slots.shape), slots], -1)
    dimensions = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(2, new.ndim)),
        inserted_window_dims=(0, axis),
        scatter_dims_to_operand_dims=(0, axis),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    drop = lax.GatherScatterMode.FILL_OR_DROP
    return lax.scatter(x, where, new.astype(x.dtype), dimensions, mode=drop)


def slow_weights(mlp: InPlaceMLP) -> Array:
    """W0 of stacked layers, `[turns, d, f]` float32: what fast weights start from."""
    return jnp.swapaxes(mlp.down.kernel[...], -1, -2).astype(jnp.float32)


def own_weights(state: State) -> State:
    """The same with a matrix for every row, G = B."""

    def spread(fast: Fast | None) -> Fast | None:
        if fast is None or fast.weights.shape[1] == batch(state):
            return fast
        times = batch(state) // fast.weights.shape[1]
        return fast._replace(weights=jnp.repeat(fast.weights, times, 1))

    return state._replace(fast=tuple(spread(fast) for fast in state.fast))


def fork(state: State, times: int) -> State:
    """Every row `times` times, one copy after the other: many continuations of one prompt.

    Keys and values are copied. Fast weights are shared until a row completes a chunk.
    """
    if times < 1:
        raise ConfigError(f"a state can be forked into 1 or more, not {times}", where="times")
    again = lambda axis: lambda x: jnp.repeat(x, times, axis)
    return State(
        again(0)(state.lengths),
        again(0)(state.logits),
        jax.tree.map(again(1), state.caches),
        tuple(
            fast and Fast(fast.weights, again(1)(fast.z), again(1)(fast.target))
            for fast in state.fast
        ),
    )


def select(state: State, rows: Array) -> State:
    """The given rows `[n]` int, in that order; a row may be taken more than once."""
    rows = jnp.asarray(rows)
    if rows.ndim != 1 or not bool(jnp.all((rows >= 0) & (rows < batch(state)))):
        raise ConfigError(
            f"rows {rows.tolist()} are not all among the {batch(state)} of the state", where="rows"
        )

    def fast(x: Fast | None) -> Fast | None:
        if x is None:
            return None
        groups = x.weights.shape[1]
        weights = x.weights
        if groups > 1:
            weights = weights[:, rows // (batch(state) // groups)]
        return Fast(weights, x.z[:, rows], x.target[:, rows])

    return State(
        state.lengths[rows],
        state.logits[rows],
        jax.tree.map(lambda x: x[:, rows], state.caches),
        tuple(fast(x) for x in state.fast),
    )


def reset(model: Decoder, state: State, *, keep_cache: bool = False) -> State:
    """Start again with the weights of the model.

    Args:
        model: whose.
        state: to take the sizes from.
        keep_cache: only unlearn. Attention still sees everything, the place in the chunk stays, and
            the tokens read so far write nothing when their chunk completes.
    """
    fresh = empty(model, batch(state), capacity(state))
    return state._replace(fast=fresh.fast) if keep_cache else fresh


def drift(model: Decoder, state: State) -> Array:
    """How far fast weights have moved, ‖W - W0‖ / ‖W0‖: `[in-place layers, B]` float32.

    Layers are in the order of `config.ttt_layers`, B rows.
    """
    moved = []
    for block, fast in zip(model.blocks, own_weights(state).fast, strict=True):
        if fast is None or not isinstance(block.mlp, InPlaceMLP):
            continue
        start = slow_weights(block.mlp)[:, None]
        far = jnp.linalg.norm(fast.weights - start, axis=(-2, -1))
        moved.append(far / jnp.linalg.norm(start, axis=(-2, -1)))
    if not moved:
        return jnp.zeros((0, batch(state)))
    return jnp.stack(moved, 1).reshape(-1, batch(state))
