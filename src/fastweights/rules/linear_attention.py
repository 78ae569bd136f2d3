"""Linear attention (Katharopoulos et al. 2020, arXiv:2006.16236; Schmidhuber 1992).

    write    S <- S + k vᵀ
    read     y = Sᵀ q            after the write

Keys and queries come as they are: no feature map, scale or normaliser is hidden in the rule. With
S = Σ_j k_j v_jᵀ a read is y_i = Σ_{j <= i} (q_i · k_j) v_j, attention without softmax, which is the
form inside a chunk.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from fastweights.ops import decays
from fastweights.rules.base import Slot
from fastweights.rules.matrix import MatrixRule, recall


def linear_write(S: Array, k: Array, v: Array) -> Array:
    """S + k vᵀ: `[K, V]`, `[K]`, `[V]` -> `[K, V]`."""
    return S + jnp.outer(k, v)


def linear_chunk(
    S: Array, q: Array, k: Array, v: Array, g: Array | None = None, starts: Array | None = None
) -> tuple[Array, Array]:
    """C tokens of S <- e^g S + k vᵀ, y = Sᵀ q in closed form: the final S and `[C, V]` outputs.

    Args:
        S: `[K, V]`, the state before the chunk.
        q: `[C, K]` queries.
        k: `[C, K]` keys.
        v: `[C, V]` values.
        g: `[C]` log decays; None is no decay.
        starts: `[C]` bool, the first tokens of new documents, at which S is 0.
    """
    writes, state = decays(len(k), g, starts, S.dtype)
    y = (q @ k.T * writes) @ v + state[:, None] * recall(S, q)
    return state[-1] * S + (writes[-1][:, None] * k).T @ v, y


@dataclasses.dataclass(frozen=True)
class LinearAttention(MatrixRule):
    """Linear attention: the sum of outer products of keys and values."""

    citation = "Schmidhuber 1992; Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv:2006.16236"
    # a unit key bounds a write by its value, where no write strength and no normaliser does
    slots = {"q": Slot("K", "unit"), "k": Slot("K", "unit"), "v": Slot("V")}

    def update(self, S: Array, q: Array, k: Array, v: Array, *rest: Array) -> Array:
        """Add k vᵀ."""
        return linear_write(S, k, v)

    def closed(
        self, S: Array, tokens: tuple[Array, ...], starts: Array | None
    ) -> tuple[Array, Array]:
        """Masked attention inside the chunk, one product with the state before it."""
        return linear_chunk(S, *tokens, starts=starts)
