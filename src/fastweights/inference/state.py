"""The state of the sequences that a model is reading: of every layer, one row a sequence.

Arrays are stacked as the decoder's blocks are: those of block j of the period lead with the number
of turns, `layers // period`, and then with the rows of the batch. Rows are at places of their own,
`lengths`. A field that a layer's state names in `shared` may have one entry for several rows: with
G entries and B rows, entry g belongs to rows g B/G to (g + 1) B/G.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.errors import ConfigError
from fastweights.models.decoder import Decoder
from fastweights.nn.in_place_ridge import Ridge
from fastweights.nn.layer import Layer
from fastweights.nn.mesh import BATCH, split


class State(NamedTuple):
    """The memory of B sequences; a pytree that no function here changes in place."""

    lengths: Array  # [B] int32, tokens read
    logits: Array  # [B, vocab] float32, of the token after the last one read
    layers: tuple[dict[str, Any], ...]  # one per place in the period: states by layer name
    room: Array  # [] int32, tokens a row can hold


def batch(state: State) -> int:
    """Rows B."""
    return state.lengths.shape[0]


def capacity(state: State) -> int:
    """Tokens a row can hold."""
    return int(state.room)


def empty(model: Decoder, rows: int, max_length: int) -> State:
    """The state before the first token.

    Args:
        model: whose.
        rows: B.
        max_length: tokens a row will be able to hold, prompt and answer together.
    """
    state = State(
        jnp.zeros(rows, jnp.int32),
        jnp.zeros((rows, model.config.vocab)),
        model.empty(rows, max_length),
        jnp.asarray(max_length, jnp.int32),
    )
    return laid_out(model, state)


def laid_out(model: Decoder, state: State) -> State:
    """A state on the mesh of the model's weights: split by rows, and as `tensor` splits layers.

    Raises:
        ConfigError: the state belongs to a model that is stacked in another way.
    """
    if len(state.layers) != len(model.blocks):
        raise ConfigError(
            f"the state has layers in {len(state.layers)} stacks, the model in {len(model.blocks)}",
            where="state",
            cause="either the state or the model is unstacked",
            next="prefill with the same model",
        )
    on_mesh = functools.partial(split, mesh_of=model.embed.embedding[...])

    def placed(layer: Layer, states: Any) -> Any:
        place = lambda axes, x: on_mesh(x, None, *axes)
        new = {
            name: jax.tree.map(place, axes, getattr(states, name))
            for name, axes in layer.axes().items()
        }
        return states._replace(**new) if new else states

    layers = tuple(
        {name: placed(layer, states[name]) for name, layer in block.layers.items()}
        for block, states in zip(model.blocks, state.layers, strict=True)
    )
    from_rows = {"lengths": (BATCH,), "logits": (BATCH, "tensor")}
    rest = {name: on_mesh(getattr(state, name), *axes) for name, axes in from_rows.items()}
    return state._replace(layers=layers, **rest)


def advance(
    model: Decoder,
    state: State,
    tokens: Array,
    counts: Array,
    *,
    fresh: bool = False,
    commits: bool = False,
    ridge: Ridge | None = None,
) -> State:
    """The state after the first `counts[b]` tokens of each row b; see `Decoder.advance`."""
    commits = commits or ridge is not None

    def read(model: Decoder, state: State, tokens: Array, counts: Array) -> tuple[State, None]:
        layers, features = model.advance(
            state.layers,
            tokens,
            state.lengths,
            counts,
            fresh=fresh,
            commits=commits,
            ridge=ridge,
        )
        last = jnp.take_along_axis(features, jnp.maximum(counts - 1, 0)[:, None, None], 1)[:, 0]
        logits = jnp.where((counts > 0)[:, None], model.logits(last), state.logits)
        after = State(state.lengths + counts, logits, layers, state.room)
        return laid_out(model, after), None

    return kept_wide(read, model, own_rows(state) if commits else state, tokens, counts)[0]


def kept_wide(
    call: Callable[..., tuple[State, Any]], model: Decoder, state: State, *arguments: Any
) -> tuple[State, Any]:
    """`call(model, state, *arguments)`, on a CPU with float32 in place of bfloat16 in the state.

    XLA on a CPU, as of jax 0.10.2, has no bfloat16 slices: to write one token into a cache it
    converts the whole cache to float32 and back, at every layer. The values are equal.
    """
    narrow = lambda x: x.dtype == jnp.bfloat16
    if not any(map(narrow, jax.tree.leaves(state.layers))):
        return call(model, state, *arguments)

    def wide(model: Decoder, state: State, *arguments: Any) -> tuple[State, Any]:
        widened = jax.tree.map(lambda x: x.astype(jnp.float32) if narrow(x) else x, state.layers)
        after, rest = call(model, state._replace(layers=widened), *arguments)
        back = jax.tree.map(lambda new, old: new.astype(old.dtype), after.layers, state.layers)
        return after._replace(layers=back), rest

    return jax.lax.platform_dependent(model, state, *arguments, cpu=wide, default=call)


def commit(model: Decoder, state: State, due: Array) -> State:
    """Write the pending chunks of the rows that `due [B]` names; every row has its own entries."""
    return state._replace(layers=model.commit(state.layers, due))


def over_rows(state: State, own: Callable[[Array], Any], shared: Callable[[Array], Any]) -> Any:
    """`state.layers` with `own` of every array of rows, and `shared` of those that rows share."""

    def layer(states: Any) -> Any:
        if states is None:
            return None
        names = getattr(states, "shared", ())
        new = {
            name: jax.tree.map(shared if name in names else own, getattr(states, name))
            for name in states._fields
        }
        return states._replace(**new)

    return tuple({name: layer(x) for name, x in place.items()} for place in state.layers)


def own_rows(state: State) -> State:
    """The same with an entry for every row in each shared array, G = B."""
    rows = batch(state)
    spread = lambda x: x if x.shape[1] == rows else jnp.repeat(x, rows // x.shape[1], 1)
    return state._replace(layers=over_rows(state, lambda x: x, spread))


def fork(state: State, times: int) -> State:
    """Every row `times` times, one copy after the other: many continuations of one prompt.

    Fast weights of in-place layers are shared until a row completes a chunk; all else is copied.

    Raises:
        ConfigError: `times` is not positive.
    """
    if times < 1:
        raise ConfigError(f"a state can be forked into 1 or more, not {times}", where="times")
    again = lambda x: jnp.repeat(x, times, 1)
    return state._replace(
        lengths=jnp.repeat(state.lengths, times, 0),
        logits=jnp.repeat(state.logits, times, 0),
        layers=over_rows(state, again, lambda x: x),
    )


def select(state: State, rows: Array) -> State:
    """The given rows `[n]` int, in that order; a row may be taken more than once.

    Raises:
        ConfigError: a row that the state does not have.
    """
    rows = jnp.asarray(rows)
    if rows.ndim != 1 or not bool(jnp.all((rows >= 0) & (rows < batch(state)))):
        raise ConfigError(
            f"rows {rows.tolist()} are not all among the {batch(state)} of the state", where="rows"
        )

    def of_shared(x: Array) -> Array:
        groups = x.shape[1]
        return x if groups == 1 else x[:, rows // (batch(state) // groups)]

    return state._replace(
        lengths=state.lengths[rows],
        logits=state.logits[rows],
        layers=over_rows(state, lambda x: x[:, rows], of_shared),
    )


def reset(model: Decoder, state: State, *, keep_cache: bool = False) -> State:
    """Start again with the weights of the model.

    Args:
        model: whose.
        state: to take the sizes from.
        keep_cache: only unlearn. Attention still sees all tokens and the place in the chunk stays;
            memories are empty, and the tokens read so far write no fast weights when their chunk
            completes.
    """
    fresh = empty(model, batch(state), capacity(state))
    if not keep_cache:
        return fresh
    layers = tuple(
        {name: old[name] if layer.is_cache else new[name] for name, layer in block.layers.items()}
        for block, old, new in zip(model.blocks, state.layers, fresh.layers, strict=True)
    )
    return state._replace(layers=layers)


def drift(model: Decoder, state: State) -> Array:
    """How far fast weights have moved, ‖W - W0‖ / ‖W0‖: `[in-place layers, B]` float32.

    Layers are in the order of `config.ttt_layers`, B rows.
    """
    each = [
        jax.vmap(lambda one, its: one.drift_of(its))(layer, states[name])
        for block, states in zip(model.blocks, own_rows(state).layers, strict=True)
        for name, layer in block.layers.items()
    ]
    moved = [x for x in each if x is not None]
    if not moved:
        return jnp.zeros((0, batch(state)))
    return jnp.stack(moved, 1).reshape(-1, batch(state))
