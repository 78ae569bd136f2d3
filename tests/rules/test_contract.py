"""`check_rule` passes on every rule of ours; each clause catches a rule made to break it."""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import assert_close

import fastweights.rules
from fastweights.rules import (
    RULES,
    TTTMLP,
    Delta,
    Form,
    GatedDelta,
    Hebbian,
    InPlace,
    LinearAttention,
    Online,
    Rule,
    TTTLinear,
    memories,
)
from fastweights.rules.losses import dot_product, squared
from fastweights.rules.optimizers import SGD, clip_by_global_norm
from fastweights.testing import CLAUSES, RuleContractError, check_rule
from fastweights.testing.check import failures
from fastweights.testing.definition import definition
from fastweights.testing.programs import Programs
from rules.broken import BROKEN, ChunkForgetsTheStart, Counter, Sum

VARIANTS = [
    Hebbian(form=Form.MATRIX),
    Hebbian(form=Form.ATTENTION, steps=3),
    Hebbian(form=Form.MATRIX, steps=2, decay=1.0, lr=3.0),
    Hebbian(form=Form.ATTENTION, decay=0.0),
    InPlace(lr=0.5, chunk_size=5),
    InPlace(lr=0.5, chunk_size=3, decay=0.6, cap=0.3, spectral=True),
    InPlace(lr=0.5, chunk_size=3, residual=True),
    InPlace(lr=0.5, chunk_size=3, clip=0.4, clip_relative=True),
    InPlace(
        chunk_size=5,
        loss=squared,
        optimizer=optax.chain(
            clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optax.sgd(0.3, momentum=0.5)
        ),
    ),
    LinearAttention(),
    Delta(),
    GatedDelta(),
    Online(),
    Online(loss=dot_product, optimizer=SGD(0.5)),
    Online(optimizer=optax.sgd(0.2, momentum=0.9)),
    # Adam with a slope at zero, and moments that finite differences can move
    Online(optimizer=optax.adam(0.1, b2=0.8, eps_root=1e-4)),
    Online(optimizer=optax.contrib.muon(0.1), batch=3),
    Online(
        memory=memories.MLP(width=2),
        optimizer=optax.chain(clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.5)),
        batch=5,
    ),
    TTTLinear(lr=0.5, batch=5),
    TTTMLP(lr=0.5, batch=4, width=2),
]
SMALL = {"lengths": (7,), "chunks": (4,)}


@pytest.mark.parametrize("rule", VARIANTS, ids=repr)
def test_our_rules_keep_the_contract(rule):
    assert check_rule(rule) == [clause.__name__ for clause in CLAUSES]


def test_every_rule_is_checked():
    """Every public rule that a module of the package defines, whatever its lists say."""
    package = fastweights.rules
    names = [
        module.name for module in pkgutil.walk_packages(package.__path__, "fastweights.rules.")
    ]
    classes = {
        kind
        for module in map(importlib.import_module, names)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Rule) and not inspect.isabstract(kind) and kind.__name__[0] != "_"
    }
    assert classes == {type(rule) for rule in VARIANTS} == set(RULES)


def test_a_sequence_of_one_token():
    check_rule(Hebbian(form=Form.MATRIX), lengths=(1,), chunks=(1, 2))


def test_the_small_rule_is_right():
    check_rule(Counter())


@pytest.mark.parametrize("broken,name,also", BROKEN, ids=lambda x: getattr(x, "__name__", None))
def test_a_broken_rule_is_caught_by_its_clause_only(broken, name, also):
    assert {error.clause for error in failures(broken(), **SMALL)} == {name} | also


def test_each_clause_catches_a_broken_rule():
    assert {name for _, name, _ in BROKEN} == {clause.__name__ for clause in CLAUSES}


def test_a_failure_names_the_arrays_the_form_and_a_cause():
    with pytest.raises(RuleContractError) as caught:
        check_rule(ChunkForgetsTheStart(), **SMALL)
    first, *arrays, hint = str(caught.value).splitlines()
    assert first.startswith("ChunkForgetsTheStart breaks 'chunks_equal_scan' (length 7, seed 0): ")
    assert arrays[0].startswith("gradient to state.total, chunk = 4: 0 at [")
    assert arrays[1].startswith("gradient to token.x, chunk = 4: ")
    assert hint.startswith("hint: a chunk without the start state's part")
    assert caught.value.clause == "chunks_equal_scan"


def test_each_clause_has_a_hint():
    hints = [inspect.getdoc(clause).split("\n\n")[-1] for clause in CLAUSES]
    assert all(hint.startswith("Hint: ") for hint in hints)


def test_an_object_in_the_state_is_named():
    class Labelled(Counter):
        def example(self, key, length, extreme=False):
            state, tokens = super().example(key, length, extreme)
            return state._replace(count="two"), tokens

    with pytest.raises(RuleContractError, match="state.count has type str, which is no array"):
        check_rule(Labelled(), **SMALL)


def test_the_oracle_of_packed_rows_is_autodiff_of_the_equations():
    """`Counter` written out, with documents that start and padding that is left out."""
    rng = np.random.default_rng(0)
    ids, gate = np.array([0, 1, 1, 2, 0, 2, 3]), np.array([1, 1, 0, 1, 1, 1, 1], bool)
    x, total = rng.normal(size=(7, 3)), rng.normal(size=3)
    to_total, to_y = rng.normal(size=3), rng.normal(size=(7, 3))

    def value(total, x):
        document, ys = 1, 0.0
        for t in np.flatnonzero(ids):
            total = jnp.zeros(3) if ids[t] != document else total
            document = ids[t]
            total = 0.5 * total + jnp.tanh(x[t]) if gate[t] else total
            ys += jnp.sum(to_y[t] * jnp.sin(x[t]) * total)
        return ys + jnp.sum(to_total * total), total

    expected, final = jax.grad(value, (0, 1), has_aux=True)(jnp.asarray(total), jnp.asarray(x))
    start = Sum(jnp.asarray(total), jnp.asarray(2, jnp.int32))
    tokens = Counter().example(jax.random.key(0), 7)[1]._replace(x=jnp.asarray(x), gate=gate)
    to_y[ids == 0] = 0
    actual = definition(Programs(Counter()), start, tokens, (Sum(to_total, None), to_y), ids)
    assert_close(actual["gradient to state"].total, expected[0])
    assert_close(actual["gradient to token"].x, expected[1])
    assert_close(actual["state"].total, final)
    assert int(actual["state"].count) == 1  # of the last document
