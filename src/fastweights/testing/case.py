"""One rule with one start and one sequence to try it on."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastweights.rules import Rule
from fastweights.testing.definition import definition
from fastweights.testing.programs import SCAN, Form, Outcome, Programs
from fastweights.testing.trees import at, floating, is_floating


@dataclasses.dataclass(frozen=True)
class Case:
    """One rule with one start and one sequence to try it on.

    Attributes:
        programs: of the rule.
        seed: of the examples.
        length: T, tokens of the sequence.
        chunks: chunk sizes.
    """

    programs: Programs
    seed: int
    length: int
    chunks: tuple[int, ...]

    @property
    def rule(self) -> Rule:
        """The rule under test."""
        return self.programs.rule

    @property
    def forms(self) -> tuple[Form, ...]:
        """The scan, and the chunks of every size."""
        return (SCAN, *(Form(size) for size in self.chunks))

    def example(self, salt: int = 0, length: int | None = None, extreme: bool = False):
        """State and tokens; another `salt` gives other values of the same shapes."""
        return self.programs.example(self.seed, salt, length or self.length, extreme)

    def row(self, salt: int = 0, length: int | None = None, extreme: bool = False):
        """State and tokens of a row that a layer starts with `rule.reset(state)`.

        Integers that count tokens are 0, since `reset` may keep the place in the row. Optional
        fields of the token have their defaults.
        """
        state, tokens = self.example(salt, length, extreme)
        zero = lambda x, written: x if is_floating(x) or not written else np.zeros_like(x)
        defaults = getattr(type(tokens), "_field_defaults", {})
        return jax.tree.map(zero, state, self.written), tokens._replace(**defaults)

    def has_own_form(self, segment_ids: np.ndarray | None = None) -> bool:
        """True if the rule has a `sequence` for such a row."""
        return jax.eval_shape(self.rule.sequence, *self.row(), segment_ids) is not None

    @functools.cached_property
    def written(self) -> Any:
        """The state with True for each leaf that writing changes, False for a parameter."""
        state, _ = self.example()
        # some tokens of an example write nothing
        ends = [self.run(SCAN, state, self.example(salt)[1])["state"] for salt in range(4)]
        changed = lambda old, *new: any(np.any(np.asarray(x) != np.asarray(old)) for x in new)
        return jax.tree.map(changed, state, *ends)

    @functools.cached_property
    def output(self) -> Any:
        """Shapes of the floating outputs of one step."""
        state, tokens = self.example()
        return floating(jax.eval_shape(self.rule.step, state, at(tokens, 0))[1])

    def run(self, form: Form, state: Any, tokens: Any, segment_ids: Any = None) -> Outcome:
        """A form's outcome, for random cotangents of the final state and of valid outputs."""
        cotangents = self.cotangents(state, tokens, segment_ids)
        if form.own:
            cotangents = (None, cotangents[1])
        return self.programs.outcome(form, state, tokens, cotangents, segment_ids)

    def define(self, state: Any, tokens: Any, segment_ids: Any = None, fresh: bool = False):
        """The definition's outcome for the cotangents of `run`; `fresh` as of `sequence`."""
        final, by_output = self.cotangents(state, tokens, segment_ids)
        if fresh:  # a form that gives no final state
            final = jax.tree.map(np.zeros_like, final)
        cotangents = (final, by_output)
        result = definition(self.programs, state, tokens, cotangents, segment_ids, fresh=fresh)
        return result | {"state": None} if fresh else result

    def packed_rows(self) -> list[np.ndarray]:
        """Segment ids `[T]` of a few packed rows.

        The first one has a document that ends inside a chunk, two documents inside one chunk, and
        padding between documents and at the end.
        """
        plain = [1] * 3 + [2] * 2 + [3] + [0] * 2 + [4] * self.length
        return [
            np.asarray(plain[: self.length - 1] + [0]),
            *(_random_row(np.random.default_rng([self.seed, i]), self.length) for i in range(3)),
        ]

    def cotangents(self, state: Any, tokens: Any, segment_ids: Any = None) -> tuple[Any, Any]:
        """Random cotangents of the final state and, 0 for padding, of the outputs."""
        length = len(jax.tree.leaves(tokens)[0])
        random = np.random.default_rng([self.seed, length])
        draw = lambda shape: random.normal(size=shape).astype(jnp.result_type(float))
        final = jax.tree.map(lambda x: draw(x.shape), floating(state))
        by_output = jax.tree.map(lambda y: draw((length, *y.shape)), self.output)
        return final, by_output if segment_ids is None else at_rows(by_output, segment_ids > 0)


def at_rows(tree: Any, rows: np.ndarray) -> Any:
    """Leaves `[T, ...]`, with 0 where `rows [T]` is False."""
    return jax.tree.map(lambda x: np.where(rows.reshape(-1, *[1] * (x.ndim - 1)), x, 0), tree)


def _random_row(random: np.random.Generator, length: int) -> np.ndarray:
    """Segment ids `[T]`: documents of 1 to T / 2 tokens, padding of 1 to 3 before some of them."""
    row, document = [], 0
    while len(row) < length:
        document += 1
        row += [0] * (random.random() < 0.5) * random.integers(1, 4)
        row += [document] * random.integers(1, max(2, length // 2 + 1))
    return np.asarray(row[:length])
