"""The closed-form write of an in-place layer, once, at the end of a text that was read.

After the writes of the chunks, the layer fits the error that they leave by ridge regression
(TTT-NTP, arXiv 2606.21803, on at most the last 8,192 tokens of a prompt). With Z the keys and V the
targets of n tokens, D = W - W0, and E = V - Z Dᵀ:

    ΔW = Eᵀ Z (Zᵀ Z + λ I)⁻¹       the minimum of ‖V - Z (D + ΔW)ᵀ‖² + λ ‖ΔW‖²
    W <- W + s ΔW                  s = step · min(1, ‖W0‖ / ‖ΔW‖)

The paper takes off Z Wᵀ, since its target is the next token's features themselves. The target here
is a change of the output, 0 for a convolution at its start: it takes off Z Dᵀ, and then no write
changes the model.

Keys that repeat, or are large, make Zᵀ Z + λ I singular in float32. So λ is at least a share
`LEAST_PENALTY` of the largest eigenvalue of Zᵀ Z, and a write that is not finite is left out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.ops import root, shortening
from fastweights.rules.in_place_write import contract, errors, outer, spectral_norm

#: above the rounding of a float32 Cholesky factorisation, relative to the largest eigenvalue
LEAST_PENALTY = 1e-5


class Ridge(NamedTuple):
    """Numbers of a closed-form write; the defaults are those of arXiv 2606.21803.

    Attributes:
        penalty: λ, of the squared norm of the write; more than 0. Other numbers compile another
            program.
        step: share of ΔW that is written, and the largest ‖s ΔW‖ / ‖W0‖.
        tokens: the most tokens of a text that are fitted, its last ones.
    """

    penalty: float = 1.0
    step: float = 0.1
    tokens: int = 8192


def fitted(ridge: Ridge, slow: Array, weights: Array, z: Array, v: Array, valid: Array) -> Array:
    """W after the closed-form write: `[d, f]` float32.

    Args:
        ridge: the numbers.
        slow: `[d, f]`, W0.
        weights: `[d, f]` float32, W before.
        z: `[n, f]` keys.
        v: `[n, d]` targets.
        valid: `[n]` bool, a prefix of the tokens: those of the text.
    """
    at = jnp.sum(valid) + jnp.arange(-min(len(z), ridge.tokens), 0)
    last = lambda x: jnp.where((at >= 0)[:, None], x[jnp.maximum(at, 0)], 0).astype(weights.dtype)
    z, v = last(z), last(v)
    e = errors(weights - slow.astype(weights.dtype), z, v)

    def solve(gram: Array, x: Array) -> Array:
        penalty = jnp.maximum(ridge.penalty, LEAST_PENALTY * spectral_norm(gram))
        gram = gram + penalty * jnp.eye(len(gram), dtype=gram.dtype)
        return jax.scipy.linalg.solve(gram, x, assume_a="pos")

    # the smaller of the two systems
    if len(z) <= z.shape[1]:
        delta = outer(e, solve(contract(z, z, (1, 1)), z))
    else:
        delta = solve(outer(z, z), outer(z, e)).T
    delta = jnp.where(jnp.isfinite(delta).all(), delta, 0)
    norm = lambda x: root(jnp.sum(jnp.square(x.astype(weights.dtype))))
    return weights + ridge.step * shortening(norm(delta), norm(slow)) * delta
