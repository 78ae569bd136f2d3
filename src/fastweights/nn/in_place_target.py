"""The target of In-Place TTT: a convolution within a chunk and a document."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

Window = Literal["centred", "forward", "reconstruction"]

#: which taps of the kernel a window uses; tap 2 is the token itself, 3 the next, 4 the one after
TAPS: dict[str, tuple[int, ...]] = {
    "centred": (0, 1, 2, 3, 4),
    "forward": (2, 3, 4),
    "reconstruction": (2,),
}
KERNEL = 5


# the backward pass computes the five shifted copies of x again: they are cheap, and large
@functools.partial(jax.checkpoint, static_argnums=(2, 3))
def convolve(
    x: Array, kernel: Array, taps: tuple[int, ...], chunk: int, segment_ids: Array | None
) -> Array:
    """Depthwise cross-correlation that sees zeros outside of a token's chunk and document.

    Args:
        x: `[B, T, D]`.
        kernel: `[D, 5]`; tap k is the weight of the token k - 2 places on.
        taps: indices of the taps to use.
        chunk: C, tokens per chunk, from the start of the row.
        segment_ids: `[B, T]` int or None.

    Returns:
        `[B, T, D]` in the dtype of x, summed in at least float32.
    """
    length, dtype = x.shape[1], jnp.promote_types(x.dtype, jnp.float32)
    middle = KERNEL // 2
    place = jnp.arange(length)
    around = jnp.pad(x, ((0, 0), (middle, middle), (0, 0)))
    ids = None if segment_ids is None else jnp.pad(segment_ids, ((0, 0), (middle, middle)))
    total = jnp.zeros(x.shape, dtype)
    for tap in taps:
        other = place + tap - middle
        seen = ((other >= 0) & (other // chunk == place // chunk))[None, :]
        if ids is not None and segment_ids is not None:
            seen = seen & (ids[:, tap : tap + length] == segment_ids)
        neighbour = jnp.where(seen[:, :, None], around[:, tap : tap + length], 0)
        total += neighbour.astype(dtype) * kernel[None, None, :, tap].astype(dtype)
    return total.astype(x.dtype)


def diagonal_normal(scale: float):
    """The initializer diag(N(0, scale²)): small, and it mixes no features."""

    def init(key: Array, shape: tuple[int, int], dtype: DTypeLike) -> Array:
        return jnp.diag(scale * jax.random.normal(key, shape[:1], dtype))

    return init
