"""Inner learning: fast weights that one step of an optimiser writes, inside the forward pass.

The state of the memory f is its weights W. A token is a key, a target and a write strength β:

    write    g = ∇_W β loss(f(k; W), v)        W <- W + step of the optimiser along g
    read     y = f(q; W)                       after the write

With the linear memory f(k) = Sᵀk and gradient descent of rate 1 the loss ½‖f(k) − v‖² gives
S + β k (v − Sᵀk)ᵀ, the delta rule, and −⟨f(k), v⟩ gives S + β k vᵀ, linear attention. The closed
chunk forms of these two rules are used in these two cases (online_closed.py).

With a `batch` of more than one token the gradients, all at the weights of the mini-batch's start,
are summed, and the last token of the mini-batch takes the step; the others read the weights of the
start. An outer gradient passes through all of it, the inner gradient included.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import Slot, restart, select
from fastweights.rules.inner import descend, inner_gradient
from fastweights.rules.losses import Loss, squared
from fastweights.rules.memories import InnerModel, Makers, linear, slow_weights
from fastweights.rules.mini_batch import MiniBatchRule, Token, places, stored_tokens
from fastweights.rules.online_closed import ClosedChunk, closed_chunk
from fastweights.rules.optimizers import SGD, Optimizer


@functools.cache
def state_type(slow: tuple[str, ...]) -> Any:
    """The class of states with slow weights of these names.

    Its fields are

        S            [K, V] float32, or a dict of arrays by name: weights of the mini-batch's start
        pending      as S, the sum of the gradients since; None if a mini-batch is one token
        count        [] int32, tokens in that sum; None if a mini-batch is one token
        optimizer    the state of the inner optimiser
        ...          the slow weights, see `InnerModel`
    """
    return collections.namedtuple("State", ("S", "pending", "count", "optimizer", *slow))


@dataclasses.dataclass(frozen=True, repr=False)
class Online(MiniBatchRule):
    """Inner learning with any memory, local loss and optimiser.

    An outer gradient is the derivative of the program as it stands, so the optimiser's step must
    have a finite derivative at every inner gradient that occurs. `optax.adam` needs `eps_root` > 0
    where an inner gradient has a zero in it. At an inner gradient of zeros only, the derivatives of
    `optax.clip_by_global_norm` and `optax.contrib.muon` are NaN; that of
    `optimizers.clip_by_global_norm` is finite.

    Attributes:
        memory: an `InnerModel`, or a function of `S [K, V]` and a query `[K]` to `[V]`.
        loss: function of an answer `[V]` and a target `[V]` to `[]`.
        optimizer: any `optax.GradientTransformation`; its state is part of the fast state, and is
            new in every document. Muon takes its Newton-Schulz steps over matrices `[in, out]` in
            their dtype, float32; Adam moves weights that are no matrices.
        batch: tokens of a mini-batch, which is one step of the optimiser along the sum of their
            gradients. A new document begins a new mini-batch.
        first_order: the inner gradient is taken at weights that count as constants: no second
            derivative by the weights. Outer gradients still reach keys, targets and β.

    Raises:
        ValueError: `batch` is not positive.
    """

    memory: InnerModel | Callable[[Array, Array], Array] = linear
    loss: Loss = squared
    optimizer: Optimizer = SGD(1.0)
    batch: int = 1
    first_order: bool = False

    citation = "Sun, Li, Dalal et al. 2024, arXiv:2407.04620"
    slots = {
        "q": Slot("K", "unit"),
        "k": Slot("K", "unit"),
        "v": Slot("V"),
        "beta": Slot("", "gate"),
    }
    token_type = Token

    def __post_init__(self):
        if problems := self.problems():
            raise ValueError("; ".join(problems))

    def __repr__(self) -> str:
        # functions print their address, which differs from process to process
        name = lambda x: repr(x) if dataclasses.is_dataclass(x) else getattr(x, "__name__", "...")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        inner = ", ".join(
            f"{key}={value if isinstance(value, int) else name(value)}"
            for key, value in values.items()
        )
        return f"Online({inner})"

    def parameters(self, K: int, V: int) -> Makers:
        """The slow weights of an `InnerModel`, by field of the state; empty for a function of S."""
        return self.memory.slow(K, V) if isinstance(self.memory, InnerModel) else {}

    def init(self, K: int, V: int, *, length: int | None = None, **parameters: Array) -> Any:
        """The state at the start of a document, float32; see `state_type`.

        Args:
            K: size of keys and queries.
            V: size of targets.
            length: is not used.
            parameters: arrays of `parameters`; one that is left out is drawn from `key(0)`.

        Raises:
            TypeError: an array that `parameters` does not name.
        """
        del length
        slow = slow_weights(self.parameters(K, V), parameters)
        S = pending = jnp.zeros((K, V), jnp.float32)
        return self.reset(state_type(tuple(slow))(S, pending, 0, None, **slow))

    def reset(self, state: Any) -> Any:
        """The weights a document starts from, an empty mini-batch, a new optimiser state."""
        named = isinstance(self.memory, InnerModel)
        S = self.memory.start(state) if named else jnp.zeros_like(state.S)
        pending = count = None
        if self.batch > 1:
            pending, count = jax.tree.map(jnp.zeros_like, S), jnp.zeros((), jnp.int32)
        optimizer = self.optimizer.init(S)
        return state._replace(S=S, pending=pending, count=count, optimizer=optimizer)

    def _answer(self, state: Any, S: Any, x: Array) -> Array:
        if isinstance(self.memory, InnerModel):
            return self.memory(self.memory.constants(state) | S, x)
        return self.memory(S, x)

    def _gradient(self, state: Any, tokens: Token, stored: Array | None = None) -> Any:
        """The sum of the gradients of several tokens at the state's weights."""
        if self.first_order:
            state = jax.lax.stop_gradient(state)
        answer = functools.partial(self._answer, state)
        return inner_gradient(answer, self.loss, state.S, tokens, stored)

    def write(self, state: Any, token: Token) -> Any:
        """Add one token's gradient, unless its `store` is False; the last of a batch steps."""
        gradient = self._gradient(state, jax.tree.map(lambda x: x[None], token))
        if state.count is None:  # a mini-batch is one token
            return self._descend(state, gradient, token.store)
        written = self._add(state, gradient, jnp.ones((), jnp.int32))
        full = written.count >= self.batch
        written = self._complete(written, full, full if token.store is None else full & token.store)
        return select(token.store, written, state)

    def _add(self, state: Any, gradient: Any, tokens: Array) -> Any:
        """The state with the gradients of some tokens added to its mini-batch."""
        pending = jax.tree.map(jnp.add, state.pending, gradient)
        return state._replace(pending=pending, count=state.count + tokens)

    def _complete(self, state: Any, full: Array, taken: Array) -> Any:
        """The state with the step of its mini-batch taken, if it is full."""
        zeros = jax.tree.map(jnp.zeros_like, (state.pending, state.count))
        pending, count = select(full, zeros, (state.pending, state.count))
        return self._descend(state, state.pending, taken)._replace(pending=pending, count=count)

    def _descend(self, state: Any, gradient: Any, taken: Array | None) -> Any:
        S, optimizer = descend(self.optimizer, state.S, state.optimizer, gradient, taken)
        return state._replace(S=S, optimizer=optimizer)

    def read(self, state: Any, query: Array) -> Array:
        """f(q): `[K] -> [V]`, in the dtype of the query."""
        dtype = jax.tree.leaves(state.S)[0].dtype
        return self._answer(state, state.S, query.astype(dtype)).astype(query.dtype)

    def closed_chunk(self) -> ClosedChunk | None:
        """The closed form of a chunk, if the rule is the delta rule or linear attention."""
        if self.batch > 1 or self.first_order:
            return None
        return closed_chunk(self.memory, self.loss, self.optimizer)

    def chunk(self, state: Any, tokens: Token, starts: Array | None = None) -> tuple[Any, Array]:
        """A chunk in closed form, or one that the backward pass computes a second time."""
        form = self.closed_chunk()
        if form is None:
            return super().chunk(state, tokens, starts)
        dtype = state.S.dtype
        q, k, v = (x.astype(dtype) for x in (tokens.q, tokens.k, tokens.v))
        beta = jnp.ones(len(k), dtype) if tokens.beta is None else tokens.beta.astype(dtype)
        beta = jnp.where(stored_tokens(tokens), beta, 0)
        S, ys = form(state.S, q, k, v, beta, starts)
        return state._replace(S=S), ys.astype(tokens.q.dtype)

    def sequence(self, state: Any, tokens: Token, segment_ids: Array | None) -> Array | None:
        """A scan that holds √n states, of n mini-batches; None if the rule has a closed form."""
        return super().sequence(state, tokens, segment_ids) if self.closed_chunk() is None else None

    def block(
        self, state: Any, tokens: Token, starts: Array | None, *, aligned: bool = False
    ) -> tuple[Any, Array]:
        """At most `batch` tokens, with one gradient for all tokens that share their weights."""
        if starts is not None:
            state = restart(self, state, starts[0])
        at = places(state.count, stored_tokens(tokens), starts, self.batch)
        of = lambda group: at.stored & (at.group == group)
        answers = lambda state: jax.vmap(lambda q: self.read(state, q))(tokens.q)

        def add(state: Any, chosen: Array) -> Any:
            gradient = self._gradient(state, tokens, chosen)
            return self._add(state, gradient, jnp.sum(chosen, dtype=jnp.int32))

        after = self._complete(add(state, of(0)), at.full, at.full)
        of_the_start = (at.group == 0) & (at.place < self.batch)
        ys = jnp.where(of_the_start[:, None], answers(state), answers(after))
        if not aligned:
            after = add(after, of(1))
        if starts is not None:
            begun = self.reset(state)
            ys = jnp.where((at.group == 2)[:, None], answers(begun), ys)
            begun = add(begun, of(2) & (at.document == at.document[-1]))
            after = select(at.document[-1] > 0, begun, after)
        return after, ys
