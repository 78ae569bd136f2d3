"""Clauses of a rule's state and tokens: types, slots, reset, identity tokens, saved states."""

import io
from typing import Any

import jax
import numpy as np

from fastweights.testing.case import Case
from fastweights.testing.programs import SCAN, values_of
from fastweights.testing.trees import (
    at,
    is_floating,
    named,
    require,
    require_close,
    require_same_kind,
)


def carry_is_a_fix_point(case: Case) -> None:
    """A step keeps the state's structure, shapes and dtypes.

    Hint: an integer leaf plus a Python float is a float; `write` returns each leaf in its dtype.
    """
    state, tokens = case.example()
    after, _ = jax.eval_shape(case.rule.step, state, at(tokens, 0))
    require_same_kind(after, state, "state", "one step")


def tokens_are_made_of_slots(case: Case) -> None:
    """`token(**slots)` makes a token that `step` takes, and each slot has the shape of its axis.

    Hint: `slots` and `token_type` name the same fields; a field that is no slot needs a default.
    """
    slots = case.rule.slots
    if not slots:
        return
    state, tokens = case.example()
    made = {name: getattr(tokens, name, None) for name in slots}
    require([f"token.{name}: no such field in the example" for name in slots if made[name] is None])
    made = {name: np.asarray(leaf)[0] for name, leaf in made.items()}
    shapes: dict[str, set[tuple[int, ...]]] = {"": set(), "K": set(), "V": set()}
    for name, slot in slots.items():
        shapes[slot.axis].add(made[name].shape)
    ranks = {axis: {len(shape) for shape in found} for axis, found in shapes.items()}
    wrong = [a for a in shapes if len(shapes[a]) > 1 or ranks[a] - {1 if a else 0}]
    require([f"slots of axis '{axis}' have shapes {sorted(shapes[axis])}" for axis in wrong])
    after, _ = jax.eval_shape(case.rule.step, state, case.rule.token(**made))
    require_same_kind(after, state, "state", "one step of a token made of slots")


def reset_forgets(case: Case) -> None:
    """`reset` keeps the state's structure, is idempotent, and keeps no value that was written.

    It may keep parameters, and integers that count the tokens of a row.

    Hint: `reset` keeps a leaf that `write` changes, or multiplies it by a number; put zeros or a
    parameter in its place.
    """
    state, tokens = case.example()
    _, others = case.example(salt=1)
    # the same gates and as many tokens, so a place in the row is the same
    others = jax.tree.map(lambda new, old: new if is_floating(new) else old, others, tokens)
    written = case.run(SCAN, state, tokens)["state"]
    fresh = case.programs.reset(written)
    require_same_kind(fresh, written, "state", "after reset")

    def require_fresh(state: Any, where: str) -> None:
        require_close({"state": case.programs.reset(state)}, {"state": fresh}, where, 0)

    require_fresh(fresh, "reset twice")
    require_fresh(case.run(SCAN, state, others)["state"], "reset after other values")
    poison = lambda x, fast: np.full_like(x, np.nan) if fast and is_floating(x) else x
    require_fresh(jax.tree.map(poison, written, case.written), "reset after NaN")


def an_identity_token_changes_nothing(case: Case) -> None:
    """A masked token leaves the state bitwise as it was; mask leaves valid tokens alone.

    Hint: a mask that forgets the decay: the log decay g must become 0 as well as the write strength
    beta.
    """
    state, tokens = case.example()
    identity = case.programs.mask(tokens, np.zeros(case.length, bool))
    for form in case.forms:
        after = case.run(form, state, identity)["state"]
        require_close({"state": after}, {"state": state}, f"{form}, identity tokens", 0)
    kept = case.programs.mask(tokens, np.ones(case.length, bool))
    kept, tokens = (values_of(case.run(SCAN, state, x)) for x in (kept, tokens))
    require_close(kept, tokens, "scan, masked where nothing is padding", 0)


def a_saved_state_goes_on(case: Case) -> None:
    """A state written to a file and read back goes on bitwise as the state itself.

    Hint: a leaf that is no array (use jnp.zeros((), jnp.int32) for 0 and jax.random.key_data for a
    key), or a rule that keeps something outside of its state.
    """
    state, tokens = case.example()
    types = {n: kind for n, kind in case.programs.not_arrays.items() if n.startswith("state")}
    require([f"{name} has type {kind}, which is no array" for name, kind in types.items()])
    state = case.run(SCAN, state, tokens)["state"]
    file = io.BytesIO()
    arrays: dict[str, Any] = {n: np.asarray(leaf) for n, leaf in named(state, "state").items()}
    np.savez(file, **arrays)
    file.seek(0)
    # the process that reads it knows the rule, and so another state of the same kind
    like, tokens = case.example(salt=1)
    require_same_kind(state, like, "state", "of two examples")
    with np.load(file, allow_pickle=False) as saved:
        # a file of NumPy's keeps the bytes of a bfloat16 array and loses its dtype
        leaves = [saved[name].view(leaf.dtype) for name, leaf in named(like, "state").items()]
    restored = jax.tree.unflatten(jax.tree.structure(like), leaves)
    restored, state = (values_of(case.run(SCAN, start, tokens)) for start in (restored, state))
    require_close(restored, state, "scan from a restored state", 0)


def a_second_call_compiles_nothing(case: Case) -> None:
    """Other values of the same shapes reuse the compiled program.

    Hint: a weakly typed leaf in the first state, as jnp.asarray(1.0) is; give it a dtype.
    """
    first, _ = case.programs.counted(*case.example())
    traces = case.programs.traces
    case.programs.counted(first, case.example(salt=1)[1])
    if case.programs.traces != traces:
        raise AssertionError("the same shapes were traced again")
