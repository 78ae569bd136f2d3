"""Causal attention with grouped heads, a sliding window and documents that do not see each other.

`attend` picks the form. cuDNN's fused kernel is asked for by name, since `jax.nn` never picks it by
itself, and gets `is_causal` and a window, never a dense mask. XLA's own form makes the scores
`[B, N, T, T]` in float32; where a window is much shorter than the row they are made in blocks, and
only near the diagonal.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from fastweights.errors import ConfigError
from fastweights.nn.attention_cached import Cache, attend_cached
from fastweights.nn.layer import Layer, Reading, Stacked, put
from fastweights.nn.mesh import BATCH
from fastweights.nn.parts import RMSNorm, linear
from fastweights.nn.rope import Rope, rotate

Kernel = Literal["auto", "xla", "cudnn"]
#: fewest tokens in a block of windowed attention: below it the products are too small to be fast
MIN_BLOCK = 64


class Attention(Layer):
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) with rotary embedding.

    `qkv`, `mix` and `out` are its three parts.

    Args:
        hidden: size D of the input and output.
        heads: N query heads.
        kv_heads: K heads of keys and values; divides N.
        head_dim: size h of a head.
        rope: rotary embedding.
        norm_eps: of the norms of queries and keys (Qwen3), or None for no norms (Llama).
        window: a query sees itself and the `window - 1` tokens before it; None sees all.
        kernel: who computes `mix`; "auto" is cuDNN on an NVIDIA GPU in bfloat16, XLA elsewhere.
        initializer_range: standard deviation of every weight's start.
        dtype: of the computation; softmax, norms and rotation are float32.
        param_dtype: of the weights.
        rngs: flax's source of random keys.
    """

    is_cache = True

    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        rope: Rope,
        norm_eps: float | None = None,
        window: int | None = None,
        kernel: Kernel = "auto",
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

        def norm() -> RMSNorm | None:
            if norm_eps is None:
                return None
            return RMSNorm(head_dim, eps=norm_eps, param_dtype=param_dtype)

        self.head_dim, self.rope, self.window, self.dtype = head_dim, rope, window, dtype
        self.kernel: Kernel = kernel
        self.q = make(hidden, heads * head_dim)
        self.k = make(hidden, kv_heads * head_dim)
        self.v = make(hidden, kv_heads * head_dim)
        self.o = make(heads * head_dim, hidden)
        self.q_norm, self.k_norm = norm(), norm()

    def qkv(self, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Queries `[B, T, N, h]`, keys and values `[B, T, K, h]`, normed and turned.

        Args:
            x: `[B, T, D]`.
            positions: `[B, T]` int, from 0 at the start of each document.
        """
        size = self.head_dim  # reshape(-1) is ambiguous when T = 0
        q, k, v = (
            y.reshape(*y.shape[:-1], y.shape[-1] // size, size)
            for y in (self.q(x), self.k(x), self.v(x))
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, positions, self.rope), rotate(k, positions, self.rope), v

    def mix(self, q: Array, k: Array, v: Array, segment_ids: Array | None = None) -> Array:
        """What each query attends to, `[B, T, N, h]`; see `attend`."""
        return attend(q, k, v, window=self.window, segment_ids=segment_ids, kernel=self.kernel)

    def out(self, y: Array) -> Array:
        """Heads to features: `[B, T, N, h] -> [B, T, D]`."""
        return self.o(y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1]))

    def __call__(self, x: Array, positions: Array, segment_ids: Array | None = None) -> Array:
        """`[B, T, D] -> [B, T, D]`; `segment_ids [B, T]`, or None for a document a row."""
        return self.out(self.mix(*self.qkv(x, positions), segment_ids))

    def empty(self, rows: int, room: int) -> Cache:
        """Keys and values of no token, with `room` slots a row."""
        kv_heads = self.k.out_features // self.head_dim
        zeros = jnp.zeros((rows, kv_heads, room, self.head_dim), self.dtype)
        return Cache(zeros, zeros)

    def axes(self) -> dict[str, Any]:
        """Rows over the batch axes, heads over `tensor`."""
        return dict.fromkeys(Cache._fields, PartitionSpec(BATCH, "tensor", None, None))

    def advance(
        self, x: Array, reading: Reading, state: Stacked | None = None
    ) -> tuple[Array, Stacked | None, dict[str, Array]]:
        """See `Layer.advance`."""
        if state is None or reading.valid is None:
            return self(x, reading.positions, reading.segment_ids), None, {}
        q, k, v = self.qkv(x, reading.positions)
        room = state.arrays.k.shape[3]
        slots = jnp.where(reading.valid, reading.positions, room)  # beyond the last: dropped
        put_in = lambda cache, new: put(cache, state.turn, slots, new, 3)
        cache = Cache(put_in(state.arrays.k, k), put_in(state.arrays.v, v))
        if reading.fresh:
            y = self.mix(q, k, v)
        else:
            y = attend_cached(q, cache, state.turn, reading.positions, self.window).astype(x.dtype)
        return self.out(y), Stacked(cache, state.turn), {}


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int | None = None,
    segment_ids: Array | None = None,
    kernel: Kernel = "auto",
) -> Array:
    """Causal softmax(q kᵀ / √h) v, softmax in float32.

    Args:
        q: `[B, T, N, h]`.
        k: `[B, T, K, h]`, K divides N; each key head serves N / K query heads.
        v: `[B, T, K, h]`.
        window: how many tokens a query sees, itself included; None is all before it.
        segment_ids: `[B, T]` int; a query sees its own segment only.
        kernel: "xla", "cudnn", or "auto": cuDNN where it can do it, XLA elsewhere.

    Returns:
        `[B, T, N, h]` in the dtype of `q`.

    Raises:
        ConfigError: "cudnn" with segments, which it could only be given as a dense mask.
    """
    length = q.shape[1]
    if window is not None and window >= length:
        window = None
    if kernel == "cudnn" and segment_ids is not None:
        raise ConfigError(
            "cuDNN attention cannot keep the documents of a packed row apart",
            where="model.attention",
            cause="it takes segment ids only as a dense [B, T, T] mask, slower than XLA attention",
            next='one document a row, or attention = "auto" or "xla"',
        )
    if kernel == "cudnn" or (kernel == "auto" and segment_ids is None and cudnn_can(q)):
        sight = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, local_window_size=sight, implementation="cudnn"
        )
    if window is not None and length > 2 * max(window, MIN_BLOCK):
        return attend_in_blocks(q, k, v, window, segment_ids)
    mask = None
    if segment_ids is not None:
        mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    sight = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=True, local_window_size=sight, implementation="xla"
    )


def cudnn_can(q: Array) -> bool:
    """Whether the default device is an NVIDIA GPU and queries `[.., h]` are what cuDNN takes."""
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] > 128 or q.shape[-1] % 8:
        return False
    # a device, the name of a platform, or None
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    device = chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]
    return device.platform == "gpu" and "cuda" in device.client.platform_version


def attend_in_blocks(
    q: Array, k: Array, v: Array, window: int, segment_ids: Array | None = None
) -> Array:
    """`attend` within a window, in blocks of at least `window` tokens.

    A block's queries see keys of it and of the block before only, so the scores are
    `[B, N, T, 2 block]`. Arguments and result are those of `attend`.
    """
    length, block = q.shape[1], max(window, MIN_BLOCK)
    count = -(-length // block)

    def cut(x: Array) -> Array:
        """`[B, T, ...] -> [B, count, block, ...]`, filled up at the end, which no query sees."""
        fill = [(0, 0), (0, count * block - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, fill).reshape(x.shape[0], count, block, *x.shape[2:])

    def with_previous(x: Array) -> Array:
        """`[B, count, block, ...]` to `[B, count, 2 block, ...]`, the block before in front."""
        before = jnp.pad(x[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 2))
        return jnp.concatenate([before, x], 2)

    ago = jnp.arange(block)[:, None] - jnp.arange(-block, block)[None, :]
    near = (ago >= 0) & (ago < window)  # [block, 2 block]
    there = (jnp.arange(count) > 0)[:, None] | (jnp.arange(2 * block) >= block)[None, :]
    mask = near[None] & there[:, None]  # [count, block, 2 block]
    mask = mask[None, :, None]
    if segment_ids is not None:
        own = cut(segment_ids)
        same = own[:, :, :, None] == with_previous(own)[:, :, None, :]
        mask = mask & same[:, :, None]

    def one(q: Array, k: Array, v: Array, mask: Array) -> Array:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")

    blocks = (cut(q), with_previous(cut(k)), with_previous(cut(v)), mask)
    mixed = jax.vmap(one, in_axes=1, out_axes=1)(*blocks)
    return mixed.reshape(q.shape[0], count * block, *q.shape[2:])[:, :length]
