"""The short causal convolution in front of a memory layer, with documents and with a state."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


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
        segment_ids: `[B, T]` int, documents of a packed row; a token sees its own document only.

    Returns:
        `[B, T, C]` in the dtype of x, summed in at least float32.
    """
    width, length = kernel.shape[1], x.shape[1]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    before = jnp.zeros((x.shape[0], width - 1, x.shape[2]), x.dtype) if tail is None else tail
    line = jnp.concatenate([before.astype(x.dtype), x], 1)
    ids = None
    if segment_ids is not None:
        ids = jnp.pad(segment_ids, ((0, 0), (width - 1, 0)), constant_values=-1)
    total = jnp.zeros(x.shape, dtype)
    for tap in range(width):
        value = line[:, tap : tap + length]
        if ids is not None and segment_ids is not None:
            value = jnp.where((ids[:, tap : tap + length] == segment_ids)[:, :, None], value, 0)
        total += value.astype(dtype) * kernel[None, None, :, tap].astype(dtype)
    return total.astype(x.dtype)


def next_tail(x: Array, tail: Array, counts: Array) -> Array:
    """The last W - 1 inputs of each row after its first `counts [B]` tokens of `x [B, T, C]`."""
    line = jnp.concatenate([tail, x.astype(tail.dtype)], 1)
    at = counts[:, None] + jnp.arange(tail.shape[1])[None, :]
    return jnp.take_along_axis(line, at[:, :, None], 1)
