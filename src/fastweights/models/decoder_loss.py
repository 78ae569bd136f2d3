"""The loss of a decoder: cross-entropy of the next token, from its last features."""

import functools
import math
from typing import Any

import jax
from jax import Array

from fastweights.models.decoder_mesh import whole
from fastweights.nn.cross_entropy import token_losses
from fastweights.nn.mesh import BATCH, sizes, split


def unembedding(model: Any) -> Array:
    """The matrix of a decoder's logits: the head `[D, vocab]`, or a tied embedding `[vocab, D]`."""
    if model.head is None:
        return whole("embed.embedding", model.embed.embedding[...])
    return whole("head.kernel", model.head.kernel[...])


def head_losses(model: Any, features: Array, targets: Array, block: int = 512) -> Array:
    """Loss of every token in nats, `[B, T]` float32, 0 where the target is negative.

    Args:
        model: a decoder, for its head or tied embedding.
        features: its last features `[B, T, D]`.
        targets: `[B, T]` int.
        block: tokens of each row whose logits exist at once.
    """
    losses = functools.partial(token_losses, block=block, vocab_first=model.head is None)
    kernel, axes = unembedding(model), sizes(features)
    parts = math.prod(axes.get(name, 1) for name in BATCH)
    if parts == 1 or len(targets) % parts:
        return losses(features, kernel, targets)
    # every part of the batch sums its own gradient to the kernel over blocks, so that devices add
    # theirs up once and not once a block
    cut = lambda x: split(x.reshape(parts, -1, *x.shape[1:]), BATCH, *[None] * x.ndim)
    found = jax.vmap(losses, (0, None, 0))(cut(features), kernel, cut(targets))
    return found.reshape(targets.shape)
