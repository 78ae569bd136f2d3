"""The definition of a rule on a sequence, the oracle of all forms: `rule.step` in a Python loop.

Gradients are pulled back through one step after another, from the last to the first. Documents
begin with `rule.reset` and padding is made by `rule.pad`, a token at a time; the drivers of
`fastweights.rules` take no part in it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastweights.rules import Rule
from fastweights.testing.programs import Outcome, Programs, outcome
from fastweights.testing.trees import at, stack


def loop(rule: Rule, state: Any, tokens: Any) -> tuple[Any, Any]:
    """Final state and outputs `[T, ...]`, op by op: the rule meets no traced value."""
    ys = []
    for t in range(len(jax.tree.leaves(tokens)[0])):
        state, y = rule.step(state, jax.tree.map(jnp.asarray, at(tokens, t)))
        ys.append(y)
    return state, stack(ys)


class Moment(NamedTuple):
    """One token on its way through the rule, for the way back."""

    ended: Any  # the state of the document before, if this token starts one
    state: Any  # the state that the step takes
    raw: Any  # the token before padding
    token: Any
    valid: np.ndarray | None  # [] bool, False is padding; None in a sequence of one document


def definition(
    programs: Programs,
    state: Any,
    tokens: Any,
    cotangents: tuple[Any, Any],
    segment_ids: np.ndarray | None = None,
    *,
    fresh: bool = False,
) -> Outcome:
    """Outputs, final state and gradients of a sequence or a packed row.

    Args:
        programs: of the rule.
        state: where the first document continues.
        tokens: leaves `[T, ...]`.
        cotangents: of the final state and of the outputs.
        segment_ids: `[T]` int, documents 1, 2, ... and 0 for padding; None is one document.
        fresh: the row starts from `rule.reset(state)`.
    """
    final, by_output = cotangents
    start, moments, ys, document = state, [], [], 0
    if fresh:
        state = programs.reset(state)
    for t in range(len(jax.tree.leaves(tokens)[0])):
        raw, ended, valid = at(tokens, t), None, None
        token = raw
        if segment_ids is not None:
            here = int(segment_ids[t])
            valid = np.asarray(here > 0)
            token = programs.pad(raw, valid)
            if here and document and here != document:
                ended, state = state, programs.reset(state)
            document = here or document
        moments.append(Moment(ended, state, raw, token, valid))
        # in this direction the cotangents are of no account
        (state, y), _ = programs.step((state, token), (final, at(by_output, t)))
        ys.append(y)

    to_state, to_tokens = final, []
    for t, moment in reversed(list(enumerate(moments))):
        cotangent = (to_state, at(by_output, t))
        to_state, to_token = programs.step((moment.state, moment.token), cotangent)[1]
        if moment.valid is not None:
            (to_token,) = programs.pad_gradient((moment.raw,), to_token, moment.valid)[1]
        if moment.ended is not None:
            (to_state,) = programs.reset_gradient((moment.ended,), to_state)[1]
        to_tokens.append(to_token)
    if fresh:
        (to_state,) = programs.reset_gradient((start,), to_state)[1]
    return outcome(stack(ys), state, to_state, stack(to_tokens[::-1]))
