"""`check_rule` passes on every rule of ours; each clause catches a rule made to break it."""

import importlib
import inspect
import pkgutil

import optax
import pytest

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
from fastweights.rules.losses import dot_product
from fastweights.rules.optimizers import SGD, clip_by_global_norm
from fastweights.testing import CLAUSES, check_rule
from fastweights.testing.check import failures
from rules.broken import BROKEN, Counter

VARIANTS = [
    Hebbian(form=Form.MATRIX),
    Hebbian(form=Form.ATTENTION, steps=3),
    Hebbian(form=Form.MATRIX, steps=2, decay=1.0, lr=3.0),
    Hebbian(form=Form.ATTENTION, decay=0.0),
    InPlace(lr=0.5, chunk_size=5),
    InPlace(lr=0.5, chunk_size=3, clip=0.4, clip_relative=True),
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
