"""The settling read of Ba et al. 2016 (arXiv 1610.06258, equation 2) and its layer norm."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Norm = Callable[[Array], Array]
Recall = Callable[[Array], Array]


def layer_norm(
    x: Array, gain: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> Array:
    """Zero mean, unit population variance over the last axis (Ba, Kiros, Hinton 2016): `[..., H]`.

    Args:
        x: `[..., H]`.
        gain: `[H]`, multiplies the normed input; None is 1.
        bias: `[H]`, is added to it; None is 0.
        eps: added to the variance.
    """
    centred = x - jnp.mean(x, -1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)
    y = centred * (scale if gain is None else scale * gain)
    return y if bias is None else y + bias


def settle(
    recall: Recall,
    boundary: Array,
    *,
    steps: int,
    norm: Norm = layer_norm,
    start: Array | None = None,
) -> Array:
    """The settling loop: `steps` times h <- f(norm(boundary + recall(h))), f = ReLU.

    Args:
        recall: h `[H]` -> A h `[H]`, the fast weights' part; fixed while settling.
        boundary: `[H]`, what the slow weights send; added at every step.
        steps: number S of settling steps.
        norm: applied to the summed input inside f; the paper's layer norm by default.
        start: h_0 `[H]`; f(boundary), without norm, by default.
    """
    h = jax.nn.relu(boundary) if start is None else start
    for _ in range(steps):
        h = jax.nn.relu(norm(boundary + recall(h)))
    return h
