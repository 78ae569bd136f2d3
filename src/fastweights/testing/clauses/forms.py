"""Clauses of the forms of one sequence: each gives what the definition gives."""

import jax
import numpy as np

from fastweights.testing.case import Case, at_rows
from fastweights.testing.definition import loop
from fastweights.testing.programs import OWN, SCAN, Form, values_of
from fastweights.testing.trees import TOLERANCE, require_close, require_zero, stack

EXACT = TOLERANCE["float32"]


def scan_equals_the_definition(case: Case) -> None:
    """A loop over `step`, traced or not, and a scan give the same, gradients too.

    Hint: code that asks whether a value is traced, or that has side effects in Python.
    """
    state, tokens = case.example()
    final, ys = loop(case.rule, state, tokens)
    untraced = {"output": ys, "state": final}
    expected = case.define(state, tokens)
    require_close(values_of(expected), untraced, "loop over jit(step)", EXACT)
    require_close(case.run(SCAN, state, tokens), expected, "scan", EXACT)
    final, ys = case.programs.counted(state, tokens)
    require_close({"output": ys, "state": final}, untraced, "scan without gradients", EXACT)


def chunks_equal_scan(case: Case) -> None:
    """run(chunk=C) gives scan's outputs, final state and every gradient, the start's included.

    Hint: a chunk without the start state's part, in its outputs or its `custom_vjp`; a decay
    counted from the wrong end of the chunk.
    """
    state, tokens = case.example()
    expected = case.run(SCAN, state, tokens)
    for form in case.forms[1:]:
        require_close(case.run(form, state, tokens), expected, str(form), EXACT)


def outputs_equal_run(case: Case) -> None:
    """The rule's own `sequence` gives the outputs and gradients of the definition from `reset`.

    Gradients are to the state that `reset` takes; it hands on the parameters.

    Hint: a `sequence` that has no gradient to a parameter in the state, or another order of read
    and write than `step`.
    """
    # without one, `outputs` is `run`
    if case.has_own_form():
        row = case.row()
        require_close(case.run(OWN, *row), case.define(*row, fresh=True), str(OWN), EXACT)


def a_sequence_may_be_split_anywhere(case: Case) -> None:
    """A stream in pieces of random lengths, by scan or in chunks, gives what one call gives.

    Hint: a chunk that takes its start for the first token of a document, or for the border of a
    larger chunk; the state must have the place.
    """
    state, tokens = case.example()
    expected = values_of(case.run(SCAN, state, tokens))
    first, last = Form(case.chunks[0]), Form(case.chunks[-1])
    # each is compiled, so they are few
    kinds = ((1, SCAN), (1, first), (2, last), (3, SCAN), (5, first))
    for seed in range(4):
        random = np.random.default_rng([case.seed, seed])
        carry, start, ys, pieces, order = state, 0, [], [], []
        while start < case.length:
            order = order or list(random.permutation(len(kinds)))
            size, form = kinds[order.pop()]
            if start + size > case.length:
                continue
            rows = np.s_[start : start + size]
            piece = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], tokens)
            carry, y = case.programs.forward(form)(carry, piece)
            ys.append(y)
            pieces.append(f"{size} by {form}")
            start += size
        ys = jax.tree.map(lambda *y: np.concatenate(y), *ys)
        where = f"pieces of {', '.join(pieces)}"
        require_close({"output": ys, "state": carry}, expected, where, EXACT)


def the_future_is_unseen(case: Case) -> None:
    """The gradient of an output to every later token is exactly zero.

    Hint: a causal mask of a chunk that is off by one, or multiplies by a small number in place of
    zero.
    """
    starts = {form: case.example() for form in case.forms}
    if case.has_own_form():
        starts[OWN] = case.row()
    part = "gradient to token"
    for form, (state, tokens) in starts.items():
        final, by_output = case.cotangents(state, tokens)
        final = None if form.own else jax.tree.map(np.zeros_like, final)
        for t in range(case.length):
            cotangents = (final, at_rows(by_output, np.arange(case.length) == t))
            result = case.programs.outcome(form, state, tokens, cotangents)
            where = f"{form}, from output {t} to later tokens"
            require_zero({part: result[part]}, where, np.s_[t + 1 :])


def sequences_do_not_see_each_other(case: Case) -> None:
    """Under vmap each row is what it is alone, and changing one row leaves the others bitwise.

    Hint: a `custom_vmap` or a kernel that mixes its batch.
    """
    examples = [case.example(salt) for salt in range(3)]

    def batch(examples):
        state, ys = case.programs.batch(*stack(examples))
        return {"state": state, "output": ys}

    rows = lambda tree, rows: jax.tree.map(lambda x: np.asarray(x)[rows], tree)
    together = batch(examples)
    for i, (state, tokens) in enumerate(examples):
        alone = values_of(case.run(SCAN, state, tokens))
        require_close(rows(together, i), alone, f"row {i} of a batch", EXACT)
    changed = batch([case.example(salt=9), *examples[1:]])
    others = np.s_[1:]
    require_close(rows(changed, others), rows(together, others), "rows beside another one", 0)
