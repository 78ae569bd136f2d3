"""TTT-Linear and TTT-MLP (Sun et al. 2024, arXiv 2407.04620), without their memories.

The memory is f(x) = x + LN(g(x)), g an affine map or an MLP of two layers, with gain and bias of
the norm trained by the outer optimiser alone. The inner loss is ½‖f(k) − v‖²: LN(g(k)) learns to
be v − k. Tokens are learnt in mini-batches of b, with all gradients at the weights W of the
mini-batch's start, and token t of a mini-batch reads the writes of the tokens up to itself:

    write    G_t = Σ_{s ≤ t} β_s ∇_W ½‖f(k_s; W) − v_s‖²
    read     y_t = f(q_t; W − η p_t G_t)                    W of the next mini-batch: W − η p_b G_b

The factors p are trained too. They start as p_t = 1/t: the step is the mean over the tokens so far.
As in the released code, p_t is of the token that reads, not of the one that was written.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.rules.base import Slot, restart, select
from fastweights.rules.inner import inner_gradient
from fastweights.rules.losses import squared
from fastweights.rules.memories import Makers, ResidualNorm, slow_weights
from fastweights.rules.mini_batch import MiniBatchRule, Token, places, stored_tokens
from fastweights.rules.ttt_dual import dual, written


def empty(state: Any) -> dict[str, Any]:
    """Fields of a state without tokens in its mini-batch."""
    return jax.tree.map(jnp.zeros_like, {"pending": state.pending, "count": state.count})


@dataclasses.dataclass(frozen=True)
class TTT(MiniBatchRule):
    """The rule of TTT-Linear and TTT-MLP, for the memory of a subclass.

    Attributes:
        lr: η. The released code divides its base rate by the size of a head.
        batch: b, tokens of a mini-batch. A new document begins a new one, and padding takes no
            place in it.
    """

    lr: float = 1 / 64
    batch: int = 16

    state_type: ClassVar[Any] = None
    citation = "Sun, Li, Dalal et al. 2024, arXiv:2407.04620"
    slots = {"q": Slot("K"), "k": Slot("K"), "v": Slot("V"), "beta": Slot("", "gate")}
    token_type = Token

    def problems(self) -> list[str]:
        """See `Rule.problems`."""
        bad_rate = [f"lr is {self.lr}; it must not be negative"] if self.lr < 0 else []
        return bad_rate + super().problems()

    @property
    @abc.abstractmethod
    def memory(self) -> ResidualNorm:
        """The function f."""

    def parameters(self, K: int, V: int) -> Makers:
        """Weights of the memory, and `position [b]`, the factors p; negative ones count as 0."""
        position = lambda key: 1 / jnp.arange(1.0, self.batch + 1)
        return self.memory.slow(K, V) | {"position": position}

    def init(self, K: int, V: int, *, length: int | None = None, **parameters: Array) -> Any:
        """The state at the start of a document, float32.

        Args:
            K: size of keys and queries.
            V: size of targets, the same.
            length: is not used.
            parameters: arrays of `parameters`; one that is left out is drawn from `key(0)`.

        Raises:
            TypeError: an array that `parameters` does not name.
            ValueError: K and V differ, or a hyper-parameter is out of its range.
        """
        del length
        if problems := self.problems():
            raise ValueError("; ".join(problems))
        slow = slow_weights(self.parameters(K, V), parameters)
        fast = {name: slow[f"{name}_0"] for name in self._names()}
        pending = jax.tree.map(jnp.zeros_like, fast)
        return self.state_type(**fast, pending=pending, count=jnp.zeros((), jnp.int32), **slow)

    def reset(self, state: Any) -> Any:
        """The weights that a document starts from, and an empty mini-batch."""
        return state._replace(**self.memory.start(state), **empty(state))

    def _names(self) -> list[str]:
        return [name for layer in self.memory.inner.layers for name in layer]

    def _fast(self, state: Any) -> dict[str, Array]:
        return {name: getattr(state, name) for name in self._names()}

    def _rate(self, state: Any, place: Array) -> Array:
        """η p of a mini-batch's tokens by their place, 1, 2, ..., b."""
        position = state.position[jnp.maximum(place, 1) - 1]
        return self.lr * jnp.maximum(position, 0)

    def _moved(self, state: Any) -> dict[str, Array]:
        """W − η p G, by the tokens of the mini-batch so far."""
        rate = self._rate(state, state.count)
        return jax.tree.map(lambda w, g: w - rate * g, self._fast(state), state.pending)

    def write(self, state: Any, token: Token) -> Any:
        """Add one token's gradient, unless its `store` is False; the last of a batch steps."""
        answer = lambda fast, x: self.memory(self.memory.constants(state) | fast, x)
        one = jax.tree.map(lambda x: x[None], token)
        gradient = inner_gradient(answer, squared, self._fast(state), one)
        added = self._add(state, gradient, jnp.ones((), jnp.int32))
        return select(token.store, self._complete(added, added.count >= self.batch), state)

    def _add(self, state: Any, gradient: dict[str, Array], tokens: Array) -> Any:
        pending = jax.tree.map(jnp.add, state.pending, gradient)
        return state._replace(pending=pending, count=state.count + tokens)

    def _complete(self, state: Any, full: Array) -> Any:
        """The state with its mini-batch learnt, if it is `full`."""
        return select(full, state._replace(**self._moved(state), **empty(state)), state)

    def read(self, state: Any, query: Array) -> Array:
        """f(q; W − η p G): `[K] -> [V]`, in the dtype of the query."""
        weights = self.memory.constants(state) | self._moved(state)
        return self.memory(weights, query.astype(state[0].dtype)).astype(query.dtype)

    def block(
        self, state: Any, tokens: Token, starts: Array | None, *, aligned: bool = False
    ) -> tuple[Any, Array]:
        """At most `batch` tokens in the dual form: products of tokens, no gradient per token."""
        if starts is not None:
            state = restart(self, state, starts[0])
        at = places(state.count, stored_tokens(tokens), starts, self.batch)
        rate = self._rate(state, at.place)
        causal = jnp.tril(jnp.ones((len(rate), len(rate)), bool))

        def learn(
            state: Any, group: int, pairs: Array, last: Array | None = None
        ) -> tuple[Any, Array]:
            """The state with a group's tokens added to its mini-batch, and their outputs."""
            weights = self.memory.constants(state) | self._fast(state)
            chosen = at.stored & (at.group == group)
            layers, ys = dual(
                self.memory, weights, state.pending, tokens, chosen, pairs=pairs, rate=rate
            )
            chosen = chosen if last is None else chosen & last
            added = self._add(state, written(layers, chosen), jnp.sum(chosen, dtype=jnp.int32))
            return added, ys

        after, ys = learn(state, 0, causal)
        after = self._complete(after, at.full)
        if not aligned:
            after, more = learn(after, 1, causal)
            ys = jnp.where((at.group == 1)[:, None], more, ys)
        if starts is not None:
            same = at.document[:, None] == at.document[None]
            last = at.document == at.document[-1]
            begun, more = learn(self.reset(state), 2, causal & same, last)
            ys = jnp.where((at.group == 2)[:, None], more, ys)
            after = select(at.document[-1] > 0, begun, after)
        return after, ys

    def example(
        self, key: Array, length: int, extreme: bool = False, size: tuple[int, int] = (4, 4)
    ) -> tuple[Any, Token]:
        """A random state and `length` tokens; see `Rule.example`."""
        return super().example(key, length, extreme, size)
