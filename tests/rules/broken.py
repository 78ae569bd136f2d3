"""A small rule that keeps the contract, and rules that break one clause each, by a line or two."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastweights.rules import Rule, Slot, scan
from fastweights.testing import CLAUSES


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
        return (jnp.sin(query) * state.total).astype(query.dtype)

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


class NamesAnotherSlot(Counter):
    slots = {"x": Slot("K"), "rate": Slot("", "gate")}
    token_type = Value


class ReadsASlotOfAnotherShape(Counter):
    slots = {"x": Slot(""), "gate": Slot("")}
    token_type = Value


class ResetKeepsATrace(Counter):
    def reset(self, state):
        return Sum(1e-6 * jax.lax.stop_gradient(state.total), jnp.zeros_like(state.count))


class ResetMultiplies(Counter):
    """A NaN of one document is in all after it."""

    def reset(self, state):
        return Sum(0.0 * state.total, jnp.zeros_like(state.count))


class MaskStillDecays(Counter):
    def step(self, state, token):
        x = jnp.where(token.gate, jnp.tanh(token.x), 0.0)
        state = Sum(0.5 * state.total + x, state.count + token.gate)
        return state, self.read(state, token.x)


class MaskAddsALittle(Counter):
    def step(self, state, token):
        state, y = super().step(state, token)
        return state._replace(total=state.total + jnp.where(token.gate, 0.0, 1e-6)), y


class MaskTouchesValidTokens(Counter):
    def mask(self, tokens, valid):
        return Value(tokens.x * 1.01, tokens.gate & valid)


class CountsInPython(Counter):
    """The first state has a Python number, which is no array of a fixed dtype."""

    def example(self, key, length, extreme=False):
        state, tokens = super().example(key, length, extreme)
        return state._replace(count=2), tokens


class DiffersUnderScan(Counter):
    def step(self, state, token):
        new, y = super().step(state, token)
        return new, y + (1e-3 if isinstance(token.x, jax.core.Tracer) else 0.0)


class ChunkForgetsTheStart(Counter):
    def chunk(self, state, tokens, starts=None):
        state = state._replace(total=jax.lax.stop_gradient(state.total))
        return scan(self, state, tokens, starts)


class ChunkReturnsAnotherState(Counter):
    def chunk(self, state, tokens, starts=None):
        final, ys = scan(self, state, tokens, starts)
        return final._replace(total=final.total + 1e-3 * (final.total - state.total)), ys


class SequenceHasAnotherOutput(Counter):
    def sequence(self, state, tokens, segment_ids):
        return None if segment_ids is not None else 1.001 * scan(self, state, tokens)[1]


class Scaled(NamedTuple):
    """State of a counter with a parameter."""

    total: jax.Array
    count: jax.Array
    scale: jax.Array  # [3], a parameter


class SequenceForgetsAParameter(Counter):
    """Right outputs and no gradient to the parameter."""

    def write(self, state, observation):
        new = super().write(state, state.scale * observation)
        return Scaled(*new, state.scale)

    def reset(self, state):
        return super().reset(state)._replace(scale=state.scale)

    def sequence(self, state, tokens, segment_ids):
        if segment_ids is not None:
            return None
        state = state._replace(scale=jax.lax.stop_gradient(state.scale))
        return scan(self, state, tokens)[1]

    def example(self, key, length, extreme=False):
        state, tokens = super().example(key, length, extreme)
        return Scaled(*state, jnp.linspace(0.5, 1.0, 3)), tokens


class ChunkIgnoresStarts(Counter):
    def chunk(self, state, tokens, starts=None):
        return scan(self, state, tokens)


class ChunkLeaksIntoTheNextDocument(Counter):
    """By less than the tolerance: its gradient to another document's tokens is not zero."""

    def chunk(self, state, tokens, starts=None):
        final, ys = scan(self, state, tokens, starts)
        return final, ys if starts is None else ys + 1e-8 * jnp.cumsum(tokens.x, 0)


class PaddingWrites(Counter):
    def pad(self, tokens, valid):
        return tokens


class SequenceIgnoresDocuments(Counter):
    def sequence(self, state, tokens, segment_ids):
        return scan(self, state, tokens)[1]


class ChunkStartsAtABorder(Counter):
    """A chunk that takes its first token for the first of a pair."""

    def chunk(self, state, tokens, starts=None):
        final, ys = scan(self, state, tokens, starts)
        if starts is None:
            ys = jnp.where(state.count % 2 == 1, 1.01 * ys, ys)
        return final, ys

    def example(self, key, length, extreme=False):
        state, tokens = super().example(key, length, extreme)
        return state, tokens._replace(gate=jnp.ones_like(tokens.gate))


class SeesTheFuture(Counter):
    def chunk(self, state, tokens, starts=None):
        final, ys = scan(self, state, tokens, starts)
        return final, ys + 1e-8 * jnp.sum(tokens.x).astype(ys.dtype)


@jax.custom_batching.custom_vmap
def batch_sum(x):
    """0 for one sequence, the sum of a batch under vmap."""
    return jnp.zeros_like(x)


@batch_sum.def_vmap
def _batch_sum_of_many(axis_size, in_batched, x):
    return jnp.broadcast_to(x.sum(0), x.shape), True


class MixesItsBatch(Counter):
    def read(self, state, query):
        return super().read(state, query) + 1e-3 * batch_sum(jax.lax.stop_gradient(query))


class WrongGradient(Counter):
    def read(self, state, query):
        state = state._replace(total=jax.lax.stop_gradient(state.total))
        return super().read(state, query)


class CastsToFloat32(Counter):
    """Right gradients, and finite differences that float32 cannot resolve."""

    def read(self, state, query):
        return super().read(state, query.astype(jnp.float32)).astype(query.dtype)


class LosesPrecision(Counter):
    """Its state takes the dtype of the tokens."""

    def step(self, state, token):
        new, y = super().step(state, token)
        return new._replace(total=new.total.astype(token.x.dtype)), y


class AnswersInFloat32(Counter):
    def read(self, state, query):
        return jnp.sin(query) * state.total


class AddsInTheTokensDtype(Counter):
    """Its chunk takes the difference of two large numbers, which bfloat16 rounds to nothing."""

    def chunk(self, state, tokens, starts=None):
        final, ys = scan(self, state, tokens, starts)
        return final, (ys + 16) - 16


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


class DividesByADecay(Counter):
    """Its chunk is right, with numbers that no long chunk can hold."""

    def chunk(self, state, tokens, starts=None):
        final, ys = scan(self, state, tokens, starts)
        decay = jnp.asarray(8.0, ys.dtype) ** -len(tokens.x)
        return final, ys * decay / decay


class WeakDtype(Counter):
    """Its first state has a weakly typed leaf, so the second call traces anew."""

    def example(self, key, length, extreme=False):
        state, tokens = super().example(key, length, extreme)
        return state._replace(total=jax.lax.broadcast(jnp.asarray(1.0), (3,))), tokens


NAMES = {clause.__name__ for clause in CLAUSES}
#: clauses that run chunks, padded to be whole
CHUNKS = {"chunks_equal_scan", "a_document_starts_anew", "a_sequence_may_be_split_anywhere"}

#: broken rule, its clause, and clauses that it cannot but break as well
BROKEN = [
    # no scan takes it, so of all others only slots are right
    (GrowsDtype, "carry_is_a_fix_point", NAMES - {"tokens_are_made_of_slots"}),
    (NamesAnotherSlot, "tokens_are_made_of_slots", set()),
    (ReadsASlotOfAnotherShape, "tokens_are_made_of_slots", set()),
    (ResetKeepsATrace, "reset_forgets", set()),
    (ResetMultiplies, "reset_forgets", set()),
    (MaskStillDecays, "an_identity_token_changes_nothing", CHUNKS),
    (MaskTouchesValidTokens, "an_identity_token_changes_nothing", CHUNKS),
    (MaskAddsALittle, "an_identity_token_changes_nothing", set()),
    (CountsInPython, "a_saved_state_goes_on", set()),
    (DiffersUnderScan, "scan_equals_the_definition", set()),
    # a chunk of another value or gradient differs wherever chunks run
    (ChunkForgetsTheStart, "chunks_equal_scan", {"gradients_are_right", "a_document_starts_anew"}),
    (ChunkReturnsAnotherState, "chunks_equal_scan", CHUNKS),
    (SequenceHasAnotherOutput, "outputs_equal_run", set()),
    (SequenceForgetsAParameter, "outputs_equal_run", set()),
    (ChunkIgnoresStarts, "a_document_starts_anew", set()),
    (ChunkLeaksIntoTheNextDocument, "a_document_starts_anew", set()),
    (PaddingWrites, "a_document_starts_anew", set()),
    (SequenceIgnoresDocuments, "a_document_starts_anew", set()),
    (ChunkStartsAtABorder, "a_sequence_may_be_split_anywhere", set()),
    # a later token may be another document's
    (SeesTheFuture, "the_future_is_unseen", {"a_document_starts_anew"}),
    (MixesItsBatch, "sequences_do_not_see_each_other", set()),
    (WrongGradient, "gradients_are_right", set()),
    (CastsToFloat32, "gradients_are_right", set()),
    (LosesPrecision, "tokens_may_be_bfloat16", set()),
    (AnswersInFloat32, "tokens_may_be_bfloat16", set()),
    (AddsInTheTokensDtype, "tokens_may_be_bfloat16", set()),
    (Overflows, "extremes_stay_finite", set()),
    (InfiniteGradient, "extremes_stay_finite", set()),
    (DividesByADecay, "extremes_stay_finite", set()),
    # a weak float32 plus a bfloat16 is a bfloat16
    (WeakDtype, "a_second_call_compiles_nothing", {"tokens_may_be_bfloat16"}),
]
