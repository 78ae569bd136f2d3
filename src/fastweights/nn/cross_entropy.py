"""Next-token cross-entropy from features, with never a `[T, vocab]` array at once.

At 32k tokens and a vocabulary of 152k the fp32 logits are 18.5 GiB, and a backward pass wants two
such arrays. Here a block of tokens is taken to its logits, reduced to one number a token, and
forgotten. The backward pass makes the logits of a block again and needs only the logarithm of its
partition function, saved by the forward pass: 8 instead of 6 FLOPs a token and weight.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

#: target of a token that has none: its loss is 0 and so is every gradient through it
NO_TARGET = -1


def token_losses(
    features: Array,
    kernel: Array,
    targets: Array,
    *,
    block: int = 512,
    vocab_first: bool = False,
) -> Array:
    """-log softmax(features @ kernel)[target] of every token, in nats.

    The products are taken in the dtype of `features` and summed in float32 (float64 if that is what
    the features are); all else is float32, the sum of the kernel's gradient over blocks too.

    Args:
        features: `[..., T, D]`.
        kernel: `[D, vocab]`, or an embedding `[vocab, D]` with `vocab_first`.
        targets: `[..., T]` int; `NO_TARGET`, like all that is negative, means none.
        block: tokens of each sequence whose logits are there at once. The other axes are never cut,
            so that a batch stays on its devices.
        vocab_first: the kernel is an embedding used backwards.

    Returns:
        `[..., T]` float32, 0 where there is no target and NaN where it is beyond the vocabulary.

    Raises:
        ValueError: shapes that do not go together.
    """
    if features.shape[:-1] != targets.shape:
        raise ValueError(f"features {features.shape} do not go with targets {targets.shape}")
    if features.shape[-1] != kernel.shape[1 if vocab_first else 0]:
        raise ValueError(f"features {features.shape} do not go with a kernel {kernel.shape}")
    targets = targets.astype(jnp.result_type(targets, jnp.int32))  # a byte cannot hold `vocab`
    return _losses(features, kernel, targets, max(1, block), vocab_first)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _losses(features: Array, kernel: Array, targets: Array, block: int, vocab_first: bool) -> Array:
    return _forward(features, kernel, targets, block, vocab_first)[0]


def _forward(features: Array, kernel: Array, targets: Array, block: int, vocab_first: bool):
    cast = kernel.astype(features.dtype)

    def one(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        x, target = piece
        logits = _logits(x, cast, vocab_first)
        total = jax.nn.logsumexp(logits, -1)
        right = jnp.sum(jnp.where(_is_target(target, logits), logits, 0.0), -1)
        loss = jnp.where(target < logits.shape[-1], total - right, jnp.nan)
        return jnp.where(target >= 0, loss, 0.0), total

    pieces = (_cut(features, targets.ndim - 1, block), _cut(targets, targets.ndim - 1, block, -1))
    losses, totals = jax.lax.map(one, pieces)
    join = lambda x: _join(x, targets.ndim - 1, targets.shape[-1])
    return join(losses), (features, kernel, targets, join(totals))


def _backward(block: int, vocab_first: bool, saved: tuple, incoming: Array):
    features, kernel, targets, totals = saved
    cast, axis = kernel.astype(features.dtype), targets.ndim - 1

    def one(grad: Array, piece: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        x, target, total, g = piece
        logits = _logits(x, cast, vocab_first)
        error = jnp.exp(logits - total[..., None]) - _is_target(target, logits)
        error = (error * jnp.where(target >= 0, g, 0.0)[..., None]).astype(x.dtype)
        dx = jax.lax.dot_general(error, cast, (((axis + 1,), (0 if vocab_first else 1,)), ((), ())))
        rows = tuple(range(axis + 1))
        ends = (error, x) if vocab_first else (x, error)
        grad += jax.lax.dot_general(
            *ends, ((rows, rows), ((), ())), preferred_element_type=_wide(x)
        )
        return grad, dx

    cut = lambda x, fill=0: _cut(x, axis, block, fill)
    pieces = (cut(features), cut(targets, -1), cut(totals), cut(incoming))
    grad, dx = jax.lax.scan(one, jnp.zeros(kernel.shape, _wide(features)), pieces)
    nothing = np.zeros(targets.shape, jax.dtypes.float0)
    return _join(dx, axis, targets.shape[-1]), grad.astype(kernel.dtype), nothing


_losses.defvjp(_forward, _backward)


def _logits(x: Array, kernel: Array, vocab_first: bool) -> Array:
    """`[..., C, D]` and the kernel to float32 `[..., C, vocab]`."""
    contract = (((x.ndim - 1,), (1 if vocab_first else 0,)), ((), ()))
    return jax.lax.dot_general(x, kernel, contract, preferred_element_type=_wide(x))


def _wide(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _is_target(target: Array, logits: Array) -> Array:
    """One-hot targets `[..., vocab]` bool: a comparison that fuses, and splits over a mesh."""
    ids = jax.lax.broadcasted_iota(target.dtype, logits.shape, logits.ndim - 1)
    return ids == target[..., None]


def _cut(x: Array, axis: int, block: int, fill: int = 0) -> Array:
    """`[..., T, *rest]` to blocks `[n, ..., C, *rest]`, the last one filled up.

    All blocks have one size, the smallest that needs no more of them than `block` does.
    """
    length = x.shape[axis]
    count = max(1, -(-length // block))
    size = -(-length // count)
    if count * size > length:
        width = [(0, 0)] * x.ndim
        width[axis] = (0, count * size - length)
        x = jnp.pad(x, width, constant_values=fill)
    split = x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 0)


def _join(x: Array, axis: int, length: int) -> Array:
    """The inverse of `_cut`."""
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)
