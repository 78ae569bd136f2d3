"""What every rule is: pure functions on one unbatched sequence, and the drivers that run any rule.

A rule is a frozen dataclass of hyper-parameters. Its state is a `NamedTuple` of arrays that keeps
its structure, shapes and dtypes for ever, so that it can be the carry of a scan. Two verbs act on
it:

    state' = rule.write(state, observation)        y = rule.read(state, query)

and `rule.step(state, token)` says in which order they happen for one token. Batch and heads come
from `jax.vmap`, devices from the mesh; nothing in a rule changes for either.
"""

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

State = Any  # a NamedTuple of arrays, the rule's own
Token = Any  # one time step of input, a pytree; leaves lead with time when there are several


class Rule(abc.ABC):
    """Interface of an update rule; subclasses are frozen dataclasses.

    Shapes are those of one sequence: tokens are a pytree whose leaves lead with time, `[T, ...]`.
    """

    #: where the rule was published
    citation: ClassVar[str] = ""

    @abc.abstractmethod
    def write(self, state: State, observation: Any) -> State:
        """Store one observation in the fast state."""

    @abc.abstractmethod
    def read(self, state: State, query: Any) -> Array:
        """Answer one query from the fast state, which stays as it is."""

    @abc.abstractmethod
    def step(self, state: State, token: Token) -> tuple[State, Array]:
        """The definition of the rule on one token: its reads and writes, in their order."""

    @abc.abstractmethod
    def mask(self, tokens: Token, valid: Array) -> Token:
        """Replace tokens by identity tokens where `valid` is False.

        An identity token leaves any state bitwise unchanged. Padding, ragged lengths and packing
        rest on it. `valid` is a bool array of the tokens' leading shape (`[]` for one token).
        """

    @abc.abstractmethod
    def example(self, key: Array, length: int, extreme: bool = False) -> tuple[State, Token]:
        """A random non-zero state and `length` random tokens, for contract tests and docs.

        `extreme` asks for the ends of every range: saturated gates, large and zero inputs.
        """

    def chunk(self, state: State, tokens: Token) -> tuple[State, Array]:
        """Run one chunk of tokens in closed form; must equal `scan`. Optional.

        The default is `scan` itself, which is right for rules that have no faster form.
        """
        return scan(self, state, tokens)


def scan(rule: Rule, state: State, tokens: Token) -> tuple[State, Array]:
    """Run a rule token by token, in the form `jax.lax.scan` has: `(final state, ys [T, ...])`."""
    return jax.lax.scan(rule.step, state, tokens)


def run(
    rule: Rule, state: State, tokens: Token, *, chunk: int | None = None
) -> tuple[State, Array]:
    """Run a rule over one sequence of any length, chunk by chunk if `chunk` is given.

    The sequence is padded with identity tokens to whole chunks, and the padding's outputs are cut
    off, so the result is that of `scan`. The final state can be given to a later call: a sequence
    may be split anywhere.

    Args:
        rule: the update rule.
        state: the fast state to start from.
        tokens: pytree with leaves `[T, ...]`, T >= 1.
        chunk: tokens per chunk; None runs `scan`.

    Returns:
        The final state and the outputs `[T, ...]`.

    Raises:
        ValueError: `chunk` is not positive.
    """
    if chunk is None:
        return scan(rule, state, tokens)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    length = sequence_length(tokens)
    count = -(-length // chunk)
    padding = count * chunk - length
    if padding:
        tokens = jax.tree.map(
            lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], padding, 0)]), tokens
        )
        tokens = rule.mask(tokens, jnp.arange(count * chunk) < length)
    chunks = jax.tree.map(lambda x: x.reshape(count, chunk, *x.shape[1:]), tokens)
    state, ys = jax.lax.scan(rule.chunk, state, chunks)
    return state, jax.tree.map(lambda y: y.reshape(count * chunk, *y.shape[2:])[:length], ys)


def sequence_length(tokens: Any) -> int:
    """The common leading size T of every leaf of `tokens`.

    Raises:
        ValueError: there is no leaf, or the leaves disagree.
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(tokens)}
    if len(lengths) != 1:
        raise ValueError(f"tokens must share one leading time axis, got lengths {sorted(lengths)}")
    return lengths.pop()
