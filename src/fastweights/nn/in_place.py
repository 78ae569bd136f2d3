"""In-Place Test-Time Training (Feng et al. 2026, arXiv 2604.06169) as a layer.

An MLP whose down projection learns while it reads: the fast weights are `down` itself, so a trained
model keeps its shape, and with the convolution at its start, 0, it writes zeros: its outputs stay.
What the layer writes for a token is the target V = conv(T) proj, a mixture of what T, the layer's
own input or the token embeddings, is around that token: in the centred window two tokens back to
two tokens on. The convolution does not look out of its chunk, and what a chunk writes is read by
later chunks only, so no output depends on a later token.
"""

import dataclasses
import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from fastweights.errors import ConfigError
from fastweights.nn import mesh
from fastweights.nn.in_place_state import Fast, read_and_write, read_rows, remember
from fastweights.nn.layer import Reading, Stacked
from fastweights.nn.parts import MLP, depthwise, same_document
from fastweights.rules import InPlace, outputs
from fastweights.rules.in_place_write import Total, read

Window = Literal["centred", "forward", "reconstruction"]

#: which taps of the kernel a window uses; tap 2 is the token itself, 3 the next, 4 the one after
TAPS: dict[str, tuple[int, ...]] = {
    "centred": (0, 1, 2, 3, 4),
    "forward": (2, 3, 4),
    "reconstruction": (2,),
}
KERNEL = 5


@dataclasses.dataclass(frozen=True)
class InPlaceTTT:
    """What the layers that learn in place do.

    Attributes:
        layers: which layers of a model do; those it does not have are ignored, as in the released
            code.
        chunk: C, tokens per write.
        lr: η, how strongly a token is written. A write is a sum over the chunk: a larger chunk, or
            larger activities, want a smaller η. The paper does not say; the released configs have 3
            at C = 4096.
        target: T, what V is made of. The paper and training from scratch: "input_embed"; the
            released code's default, for continual training: "hidden_states", the layer's own input.
        proj: V is multiplied by a trained [D, D] matrix.
        conv: V is a trained mixture of the tokens around. Without it V is made of the token itself:
            the step to the next token is gone, and so is the start that changes nothing.
        window: "centred" uses all five taps, as released; "forward" the token and the two after it;
            "reconstruction" only the token itself.
        clip: τ, the largest Frobenius norm of one write; None, as released, for no limit.
        clip_relative: τ is in units of the norm of the slow weights.
        clip_after_lr: τ limits η Σ v zᵀ; otherwise Σ v zᵀ. The paper leaves it open.
        decay: λ, from 0 to 1: before a write, W - W0 is multiplied by it. The paper has none.
    """

    layers: tuple[int, ...] = (0, 6, 12, 18, 24, 30)
    chunk: int = 1024
    lr: float = 0.3
    target: Literal["hidden_states", "input_embed"] = "hidden_states"
    proj: bool = True
    conv: bool = True
    window: Window = "centred"
    clip: float | None = None
    clip_relative: bool = False
    clip_after_lr: bool = True
    decay: float = 1.0


class InPlaceMLP(MLP):
    """A gated MLP whose down projection learns from what it reads, chunk by chunk.

    Args:
        hidden: size D of the input and output.
        intermediate: size F between.
        ttt: what is learned and how.
        initializer_range: standard deviation of every weight's start.
        dtype: of the computation; fast weights are float32 in any case.
        param_dtype: of the weights.
        rngs: flax's source of random keys.

    Raises:
        ConfigError: the window has no such name.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        ttt: InPlaceTTT,
        *,
        initializer_range: float = 0.02,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if ttt.window not in TAPS:
            raise ConfigError(
                f"there is no window {ttt.window!r}", where="ttt.window", next=f"one of {[*TAPS]}"
            )
        super().__init__(
            hidden,
            intermediate,
            initializer_range=initializer_range,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.ttt = ttt
        self.dtype = dtype
        #: one must start at 0 for the start to change nothing; if both did, neither would learn
        if ttt.conv:
            self.conv = nnx.Param(jnp.zeros((hidden, KERNEL), param_dtype))
        if ttt.proj:
            start = diagonal_normal(initializer_range)
            self.proj = nnx.Param(start(rngs.params(), (hidden, hidden), param_dtype))

    @property
    def slow(self) -> Array:
        """W0 `[D, F]`, what the fast weights of a document start from."""
        return self.down.kernel[...].T

    def targets(self, t: Array, segment_ids: Array | None = None) -> Array:
        """V = conv(T) proj: `[B, T, D] -> [B, T, D]`; chunks are counted from the row's start.

        To make the targets of one chunk, give that chunk alone.
        """
        ttt, v = self.ttt, t.astype(self.dtype)
        if ttt.conv:
            v = convolve(v, self.conv[...], TAPS[ttt.window], ttt.chunk, segment_ids)
        return v @ self.proj[...].astype(v.dtype) if ttt.proj else v

    def rule(self, total: Total = jnp.sum) -> InPlace:
        """The update rule; `total` sums an array over all F columns."""
        ttt = self.ttt
        return InPlace(
            lr=ttt.lr,
            chunk_size=ttt.chunk,
            clip=ttt.clip,
            clip_relative=ttt.clip_relative,
            clip_after_lr=ttt.clip_after_lr,
            decay=ttt.decay,
            total=total,
        )

    def apply(self, weights: Array, z: Array) -> Array:
        """What tokens read from fast weights: `[D, F]`, `[C, F] -> [C, D]`."""
        return read(weights, z)

    def update(self, weights: Array, z: Array, v: Array) -> Array:
        """Fast weights `[D, F]` after one complete chunk of one sequence.

        Args:
            weights: `[D, F]` float32, before.
            z: `[C, F]` from `hidden`.
            v: `[C, D]` from `targets`.
        """
        return self.rule().write_chunk(weights, z, v, self.rule().limit(self.slow), self.slow)

    @property
    def commit_every(self) -> int:
        """Tokens of a chunk, after which the fast weights are written."""
        return self.ttt.chunk

    def empty(self, rows: int, room: int) -> Fast:
        """W0, one matrix for all rows, and no pending token."""
        del room
        dtype, (width, hidden) = jnp.dtype(self.dtype), self.down.kernel.shape[-2:]
        return Fast(
            self.slow.astype(jnp.float32)[None],
            jnp.zeros((rows, self.ttt.chunk, width), dtype),
            jnp.zeros((rows, self.ttt.chunk, hidden), dtype),
        )

    def axes(self) -> dict[str, Any]:
        """Rows over the batch axes, F over `tensor`."""
        columns = PartitionSpec(mesh.BATCH, None, "tensor")
        rows = PartitionSpec(mesh.BATCH, None, None)
        return {"weights": columns, "z": columns, "target": rows}

    def advance(
        self, x: Array, reading: Reading, state: Stacked | None = None
    ) -> tuple[Array, Stacked | None, dict[str, Array]]:
        """See `Layer.advance`; statistics: the drift, as `__call__` has it."""
        target = reading.embedded if self.ttt.target == "input_embed" else x
        if state is None or reading.valid is None or reading.lengths is None:
            if not reading.stats:
                return self(x, target, reading.segment_ids), None, {}
            y, stats = self(x, target, reading.segment_ids, return_stats=True)
            return y, None, stats
        z, fast = self.hidden(x), state.arrays
        if not reading.commits:
            keep = lambda pending, new: remember(pending, state.turn, new, reading, self.ttt.chunk)
            fast = fast._replace(z=keep(fast.z, z), target=keep(fast.target, target))
            y = read_rows(self, fast.weights[state.turn], z)
            return y, state._replace(arrays=fast), {}
        y, new = read_and_write(self, state.one(), z, target, reading)
        return y, state.replaced(new), {}

    def commit(self, state: Stacked, due: Array, *, at_once: bool) -> Stacked:
        """See `Layer.commit`."""

        def row(weights: Array, z: Array, target: Array, due: Array) -> Array:
            one = lambda w: self.update(w, z, self.targets(target[None])[0])
            return jax.lax.cond(due, one, lambda w: w, weights)

        fast: Fast = state.one()
        fast = fast._replace(z=fast.z.astype(self.dtype), target=fast.target.astype(self.dtype))
        if at_once:
            written = jax.vmap(self.update)(fast.weights, fast.z, self.targets(fast.target))
            weights = jnp.where(due[:, None, None], written, fast.weights)
        else:
            weights = jax.lax.map(lambda x: row(*x), (*fast, due))
        return state.replaced(Fast(weights, None, None))  # pyright: ignore[reportArgumentType]

    def drift_of(self, state: Fast) -> Array:
        """‖W - W0‖ / ‖W0‖, `[G]` float32."""
        slow = self.slow.astype(jnp.float32)
        norm = lambda x: jnp.linalg.norm(x, axis=(-2, -1))
        return norm(state.weights - slow[None]) / norm(slow)

    @overload
    def __call__(
        self,
        x: Array,
        target: Array,
        segment_ids: Array | None = None,
        return_stats: Literal[False] = False,
    ) -> Array: ...
    @overload
    def __call__(
        self,
        x: Array,
        target: Array,
        segment_ids: Array | None = None,
        *,
        return_stats: Literal[True],
    ) -> tuple[Array, dict[str, Array]]: ...

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Array,
        target: Array,
        segment_ids: Array | None = None,
        return_stats: bool = False,
    ) -> Any:
        """Read and learn, every row on its own.

        Args:
            x: `[B, T, D]`.
            target: T `[B, T, D]`: `x` itself or the token embeddings, as `ttt.target` says.
            segment_ids: `[B, T]` int, 0 for padding, which is never written, and 1, 2, ... for the
                documents of a row, each in one piece with fast weights of its own; None: a row is
                a document. Chunks stay where they are.
            return_stats: also return `{"drift": [] float32}`, the mean over tokens of |ΔW z| over
                |W0 z|; costs one more product when used.

        Returns:
            `[B, T, D]`.
        """
        z, ttt = self.hidden(x), self.ttt
        slow = functools.partial(self.down, z)
        if x.shape[1] <= ttt.chunk:
            y = slow()  # nobody reads the one chunk's write
        else:
            y = self._learn(z, self.targets(target, segment_ids), segment_ids)
        if not return_stats:
            return y
        return y, {"drift": drift(y, slow(), segment_ids)}

    def _learn(self, z: Array, v: Array, segment_ids: Array | None) -> Array:
        """Read and write chunk by chunk: `[B, T, F]`, `[B, T, D] -> [B, T, D]`.

        Where a mesh splits F over `tensor`, what a token reads is a sum over devices. Left to XLA
        it would be taken chunk by chunk. Here each part of F is scanned by itself, and its outputs
        are summands that are added up once, as those of a plain down projection are. Clipping adds
        a number a chunk, the gradient, which to V is a sum over F, another `[B, T, D]` a layer.
        """
        parts = mesh.sizes(z).get("tensor", 1)
        rule = self.rule(jnp.sum if parts == 1 else sum_over_tensor)

        def row(w: Array, z: Array, v: Array, ids: Array | None) -> Array:
            start = rule.init(w, jnp.promote_types(w.dtype, jnp.float32))
            return outputs(rule, start, rule.token(z=z, v=v), segment_ids=ids)

        rows = jax.vmap(row, (None, 0, 0, 0))
        if parts == 1:
            return rows(self.slow, z, v, segment_ids)
        # with a copy of V for each part nothing is replicated, and both sums are written out: this
        # one, and its mirror image in the gradient of the copies
        first, last = PartitionSpec("tensor"), PartitionSpec(None, "tensor")
        summands = jax.shard_map(
            lambda w, z, v, ids: rows(w, z, v[0], ids)[None],
            mesh=jax.typeof(z).sharding.mesh,
            in_specs=(last, PartitionSpec(None, *last), first, PartitionSpec()),
            out_specs=first,
            axis_names={"tensor"},
            check_vma=False,
        )
        copies = jnp.broadcast_to(v[None], (parts, *v.shape))
        return jax.lax.reduce_sum(summands(self.slow, z, copies, segment_ids), (0,))


def sum_over_tensor(x: Array) -> Array:
    """The sum of an array of which each device along `tensor` has a part: `[]`."""
    return jax.lax.psum(jnp.sum(x), "tensor")


def drift(y: Array, slow: Array, segment_ids: Array | None) -> Array:
    """Mean over tokens that are not padding of |y - slow| / |slow|: `[B, T, D]` twice -> `[]`."""
    # XLA may skip rounding one of two equal bfloat16 values, which would look like a drift
    info = jnp.finfo(y.dtype)
    y, slow = (
        jax.lax.reduce_precision(jax.lax.stop_gradient(a), info.nexp, info.nmant).astype(
            jnp.float32
        )
        for a in (y, slow)
    )
    size = jnp.linalg.norm(slow, axis=-1)
    ratio = jnp.linalg.norm(y - slow, axis=-1) / jnp.maximum(size, jnp.finfo(jnp.float32).tiny)
    return jnp.mean(ratio, where=None if segment_ids is None else segment_ids > 0)


def convolve(
    x: Array, kernel: Array, taps: tuple[int, ...], chunk: int, segment_ids: Array | None
) -> Array:
    """Depthwise cross-correlation that sees zeros outside of a token's chunk and document.

    Args:
        x: `[B, T, D]`.
        kernel: `[D, 5]`; tap k is the weight of the token k - 2 places on.
        taps: indices of the taps to use.
        chunk: C, tokens per chunk, from the start of the row.
        segment_ids: `[B, T]` int or None.

    Returns:
        `[B, T, D]` in the dtype of x, summed in at least float32.
    """
    length, middle = x.shape[1], KERNEL // 2
    place = jnp.arange(length)[None, None, :]
    other = place + jnp.arange(-middle, middle + 1)[:, None, None]
    seen = (other >= 0) & (other // chunk == place // chunk)
    if segment_ids is not None:
        seen = seen & same_document(segment_ids, KERNEL, middle)
    return depthwise(x, kernel, seen, taps, middle)


def diagonal_normal(scale: float):
    """The initializer diag(N(0, scale²)): small, and it mixes no features."""

    def init(key: Array, shape: tuple[int, int], dtype: DTypeLike) -> Array:
        return jnp.diag(scale * jax.random.normal(key, shape[:1], dtype))

    return init
