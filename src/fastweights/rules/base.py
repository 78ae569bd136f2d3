"""The interface of an update rule: pure functions on one unbatched sequence.

A rule is a frozen dataclass of hyper-parameters. Its state is a `NamedTuple` of arrays that keeps
its structure, shapes and dtypes for ever, so that it can be the carry of a scan. Two verbs act on
it:

    state' = rule.write(state, token)        y = rule.read(state, query)

and `rule.step(state, token)` is the definition: one token, with its order of write and read. All
other forms are derived from it in `drive.py`: a scan, chunks, packed documents, pieces of a stream.
Batch and heads come from `jax.vmap`, devices from the mesh; a rule knows of neither.

A rule that keeps the defaults of this file needs `slots`, `write`, `read` and `mask`:

    state    `Memory(S [K, V])`, from zeros
    token    a `NamedTuple` whose fields are the rule's `slots`
    step     write the token, then read with its `q`
"""

import abc
import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

State = Any  # a NamedTuple of arrays, the rule's own
Token = Any  # one time step of input, a NamedTuple; leaves lead with time when there are several


@dataclasses.dataclass(frozen=True)
class Slot:
    """One field of a rule's token: its shape, and the range that a layer gives it.

    Attributes:
        axis: "K" or "V" for a vector of the memory's key or value size, "" for a number.
        range: "real", any number; "unit", a vector of norm 1; "gate", a number in (0, 1);
            "log_decay", a number below 0; "drive", the input of a recurrent cell as it is, to which
            the rule answers with the next activity.
    """

    axis: Literal["", "K", "V"]
    range: Literal["real", "unit", "gate", "log_decay", "drive"] = "real"


class Memory(NamedTuple):
    """The state of a rule whose fast weights are one matrix."""

    S: Array  # [K, V] float32


class Rule(abc.ABC):
    """Interface of an update rule; subclasses are frozen dataclasses.

    Shapes are those of one sequence: tokens are a pytree whose leaves lead with time, `[T, ...]`.
    """

    #: where the rule was published
    citation: ClassVar[str] = ""
    #: fields of the rule's token, by name; a layer makes a projection for each
    slots: ClassVar[Mapping[str, Slot]] = {}
    #: the token's class, made of `slots` unless the rule has its own
    token_type: ClassVar[Any] = None

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "slots" in vars(cls) and "token_type" not in vars(cls):
            cls.token_type = collections.namedtuple("Token", tuple(cls.slots))

    def problems(self) -> list[str]:
        """Hyper-parameters out of their range, a sentence each, for a config to report together."""
        return []

    def init(self, K: int, V: int, *, length: int | None = None, **parameters: Array) -> State:
        """The state before the first token of a document, float32.

        Args:
            K: size of keys and queries.
            V: size of values.
            length: the most tokens that will be written, if it is known; a rule may choose its form
                by it.
            parameters: trained arrays of `parameters`, which are fields of the state.

        Raises:
            TypeError: an array that the rule has no field for.
        """
        del length
        if parameters:
            raise TypeError(f"{type(self).__name__} has no parameters, got {sorted(parameters)}")
        return Memory(jnp.zeros((K, V), jnp.float32))

    def parameters(self, K: int, V: int) -> dict[str, Callable[[Array], Array]]:
        """Slow weights that are fields of the state, by name: functions of a key to start values.

        The outer optimiser trains slow weights, and the rule only reads them. Most rules have none.
        """
        del K, V
        return {}

    def reset(self, state: State) -> State:
        """The state that a new document starts from, the one `init` made; zeros by default."""
        return jax.tree.map(jnp.zeros_like, state)

    def token(self, **slots: Any) -> Token:
        """A token, or a sequence of tokens with leading time, from arrays by slot name.

        Raises:
            TypeError: a slot is missing or unknown.
        """
        return self.token_type(**slots)

    @abc.abstractmethod
    def write(self, state: State, token: Any) -> State:
        """Store one token in the fast state."""

    @abc.abstractmethod
    def read(self, state: State, query: Any) -> Array:
        """Answer one query from the fast state, which stays as it is."""

    def step(self, state: State, token: Token) -> tuple[State, Array]:
        """The definition of the rule on one token; by default a write, then a read with `q`."""
        state = self.write(state, token)
        return state, self.read(state, token.q)

    @abc.abstractmethod
    def mask(self, tokens: Token, valid: Array) -> Token:
        """Replace tokens by identity tokens where `valid` is False.

        An identity token leaves any state bitwise unchanged. Padding, ragged lengths and packing
        rest on it. `valid` is a bool array of the tokens' leading shape (`[]` for one token).
        """

    def pad(self, tokens: Token, valid: Array) -> Token:
        """Replace tokens by padding of a packed row where `valid` is False; by default `mask`.

        Padding writes no state. It may count as a token of the row, which an identity token does
        not.
        """
        return self.mask(tokens, valid)

    def chunk(
        self, state: State, tokens: Token, starts: Array | None = None
    ) -> tuple[State, Array]:
        """Run one chunk of tokens in closed form; equal to `scan`. Optional.

        Args:
            state: the state before the chunk.
            tokens: leaves `[C, ...]`.
            starts: `[C]` bool, tokens at which a new document starts from `reset(state)`; None is
                no document start.
        """
        return scan(self, state, tokens, starts)

    def sequence(self, state: State, tokens: Token, segment_ids: Array | None) -> Array | None:
        """Outputs of a whole document or packed row in a form of its own, or None. Optional.

        For rules with a form that is not made of chunks, such as a reversible scan. `state` is
        fresh, as `init` and `reset` make it.
        """
        del state, tokens, segment_ids
        return None

    def recur(
        self,
        state: State,
        carry: Any,
        body: Callable[[State, Any, Any], tuple[State, Any, Any]],
        xs: Any,
        *,
        fresh: bool = False,
    ) -> tuple[State, Any, Any]:
        """A scan whose tokens depend on earlier outputs, as in a recurrent net.

        Args:
            state: the fast state.
            carry: what else goes from step to step.
            body: `(state, carry, x) -> (state, carry, y)`, which calls `step`.
            xs: pytree with leaves `[T, ...]`.
            fresh: `state` is as `init` makes it for T tokens.

        Returns:
            The final state, the final carry and the outputs `[T, ...]`.
        """
        del fresh

        def one(pair: tuple[State, Any], x: Any) -> tuple[tuple[State, Any], Any]:
            state, carry, y = body(*pair, x)
            return (state, carry), y

        (state, carry), ys = jax.lax.scan(one, (state, carry), xs)
        return state, carry, ys

    def example(
        self, key: Array, length: int, extreme: bool = False, size: tuple[int, int] = (4, 3)
    ) -> tuple[State, Token]:
        """A random non-zero state and `length` random tokens, for contract tests and docs.

        By default the state is 8 random tokens written after `init`, and each slot is drawn from
        its range.

        Args:
            key: of `jax.random.key`.
            length: number of tokens.
            extreme: the ends of every range: saturated gates, large and zero inputs, equal keys.
            size: K and V.
        """
        first, second, third = jax.random.split(key, 3)
        makers = self.parameters(*size)
        keys = jax.random.split(first, len(makers) + 1)
        made: Any = {name: f(k) for k, (name, f) in zip(keys, makers.items(), strict=False)}
        state = self.init(*size, **made)
        state, _ = scan(self, state, self.token(**draw(self.slots, second, 8, size)))
        return state, self.token(**draw(self.slots, third, length, size, extreme))


def draw(
    slots: Mapping[str, Slot], key: Array, length: int, size: tuple[int, int], extreme: bool = False
) -> dict[str, Array]:
    """Random values `[length, ...]` for every slot, within its range."""
    made, turn = {}, jnp.arange(length) % 4
    axes = {"": (), "K": size[:1], "V": size[1:]}
    for salt, (name, slot) in enumerate(slots.items()):
        x = jax.random.normal(jax.random.fold_in(key, salt), (length, *axes[slot.axis]))
        column = turn.reshape(-1, *[1] * (x.ndim - 1))
        if slot.range == "gate":
            x = jax.nn.sigmoid(x)
            made[name] = jnp.where(column < 2, jnp.where(column < 1, 0.0, 1.0), x) if extreme else x
        elif slot.range == "log_decay":
            x = -jax.nn.softplus(x)
            ends = jnp.where(column < 1, -20.0, 0.0)
            made[name] = jnp.where(column < 2, ends, x) if extreme else x
        elif slot.range == "unit":
            x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
            made[name] = jnp.where(column < 2, x[:1], x) if extreme else x
        else:
            made[name] = x * jnp.asarray([0.0, 1e-6, 1.0, 1e3])[column] if extreme else x
    return made


def scan(
    rule: Rule, state: State, tokens: Token, starts: Array | None = None
) -> tuple[State, Array]:
    """Run a rule token by token, in the form `jax.lax.scan` has: `(final state, ys [T, ...])`.

    Args:
        rule: the update rule.
        state: the fast state to start from.
        tokens: pytree with leaves `[T, ...]`.
        starts: `[T]` bool, tokens at which a new document starts from `rule.reset(state)`.
    """
    if starts is None:
        return jax.lax.scan(rule.step, state, tokens)

    def step(state: State, pair: tuple[Token, Array]) -> tuple[State, Array]:
        token, start = pair
        return rule.step(restart(rule, state, start), token)

    return jax.lax.scan(step, state, (tokens, starts))


def restart(rule: Rule, state: State, start: Array) -> State:
    """`rule.reset(state)` where `start []` is True, `state` elsewhere."""
    return select(start, rule.reset(state), state)


def select(flag: Array | None, new: Any, old: Any) -> Any:
    """`new` where `flag []` is True, `old` elsewhere; None is True."""
    if flag is None:
        return new
    # a leaf that does not change must stay the same array, or a scan saves it for every token
    return jax.tree.map(lambda n, o: o if n is o else jnp.where(flag, n, o), new, old)


def sequence_length(tokens: Any) -> int:
    """The common leading size T of every leaf of `tokens`.

    Raises:
        ValueError: there is no leaf, or the leaves disagree.
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(tokens)}
    if len(lengths) != 1:
        raise ValueError(f"tokens must share one leading time axis, got lengths {sorted(lengths)}")
    return lengths.pop()
