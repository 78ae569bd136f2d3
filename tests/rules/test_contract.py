"""`check_rule` passes on every rule of ours; each clause catches a rule made to break it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from fastweights.rules import (
    RULES,
    Delta,
    Form,
    GatedDelta,
    Hebbian,
    InPlace,
    LinearAttention,
    Rule,
    scan,
)
from fastweights.testing import CLAUSES, RuleContractError, check_rule

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
]


@pytest.mark.parametrize("rule", VARIANTS, ids=repr)
def test_our_rules_keep_the_contract(rule):
    assert check_rule(rule) == [clause.__name__ for clause in CLAUSES]


def test_every_rule_is_checked():
    assert {type(rule) for rule in VARIANTS} == set(RULES)


def test_a_sequence_of_one_token():
    check_rule(Hebbian(form=Form.MATRIX), lengths=(1,), chunks=(1, 2))


class Sum(NamedTuple):
    """State of `Counter`: a decayed sum and a count."""

    total: jax.Array
    count: jax.Array


class Value(NamedTuple):
    """Token of `Counter`."""

    x: jax.Array
    gate: jax.Array


@dataclasses.dataclass(frozen=True)
class Counter(Rule):
    """A small rule that keeps the contract; the broken ones below differ from it in one line."""

    def write(self, state, observation):
        return Sum(0.5 * state.total + jnp.tanh(observation), state.count + 1)

    def read(self, state, query):
        return jnp.sin(query) * state.total

    def step(self, state, token):
        new = self.write(state, token.x)
        state = jax.tree.map(lambda n, o: jnp.where(token.gate, n, o), new, state)
        return state, self.read(state, token.x)

    def mask(self, tokens, valid):
        return tokens._replace(gate=tokens.gate & valid)

    def example(self, key, length, extreme=False):
        a, b, c = jax.random.split(key, 3)
        x = jax.random.normal(a, (length, 3)) * (1e3 if extreme else 1.0)
        state = Sum(jax.random.normal(b, (3,)), jnp.asarray(2, jnp.int32))
        return state, Value(x, jax.random.bernoulli(c, 0.8, (length,)))


class GrowsDtype(Counter):
    def write(self, state, observation):
        return Sum(0.5 * state.total + jnp.tanh(observation), state.count + 1.5)


class LosesPrecision(Counter):
    def step(self, state, token):
        new, y = super().step(state, token)
        return new._replace(total=new.total.astype(token.x.dtype)), y


class DiffersUnderScan(Counter):
    def step(self, state, token):
        new, y = super().step(state, token)
        return new, y + (1e-3 if isinstance(token.x, jax.core.Tracer) else 0.0)


class ChunkForgetsTheStart(Counter):
    def chunk(self, state, tokens):
        return scan(self, state._replace(total=jax.lax.stop_gradient(state.total)), tokens)


class ChunkReturnsAnotherState(Counter):
    def chunk(self, state, tokens):
        final, ys = scan(self, state, tokens)
        return final._replace(total=final.total * 1.001), ys


class MaskStillDecays(Counter):
    def step(self, state, token):
        x = jnp.where(token.gate, jnp.tanh(token.x), 0.0)
        state = Sum(0.5 * state.total + x, state.count + token.gate)
        return state, self.read(state, token.x)


class MaskTouchesValidTokens(Counter):
    def mask(self, tokens, valid):
        return Value(tokens.x * 1.01, tokens.gate & valid)


class SeesTheFuture(Counter):
    def chunk(self, state, tokens):
        final, ys = scan(self, state, tokens)
        return final, ys + 1e-6 * jnp.sum(tokens.x)


class WrongGradient(Counter):
    def read(self, state, query):
        return jnp.sin(query) * jax.lax.stop_gradient(state.total) + 0.0 * state.total


class Overflows(Counter):
    def write(self, state, observation):
        return Sum(state.total + jnp.exp(observation), state.count + 1)


class InfiniteGradient(Counter):
    """Finite at zero, but the slope of the square root there is not."""

    def write(self, state, observation):
        return Sum(0.5 * state.total + jnp.sqrt(jnp.abs(observation)), state.count + 1)

    def example(self, key, length, extreme=False):
        state, tokens = super().example(key, length, extreme)
        return state, tokens._replace(x=tokens.x * (0.0 if extreme else 1.0))


class WeakDtype(Counter):
    """Its first state has a weakly typed leaf, so the second call traces anew."""

    def example(self, key, length, extreme=False):
        state, tokens = super().example(key, length, extreme)
        return state._replace(total=jax.lax.broadcast(jnp.asarray(1.0), (3,))), tokens


BROKEN = [
    (GrowsDtype, "carry_is_a_fix_point"),
    (LosesPrecision, "carry_is_a_fix_point"),
    (DiffersUnderScan, "scan_equals_the_definition"),
    (ChunkForgetsTheStart, "chunks_equal_scan"),
    (ChunkReturnsAnotherState, "chunks_equal_scan"),
    (MaskStillDecays, "an_identity_token_changes_nothing"),
    (MaskTouchesValidTokens, "an_identity_token_changes_nothing"),
    (SeesTheFuture, "the_future_is_unseen"),
    (WrongGradient, "gradients_are_right"),
    (Overflows, "extremes_stay_finite"),
    (InfiniteGradient, "extremes_stay_finite"),
    (WeakDtype, "a_second_call_compiles_nothing"),
]


def clause_named(name):
    return next(clause for clause in CLAUSES if clause.__name__ == name)


def test_the_small_rule_is_right():
    check_rule(Counter())


@pytest.mark.parametrize("broken,name", BROKEN, ids=lambda x: getattr(x, "__name__", x))
def test_a_broken_rule_is_caught_by_its_clause(broken, name, monkeypatch):
    monkeypatch.setattr("fastweights.testing.CLAUSES", (clause_named(name),))
    check_rule(Counter(), lengths=(5,), chunks=(4,))
    with pytest.raises(RuleContractError, match=name):
        check_rule(broken(), lengths=(5,), chunks=(4,))
