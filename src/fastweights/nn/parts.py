"""Parts of a decoder's layers: weight matrices, depthwise convolution, norm and gated MLP."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn.initializers import normal
from jax.typing import DTypeLike

from fastweights.nn.layer import Layer, Reading, Stacked


def linear(
    inside: int,
    outside: int,
    *,
    initializer_range: float,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """`[..., inside] -> [..., outside]`, without a bias.

    XLA on a CPU takes the weight gradient of `[B, T, D] @ [D, F]` from a transposed copy of the
    input, as of jax 0.10.2; that of `[B T, D] @ [D, F]`, the same numbers, without the copy.

    Args:
        inside: size of the last axis of the input.
        outside: that of the output.
        initializer_range: standard deviation of the weights' start.
        dtype: of the computation; products of bfloat16 are accumulated in float32.
        param_dtype: of the weights.
        rngs: flax's source of random keys.
    """
    return nnx.Linear(
        inside,
        outside,
        use_bias=False,
        kernel_init=normal(initializer_range),
        dot_general=_of_flat_rows,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def _of_flat_rows(x: Array, kernel: Array, _dimensions: Any, **kwargs: Any) -> Array:
    """`x @ kernel` with all axes of `x` but its last made one: flax asks for no other product."""
    product = jax.lax.dot_general(
        x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **kwargs
    )
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def for_inference(layer: Any) -> Any:
    """The layer with the products of inference in its linear layers.

    Args:
        layer: inside a trace, which has its own copy of the modules.
    """
    for _, module in nnx.iter_graph(layer):
        if isinstance(module, nnx.Linear):
            module.dot_general = _inferred
    return layer


def _inferred(x: Array, kernel: Array, dimensions: Any, **kwargs: Any) -> Array:
    """`_of_flat_rows`; on a CPU the result is float32 first, then rounded."""
    plain = functools.partial(_of_flat_rows, _dimensions=dimensions, **kwargs)
    wide = lambda x, kernel: summed_in_float32(x, kernel).astype(x.dtype)
    return jax.lax.platform_dependent(x, kernel, cpu=wide, default=plain)


def summed_in_float32(x: Array, kernel: Array, axis: int = 0) -> Array:
    """`x [..., D]` times a matrix whose `axis` is D: `[..., F]` float32.

    XLA on a CPU, as of jax 0.10.2, multiplies bfloat16 directly if the result is float32 and x has
    two rows or more. Otherwise it first copies the matrix to float32; in a loop over layers it
    copies the whole stack, once a layer.
    """
    rows, contract = x.reshape(-1, x.shape[-1]), (((1,), (axis,)), ((), ()))
    product = functools.partial(
        jax.lax.dot_general, dimension_numbers=contract, preferred_element_type=jnp.float32
    )
    if len(rows) == 1 and x.dtype == jnp.bfloat16:
        twice = lambda row, kernel: product(jnp.concatenate([row, row]), kernel)[:1]
        y = jax.lax.platform_dependent(rows, kernel, cpu=twice, default=product)
    else:
        y = product(rows, kernel)
    return y.reshape(*x.shape[:-1], y.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def depthwise(x: Array, kernel: Array, seen: Array, taps: tuple[int, ...], behind: int) -> Array:
    """Depthwise convolution with masks: y_t = Σ_w kernel[:, w] x_{t - behind + w}.

    Zeros stand where x ends, and where `seen` is False. Autodiff would keep a shifted copy of x for
    each tap, and as of jax 0.10.2 its gradient to the kernel takes XLA on a CPU 40 times as long.

    Args:
        x: `[B, T, C]`.
        kernel: `[C, W]`.
        seen: `[W, B, T]` or `[W, 1, T]` bool, whether tap w of token t is of its own text.
        taps: indices w that are used.
        behind: tokens before t that the kernel reaches.

    Returns:
        `[B, T, C]` in the dtype of x, summed in at least float32.
    """
    width, dtype = kernel.shape[1], jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.zeros(x.shape, dtype)
    for tap, other in zip(taps, _shifted(x, [tap - behind for tap in taps], width), strict=True):
        other = jnp.where(seen[tap][:, :, None], other, 0).astype(dtype)
        total += other * kernel[None, None, :, tap].astype(dtype)
    return total.astype(x.dtype)


def same_document(segment_ids: Array, width: int, behind: int) -> Array:
    """`seen` of `depthwise` for the documents of packed rows: `[B, T]` int -> `[W, B, T]` bool."""
    length = segment_ids.shape[1]
    ids = jnp.pad(segment_ids, ((0, 0), (behind, width - 1 - behind)), constant_values=-1)
    return jnp.stack([ids[:, tap : tap + length] == segment_ids for tap in range(width)])


def _shifted(x: Array, steps: list[int], width: int) -> list[Array]:
    """`x_{t + step}` for every step, -width < step < width, with zeros where x ends."""
    length = x.shape[1]
    line = jnp.pad(x, ((0, 0), (width - 1, width - 1), (0, 0)))
    return [line[:, width - 1 + step : width - 1 + step + length] for step in steps]


def _depthwise_forward(x, kernel, seen, taps, behind):
    return depthwise(x, kernel, seen, taps, behind), (x, kernel, seen)


def _depthwise_backward(taps, behind, saved, dy):
    x, kernel, seen = saved
    width, dtype = kernel.shape[1], jnp.promote_types(x.dtype, jnp.float32)
    dx = jnp.zeros(x.shape, dtype)
    for tap in taps:
        masked = jnp.where(seen[tap][:, :, None], dy, 0).astype(dtype)
        (back,) = _shifted(masked, [behind - tap], width)
        dx += back * kernel[None, None, :, tap].astype(dtype)

    def to_kernel(x: Array, dy: Array, seen: Array) -> Array:
        """Each row's gradient to the used taps, `[taps, B, C]`; x has W - 1 more on both sides."""
        length = dy.shape[1]
        starts = [width - 1 + tap - behind for tap in taps]
        parts = [x[:, start : start + length].astype(dtype) * dy.astype(dtype) for start in starts]
        masked = [jnp.where(seen[t][:, :, None], p, 0) for t, p in zip(taps, parts, strict=True)]
        return jnp.stack([jnp.sum(part, 1) for part in masked])

    line = jnp.pad(x, ((0, 0), (width - 1, width - 1), (0, 0)))
    dk = jax.lax.platform_dependent(
        line, dy, seen, cpu=functools.partial(_in_blocks, to_kernel), default=to_kernel
    )
    # rows are added up here and not in each block: they may be split over devices
    dk = jnp.zeros(kernel.shape, dtype).at[:, jnp.asarray(taps)].set(jnp.sum(dk, 1).T)
    return dx.astype(x.dtype), dk.astype(kernel.dtype), None


def _in_blocks(sums: Callable[..., Array], line: Array, dy: Array, seen: Array) -> Array:
    """`sums` over blocks of tokens that stay in a CPU's cache."""
    length, size = dy.shape[1], min(dy.shape[1], 128)
    more = -length % size
    if more:
        line, dy = (jnp.pad(x, ((0, 0), (0, more), (0, 0))) for x in (line, dy))
        seen = jnp.pad(seen, ((0, 0), (0, 0), (0, more)))
    around = line.shape[1] - dy.shape[1]

    def block(i: Array) -> Array:
        cut = lambda x, axis, n: jax.lax.dynamic_slice_in_dim(x, i * size, n, axis)
        return sums(cut(line, 1, size + around), cut(dy, 1, size), cut(seen, 2, size))

    count = (length + more) // size
    add = lambda total, i: (total + block(i), None)
    start = jax.eval_shape(block, jnp.zeros((), jnp.int32))
    return jax.lax.scan(add, jnp.zeros(start.shape, start.dtype), jnp.arange(count))[0]


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class RMSNorm(nnx.Module):
    """scale * x / √(mean(x²) + eps) over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467).

    `nnx.RMSNorm` rounds `scale` to the dtype of the computation before it multiplies. Here the
    statistics and the products are float32 whatever `x` is, and one rounding ends it.

    Args:
        features: size of the last axis.
        eps: added to the mean square.
        param_dtype: of `scale`, which starts at 1.
    """

    def __init__(self, features: int, *, eps: float = 1e-6, param_dtype: DTypeLike = jnp.float32):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(features, param_dtype))

    def __call__(self, x: Array) -> Array:
        """`[..., features]`, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        return (wide * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class MLP(Layer):
    """SwiGLU without biases (Shazeer 2020, arXiv 2002.05202), as in Llama and Qwen3.

    Args:
        hidden: size D of the input and output.
        intermediate: size F between.
        initializer_range: standard deviation of every weight's start.
        dtype: of the computation; products of bfloat16 are accumulated in float32.
        param_dtype: of the weights.
        rngs: flax's source of random keys.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        *,
        initializer_range: float = 0.02,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = functools.partial(
            linear,
            initializer_range=initializer_range,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.gate = make(hidden, intermediate)
        self.up = make(hidden, intermediate)
        self.down = make(intermediate, hidden)

    def hidden(self, x: Array) -> Array:
        """Z = silu(gate x) * (up x): `[..., D] -> [..., F]`."""
        return jax.nn.silu(self.gate(x)) * self.up(x)

    def __call__(self, x: Array) -> Array:
        """`[..., D] -> [..., D]`."""
        return self.down(self.hidden(x))

    def advance(
        self, x: Array, reading: Reading, state: Stacked | None = None
    ) -> tuple[Array, Stacked | None, dict[str, Array]]:
        """See `Layer.advance`."""
        return self(x), state, {}
