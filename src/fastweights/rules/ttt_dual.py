"""The dual form of TTT-Linear and TTT-MLP (Sun et al. 2024, arXiv 2407.04620, section 2.5).

The gradient to a layer's matrix is a sum of outer products, Σ_s x_s g_sᵀ, of the layer's inputs x
and the gradients g to its outputs. So the matrix that token t reads, W − η p_t Σ_{s≤t} x_s g_sᵀ,
need not be made: with u_t the layer's input on the way from the query,

    W_tᵀ u_t = Wᵀ u_t − η p_t Σ_{s≤t} g_s ⟨x_s, u_t⟩

which is causal linear attention inside the mini-batch. A bias is a further input of 1.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.losses import squared
from fastweights.rules.memories import ResidualNorm, gelu
from fastweights.rules.mini_batch import Token

#: a layer's names of matrix and bias, inputs `[n, in]` and gradients to its outputs `[n, out]`
Layer = tuple[tuple[str, str], Array, Array]


def factors(
    memory: ResidualNorm,
    weights: Mapping[str, Array],
    k: Array,
    v: Array,
    beta: Array | None,
    chosen: Array,
) -> list[Layer]:
    """Inputs of every layer, and gradients of the weighted loss to its outputs, at `weights`.

    Args:
        memory: f.
        weights: of f, by name.
        k: `[n, K]` keys.
        v: `[n, V]` targets.
        beta: `[n]` write strengths; None is 1.
        chosen: `[n]` bool; the gradients of all other tokens are 0.
    """

    def total(shifts: Sequence[Array]) -> tuple[Array, list[Array]]:
        inputs, x = [], k
        for (W, b), shift in zip(memory.inner.layers, shifts, strict=True):
            inputs.append(gelu(x) if inputs else x)
            x = inputs[-1] @ weights[W] + weights[b][None] + shift
        ys = k + jax.vmap(lambda z: memory.norm(weights, z))(x)
        losses = jax.vmap(squared)(ys, v)
        if beta is not None:
            losses = beta * losses
        return jnp.sum(jnp.where(chosen, losses, 0)), inputs

    # the gradient to zeros that are added to a layer's outputs is the gradient to the outputs
    shifts = [jnp.zeros((len(k), len(weights[b])), k.dtype) for _, b in memory.inner.layers]
    gradients, inputs = jax.grad(total, has_aux=True)(shifts)
    return list(zip(memory.inner.layers, inputs, gradients, strict=True))


def dual(
    memory: ResidualNorm,
    weights: Mapping[str, Array],
    pending: Mapping[str, Array],
    tokens: Token,
    chosen: Array,
    *,
    pairs: Array,
    rate: Array,
) -> tuple[list[Layer], Array]:
    """Factors of the gradients of some tokens, and the outputs of all.

    Args:
        memory: f.
        weights: of f at the start of the mini-batch, by name.
        pending: the sum of earlier gradients of the mini-batch, by name.
        tokens: `[n, ...]`.
        chosen: `[n]` bool, the tokens that are learnt.
        pairs: `[n, n]` bool, True at t, s if token t reads the write of token s.
        rate: `[n]`, η p of the token that reads.

    Returns:
        The layers as of `factors`, and `[n, V]` in the dtype of the queries.
    """
    dtype = rate.dtype
    q, k, v = (x.astype(dtype) for x in (tokens.q, tokens.k, tokens.v))
    beta = None if tokens.beta is None else tokens.beta.astype(dtype)
    layers = factors(memory, weights, k, v, beta, chosen)
    z = q
    for index, ((W, b), x, g) in enumerate(layers):
        u = gelu(z) if index else z
        earlier = u @ pending[W] + pending[b][None]
        inside = jnp.where(pairs, u @ x.T + 1, 0) @ g
        z = u @ weights[W] + weights[b][None] - rate[:, None] * (earlier + inside)
    ys = q + jax.vmap(lambda z: memory.norm(weights, z))(z)
    return layers, ys.astype(tokens.q.dtype)


def written(layers: Sequence[Layer], chosen: Array) -> dict[str, Array]:
    """The sum of the gradients of the tokens that are `chosen [n]`, by name of the weights."""
    gradient = {}
    for (W, b), x, g in layers:
        g = jnp.where(chosen[:, None], g, 0)
        gradient |= {W: x.T @ g, b: jnp.sum(g, 0)}
    return gradient
