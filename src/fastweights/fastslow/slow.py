"""An update of the slow weights from rollouts under the whole population of prompts."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fastweights.fastslow.evaluation import accuracy, answer_features, rewards, sequences
from fastweights.fastslow.judge import Judge
from fastweights.fastslow.objective import (
    PolicyGradient,
    advantages,
    divergence_loss,
    policy_loss,
    token_mean,
)
from fastweights.fastslow.rollouts import Rollouts, Sampler
from fastweights.nn.cross_entropy import NO_TARGET, token_losses
from fastweights.tasks.prompted import Outcome, Problem, Prompt, PromptedTask, Score
from fastweights.train.config import Optim
from fastweights.train.state import TrainState
from fastweights.train.step import descend

Batch = dict[str, Any]
Update = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]


class Experience(NamedTuple):
    """Rollouts of one update, judged."""

    rollouts: Rollouts
    rewards: np.ndarray  # [B] float64, NaN where there is no score
    correct: float  # share of the scored answers that are right, NaN if there are none
    advantages: np.ndarray  # [B]
    used: np.ndarray  # [B] bool
    outcomes: Sequence[Outcome]  # what was judged, for those who ask why there is no score


def explore(
    config: PolicyGradient,
    task: PromptedTask,
    prompts: Sequence[Prompt],
    problems: Sequence[Problem],
    model: Any,
    sampler: Sampler,
    judge: Judge,
    seed: int,
) -> Experience:
    """G rollouts of every problem, spread over the prompts by `shares`, and their advantages."""
    counts = shares(config.rollouts, len(prompts))
    prompts = prompts[: len(counts)]
    # as many times as every share allows: a text is read once for so many answers
    times = math.gcd(*counts)
    each = [p for p, count in zip(prompts, counts, strict=True) for _ in range(count // times)]
    texts = [task.text(prompt, problem) for problem in problems for prompt in each]
    rollouts = sampler(model, texts, times, seed)
    asked = [problem for problem in problems for _ in range(config.rollouts)]
    outcomes = judge.verify_many(asked, rollouts.texts)
    found = rewards(outcomes)
    sizes = [config.rollouts] if config.baseline == "problem" else counts
    groups = np.repeat(np.arange(len(problems) * len(sizes)), sizes * len(problems))
    worth, used = advantages(found, groups, config.advantage)
    good = [x for x in outcomes if isinstance(x, Score)]
    return Experience(rollouts, found, accuracy(good), worth, used, outcomes)


def shares(rollouts: int, prompts: int) -> list[int]:
    """Rollouts of a problem under each prompt, the best first: as equal as can be, none of 0."""
    return [rollouts // prompts + (i < rollouts % prompts) for i in range(min(prompts, rollouts))]


def batch_of(experience: Experience) -> Batch:
    """What `make_update` takes, as arrays."""
    tokens, at, mask = sequences(experience.rollouts)
    answers = np.where(mask, experience.rollouts.answers, NO_TARGET)
    return {
        "tokens": tokens,
        "at": at,
        "answers": answers.astype(np.int32),
        "behaviour": experience.rollouts.log_probs,
        "advantage": experience.advantages.astype(np.float32),
        "used": mask & experience.used[:, None],
        "there": mask,
    }


def answer_log_probs(model: Any, batch: Batch, temperature: float) -> Array:
    """Log probability of every answer token, `[B, A]` float32, 0 where there is none."""
    features = answer_features(model, batch["tokens"], batch["at"])
    # dividing the features divides the logits
    features = features / jnp.asarray(temperature, features.dtype)
    first = model.head is None
    return -token_losses(features, model.unembedding, batch["answers"], vocab_first=first)


@functools.lru_cache(16)
def make_update(config: PolicyGradient, optim: Optim) -> Update:
    """The jitted update: (state, base, batch) -> (state, scores); it takes the old state's memory.

    It is all of `config.passes`, and the scores are those of the last. `base` is None, or the model
    that `config.kl` keeps the policy near to. An update with a loss or gradient that is not finite,
    in any pass, changes nothing at all, so that it can be told and done again.
    """

    def loss(model: Any, base: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        log_p = answer_log_probs(model, batch, config.temperature)
        policy = policy_loss(config, log_p, batch["behaviour"], batch["advantage"], batch["used"])
        total, there = policy, batch["there"].astype(jnp.float32)
        if config.entropy:
            total += config.entropy * divergence_loss(log_p, None, there)
        if config.kl:
            reference = answer_log_probs(base, batch, config.temperature)
            reference = jax.lax.stop_gradient(reference)
            total += config.kl * divergence_loss(log_p, reference, there)
        apart = jax.lax.stop_gradient(log_p) - batch["behaviour"]
        scores = {"loss": policy, "off_policy": token_mean(jnp.abs(apart), there)}
        return total, scores

    step = descend(optim, loss)

    def update(state: TrainState, base: Any, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        new, scores = jax.lax.scan(
            lambda now, _: step(now, base, batch), state, length=config.passes
        )
        bad = scores.pop("not_finite").max()
        kept = jax.tree.map(lambda a, b: jnp.where(bad > 0, a, b), state, new)
        return kept, {name: x[-1] for name, x in scores.items()} | {"not_finite": bad}

    return jax.jit(update, donate_argnums=0)
