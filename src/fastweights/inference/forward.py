"""The decoder's forward pass from a state to a state: any number of new tokens, a row at a time."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from fastweights.inference.in_place import read, read_and_write, remember
from fastweights.inference.state import Cache, Fast, State, capacity, laid_out, own_weights, put
from fastweights.models.decoder import Block, Decoder
from fastweights.models.decoder_mesh import whole_block
from fastweights.nn.in_place import InPlaceMLP
from fastweights.nn.mesh import BATCH, split


def advance(
    model: Decoder,
    state: State,
    tokens: Array,
    counts: Array,
    *,
    fresh: bool = False,
    writes: bool = False,
) -> tuple[State, Array]:
    """Read the first `counts[b]` tokens of each row b; what follows them is never seen.

    Args:
        model: the decoder.
        state: where its rows stand.
        tokens: `[B, T]` int.
        counts: `[B]` int, 0 to T.
        fresh: no row has read anything: attention needs not look into the cache.
        writes: a row may complete a chunk, and its layers then write it. Without, tokens must not
            go beyond the end of the chunk, and `write_due` is up to the caller.

    Returns:
        The new state, and features `[B, T, D]` that `model.logits` takes; those of padding mean
        nothing.
    """
    if writes:
        state = own_weights(state)
    at = jnp.arange(tokens.shape[1])[None, :]
    valid = at < counts[:, None]
    positions = state.lengths[:, None] + at
    slots = jnp.where(valid, positions, capacity(state))  # beyond the last: dropped
    embedded = split(model.embedded(jnp.where(valid, tokens, 0)), BATCH, None, None)

    def attention(block: Block, x: Array, cache: Cache, turn: Array) -> tuple[Array, Cache]:
        layer = block.attention
        q, k, v = layer.qkv(block.attention_norm(x), positions)
        cache = Cache(*(put(c, turn, slots, n, 3) for c, n in zip(cache, (k, v), strict=True)))
        if fresh:
            mixed = layer.mix(q, k, v)
        else:
            mixed = attend(q, cache.k[turn], cache.v[turn], positions, layer.window)
        return layer.out(mixed), cache

    def learn(
        mlp: InPlaceMLP, h: Array, fast: Fast, weights: Array, turn: Array
    ) -> tuple[Array, Fast, Array]:
        z = mlp.hidden(h)
        target = embedded if mlp.ttt.target == "input_embed" else h
        if not writes:
            keep = lambda p, x: remember(p, turn, x, state.lengths, valid, mlp.ttt.chunk)
            fast = fast._replace(z=keep(fast.z, z), target=keep(fast.target, target))
            return read(mlp, weights, z), fast, weights
        one = Fast(weights, fast.z[turn], fast.target[turn])
        y, one = read_and_write(mlp, one, z, target, state.lengths, valid, fresh=fresh)
        fast = fast._replace(
            z=fast.z.at[turn].set(one.z), target=fast.target.at[turn].set(one.target)
        )
        return y, fast, one.weights

    def turn(carry: Any, stack: Any) -> tuple[Any, Any]:
        x, caches, pending = carry
        i, blocks, weights = stack
        caches, pending, written = list(caches), list(pending), list(weights)
        for j, block in enumerate(blocks):
            if fresh:  # for a token alone, putting the weights together would cost more than it
                block = whole_block(block)
            mixed, caches[j] = attention(block, x, caches[j], i)
            x += mixed
            h = block.mlp_norm(x)
            if isinstance(block.mlp, InPlaceMLP):
                y, pending[j], written[j] = learn(block.mlp, h, pending[j], weights[j], i)
            else:
                y = block.mlp(h)
            x = split(x + y, BATCH, None, None)
        return (x, tuple(caches), tuple(pending)), tuple(written) if writes else None

    # weights go through the scan beside its carry: they are not copied where they stay the same
    weights = tuple(fast and fast.weights for fast in state.fast)
    pending = tuple(fast and fast._replace(weights=jnp.zeros(0)) for fast in state.fast)
    indices = jnp.arange(model.config.layers // model.config.period)
    (x, caches, pending), written = lax.scan(
        turn, (embedded, state.caches, pending), (indices, model.blocks, weights)
    )
    weights = weights if written is None else written
    x = model.final_norm(x)
    last = jnp.take_along_axis(x, jnp.maximum(counts - 1, 0)[:, None, None], 1)[:, 0]
    logits = jnp.where((counts > 0)[:, None], model.logits(last), state.logits)
    fast = tuple(p and p._replace(weights=w) for p, w in zip(pending, weights, strict=True))
    return laid_out(model, State(state.lengths + counts, logits, caches, fast)), x


def attend(q: Array, k: Array, v: Array, positions: Array, window: int | None) -> Array:
    """Queries `[B, T, N, h]` at `positions [B, T]` over cached keys and values `[B, K, S, h]`."""
    ago = positions[:, :, None] - jnp.arange(k.shape[2])[None, None, :]
    seen = (ago >= 0) if window is None else (ago >= 0) & (ago < window)
    if q.shape[1] == 1:
        return attend_alone(q, k, v, seen)
    k, v = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    return jax.nn.dot_product_attention(q, k, v, mask=seen[:, None], implementation="xla")


def attend_alone(q: Array, k: Array, v: Array, seen: Array) -> Array:
    """`attend` for one token a row, `seen [B, 1, S]`.

    The products are written with keys and values as they lie: `jax.nn.dot_product_attention` has
    both transposed at every token, on a CPU most of what attention costs.
    """
    rows, _, heads, size = q.shape
    grouped = q.reshape(rows, k.shape[1], -1, size)  # [B, K, N/K, h]
    each = ((0, 1), (0, 1))
    scores = lax.dot_general(k, grouped, (((3,), (3,)), each), preferred_element_type=jnp.float32)
    scores = jnp.swapaxes(scores, 2, 3) * size**-0.5  # [B, K, N/K, S]
    scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return lax.dot_general(weights, v, (((3,), (2,)), each)).reshape(rows, 1, heads, size)
