"""The delta rule (Schlag et al. 2021, arXiv:2102.11174), with a chunk form (arXiv:2406.06484).

    write    S <- S + beta k (v - Sᵀ k)ᵀ
    read     y = Sᵀ q                       after the write

The write moves the answer to k towards v: with a unit key and beta = 1 it replaces the value stored
under k, where linear attention adds to it. Keys come as they are; the rule is stable for
beta |k|² <= 2.

A token adds k uᵀ with u = beta (v - Sᵀ k), and S is the state before the chunk plus the k uᵀ of
earlier tokens, so the rows u of a chunk solve a unit lower triangular system:

    (I + tril(diag(beta) K Kᵀ, -1)) U = diag(beta) (V - K S)

With U in the place of V the rest is linear attention. A log decay g, applied to S before the write,
multiplies K Kᵀ and S by the decay between their tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.ops import decays, unit_lower_inverse
from fastweights.rules.base import Slot
from fastweights.rules.matrix import MatrixRule, recall


def delta_write(S: Array, k: Array, v: Array, beta: Array) -> Array:
    """S + beta k (v - Sᵀ k)ᵀ: `[K, V]`, `[K]`, `[V]`, `[]` -> `[K, V]`."""
    return S + jnp.outer(k, beta * (v - recall(S, k)))


# saves its arguments for the backward pass and no [C, C] matrix: less memory and, measured, time
@functools.partial(jax.checkpoint, prevent_cse=False)
def delta_chunk(
    S: Array,
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    g: Array | None = None,
    starts: Array | None = None,
) -> tuple[Array, Array]:
    """C tokens of S <- e^g S, `delta_write`, y = Sᵀ q in closed form: the final S and `[C, V]`.

    Args:
        S: `[K, V]`, the state before the chunk.
        q: `[C, K]` queries.
        k: `[C, K]` keys.
        v: `[C, V]` values.
        beta: `[C]` write strengths.
        g: `[C]` log decays; None is no decay.
        starts: `[C]` bool, the first tokens of new documents, at which S is 0.
    """
    writes, state = decays(len(k), g, starts, S.dtype)
    error = v - state[:, None] * recall(S, k)
    U = unit_lower_inverse(beta[:, None] * (k @ k.T) * writes) @ (beta[:, None] * error)
    y = (q @ k.T * writes) @ U + state[:, None] * recall(S, q)
    return state[-1] * S + (writes[-1][:, None] * k).T @ U, y


@dataclasses.dataclass(frozen=True)
class Delta(MatrixRule):
    """The delta rule: a write corrects the stored answer to its key."""

    citation = (
        "Schlag, Irie, Schmidhuber 2021, arXiv:2102.11174; "
        "chunks: Yang, Wang, Zhang, Shen, Kim 2024, arXiv:2406.06484"
    )
    slots = {
        "q": Slot("K", "unit"),
        "k": Slot("K", "unit"),
        "v": Slot("V"),
        "beta": Slot("", "gate"),
    }

    def update(self, S: Array, q: Array, k: Array, v: Array, *rest: Array) -> Array:
        """Move the answer to k towards v by the fraction beta."""
        return delta_write(S, k, v, *rest)

    def closed(
        self, S: Array, tokens: tuple[Array, ...], starts: Array | None
    ) -> tuple[Array, Array]:
        """One triangular inverse, then matrix products; see the top of this file."""
        return delta_chunk(S, *tokens, starts=starts)
