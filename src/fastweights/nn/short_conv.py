"""The short causal convolution in front of a memory layer, with documents and with a state."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from fastweights.nn.parts import depthwise, same_document


def kernel_start(key: Array, shape: tuple[int, int], dtype: DTypeLike) -> Array:
    """U(-1/√W, 1/√W) for a kernel `[channels, W]`."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def short_conv(
    x: Array, kernel: Array, tail: Array | None = None, segment_ids: Array | None = None
) -> Array:
    """Depthwise causal convolution: y_t = Σ_w kernel[:, w] x_{t - W + 1 + w}.

    Args:
        x: `[B, T, C]`.
        kernel: `[C, W]`; the last tap is of the token itself.
        tail: `[B, W - 1, C]`, the inputs before x; None is zeros.
        segment_ids: `[B, T]` int, documents of a packed row, which has no tail; a token sees its
            own document only.

    Returns:
        `[B, T, C]` in the dtype of x, summed in at least float32.
    """
    width, length = kernel.shape[1], x.shape[1]
    if tail is not None:  # few tokens, and no gradient
        assert segment_ids is None
        line = jnp.concatenate([tail.astype(x.dtype), x], 1)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        kernel = kernel.astype(dtype)
        total = jnp.zeros(x.shape, dtype)
        for tap in range(width):
            total += line[:, tap : tap + length].astype(dtype) * kernel[None, None, :, tap]
        return total.astype(x.dtype)
    if segment_ids is None:
        seen = jnp.ones((width, 1, length), bool)
    else:
        seen = same_document(segment_ids, width, width - 1)
    return depthwise(x, kernel, seen, tuple(range(width)), width - 1)


def next_tail(x: Array, tail: Array, counts: Array) -> Array:
    """The last W - 1 inputs of each row after its first `counts [B]` tokens of `x [B, T, C]`."""
    line = jnp.concatenate([tail, x.astype(tail.dtype)], 1)
    at = counts[:, None] + jnp.arange(tail.shape[1])[None, :]
    return jnp.take_along_axis(line, at[:, :, None], 1)
