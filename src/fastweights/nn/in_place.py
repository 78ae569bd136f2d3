"""In-Place Test-Time Training (Feng et al. 2026, arXiv 2604.06169) as a layer.

The fast weights are the down projection of a gated MLP. They are written once a chunk, so a
trained model keeps its parameters and their shapes. The value of a write is V = conv(T) proj. T is
the layer's input or the token embeddings; conv mixes the tokens around each token, two back to two
on in the centred window. The convolution starts at 0: then V is 0, no write changes the weights,
and the outputs are those of the plain MLP. The convolution stays inside its chunk and a chunk's
write is read by later chunks only, so no output depends on a later token.
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
from fastweights.nn.in_place_options import InPlaceTTT
from fastweights.nn.in_place_state import Fast, fit, read_and_write, read_rows, remember
from fastweights.nn.initializers import diagonal_normal
from fastweights.nn.layer import Reading, Stacked
from fastweights.nn.parts import MLP, depthwise, same_document
from fastweights.rules import InPlace, outputs
from fastweights.rules.in_place_write import Scales, Total, effective, read

#: which taps of the kernel a window uses; tap 2 is the token itself, 3 the next, 4 the one after
TAPS: dict[str, tuple[int, ...]] = {
    "centred": (0, 1, 2, 3, 4),
    "forward": (2, 3, 4),
    "reconstruction": (2,),
}
KERNEL = 5


class InPlaceMLP(MLP):
    """A gated MLP with fast weights: its down projection is written after every chunk.

    Args:
        hidden: size D of the input and output.
        intermediate: size F between.
        ttt: options of the writes and reads.
        initializer_range: standard deviation of every weight's start.
        dtype: of the computation; fast weights are float32 in any case.
        param_dtype: of the weights.
        rngs: flax's source of random keys.

    Raises:
        ConfigError: no window has this name, or a learned decay starts outside of (0, 1).
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
        if ttt.decay_learned and not 0 < ttt.decay < 1:
            raise ConfigError(
                f"a learned decay starts at {ttt.decay}, where its slope is 0",
                where="ttt.decay",
                next="between 0 and 1, such as 0.9",
            )
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
        if ttt.lr_learned:
            self.log_gain = nnx.Param(jnp.zeros(()))
        if ttt.decay_learned:
            self.decay_logit = nnx.Param(jax.scipy.special.logit(jnp.float32(ttt.decay)))

    @property
    def slow(self) -> Array:
        """W0 `[D, F]`, the fast weights at the start of a document."""
        return self.down.kernel[...].T

    def targets(
        self, t: Array, segment_ids: Array | None = None, chunk: int | None = None
    ) -> Array:
        """V = conv(T) proj: `[B, T, D] -> [B, T, D]`; chunks are counted from the row's start.

        To make the targets of one chunk, give that chunk alone. `chunk` is the layer's by default.
        """
        ttt, v = self.ttt, t.astype(self.dtype)
        if ttt.conv:
            v = convolve(v, self.conv[...], TAPS[ttt.window], chunk or ttt.chunk, segment_ids)
        return v @ self.proj[...].astype(v.dtype) if ttt.proj else v

    def rule(self, total: Total = jnp.sum) -> InPlace:
        """The update rule, whose options have their names here too.

        `total` sums an array over all F columns.
        """
        own = {field.name for field in dataclasses.fields(InPlace)}
        same = {name: x for name, x in vars(self.ttt).items() if name in own}
        return InPlace(chunk_size=self.ttt.chunk, total=total, **same)

    def learned(self) -> dict[str, Array]:
        """Learned λ and η over `ttt.lr`, each `[]` float32, as `InPlace.init` takes them."""
        found = {}
        if self.ttt.decay_learned:
            found["decay"] = jax.nn.sigmoid(self.decay_logit[...])
        if self.ttt.lr_learned:
            found["gain"] = jnp.exp(self.log_gain[...])
        return found

    @property
    def scales(self) -> Scales:
        """Numbers that writes and reads of the layer need."""
        return self.rule().scales(self.slow, **self.learned())

    def effective(self, weights: Array) -> Array:
        """The matrix that tokens read, of the sum of W0 and all writes: `[D, F]` float32."""
        return effective(self.scales, self.slow, weights)

    def apply(self, weights: Array, z: Array) -> Array:
        """The read of a chunk from the matrix of `effective`: `[D, F]`, `[C, F] -> [C, D]`."""
        return read(weights, z)

    def update(self, weights: Array, z: Array, v: Array) -> Array:
        """The sum of W0 and all writes `[D, F]` after one complete chunk of one sequence.

        Args:
            weights: `[D, F]` float32, before.
            z: `[C, F]` from `hidden`.
            v: `[C, D]` from `targets`.
        """
        return self.rule().write_chunk(weights, z, v, self.scales, self.slow)

    @property
    def commit_every(self) -> int:
        """Tokens of a chunk, after which the fast weights are written."""
        return self.ttt.chunk

    def empty(self, rows: int, room: int) -> Fast:
        """W0, one matrix for all rows, and no pending token."""
        del room
        dtype, (width, hidden) = jnp.dtype(self.dtype), self.down.kernel.shape[-2:]
        slow = self.slow.astype(jnp.float32)[None]
        return Fast(
            slow,
            jnp.zeros((rows, self.ttt.chunk, width), dtype),
            jnp.zeros((rows, self.ttt.chunk, hidden), dtype),
            None if self.reads_sum else slow,
        )

    @property
    def reads_sum(self) -> bool:
        """Tokens read the sum of W0 and all writes itself."""
        return self.ttt.cap is None and not self.ttt.row_norm

    def axes(self) -> dict[str, Any]:
        """Rows over the batch axes, F over `tensor`."""
        columns = PartitionSpec(mesh.BATCH, None, "tensor")
        rows = PartitionSpec(mesh.BATCH, None, None)
        written = None if self.reads_sum else columns
        return {"weights": columns, "z": columns, "target": rows, "written": written}

    def advance(
        self, x: Array, reading: Reading, state: Stacked | None = None
    ) -> tuple[Array, Stacked | None, dict[str, Array]]:
        """See `Layer.advance`; statistics: the drift, as `__call__` has it."""
        target = reading.embedded if self.ttt.target == "input_embed" else x
        if state is None or reading.valid is None or reading.lengths is None:
            given = x, target, reading.segment_ids
            if not reading.stats:
                return self(*given, passed=reading.passed), None, {}
            y, stats = self(*given, return_stats=True, passed=reading.passed)
            return y, None, stats
        z, fast = self.hidden(x), state.arrays
        if not reading.commits:
            keep = lambda pending, new: remember(pending, state.turn, new, reading, self.ttt.chunk)
            fast = fast._replace(z=keep(fast.z, z), target=keep(fast.target, target))
            y = read_rows(self, fast.weights[state.turn], z)
            return y, state._replace(arrays=fast), {}
        y, new = read_and_write(self, state.one(), z, target, reading)
        if reading.ridge is not None:
            new = fit(self, new, z, target, reading)
        return y, state.replaced(new), {}

    def commit(self, state: Stacked, due: Array, *, at_once: bool) -> Stacked:
        """See `Layer.commit`."""

        def row(weights: Array, z: Array, target: Array, due: Array) -> Array:
            one = lambda w: self.update(w, z, self.targets(target[None])[0])
            return jax.lax.cond(due, one, lambda w: w, weights)

        fast: Fast = state.one()
        fast = fast._replace(z=fast.z.astype(self.dtype), target=fast.target.astype(self.dtype))
        before = fast.sum
        if at_once:
            written = jax.vmap(self.update)(before, fast.z, self.targets(fast.target))
            after = jnp.where(due[:, None, None], written, before)
        else:
            after = jax.lax.map(lambda x: row(*x), (before, fast.z, fast.target, due))
        seen = after if self.reads_sum else jax.vmap(self.effective)(after)
        written = None if self.reads_sum else after
        # what waits stays as it is
        return state.replaced(Fast(seen, None, None, written))  # pyright: ignore[reportArgumentType]

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
        passed: Array | None = None,
    ) -> Array: ...
    @overload
    def __call__(
        self,
        x: Array,
        target: Array,
        segment_ids: Array | None = None,
        *,
        return_stats: Literal[True],
        passed: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]: ...

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Array,
        target: Array,
        segment_ids: Array | None = None,
        return_stats: bool = False,
        passed: Array | None = None,
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
            passed: `[B]` bool, state passing for training: of rows 1, 3, 5, ..., those that start
                from the final fast weights of the row before, as a late part of a long document
                does. The gradient to the writes stops between the two rows. None for no row.

        Returns:
            `[B, T, D]`.
        """
        z, ttt = self.hidden(x), self.ttt
        slow = functools.partial(self.down, z)
        if x.shape[1] <= ttt.chunk and passed is None:
            y = slow()  # nobody reads the one chunk's write
        else:
            y = self._learn(z, self.targets(target, segment_ids), segment_ids, passed)
        if not return_stats:
            return y
        return y, {"drift": drift(y, slow(), segment_ids)}

    def _learn(self, z: Array, v: Array, segment_ids: Array | None, passed: Array | None) -> Array:
        """Read and write chunk by chunk: `[B, T, F]`, `[B, T, D] -> [B, T, D]`.

        Where a mesh splits F over `tensor`, what a token reads is a sum over devices. Left to XLA
        it would be taken chunk by chunk. Here each part of F is scanned by itself, and its outputs
        are summands that are added up once, as those of a plain down projection are. Clipping adds
        a number a chunk, the gradient, which to V is a sum over F, another `[B, T, D]` a layer.
        """
        parts = mesh.sizes(z).get("tensor", 1)
        rule = self.rule(jnp.sum if parts == 1 else sum_over_tensor)
        rows = functools.partial(read_rows_of_batch, rule)
        if parts == 1:
            return rows(self.slow, self.learned(), z, v, segment_ids, passed)
        # with a copy of V, and of λ and η if they are learned, for each part nothing is replicated,
        # and both sums are written out: this one, and its mirror image in the copies' gradient
        first, last = PartitionSpec("tensor"), PartitionSpec(None, "tensor")
        own = lambda copies: jax.tree.map(lambda x: x[0], copies)
        summands = jax.shard_map(
            lambda w, z, copies, *rest: rows(w, own(copies[1]), z, own(copies[0]), *rest)[None],
            mesh=jax.typeof(z).sharding.mesh,
            in_specs=(last, PartitionSpec(None, *last), first, PartitionSpec(), PartitionSpec()),
            out_specs=first,
            axis_names={"tensor"},
            check_vma=False,
        )
        copy = lambda x: jnp.broadcast_to(x[None], (parts, *x.shape))
        copies = jax.tree.map(copy, (v, self.learned()))
        return jax.lax.reduce_sum(summands(self.slow, z, copies, segment_ids, passed), (0,))


def read_rows_of_batch(
    rule: InPlace,
    w0: Array,
    learned: dict[str, Array],
    z: Array,
    v: Array,
    segment_ids: Array | None,
    passed: Array | None,
) -> Array:
    """Every row from W0, or with state passing from the final fast weights of the row before.

    `[B, T, F]`, `[B, T, D] -> [B, T, D]`; F may be a part of all columns, and so `w0 [D, F]`.
    """
    first = rule.init(w0, jnp.promote_types(w0.dtype, jnp.float32), **learned)
    if passed is None:
        alone = lambda z, v, ids: outputs(rule, first, rule.token(z=z, v=v), segment_ids=ids)
        return jax.vmap(alone)(z, v, segment_ids)
    if len(z) % 2:
        raise ConfigError(
            f"state passing needs an even number of rows, this batch has {len(z)}",
            where="task.passed",
            cause="rows are taken in pairs, and the second starts where the first ended",
            next="an even --train.batch, or --task.passed 0",
        )

    def row(added: Array | float, z: Array, v: Array, ids: Array | None) -> tuple[Array, Array]:
        start = first._replace(weights=first.weights + added)
        y, end = rule.sequence_and_end(start, rule.token(z=z, v=v), ids)
        return y, jax.lax.stop_gradient(end - first.slow)

    # pairs of neighbours: rows that are split over devices stay where they are
    pairs = lambda x: x.reshape(len(x) // 2, 2, *x.shape[1:])
    one = lambda i: jax.tree.map(lambda x: pairs(x)[:, i], (z, v, segment_ids))
    y, added = jax.vmap(row, (None, 0, 0, 0))(0.0, *one(0))
    added = jnp.where(pairs(passed)[:, 1, None, None], added, 0)
    return jnp.stack([y, jax.vmap(row)(added, *one(1))[0]], 1).reshape(v.shape)


def sum_over_tensor(x: Array, axis: int | None = None) -> Array:
    """The sum over an axis, or of all, of an array of which devices along `tensor` have parts."""
    return jax.lax.psum(jnp.sum(x, axis), "tensor")


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
