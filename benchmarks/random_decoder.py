"""Decoders of random numbers, for timing."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig


def shapes(config: DecoderConfig) -> Decoder:
    """The model with shapes for arrays."""
    return jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))


def random_decoder(config: DecoderConfig, seed: int) -> Decoder:
    """A model of random numbers, made on the device an array at a time.

    In-place layers are random too: their convolutions would start at 0, and products with zeros
    take less power and time. The initialisers in one program would take long to compile.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes(config))
    # "rbg" keys: programs that draw compile several times as fast
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), len(leaves))

    def draw(key: jax.Array, path: Any, x: Any) -> jax.Array:
        if "scale" in jax.tree_util.keystr(path):
            return jnp.ones(x.shape, x.dtype)
        return config.initializer_range * jax.random.normal(key, x.shape, x.dtype)

    drawn = [draw(key, path, x) for key, (path, x) in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)
