"""A language model of a few thousand weights over bytes, for tests of the loops around one."""

import functools

import jax
from flax import nnx

from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.pretrained import Pretrained
from fastweights.tasks.text_tokens import Bytes

CONFIG = DecoderConfig(
    family="qwen3",
    vocab=264,
    hidden=16,
    intermediate=32,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    tie_embeddings=True,
    max_length=128,
    initializer_range=0.3,
)


@functools.cache
def model(seed=0):
    """Random weights, far from uniform in what they predict."""
    return jax.jit(lambda: Decoder(CONFIG, rngs=nnx.Rngs(seed)))()


def base(seed=0):
    """It, as a model to start from."""
    return Pretrained(model(seed), Bytes(), (ord("\n"),))
