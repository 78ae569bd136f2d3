"""`check_rule(rule)`: the contract every update rule must keep, for the library's and for your own.

Each clause is one function below; a rule that breaks it fails with the clause's name and what to
look at. The clauses compare the rule with itself in another form (a Python loop, a split sequence,
a padded one), with autodiff and with finite differences, so they need no reference implementation;
compare your equations with one separately.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.test_util import check_grads

from fastweights.rules import Rule, run, scan

#: allowed difference between two forms of one computation, by dtype
TOLERANCE = {"float32": 2e-5, "float64": 1e-10, "bfloat16": 2e-2}


class RuleContractError(AssertionError):
    """A rule broke a clause of the contract."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One rule with one start and one sequence to try it on."""

    rule: Rule
    key: Array
    length: int
    chunks: tuple[int, ...]
    tolerance: float

    def example(self, salt: int = 0, length: int | None = None, extreme: bool = False):
        """State and tokens; another `salt` gives other values of the same shapes."""
        key = jax.random.fold_in(self.key, salt)
        return self.rule.example(key, length or self.length, extreme=extreme)

    def close(self, actual: Any, expected: Any, what: str) -> None:
        """Assert that two trees agree, relative to the size of each expected leaf."""

        def scaled(a, e):
            size = np.maximum(1.0, np.max(np.abs(e), initial=0.0))
            return np.asarray(a, np.float64) / size, np.asarray(e, np.float64) / size

        pairs = [
            scaled(a, e) for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
        ]
        chex.assert_trees_all_close(
            [a for a, _ in pairs],
            [e for _, e in pairs],
            atol=self.tolerance,
            rtol=0,
            custom_message=what,
        )


def check_rule(
    rule: Rule,
    *,
    lengths: Sequence[int] = (13,),
    chunks: Sequence[int] = (4, 16),
    seeds: Sequence[int] = (0,),
) -> list[str]:
    """Check a rule against the contract, on random non-zero starts and odd lengths.

    Args:
        rule: the rule; it makes its own states and tokens with `rule.example`.
        lengths: sequence lengths to try.
        chunks: chunk sizes to try against `scan`; they need not divide the lengths.
        seeds: seeds of the random examples.

    Returns:
        The names of the clauses checked, in order.

    Raises:
        RuleContractError: a clause does not hold; the message names it.
    """
    for clause in CLAUSES:
        for length in lengths:
            for seed in seeds:
                case = Case(rule, jax.random.key(seed), length, tuple(chunks), TOLERANCE["float32"])
                try:
                    clause(case)
                except RuleContractError:
                    raise
                except Exception as error:
                    title = (clause.__doc__ or clause.__name__).splitlines()[0]
                    raise RuleContractError(
                        f"{type(rule).__name__} breaks '{clause.__name__}' "
                        f"(length {length}, seed {seed}): {title}\n{error}"
                    ) from error
    return [clause.__name__ for clause in CLAUSES]


def outcome(rule: Rule, drive: Callable, state: Any, tokens: Any):
    """Outputs, final state, and gradients of a random projection of both to state and tokens."""
    inexact = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    leaves, tree = jax.tree.flatten((state, tokens))
    is_moving = [inexact(leaf) for leaf in leaves]

    def value(moving):
        moving = iter(moving)
        merged = [next(moving) if m else leaf for m, leaf in zip(is_moving, leaves, strict=True)]
        final, ys = drive(rule, *jax.tree.unflatten(tree, merged))
        total = jnp.zeros(())
        for i, leaf in enumerate(filter(inexact, jax.tree.leaves((final, ys)))):
            weights = jax.random.normal(jax.random.key(i), leaf.shape, jnp.float32)
            total += jnp.sum(weights * leaf)
        return total, (final, ys)

    moving = [leaf for leaf, m in zip(leaves, is_moving, strict=True) if m]
    (_, aux), grads = jax.value_and_grad(value, has_aux=True)(moving)
    return aux, grads


def loop(rule: Rule, state: Any, tokens: Any):
    """The definition, with no scan: a Python loop over `rule.step`."""
    ys = []
    for t in range(jax.tree.leaves(tokens)[0].shape[0]):
        state, y = rule.step(state, jax.tree.map(lambda x, t=t: x[t], tokens))
        ys.append(y)
    return state, jax.tree.map(lambda *y: jnp.stack(y), *ys)


def carry_is_a_fix_point(case: Case) -> None:
    """A step keeps the state's structure, shapes and dtypes, for float32 and bfloat16 tokens."""
    state, tokens = case.example()
    for dtype in (jnp.float32, jnp.bfloat16):
        cast = lambda x, d=dtype: x.astype(d) if jnp.issubdtype(x.dtype, jnp.floating) else x
        token = jax.tree.map(lambda x, cast=cast: cast(x)[0], tokens)
        after, _ = jax.eval_shape(case.rule.step, state, token)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def scan_equals_the_definition(case: Case) -> None:
    """Token loop, scan and jitted scan give the same, gradients too."""
    state, tokens = case.example()
    # op by op: a loop written out takes XLA longer to compile than all other clauses together
    expected = outcome(case.rule, loop, state, tokens)
    jitted = jax.jit(lambda s, t: outcome(case.rule, scan, s, t))
    case.close(jitted(state, tokens), expected, "jitted scan against loop")
    case.close(scan(case.rule, state, tokens), expected[0], "scan against loop")
    # `outcome` traces the loop to differentiate it; here nothing is traced
    case.close(loop(case.rule, state, tokens), expected[0], "what is traced against what is not")


def chunks_equal_scan(case: Case) -> None:
    """run(chunk=C) gives scan's outputs, final state and every gradient, the start's included."""
    state, tokens = case.example()
    expected = jax.jit(lambda s, t: outcome(case.rule, scan, s, t))(state, tokens)
    for size in case.chunks:
        drive = lambda rule, s, t, size=size: run(rule, s, t, chunk=size)
        actual = jax.jit(lambda s, t, d=drive: outcome(case.rule, d, s, t))(state, tokens)
        case.close(actual, expected, f"chunk={size} against scan")


def a_sequence_may_be_split_anywhere(case: Case) -> None:
    """Two calls with the state carried between them give what one call gives."""
    state, tokens = case.example()
    expected = scan(case.rule, state, tokens)
    for cut in sorted({1, case.length // 3, case.length - 1} & set(range(1, case.length))):
        middle, left = scan(case.rule, state, jax.tree.map(lambda x, c=cut: x[:c], tokens))
        final, right = scan(case.rule, middle, jax.tree.map(lambda x, c=cut: x[c:], tokens))
        ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), left, right)
        case.close((final, ys), expected, f"split at {cut}")


def an_identity_token_changes_nothing(case: Case) -> None:
    """A masked token leaves the state bitwise as it was; mask leaves valid tokens alone."""
    state, tokens = case.example()
    nothing = case.rule.mask(tokens, jnp.zeros(case.length, bool))
    chex.assert_trees_all_equal(scan(case.rule, state, nothing)[0], state)
    chex.assert_trees_all_equal(case.rule.chunk(state, nothing)[0], state)
    kept = case.rule.mask(tokens, jnp.ones(case.length, bool))
    chex.assert_trees_all_equal(scan(case.rule, state, kept), scan(case.rule, state, tokens))


def the_future_is_unseen(case: Case) -> None:
    """The gradient of an output to every later token is exactly zero."""
    state, tokens = case.example()
    moving = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.inexact), tokens)
    flags, leaves = jax.tree.leaves(moving), jax.tree.leaves(tokens)
    for drive in (scan, lambda r, s, t: run(r, s, t, chunk=case.chunks[0])):

        def ys(chosen, drive=drive):
            chosen = iter(chosen)
            merged = [next(chosen) if f else x for f, x in zip(flags, leaves, strict=True)]
            out = drive(case.rule, state, jax.tree.unflatten(jax.tree.structure(tokens), merged))[1]
            return jnp.stack([y.reshape(case.length, -1).sum(1) for y in jax.tree.leaves(out)]).sum(
                0
            )

        jacobian = jax.jit(jax.jacrev(ys))([x for f, x in zip(flags, leaves, strict=True) if f])
        for leaf in jacobian:  # [T outputs, T tokens, ...]
            future = np.triu(np.ones((case.length, case.length), bool), 1)
            worst = np.abs(np.asarray(leaf))[future].max(initial=0.0)
            assert worst == 0.0, f"an output depends on a later token, gradient {worst:.3g}"


def sequences_do_not_see_each_other(case: Case) -> None:
    """Under vmap each row is what it is alone, and changing one row leaves the others bitwise."""
    examples = [case.example(salt) for salt in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *examples)
    batched = jax.jit(jax.vmap(lambda s, t: scan(case.rule, s, t)))
    together = batched(*stacked)
    for row, (state, tokens) in enumerate(examples):
        alone = scan(case.rule, state, tokens)
        case.close(jax.tree.map(lambda x, r=row: x[r], together), alone, f"row {row} of a batch")
    other = case.example(salt=9)
    changed = batched(*jax.tree.map(lambda x, new: x.at[0].set(new), stacked, other))
    rest = lambda tree: jax.tree.map(lambda x: x[1:], tree)
    chex.assert_trees_all_equal(rest(changed), rest(together))


def gradients_are_right(case: Case) -> None:
    """Reverse-mode gradients agree with finite differences, in float64."""
    with jax.enable_x64(True):
        state, tokens = jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            case.example(),
        )
        leaves, tree = jax.tree.flatten((state, tokens))
        flags = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
        for size in (None, case.chunks[0]):

            def value(*moving, size=size):
                rest = iter(moving)
                merged = [next(rest) if f else x for f, x in zip(flags, leaves, strict=True)]
                final, ys = run(case.rule, *jax.tree.unflatten(tree, merged), chunk=size)
                floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
                return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves((final, ys)) if floating(x))

            moving = tuple(x for f, x in zip(flags, leaves, strict=True) if f)
            check_grads(
                jax.jit(value), moving, order=1, modes=("rev",), atol=1e-5, rtol=1e-5, eps=1e-6
            )


def extremes_stay_finite(case: Case) -> None:
    """Saturated gates, huge and zero inputs over many steps: finite outputs and gradients."""
    state, tokens = case.example(length=max(64, case.length), extreme=True)
    for name, drive in (("scan", scan), ("chunk", lambda r, s, t: run(r, s, t, chunk=16))):
        result = jax.jit(lambda s, t, d=drive: outcome(case.rule, d, s, t))(state, tokens)
        for leaf in jax.tree.leaves(result):
            assert np.isfinite(np.asarray(leaf)).all(), f"{name}: not finite"


def a_second_call_compiles_nothing(case: Case) -> None:
    """Other values of the same shapes reuse the compiled program."""
    compiled = 0

    @jax.jit
    def jitted(state, tokens):
        nonlocal compiled
        compiled += 1  # runs when traced only
        return scan(case.rule, state, tokens)

    first, _ = jitted(*case.example())
    jitted(first, case.example(salt=1)[1])
    assert compiled == 1, f"traced {compiled} times for the same shapes"


CLAUSES: tuple[Callable[[Case], None], ...] = (
    carry_is_a_fix_point,
    scan_equals_the_definition,
    chunks_equal_scan,
    a_sequence_may_be_split_anywhere,
    an_identity_token_changes_nothing,
    the_future_is_unseen,
    sequences_do_not_see_each_other,
    gradients_are_right,
    extremes_stay_finite,
    a_second_call_compiles_nothing,
)
