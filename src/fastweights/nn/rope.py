"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and two ways to stretch it.

Channel pairs (i, i + h/2) of a head are turned by position * frequency_i. Frequencies are
theta^(-2i/h); "llama3" divides the slow ones by `factor` and blends in between; "yarn" (Peng et al.
2023, arXiv 2309.00071) blends by the number of turns within the original length and scales cosine
and sine as well.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from fastweights.errors import ConfigError
from fastweights.nn.choices import not_a_choice


@dataclasses.dataclass(frozen=True)
class Rope:
    """How positions turn queries and keys; values are those of a checkpoint's `rope_parameters`.

    Attributes:
        theta: base of the frequencies.
        scaling: what is done to reach beyond the length the model was pretrained at.
        factor: how many times that length, at least 1.
        original_length: the length of the pretraining, in tokens.
        low_freq: llama3, a wave longer than `original_length / low_freq` is slowed by `factor`.
        high_freq: llama3, a wave shorter than `original_length / high_freq` is kept.
        beta_fast: yarn, a wave with more turns than this in `original_length` is kept.
        beta_slow: yarn, a wave with fewer turns than this is slowed by `factor`.
        attention_factor: yarn, on cosine and sine; None is the paper's 1 + 0.1 ln(factor).
    """

    theta: float = 10_000.0
    scaling: Literal["none", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_length: int = 0
    low_freq: float = 1.0
    high_freq: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def problems(self, head_dim: int) -> list[str]:
        """What makes these values impossible, a sentence each."""
        found = []
        if not self.theta > 1:
            found.append(f"rope.theta is {self.theta}; it must be more than 1")
        if head_dim < 2 or head_dim % 2:
            found.append(f"head_dim is {head_dim}; rotary embeddings need an even number")
        found += not_a_choice(self, "rope.")
        if self.scaling not in ("llama3", "yarn"):
            return found
        if not self.factor >= 1:
            found.append(f"rope.factor is {self.factor}; it must be at least 1")
        if self.original_length < 1:
            found.append(
                f"rope.original_length is {self.original_length}; {self.scaling} needs the length "
                "the model was pretrained at"
            )
        if self.scaling == "llama3" and not 0 < self.low_freq < self.high_freq:
            found.append(
                f"rope.low_freq is {self.low_freq} and rope.high_freq {self.high_freq}; they must "
                "be positive and in that order"
            )
        if self.scaling == "yarn" and not 0 < self.beta_slow <= self.beta_fast:
            found.append(
                f"rope.beta_slow is {self.beta_slow} and rope.beta_fast {self.beta_fast}; they "
                "must be positive and in that order"
            )
        return found


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians a token of every channel pair: `[head_dim / 2]` float32.

    In float32 throughout, as the checkpoints were trained: at position 100,000 one more digit of a
    frequency would turn a pair by a thousandth of a radian.

    Raises:
        ConfigError: a scaling there is not.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base = 1 / np.float32(rope.theta) ** exponent
    if rope.scaling == "none":
        return base
    slowed = base / np.float32(rope.factor)
    if rope.scaling == "llama3":
        turns = rope.original_length * base / np.float32(2 * math.pi)
        keep = (turns - rope.low_freq) / (rope.high_freq - rope.low_freq)
    elif rope.scaling == "yarn":
        first = max(math.floor(_pair_with(rope, rope.beta_fast, head_dim)), 0)
        last = min(math.ceil(_pair_with(rope, rope.beta_slow, head_dim)), head_dim - 1)
        width = last - first if last != first else 0.001
        keep = 1 - (np.arange(head_dim // 2, dtype=np.float32) - first) / width
    else:
        raise ConfigError("unknown rotary embedding: " + not_a_choice(rope)[0], where="rope")
    keep = np.clip(keep, 0, 1).astype(np.float32)
    return (1 - keep) * slowed + keep * base


def _pair_with(rope: Rope, turns: float, head_dim: int) -> float:
    """Which pair, as a real number, makes so many turns in the original length."""
    wave = rope.original_length / (turns * 2 * math.pi)
    return head_dim * math.log(wave) / (2 * math.log(rope.theta))


def amplitude(rope: Rope) -> float:
    """What cosine and sine are multiplied by; 1 except for yarn."""
    if rope.scaling != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 1.0 if rope.factor <= 1 else 1 + 0.1 * math.log(rope.factor)


def rotate(x: Array, positions: Array, rope: Rope) -> Array:
    """Turn every head by its token's position, in float32.

    Args:
        x: `[B, T, N, h]`, queries or keys.
        positions: `[B, T]` int, from 0 at the start of a document.
        rope: frequencies.

    Returns:
        `[B, T, N, h]` in the dtype of `x`.
    """
    turn = jnp.asarray(frequencies(rope, x.shape[-1]))[None, None, None, :]
    angle = positions[:, :, None, None].astype(jnp.float32) * turn
    cos, sin = (f(angle) * amplitude(rope) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, -1).astype(x.dtype)


def document_positions(segment_ids: Array) -> Array:
    """Positions that start again with every document: `[B, T]` ids -> `[B, T]` int32."""
    at = jnp.broadcast_to(jnp.arange(segment_ids.shape[1])[None], segment_ids.shape)
    new = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    starts = jnp.where(new, at, 0)
    return (at - jnp.maximum.accumulate(starts, axis=1)).astype(jnp.int32)
