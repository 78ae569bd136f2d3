"""The clause of packed rows."""

from typing import Any

import jax
import numpy as np

from fastweights.testing.case import Case, at_rows
from fastweights.testing.programs import OWN, Form
from fastweights.testing.trees import TOLERANCE, require_close, require_zero


def a_document_starts_anew(case: Case) -> None:
    """A document of a packed row equals the same document alone: outputs, state, every gradient.

    The first document continues from the state. No gradient leads from one document to another.

    Hint: a chunk that ignores `starts`, or keeps the start state's part after one; a product of
    decays across a start; a `pad` that writes.
    """
    for salt, ids in enumerate(case.packed_rows()):
        starts = {form: case.example(salt) for form in case.forms}
        if case.has_own_form(ids):
            starts[OWN] = case.row(salt)
        for form, (state, tokens) in starts.items():
            actual = case.run(form, state, tokens, ids)
            expected = case.define(state, tokens, ids, fresh=form.own)
            for outcome in (actual, expected):  # of padding the outputs are free
                outcome["output"] = at_rows(outcome["output"], ids > 0)
            where = f"{form}, documents {text(ids)}"
            require_close(actual, expected, where, TOLERANCE["float32"])
            require_isolation(case, form, state, tokens, ids)


def require_isolation(case: Case, form: Form, state: Any, tokens: Any, ids: np.ndarray) -> None:
    """No gradient from a document to another one, or to the row's start if it is not the first."""
    final, by_output = case.cotangents(state, tokens, ids)
    zero = jax.tree.map(np.zeros_like, final)
    documents = [i for i in dict.fromkeys(ids.tolist()) if i]
    for document in documents:
        rows = ids == document
        to_final = None if form.own else final if document == documents[-1] else zero
        cotangents = (to_final, at_rows(by_output, rows))
        result = case.programs.outcome(form, state, tokens, cotangents, ids)
        where, part = f"{form}, from document {document} of {text(ids)}", "gradient to token"
        require_zero({part: result[part]}, f"{where} to the others", ~rows)
        if document != documents[0]:
            part = "gradient to state"
            # each document has gradients to the parameters
            fast = lambda gradient, written: gradient if written else None
            is_none = lambda leaf: leaf is None
            gradient = jax.tree.map(fast, result[part], case.written, is_leaf=is_none)
            require_zero({part: gradient}, f"{where} to the row's start")


def text(ids: np.ndarray) -> str:
    """Segment ids as messages have them."""
    return f"[{' '.join(map(str, ids))}]"
