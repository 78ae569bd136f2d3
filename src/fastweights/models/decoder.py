"""The decoder language model: Qwen3 and Llama 3, some of whose MLPs may learn while they read.

Layers are stacked. With p the period after which the kinds of layers repeat, block j of the p that
the model holds has arrays with a leading axis `layers // p`, and layer i is block i % p at i // p.
The forward pass is a `lax.scan` over that axis, p blocks a turn, so that compile time grows with
the period and not with the depth.
"""

import functools
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
from fastweights.nn.in_place import InPlaceMLP
from fastweights.nn.linear import linear
from fastweights.nn.mesh import BATCH, split
from fastweights.nn.mlp import MLP
from fastweights.nn.norm import RMSNorm
from fastweights.nn.rope import document_positions


class Block(nnx.Module):
    """One layer: x + attention(norm x), then x + mlp(norm x).

    `mlp` is an `InPlaceMLP` in the layers that learn in place.

    Args:
        config: of the whole model.
        kind: the layer's window, and whether it learns in place.
        rngs: flax's source of random keys.
    """

    def __init__(self, config: DecoderConfig, kind: Kind, *, rngs: nnx.Rngs):
        window, in_place = kind
        dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden, eps=config.norm_eps, param_dtype=param_dtype)

        numerics: dict[str, Any] = {
            "initializer_range": config.initializer_range,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        self.attention_norm = norm()
        self.attention = Attention(
            config.hidden,
            config.heads,
            config.kv_heads,
            config.head_dim,
            rope=config.rope,
            norm_eps=config.norm_eps if config.family == "qwen3" else None,
            window=window,
            kernel=config.attention,
            **numerics,
            rngs=rngs,
        )
        self.mlp_norm = norm()
        sizes = (config.hidden, config.intermediate)
        self.mlp = (
            InPlaceMLP(*sizes, config.ttt, **numerics, rngs=rngs)
            if in_place and config.ttt is not None
            else MLP(*sizes, **numerics, rngs=rngs)
        )

    def __call__(
        self,
        x: Array,
        embedded: Array,
        positions: Array,
        segment_ids: Array | None = None,
        stats: bool = False,
    ) -> tuple[Array, Array | None]:
        """The next residual stream `[B, T, D]`, and the drift `[]` of a layer that learns in place.

        Args:
            x: residual stream `[B, T, D]`.
            embedded: the token embeddings `[B, T, D]`, a possible target of what is learned.
            positions: `[B, T]` int, from 0 at the start of each document.
            segment_ids: `[B, T]` int or None.
            stats: whether to measure the drift, which costs a product; else it is None.
        """
        x += self.attention(self.attention_norm(x), positions, segment_ids)
        h = self.mlp_norm(x)
        if not isinstance(self.mlp, InPlaceMLP):
            return x + self.mlp(h), None
        target = embedded if self.mlp.ttt.target == "input_embed" else h
        if not stats:
            return x + self.mlp(h, target, segment_ids), None
        y, found = self.mlp(h, target, segment_ids, return_stats=True)
        return x + y, found["drift"]


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
        dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
        start = normal(config.initializer_range)
        self.embed = nnx.Embed(
            config.vocab,
            config.hidden,
            embedding_init=start,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        turns = config.layers // config.period

        def stack(kind: Kind) -> Block:
            keys = jax.random.split(rngs.params(), turns)
            return jax.vmap(lambda key: Block(config, kind, rngs=nnx.Rngs(key)))(keys)

        self.blocks = nnx.List([stack(kind) for kind in config.kinds[: config.period]])
        self.final_norm = RMSNorm(config.hidden, eps=config.norm_eps, param_dtype=param_dtype)
        self.head = (
            None
            if config.tie_embeddings
            else linear(
                config.hidden,
                config.vocab,
                initializer_range=config.initializer_range,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
        )

    def layer(self, i: int) -> Block:
        """Block i of the network, counted from 0, with its own arrays.

        Raises:
            IndexError: the network has no such layer.
        """
        if not 0 <= i < self.config.layers:
            raise IndexError(f"there is no layer {i}: the model has {self.config.layers}, from 0")
        turn, place = divmod(i, self.config.period)
        return jax.tree.map(lambda x: x[turn], self.blocks[place])

    def embedded(self, tokens: Array) -> Array:
        """Token embeddings `[..., D]` in the dtype of the computation; NaN for no token of ours."""
        table = whole("embed.embedding", self.embed.embedding[...])
        # an index of -1 would be the last token
        rows = table.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows.astype(self.config.dtype)

    def logits(self, features: Array) -> Array:
        """Final features `[..., D]` to logits `[..., vocab]`, float32."""
        contract = (((features.ndim - 1,), (1 if self.head is None else 0,)), ((), ()))
        return jax.lax.dot_general(
            features,
            unembedding(self).astype(features.dtype),
            contract,
            preferred_element_type=jnp.float32,
        )

    def features(self, tokens: Array, segment_ids: Array | None = None, stats: bool = False) -> Any:
        """The last residual stream, normed: what `logits` takes.

        Args:
            tokens: `[B, T]` int.
            segment_ids: `[B, T]` int, 0 for padding and 1, 2, ... for the documents of a row; None
                is one document a row. Positions start again at each, attention and fast weights
                stay within.
            stats: also return how far the in-place layers have drifted.

        Returns:
            `[B, T, D]`; with `stats`, that and `[number of in-place layers]` float32, the mean over
            tokens of |ΔW z| / |W z| in each, in the order of `config.ttt_layers`.
        """
        config = self.config
        ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        positions = document_positions(ids)
        embedded = split(self.embedded(tokens), BATCH, None, None)
        run = _rematerialised(config, stats)

        def turn(x: Array, blocks: Any) -> tuple[Array, list[Array]]:
            drifts = []
            for block in blocks:
                x, drift = run(block, x, embedded, positions, segment_ids)
                x = split(x, BATCH, None, None)
                drifts += [] if drift is None else [drift]
            return x, drifts

        x, drifts = jax.lax.scan(turn, embedded, self.blocks)
        x = self.final_norm(x)
        if not stats:
            return x
        # [places in a period][turns] to the order of layers
        return x, jnp.stack(drifts, 1).reshape(-1) if drifts else jnp.zeros(0)

    def __call__(self, tokens: Array, segment_ids: Array | None = None) -> Array:
        """Logits of the next token: `[B, T]` int -> `[B, T, vocab]` float32; see `features`."""
        return self.logits(self.features(tokens, segment_ids))


def unembedding(model: Any) -> Array:
    """What makes a decoder's logits of its features: the head `[D, vocab]`, or a tied embedding
    `[vocab, D]`.
    """
    if model.head is None:
        return whole("embed.embedding", model.embed.embedding[...])
    return whole("head.kernel", model.head.kernel[...])


def _rematerialised(
    config: DecoderConfig, stats: bool
) -> Callable[..., tuple[Array, Array | None]]:
    """A block's call, computed again in the backward pass as the config says.

    Blocks are wrapped one by one: to wrap a whole period would hold the inner values of p blocks at
    once, of all of them where the pattern never repeats.
    """
    call = lambda block, *inputs: whole_block(block)(*inputs, stats)
    if config.remat == "none":
        return call
    policy = (
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
    )
    # in a loop of one turn XLA would see that the second computation repeats the first
    alone = config.period == config.layers
    return jax.checkpoint(call, policy=policy, prevent_cse=alone)


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
