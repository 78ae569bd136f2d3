"""The decoder language model: Qwen3 and Llama 3, some of whose MLPs may learn while they read.

Layers are stacked. With p the period after which the kinds of layers repeat, block j of the p that
the model holds has arrays with a leading axis `layers // p`, and layer i is block i % p at i // p.
The forward pass is a `lax.scan` over that axis, p blocks a turn, so that compile time grows with
the period and not with the depth.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn.initializers import normal

from fastweights.models.decoder_config import DecoderConfig, Kind, check
from fastweights.models.decoder_mesh import whole, whole_block
from fastweights.nn.attention import Attention
from fastweights.nn.cross_entropy import token_losses
from fastweights.nn.in_place import InPlaceMLP
from fastweights.nn.in_place_ridge import Ridge
from fastweights.nn.layer import Layer, Reading, Stacked
from fastweights.nn.memory import MemoryLayer
from fastweights.nn.mesh import BATCH, sizes, split
from fastweights.nn.parts import MLP, RMSNorm, for_inference, linear, summed_in_float32
from fastweights.nn.rope import document_positions


class Block(nnx.Module):
    """One layer: x + mixer(norm x), then x + mlp(norm x).

    The mixer is `attention`, or `memory` with an update rule. `mlp` is an `InPlaceMLP` in the
    layers that learn in place.

    Args:
        config: of the whole model.
        kind: the layer's mixer, its window, and whether its MLP learns in place.
        rngs: flax's source of random keys.
    """

    def __init__(self, config: DecoderConfig, kind: Kind, *, rngs: nnx.Rngs):
        dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
        norm = lambda: RMSNorm(config.hidden, eps=config.norm_eps, param_dtype=param_dtype)
        numerics: dict[str, Any] = {
            "initializer_range": config.initializer_range,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        self.attention_norm = norm()
        if kind.mixer == "attention":
            self.attention = Attention(
                config.hidden,
                config.heads,
                config.kv_heads,
                config.head_dim,
                rope=config.rope,
                norm_eps=config.norm_eps if config.family == "qwen3" else None,
                window=kind.window,
                kernel=config.attention,
                **numerics,
                rngs=rngs,
            )
        else:
            sizes = config.memory
            self.memory = MemoryLayer(
                config.hidden,
                kind.mixer,
                sizes.heads or config.heads,
                sizes.key_dim or config.head_dim,
                sizes.value_dim or config.head_dim,
                conv=sizes.conv,
                gate=sizes.gate,
                chunk=sizes.chunk,
                norm_eps=config.norm_eps,
                **numerics,
                rngs=rngs,
            )
        self.mlp_norm = norm()
        sizes = (config.hidden, config.intermediate)
        self.mlp = (
            InPlaceMLP(*sizes, config.ttt, **numerics, rngs=rngs)
            if kind.in_place and config.ttt is not None
            else MLP(*sizes, **numerics, rngs=rngs)
        )

    @property
    def layers(self) -> dict[str, Layer]:
        """The two layers that may have a state, by the name of the state."""
        mixer = self.memory if hasattr(self, "memory") else self.attention
        return {"mixer": mixer, "mlp": self.mlp}

    def __call__(
        self, x: Array, reading: Reading, state: Stacked | None = None
    ) -> tuple[Array, Stacked | None, dict[str, Array]]:
        """The next residual stream `[B, T, D]`, the next state, and statistics of its layers.

        Args:
            x: residual stream `[B, T, D]`.
            reading: the tokens and their places.
            state: arrays by layer name, of stacked blocks; None starts every row anew.
        """
        found, arrays = {}, {}
        for (name, layer), norm in zip(
            self.layers.items(), (self.attention_norm, self.mlp_norm), strict=True
        ):
            own = None if state is None else Stacked(state.arrays[name], state.turn)
            y, own, stats = layer.advance(norm(x), reading, own)
            x, found = x + y, found | stats
            arrays[name] = None if own is None else own.arrays
        return x, None if state is None else state._replace(arrays=arrays), found


class Decoder(nnx.Module):
    """A decoder language model; see the module for how layers are kept.

    Args:
        config: what to build.
        rngs: flax's source of random keys.

    Raises:
        ConfigError: the config is impossible; the message has every problem.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        check(config)
        self.config = config
        param_dtype, start = jnp.dtype(config.param_dtype), config.initializer_range
        more = {"dtype": jnp.dtype(config.dtype), "param_dtype": param_dtype, "rngs": rngs}
        self.embed = nnx.Embed(config.vocab, config.hidden, embedding_init=normal(start), **more)
        turns = config.layers // config.period

        def stack(kind: Kind) -> Block:
            keys = jax.random.split(rngs.params(), turns)
            return jax.vmap(lambda key: Block(config, kind, rngs=nnx.Rngs(key)))(keys)

        self.blocks = nnx.List([stack(kind) for kind in config.kinds[: config.period]])
        self.final_norm = RMSNorm(config.hidden, eps=config.norm_eps, param_dtype=param_dtype)
        self.head = (
            None
            if config.tie_embeddings
            else linear(config.hidden, config.vocab, initializer_range=start, **more)
        )

    def layer(self, i: int) -> Block:
        """Block i of the network, counted from 0, with its own arrays.

        Raises:
            IndexError: the network has no such layer.
        """
        if not 0 <= i < self.config.layers:
            raise IndexError(f"there is no layer {i}: the model has {self.config.layers}, from 0")
        turn, place = divmod(i, len(self.blocks))
        return jax.tree.map(lambda x: x[turn], self.blocks[place])

    def embedded(self, tokens: Array) -> Array:
        """Token embeddings `[..., D]` in the dtype of the computation; NaN for no token of ours."""
        table = whole("embed.embedding", self.embed.embedding[...])
        # an index of -1 would be the last token
        rows = table.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows.astype(self.config.dtype)

    @property
    def unembedding(self) -> Array:
        """The matrix of the logits: the head `[D, vocab]`, or the tied embedding `[vocab, D]`."""
        if self.head is None:
            return whole("embed.embedding", self.embed.embedding[...])
        return whole("head.kernel", self.head.kernel[...])

    def logits(self, features: Array) -> Array:
        """Final features `[..., D]` to logits `[..., vocab]`, float32."""
        kernel = self.unembedding.astype(features.dtype)
        return summed_in_float32(features, kernel, 1 if self.head is None else 0)

    def features(
        self,
        tokens: Array,
        segment_ids: Array | None = None,
        stats: bool = False,
        passed: Array | None = None,
    ) -> Any:
        """The last residual stream, normed: the input of `logits`.

        Args:
            tokens: `[B, T]` int.
            segment_ids: `[B, T]` int, 0 for padding and 1, 2, ... for the documents of a row, each
                with positions from 0 and unseen by the others; None is one document a row.
            stats: also return how far the in-place layers have drifted.
            passed: `[B]` bool, state passing in training, see `InPlaceMLP.__call__`.

        Returns:
            `[B, T, D]`; with `stats`, that and `[number of in-place layers]` float32, the mean over
            tokens of |ΔW z| / |W z| in each, in the order of `config.ttt_layers`.
        """
        ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        embedded = split(self.embedded(tokens), BATCH, None, None)
        places = document_positions(ids)
        reading = Reading(embedded, places, segment_ids, stats=stats, passed=passed)
        x, _, found = self._layers(reading, None)
        if not stats:
            return x
        # [places in a period][turns] to the order of layers
        drifts = [each["drift"] for each in found if "drift" in each]
        return x, jnp.stack(drifts, 1).reshape(-1) if drifts else jnp.zeros(0)

    def advance(
        self,
        states: tuple[Any, ...],
        tokens: Array,
        lengths: Array,
        counts: Array,
        *,
        fresh: bool = False,
        commits: bool = False,
        ridge: Ridge | None = None,
    ) -> tuple[tuple[Any, ...], Array]:
        """Read the first `counts[b]` tokens of each row b after the `lengths[b]` read before.

        Args:
            states: of the layers, one entry a place in the period; see `empty`.
            tokens: `[B, T]` int.
            lengths: `[B]` int.
            counts: `[B]` int, 0 to T; tokens after them are never seen.
            fresh: no row has read a token: attention needs not look into the cache.
            commits: a row may complete a chunk, and its layers then write it. Otherwise tokens must
                not go beyond the end of the chunk, and the caller calls `commit`.
            ridge: then fit the tokens by a closed-form write; it needs `commits`.

        Returns:
            The next states, and features `[B, T, D]` that `logits` takes; features of padding have
            no meaning.
        """
        at = jnp.arange(tokens.shape[1])[None, :]
        valid = at < counts[:, None]
        embedded = split(self.embedded(jnp.where(valid, tokens, 0)), BATCH, None, None)
        positions = lengths[:, None] + at
        how: dict[str, Any] = {"fresh": fresh, "commits": commits, "ridge": ridge}
        reading = Reading(embedded, positions, None, lengths, valid, **how)
        x, after, _ = self._layers(reading, states)
        assert after is not None
        return after, x

    def _layers(
        self, reading: Reading, states: tuple[Any, ...] | None
    ) -> tuple[Array, tuple[Any, ...] | None, list[dict[str, Array]]]:
        """The forward pass through all layers, for training (no states) and for inference."""
        turns, fresh = self.config.layers // len(self.blocks), reading.fresh
        run = _inference_block(fresh) if states else _training_block(self.config, turns)

        def turn(carry: Any, stack: Any) -> tuple[Any, list[dict[str, Array]]]:
            (x, states), (i, blocks), found = carry, stack, []
            after = []
            for place, block in enumerate(blocks):
                state = None if states is None else Stacked(states[place], i)
                x, state, stats = run(block, x, reading, state)
                x = split(x, BATCH, None, None)
                found.append(stats)
                after.append(None if state is None else state.arrays)
            return (x, None if states is None else tuple(after)), found

        (x, states), found = jax.lax.scan(
            turn, (reading.embedded, states), (jnp.arange(turns), self.blocks)
        )
        return self.final_norm(x), states, found

    def empty(self, rows: int, room: int) -> tuple[Any, ...]:
        """The states of all layers before the first token, stacked as the blocks are.

        Args:
            rows: B.
            room: tokens that a row can hold.
        """

        def stacked(layer: Layer) -> Any:
            return jax.vmap(lambda one: one.empty(rows, room))(layer)

        return tuple(
            {name: stacked(layer) for name, layer in block.layers.items()} for block in self.blocks
        )

    @property
    def commit_every(self) -> int | None:
        """Tokens after which layers write by chunks; None if no layer does."""
        layers = (layer for block in self.blocks for layer in block.layers.values())
        return next((x.commit_every for x in layers if x.commit_every is not None), None)

    def commit(self, states: tuple[Any, ...], due: Array) -> tuple[Any, ...]:
        """Write the pending chunks of the rows that `due [B]` names, in every layer that has them.

        Where rows are split over devices they are written at once: one after the other would bring
        each row to all devices.
        """
        there = sizes(self.embed.embedding[...])
        at_once = any(there.get(axis, 1) > 1 for axis in BATCH)
        count = self.config.layers // len(self.blocks)

        def place(layer: Layer, arrays: Any) -> Any:
            if layer.commit_every is None:
                return arrays

            def turn(arrays: Any, stack: tuple[Array, Layer]) -> tuple[Any, None]:
                i, layer = stack
                return layer.commit(Stacked(arrays, i), due, at_once=at_once).arrays, None

            return jax.lax.scan(turn, arrays, (jnp.arange(count), layer))[0]

        return tuple(
            {name: place(layer, state[name]) for name, layer in block.layers.items()}
            for block, state in zip(self.blocks, states, strict=True)
        )

    def losses(
        self, tokens: Array, targets: Array, segment_ids: Array | None = None, block: int = 512
    ) -> Array:
        """Loss of every token in nats, `[B, T]` float32, 0 where the target is negative.

        Args:
            tokens: `[B, T]` int.
            targets: `[B, T]` int.
            segment_ids: as in `features`.
            block: tokens of each row whose logits exist at once.
        """
        return self.head_losses(self.features(tokens, segment_ids), targets, block)

    def head_losses(self, features: Array, targets: Array, block: int = 512) -> Array:
        """`losses` from the last features `[B, T, D]`."""
        losses = functools.partial(token_losses, block=block, vocab_first=self.head is None)
        kernel, axes = self.unembedding, sizes(features)
        parts = math.prod(axes.get(name, 1) for name in BATCH)
        if parts == 1 or len(targets) % parts:
            return losses(features, kernel, targets)
        # every part of the batch sums its own gradient to the kernel over blocks, so that devices
        # add theirs up once and not once a block
        cut = lambda x: split(x.reshape(parts, -1, *x.shape[1:]), BATCH, *[None] * x.ndim)
        found = jax.vmap(losses, (0, None, 0))(cut(features), kernel, cut(targets))
        return found.reshape(targets.shape)

    def __call__(self, tokens: Array, segment_ids: Array | None = None) -> Array:
        """Logits of the next token: `[B, T]` int -> `[B, T, vocab]` float32; see `features`."""
        return self.logits(self.features(tokens, segment_ids))


Call = Callable[..., tuple[Array, Stacked | None, dict[str, Array]]]


def _training_block(config: DecoderConfig, turns: int) -> Call:
    """A block's call, computed again in the backward pass as the config says.

    Blocks are wrapped one by one: to wrap a whole period would hold the inner values of p blocks at
    once, of all of them where the pattern never repeats.
    """
    call = lambda block, x, reading, state: whole_block(block)(x, reading, state)
    if config.remat == "none":
        return call
    policy = (
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
    )
    # in a loop of one turn XLA would see that the second computation repeats the first
    return jax.checkpoint(call, policy=policy, prevent_cse=turns == 1)


def _inference_block(fresh: bool) -> Call:
    """A block's call; for a token alone, to gather the weights would cost more than the token."""
    gather = whole_block if fresh else lambda block: block
    return lambda block, x, reading, state: for_inference(gather(block))(x, reading, state)


def build(config: DecoderConfig, seed: int, mesh: jax.sharding.Mesh | None = None) -> Decoder:
    """A fresh model, made under one jit: the same numbers on any mesh.

    Args:
        config: what to build.
        seed: of the weights.
        mesh: where they go, whole on every device; None is the default device.

    Raises:
        ConfigError: the config is impossible.
    """
    check(config)
    everywhere = mesh and jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return _build(everywhere)(config, seed)


@functools.cache
def _build(sharding: jax.sharding.NamedSharding | None) -> Callable[..., Decoder]:
    make = lambda config, seed: Decoder(config, rngs=nnx.Rngs(jax.random.key(seed)))
    return jax.jit(make, static_argnums=0, out_shardings=sharding)
