"""The JAX contenders of `in_place.py`: functions of W0 `[d, f]`, z `[T, f]` and v `[T, d]`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from in_place_reference import Size
from jax import Array

from fastweights.rules import chunk_scan
from fastweights.rules.in_place import attention

Layer = Callable[[Array, Array, Array], Array]


def plain(size: Size) -> Layer:
    """The down projection of a transformer that does not learn; v is not used."""
    return lambda w0, z, v: z @ w0.T.astype(z.dtype)


def ours(size: Size) -> Layer:
    """`chunk_scan`, as the in-place MLP calls it."""
    options: dict[str, Any] = {"chunk": size.chunk, "lr": size.lr, "final": False}
    return lambda w0, z, v: chunk_scan(w0, z, v, **options)[0]


def materialised(size: Size) -> Layer:
    """All chunks at once: their deltas, exclusive prefix sums from W0 on, a matrix for each."""

    def layer(w0: Array, z: Array, v: Array) -> Array:
        fill = size.chunks * size.chunk - size.length
        z, v = (jnp.pad(x, ((0, fill), (0, 0))) for x in (z, v))
        z, v = (x.reshape(size.chunks, size.chunk, -1) for x in (z, v))
        deltas = jnp.einsum("ncd,ncf->ndf", v, z, preferred_element_type=jnp.float32)
        start = w0[None].astype(deltas.dtype)
        weights = jnp.cumsum(jnp.concatenate([start, size.lr * deltas[:-1]]), 0)
        y = jnp.einsum("ncf,ndf->ncd", z, weights.astype(z.dtype))
        return y.reshape(-1, size.d)[: size.length]

    return layer


def scores(size: Size) -> Layer:
    """Linear attention, `[T, T]` scores and no fast matrix."""
    return lambda w0, z, v: attention(w0, z, v, chunk=size.chunk, lr=size.lr)


def value_and_grad(layer: Layer, learns: bool = True):
    """(w0, z, v, dy) -> Σ dy y and its gradients to w0, z and, of what learns, v."""
    inputs = (0, 1, 2) if learns else (0, 1)

    def value(w0: Array, z: Array, v: Array, dy: Array) -> Array:
        return jnp.sum((layer(w0, z, v) * dy).astype(jnp.float32))

    return jax.value_and_grad(value, inputs)


LAYERS: dict[str, Callable[[Size], Layer]] = {
    "plain": plain,
    "ours": ours,
    "materialised": materialised,
    "scores": scores,
}


def function(name: str, size: Size, training: bool) -> Callable[..., Any]:
    """A contender as a function of (w0, z, v, dy): forward, or value and gradients."""
    layer = LAYERS[name](size)
    if training:
        return value_and_grad(layer, name != "plain")
    return lambda w0, z, v, dy: layer(w0, z, v)


def products(size: Size, training: bool) -> float:
    """Products of the layer over those of the plain one: its ratio if all took the same time.

    A chunk is read, once forward and twice backward (as a plain layer), and all but the last are
    written: once forward, three times backward, where one product walks the write back, and again
    to have it there at all.
    """
    n = size.chunks
    return (7 * n - 4) / (3 * n) if training else (2 * n - 1) / n
