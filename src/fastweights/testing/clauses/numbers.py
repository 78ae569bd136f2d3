"""Clauses of numbers: finite differences, bfloat16, extremes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastweights.testing.case import Case
from fastweights.testing.programs import OWN, SCAN, Form, values_of
from fastweights.testing.trees import (
    TOLERANCE,
    at,
    cast,
    floating,
    is_floating,
    leaves_of,
    named,
    require,
    require_close,
    require_same_kind,
)


def gradients_are_right(case: Case) -> None:
    """Reverse-mode gradients agree with finite differences, in float64.

    Hint: a hard cast to float32 inside the rule (the state's dtype is the right one), a
    `stop_gradient`, or a wrong `custom_vjp`.
    """
    example = case.example()
    with jax.enable_x64(True):
        state, tokens = cast(example, np.float64)
        for form in case.forms[:2]:
            require_slopes(case, form, state, tokens)


def require_slopes(case: Case, form: Form, state: Any, tokens: Any) -> None:
    """Slopes along a random direction in each leaf, by autodiff and by finite differences."""
    eps, problems = 1e-6, []
    cotangents = case.cotangents(state, tokens)
    leaves, structure = jax.tree.flatten((state, tokens))

    def value(moved: Any, i: int) -> float:
        arguments = jax.tree.unflatten(structure, [*leaves[:i], moved, *leaves[i + 1 :]])
        result = case.programs.outcome(form, arguments[0], arguments[1], cotangents)
        out = floating((result["state"], result["output"]))
        products = jax.tree.map(lambda c, y: np.sum(c * np.asarray(y)), cotangents, out)
        return sum(jax.tree.leaves(products))

    result = case.run(form, state, tokens)
    gradients = leaves_of({part: result[part] for part in result if part.startswith("gradient")})
    places = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]
    for (name, gradient), i in zip(gradients.items(), places, strict=True):
        direction = np.random.default_rng([case.seed, i]).normal(size=leaves[i].shape)
        ahead, behind = (value(leaves[i] + sign * eps * direction, i) for sign in (1, -1))
        numeric = (ahead - behind) / (2 * eps)
        exact = np.sum(np.asarray(gradient) * direction)
        if not abs(exact - numeric) <= 1e-5 + 1e-5 * abs(numeric):
            slopes = f"{exact:.8g} where finite differences give {numeric:.8g}"
            problems.append(f"{name}, {form}: along a random direction {slopes}")
    require(problems)


def tokens_may_be_bfloat16(case: Case) -> None:
    """With bfloat16 tokens the state keeps its dtypes, outputs are bfloat16, gradients are finite.

    Values are those of the same tokens in float32, to bfloat16's precision. A token may have gates
    and decays in float32 beside vectors in bfloat16, as a layer makes it.

    Hint: cast a token to the state's dtype before it is added up, and an output to its query's.
    """
    starts = {form: case.example() for form in case.forms[:2]}
    if case.has_own_form():
        starts[OWN] = case.row()
    for form, (state, tokens) in starts.items():
        small = cast(tokens, jnp.bfloat16)
        if form.chunk:  # as a layer makes tokens
            ranges = {name: slot.range for name, slot in case.rule.slots.items()}
            wide = [n for n in ranges if ranges[n] in ("gate", "log_decay") and hasattr(tokens, n)]
            small = small._replace(**{name: getattr(tokens, name) for name in wide})
        require_bfloat16(case, form, state, small)


def require_bfloat16(case: Case, form: Form, state: Any, tokens: Any) -> None:
    """Dtypes and values of a form that takes bfloat16 tokens."""
    where = f"{form}, bfloat16 tokens"
    after, _ = jax.eval_shape(case.rule.step, state, at(tokens, 0))
    require_same_kind(after, state, "state", "one step, bfloat16 tokens")
    actual = case.run(form, state, tokens)
    dtypes = {
        name: leaf.dtype for name, leaf in named(floating(actual["output"]), "output").items()
    }
    wrong = {name: dtype for name, dtype in dtypes.items() if dtype != jnp.bfloat16}
    require([f"{name}, {where}: {dtype}" for name, dtype in wrong.items()])
    require_finite(actual, where)
    expected = case.run(form, state, cast(tokens, np.float32))
    require_close(values_of(actual), values_of(expected), where, TOLERANCE["bfloat16"])


def extremes_stay_finite(case: Case) -> None:
    """Saturated gates, huge and zero inputs over many steps: finite outputs and gradients.

    Hint: mask a difference of log decays before its exp, not after; a norm, a root or a quotient
    has no gradient at 0.
    """
    length = max(64, case.length)
    example = case.example(length=length, extreme=True)
    starts = {SCAN: example, Form(length): example}
    if case.has_own_form():
        starts[OWN] = case.row(length=length, extreme=True)
    for form, (state, tokens) in starts.items():
        require_finite(case.run(form, state, tokens), f"{form}, extreme tokens")


def require_finite(parts: dict[str, Any], where: str) -> None:
    """No leaf has an infinity or a NaN."""
    finite = lambda x: np.isfinite(np.asarray(x, np.float64)).all()
    leaves = leaves_of(parts).items()
    require([f"{name}, {where}: not finite" for name, leaf in leaves if not finite(leaf)])
