"""The slow loop's objective: advantages within groups, and policy-gradient losses per token.

A group is the rollouts of one problem, under all prompts. CISPO (MiniMax-M1, 2025, arXiv
2506.13585) weights REINFORCE by a truncated importance ratio that carries no gradient, so no token
is dropped; PPO's clipped ratio (Schulman et al. 2017, arXiv 1707.06347) drops those that have gone
too far; GRPO is that with group advantages (Shao et al. 2024, arXiv 2402.03300).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

#: added to the standard deviation of a group's rewards
EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
    """The slow loop.

    Attributes:
        loss: per token; "grpo" is PPO's clipped ratio, "reinforce" has no ratio at all.
        advantage: "std": the reward less the group's mean, over the group's standard deviation;
            "mean": only less the mean (Dr. GRPO, arXiv 2503.20783); "rloo": less the mean of the
            others (Ahmadian et al. 2024, arXiv 2402.14740).
        baseline: whether a group is all rollouts of a problem, or those under one prompt.
        problems: per update.
        rollouts: G, of each problem, spread over the prompts in equal shares; where there are still
            too few prompts for that, the better ones have one more.
        truncate: largest importance ratio of CISPO.
        clip_low: PPO keeps the ratio above 1 - this,
        clip_high: and below 1 + this.
        passes: updates on the same rollouts.
        entropy: weight of an entropy bonus.
        kl: weight of a penalty on the divergence from the base model.
        easy: share of the problems that are of an easier kind.
        temperature: of the sampling.
    """

    loss: Literal["cispo", "grpo", "reinforce"] = "cispo"
    advantage: Literal["std", "mean", "rloo"] = "std"
    baseline: Literal["problem", "prompt"] = "problem"
    problems: int = 16
    rollouts: int = 8
    truncate: float = 4.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    passes: int = 1
    entropy: float = 0.0
    kl: float = 0.0
    easy: float = 0.0
    temperature: float = 1.0


def advantages(
    rewards: np.ndarray, groups: np.ndarray, kind: Literal["std", "mean", "rloo"]
) -> tuple[np.ndarray, np.ndarray]:
    """How much better each rollout is than its group.

    Args:
        rewards: `[B]`, NaN for a rollout that could not be scored: it is left out.
        groups: `[B]` int, which group each is in.
        kind: see `PolicyGradient`.

    Returns:
        Advantages `[B]` float64, 0 where there is none, and whether a rollout has one, `[B]` bool:
        it is scored, and its group's rewards are not all the same.
    """
    found, used = np.zeros(len(rewards)), np.zeros(len(rewards), bool)
    for group in np.unique(groups):
        members = np.flatnonzero((groups == group) & ~np.isnan(rewards))
        mine = rewards[members]
        if len(mine) < 2 or np.all(mine == mine[0]):
            continue
        centred = mine - mine.mean()
        if kind == "std":
            centred = centred / (mine.std() + EPSILON)
        elif kind == "rloo":
            centred = centred * len(mine) / (len(mine) - 1)
        found[members], used[members] = centred, True
    return found, used


def policy_loss(
    config: PolicyGradient, log_p: Array, behaviour: Array, advantage: Array, mask: Array
) -> Array:
    """Mean loss over the tokens that `mask` marks.

    Args:
        config: which loss.
        log_p: `[B, A]`, of the answer's tokens under the weights as they are.
        behaviour: `[B, A]`, under those that they were drawn with.
        advantage: `[B]`.
        mask: `[B, A]` bool or 0 and 1.

    Returns:
        `[]`, 0 if no token is marked.
    """
    a = advantage[:, None]
    mask = mask.astype(log_p.dtype)
    # tokens that are not marked may hold anything: no ratio is made of them
    ratio = jnp.exp(jnp.where(mask > 0, log_p - behaviour, 0.0))
    if config.loss == "cispo":
        losses = -jax.lax.stop_gradient(jnp.minimum(ratio, config.truncate)) * a * log_p
    elif config.loss == "grpo":
        clipped = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
        losses = -jnp.minimum(ratio * a, clipped * a)
    else:
        losses = -a * log_p
    return token_mean(losses, mask)


def divergence_loss(log_p: Array, reference: Array | None, mask: Array) -> Array:
    """A loss whose gradient is that of KL(policy || reference) on the policy's own samples.

    It is half the squared log ratio: its gradient, (log p - log q) d log p, has the KL's as its
    mean. Its value is no estimate of the KL. Without a reference it is the same with the uniform
    distribution, and so minus the entropy's gradient.

    Args:
        log_p: `[B, A]`.
        reference: `[B, A]`, log q of the same tokens; None for the uniform distribution.
        mask: `[B, A]`.
    """
    apart = log_p if reference is None else log_p - reference
    return token_mean(0.5 * jnp.square(apart), mask.astype(log_p.dtype))


def token_mean(values: Array, mask: Array) -> Array:
    """Mean over the marked tokens, 0 for none."""
    return jnp.sum(jnp.where(mask > 0, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1.0)
