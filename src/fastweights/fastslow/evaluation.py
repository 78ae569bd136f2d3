"""What a policy is worth, and how far it has gone from the base model: measured, not trained on."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fastweights.fastslow.judge import Judge
from fastweights.fastslow.rollouts import Rollouts, Sampler, power_of_two
from fastweights.models.decoder import Decoder
from fastweights.tasks.prompted import Outcome, Problem, Prompt, PromptedTask, Score

#: tokens whose logits exist at once
BLOCK = 512


class Divergence(NamedTuple):
    """KL(policy || base) in nats, on the policy's own answers, both under the same prompt."""

    token: float  # mean over tokens of the whole next-token distributions' divergence
    sequence: float  # mean over answers of its sum


def sequences(rollouts: Rollouts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and answers in one row each.

    Returns:
        Tokens `[B, P + A]` int32; `at [B, A]` int32, the position from which each answer token is
        predicted; `mask [B, A]` bool, the tokens that there are. Positions and mask are of the
        answer's tokens in order.
    """
    rows, width = rollouts.inputs.shape
    size = rollouts.answers.shape[1]
    tokens = np.zeros((rows, width + size), np.int32)
    tokens[:, :width] = rollouts.inputs
    places = np.arange(size)[None, :]
    mask = places < rollouts.answer_lengths[:, None]
    at = rollouts.input_lengths[:, None] - 1 + places
    row = np.broadcast_to(np.arange(rows)[:, None], mask.shape)
    tokens[row[mask], at[mask] + 1] = rollouts.answers[mask]
    return tokens, at.astype(np.int32), mask


def answer_features(model: Decoder, tokens: Array, at: Array) -> Array:
    """Last features at the positions `at [B, A]`: `[B, A, D]`."""
    return jnp.take_along_axis(model.features(tokens), at[:, :, None], 1)


@jax.jit
def _divergences(
    model: Decoder, base: Decoder, tokens: Array, at: Array, temperature: Array
) -> Array:
    """KL of each answer token's distribution, `[B, A]`."""
    one, other = (answer_features(m, tokens, at) for m in (model, base))
    flat = lambda x: x.reshape(-1, x.shape[-1])

    def block(pair: tuple[Array, Array]) -> Array:
        p, q = (
            jax.nn.log_softmax(m.logits(x) / temperature)
            for m, x in zip((model, base), pair, strict=True)
        )
        return jnp.sum(jnp.exp(p) * (p - q), -1)

    found = jax.lax.map(block, (flat(one), flat(other)), batch_size=BLOCK)
    return found.reshape(at.shape)


def divergence(
    model: Decoder, base: Decoder, rollouts: Rollouts, temperature: float = 1.0
) -> Divergence:
    """How far a policy is from the base model on its own answers; see `Divergence`."""
    tokens, at, mask = sequences(rollouts)
    rows = power_of_two(len(tokens))
    pad = lambda x: np.pad(x, [(0, rows - len(x)), (0, 0)])
    found = _divergences(model, base, pad(tokens), pad(at), jnp.float32(temperature))
    found = np.asarray(found)[: len(tokens)] * mask
    return Divergence(
        float(found.sum() / max(mask.sum(), 1)), float(found.sum() / max(len(tokens), 1))
    )


class Scores(NamedTuple):
    """Answers to problems under one prompt, judged."""

    accuracy: float  # NaN if no answer has a score
    reward: float  # NaN if none has
    entropy: float  # nats a token, estimated from the answers' own log probabilities
    unscored: float  # share of the answers without a score
    rollouts: Rollouts


def score(
    model: Decoder,
    task: PromptedTask,
    prompt: Prompt,
    problems: Sequence[Problem],
    sampler: Sampler,
    judge: Judge,
    times: int,
    seed: int,
) -> Scores:
    """Answer every problem `times` times under a prompt, and judge the answers."""
    rollouts = sampler(model, [task.text(prompt, x) for x in problems], times, seed)
    asked = [problem for problem in problems for _ in range(times)]
    outcomes = judge.verify_many(asked, rollouts.texts)
    good = [x for x in outcomes if isinstance(x, Score)]
    tokens = max(int(rollouts.answer_lengths.sum()), 1)
    return Scores(
        accuracy(good),
        sum(x.value for x in good) / len(good) if good else math.nan,
        float(-rollouts.log_probs.sum() / tokens),
        1 - len(good) / max(len(outcomes), 1),
        rollouts,
    )


def accuracy(scores: Sequence[Score]) -> float:
    """Share of the scored answers that are right; of none it is not known, and NaN."""
    return sum(x.correct for x in scores) / len(scores) if scores else math.nan


def rewards(outcomes: Sequence[Outcome]) -> np.ndarray:
    """The reward of each outcome, NaN where there is no score: `[B]` float64."""
    return np.array([x.value if isinstance(x, Score) else np.nan for x in outcomes])


@functools.lru_cache(64)
def held_out(task: Any, split: str, count: int) -> tuple[Problem, ...]:
    """The problems of an evaluation, the same every time."""
    return tuple(task.problems(split, count))
