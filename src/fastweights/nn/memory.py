"""A memory layer: any update rule, in the place where attention stands.

    x -> projections to the rule's slots -> short convolution -> range of each slot
      -> the rule, one memory a head -> norm of each head, gated by x -> output projection

The layer is that of gated delta networks (Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464); the
slots of the rule say which projections there are.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from fastweights.nn.layer import Layer, Reading, Stacked
from fastweights.nn.mesh import BATCH
from fastweights.nn.parts import RMSNorm, linear
from fastweights.nn.short_conv import kernel_start, next_tail, short_conv
from fastweights.nn.slots import Slots, slow_weights
from fastweights.rules import Rule, outputs, run


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Sizes of the memory layers of a decoder.

    Attributes:
        heads: memories a layer; None is the attention's number of query heads.
        key_dim: K, size of keys and queries of a head; None is `head_dim`.
        value_dim: V, size of values of a head; None is `head_dim`.
        conv: width W of the short convolution over q, k and v; 1 is no convolution.
        gate: the output of a head is multiplied by silu of a projection.
        chunk: tokens per chunk of the rule's closed form.
    """

    heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    conv: int = 4
    gate: bool = True
    chunk: int = 64


class MemoryState(NamedTuple):
    """The state of a memory layer."""

    fast: Any  # the rule's state, leaves [B, H, ...], without the layer's slow weights
    tail: Array  # [B, W - 1, channels], the last inputs of the short convolution


class MemoryLayer(Layer):
    """A layer that writes and reads one memory a head by an update rule.

    Args:
        hidden: size D of the input and output.
        rule: the update rule; it must declare slots.
        heads: H memories.
        key_dim: K.
        value_dim: V.
        conv: width W of the short convolution.
        gate: whether the output is gated.
        chunk: tokens per chunk of the rule.
        norm_eps: of the norm over a head's output.
        initializer_range: standard deviation of the projections' start.
        dtype: of the computation; states, gates and decays are float32.
        param_dtype: of the weights.
        rngs: flax's source of random keys.
    """

    def __init__(
        self,
        hidden: int,
        rule: Rule,
        heads: int,
        key_dim: int,
        value_dim: int,
        *,
        conv: int = 4,
        gate: bool = True,
        chunk: int = 64,
        norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        def project(out: int) -> nnx.Linear:
            return linear(
                hidden if out else heads * value_dim,
                out or hidden,
                initializer_range=initializer_range,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.rule, self.heads, self.chunk, self.dtype = rule, heads, chunk, jnp.dtype(dtype)
        self.key_dim, self.value_dim = key_dim, value_dim
        self.slots = Slots(rule, heads, key_dim, value_dim, project, rngs=rngs)
        #: slots whose projections are convolved, side by side
        self.convolved = tuple(
            name
            for name, slot in rule.slots.items()
            if conv > 1 and slot.axis and slot.range in ("real", "unit")
        )
        self.conv = nnx.Dict(
            {
                name: nnx.Param(
                    kernel_start(rngs.params(), (heads * self.slots.sizes[name], conv), param_dtype)
                )
                for name in self.convolved
            }
        )
        self.width = conv
        self.slow = slow_weights(rule, key_dim, value_dim, heads=heads, rngs=rngs)
        self.norm = RMSNorm(value_dim, eps=norm_eps, param_dtype=param_dtype)
        self.gate = project(heads * value_dim) if gate else None
        self.o = project(0)

    def start(self, length: int | None = None) -> Any:
        """The rule's state at the start of a document: leaves `[H, ...]`."""
        slow = {name: x[...] for name, x in self.slow.items()}
        make = lambda slow: self.rule.init(self.key_dim, self.value_dim, length=length, **slow)
        return jax.vmap(make, axis_size=self.heads)(slow)

    def tokens(
        self, x: Array, tail: Array | None, segment_ids: Array | None
    ) -> tuple[dict[str, Array], Array]:
        """Slots `[B, T, H, ...]` by name, and the convolution's inputs `[B, T, channels]`."""
        raw = self.slots.projected(x)
        if not self.convolved:
            return self.slots.in_range(raw), jnp.zeros((*x.shape[:2], 0), x.dtype)
        line = jnp.concatenate([raw[name] for name in self.convolved], -1)
        kernel = jnp.concatenate([self.conv[name][...] for name in self.convolved])
        mixed = jax.nn.silu(short_conv(line, kernel, tail, segment_ids))
        ends = itertools.accumulate(raw[name].shape[-1] for name in self.convolved[:-1])
        parts = jnp.split(mixed, list(ends), -1)
        return self.slots.in_range(raw | dict(zip(self.convolved, parts, strict=True))), line

    def out(self, y: Array, x: Array) -> Array:
        """Norm, gate and output projection: `[B, T, H, V]`, `[B, T, D] -> [B, T, D]`."""
        y = self.norm(y.astype(self.dtype)).reshape(*y.shape[:2], -1)
        if self.gate is not None:
            y = y * jax.nn.silu(self.gate(x))
        return self.o(y)

    def __call__(self, x: Array, segment_ids: Array | None = None) -> Array:
        """`[B, T, D] -> [B, T, D]`, every row and document from the empty state."""
        slots, _ = self.tokens(x, None, segment_ids)

        def one(state: Any, slots: dict[str, Array], ids: Array | None) -> Array:
            tokens = self.rule.token(**slots)
            return outputs(self.rule, state, tokens, chunk=self.chunk, segment_ids=ids)

        heads = jax.vmap(one, (0, 1, None), 1)
        y = jax.vmap(heads, (None, 0, 0))(self.start(x.shape[1]), slots, segment_ids)
        return self.out(y, x)

    def empty(self, rows: int, room: int) -> MemoryState:
        """The empty memory, whose size does not depend on `room`."""
        del room
        fast = self._without_slow(self.start())
        spread = lambda x: jnp.broadcast_to(x[None], (rows, *x.shape))
        channels = sum(self.heads * self.slots.sizes[name] for name in self.convolved)
        tail = jnp.zeros((rows, self.width - 1, channels), self.dtype)
        return MemoryState(jax.tree.map(spread, fast), tail)

    def axes(self) -> dict[str, Any]:
        """Rows over the batch axes, heads over `tensor`."""
        makers = self.rule.parameters(self.key_dim, self.value_dim)

        def one() -> Any:  # made anew and not of `slow`, which has an axis of turns when stacked
            slow: Any = {name: make(jax.random.key(0)) for name, make in makers.items()}
            return self._without_slow(self.rule.init(self.key_dim, self.value_dim, **slow))

        fast = jax.eval_shape(one)
        each = lambda x: PartitionSpec(BATCH, "tensor", *[None] * x.ndim)
        return {"fast": jax.tree.map(each, fast), "tail": PartitionSpec(BATCH, None, None)}

    def _without_slow(self, fast: Any) -> Any:
        return fast._replace(**dict.fromkeys(self.slow)) if self.slow else fast

    def advance(
        self, x: Array, reading: Reading, state: Stacked | None = None
    ) -> tuple[Array, Stacked | None, dict[str, Array]]:
        """See `Layer.advance`."""
        if state is None or reading.valid is None:
            return self(x, reading.segment_ids), None, {}
        before: MemoryState = state.one()
        slots, line = self.tokens(x, before.tail, None)
        slow = {name: x[...] for name, x in self.slow.items()}

        def one(fast: Any, slow: Any, slots: Any, valid: Array) -> tuple[Any, Array]:
            fast = fast._replace(**slow) if slow else fast
            tokens = self.rule.mask(self.rule.token(**slots), valid)
            if len(valid) == 1:  # a token alone needs no loop
                fast, y = self.rule.step(fast, jax.tree.map(lambda x: x[0], tokens))
                return self._without_slow(fast), y[None]
            fast, y = run(self.rule, fast, tokens, chunk=min(self.chunk, len(valid)))
            return self._without_slow(fast), y

        heads = jax.vmap(one, (0, 0, 1, None), (0, 1))
        fast, y = jax.vmap(heads, (0, None, 0, 0))(before.fast, slow, slots, reading.valid)
        tail = next_tail(line, before.tail, jnp.sum(reading.valid, 1))
        return self.out(y, x), state.replaced(MemoryState(fast, tail)), {}
