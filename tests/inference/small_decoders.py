"""Tiny decoders with random numbers everywhere, and the slow way to run them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT, Rope

VOCAB = 61
QWEN3 = DecoderConfig(
    "qwen3",
    vocab=VOCAB,
    hidden=32,
    intermediate=48,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=8,
    max_length=96,
    initializer_range=0.2,
)
LLAMA = dataclasses.replace(
    QWEN3, family="llama", kv_heads=4, tie_embeddings=True, rope=Rope(theta=500.0), norm_eps=1e-5
)
change = dataclasses.replace
CASES = {
    "qwen3": QWEN3,
    "llama": LLAMA,
    "windows": change(QWEN3, layers=2, windows=(7, None)),
    "ttt": change(QWEN3, ttt=InPlaceTTT(layers=(0, 2), chunk=5)),
    "ttt_embed_clip": change(
        LLAMA,
        layers=2,
        windows=(7, 7),
        ttt=InPlaceTTT(
            layers=(1,),
            chunk=5,
            target="input_embed",
            window="forward",
            clip=0.3,
            clip_relative=True,
            clip_after_lr=False,
        ),
    ),
    "ttt_capped": change(
        LLAMA,
        layers=2,
        ttt=InPlaceTTT(
            layers=(0, 1), chunk=3, decay=0.6, decay_learned=True, lr_learned=True, cap=0.1
        ),
    ),
    "ttt_row_norm": change(
        LLAMA,
        layers=2,
        ttt=InPlaceTTT(layers=(0, 1), chunk=3, decay=0.6, spectral=True, row_norm=True),
    ),
    "ttt_residual": change(
        LLAMA,
        layers=2,
        ttt=InPlaceTTT(layers=(0, 1), chunk=3, lr=0.9, residual=True, decay=0.8, clip=0.5),
    ),
    "ttt_every_layer": change(LLAMA, layers=2, ttt=InPlaceTTT(layers=(0, 1), chunk=1, proj=False)),
}


@functools.cache
def decoder(case):
    """The model of a case, with random norms and convolutions too."""
    return randomised(CASES[case])


def randomised(config):
    """A model of random numbers."""
    rng = np.random.default_rng(1)

    def draw(path, x):
        mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        numbers = mean + (0.1 if mean else 0.2) * rng.standard_normal(x.shape, np.float32)
        return jnp.asarray(numbers, x.dtype)

    shapes = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@jax.jit
def _forward(model, tokens):
    return model(tokens)


def forward(model, tokens):
    """Logits `[B, T, vocab]` of the training forward pass, padded at the end to a few sizes."""
    tokens = np.asarray(tokens)
    length = tokens.shape[1]
    padded = np.pad(tokens, [(0, 0), (0, -length % 32)])
    return np.asarray(_forward(model, padded))[:, :length]


def greedy(model, tokens, count):
    """Greedy continuation of one prompt `[n]`, by running everything again for every token."""
    tokens = list(tokens)
    for _ in range(count):
        logits = forward(model, [tokens])[0, -1]
        top = np.sort(logits)[-2:]
        assert top[1] - top[0] > 1e-4, "too close to call in float32: use another seed"
        tokens.append(int(np.argmax(logits)))
    return tokens[-count:]


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def random_tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)
