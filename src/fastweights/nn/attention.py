"""Causal attention with grouped heads, a sliding window and documents that do not see each other.

`attend` picks the form. cuDNN's fused kernel is asked for by name, since `jax.nn` never picks it by
itself, and gets `is_causal` and a window, never a dense mask. XLA's own form makes the scores
`[B, N, T, T]` in float32. On a CPU, and with a window much shorter than the row everywhere, the
scores of one block of queries exist at a time.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from fastweights.errors import ConfigError
from fastweights.nn.attention_cached import Cache, attend_cached
from fastweights.nn.layer import Layer, Reading, Stacked, put
from fastweights.nn.mesh import BATCH
from fastweights.nn.parts import RMSNorm, linear
from fastweights.nn.rope import Rope, rotate

Kernel = Literal["auto", "xla", "cudnn"]
#: queries of a block on a CPU, whose caches hold the scores, and the fewest on an accelerator
CPU_BLOCK, BLOCK = 64, 512


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
    at_once = functools.partial(attend_at_once, window=window)
    if length <= 2 * CPU_BLOCK:
        return at_once(q, k, v, segment_ids)
    in_blocks = lambda size: functools.partial(attend_in_blocks, window=window, block=size)
    size = max(window or length, BLOCK)
    elsewhere = in_blocks(size) if length > 2 * size else at_once
    return lax.platform_dependent(q, k, v, segment_ids, cpu=in_blocks(CPU_BLOCK), default=elsewhere)


def attend_at_once(
    q: Array, k: Array, v: Array, segment_ids: Array | None, *, window: int | None
) -> Array:
    """`attend` with all scores at once; arguments and result are those of `attend`."""
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
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array | None,
    *,
    window: int | None,
    block: int,
) -> Array:
    """`attend` for one block of queries after another, so memory grows with T.

    The scores of a block, `[B, N, block, S]`, are computed again in the backward pass. S is T, or
    with a window the block and the whole blocks that hold the `window - 1` tokens before it.
    Arguments and result are those of `attend`.
    """
    length = q.shape[1]
    count = -(-length // block)
    before = 0 if window is None else -(-(window - 1) // block) * block
    room = count * block if window is None else before + block

    def fill(x: Array, front: int = 0) -> Array:
        """`[B, T, ...]` with tokens that no query sees at its ends."""
        return jnp.pad(x, [(0, 0), (front, count * block - length)] + [(0, 0)] * (x.ndim - 2))

    k, v = fill(k, before), fill(v, before)
    ids = None if segment_ids is None else fill(segment_ids, before)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(k: Array, v: Array, ids: Array | None, start: Array, q: Array) -> Array:
        first = jnp.zeros_like(start) if window is None else start  # of the keys, in k
        cut = lambda x: lax.dynamic_slice_in_dim(x, first, room, 1)
        query, key = start + jnp.arange(block), first - before + jnp.arange(room)
        ago = query[:, None] - key[None, :]
        seen = (ago >= 0) & (key >= 0)[None, :]
        seen = (seen if window is None else seen & (ago < window))[None]
        if ids is not None:
            own = lax.dynamic_slice_in_dim(ids, start + before, block, 1)
            seen = seen & (own[:, :, None] == cut(ids)[:, None, :])
        return jax.nn.dot_product_attention(
            q, cut(k), cut(v), mask=seen[:, None], implementation="xla"
        )

    q = jnp.moveaxis(fill(q).reshape(q.shape[0], count, block, *q.shape[2:]), 1, 0)
    starts = block * jnp.arange(count)
    _, y = lax.scan(lambda _, x: (None, one(k, v, ids, *x)), None, (starts, q))
    return jnp.moveaxis(y, 0, 1).reshape(y.shape[1], -1, *y.shape[3:])[:, :length]
