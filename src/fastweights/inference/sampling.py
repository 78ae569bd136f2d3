"""How the next token is drawn: greedy, temperature, top-k, top-p; all inside the compiled loop."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.errors import ConfigError

#: the smallest temperature there is in float32
TINY = float(jnp.finfo(jnp.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Method:
    """What of the sampling is compiled in; the numbers themselves may change without compiling."""

    greedy: bool
    top_k: int | None = None
    top_p: bool = False


class Settings(NamedTuple):
    """The numbers, and where chance comes from."""

    temperature: Array  # [] float32
    top_p: Array  # [] float32
    key: Array  # jax.random.key; not used if greedy


def method(
    temperature: float, top_k: int | None, top_p: float | None, key: Array | None
) -> tuple[Method, Settings]:
    """Check what a user asks for.

    Args:
        temperature: logits are divided by it; 0, or less than float32 holds, takes the likeliest
            token.
        top_k: draw from the k likeliest tokens only; None is all.
        top_p: draw from the fewest likeliest tokens that have this probability together; None all.
        key: `jax.random.key`; needed unless the temperature is 0.

    Raises:
        ConfigError: a value out of range, or no key.
    """
    if not 0 <= temperature < float("inf"):
        raise ConfigError(
            f"temperature is {temperature}; it must be finite and not negative",
            where="temperature",
            next="0 for the likeliest token, 1 for the model's own distribution",
        )
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k is {top_k}; it must be at least 1, or None", where="top_k")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(
            f"top_p is {top_p}; it must be more than 0 and at most 1, or None", where="top_p"
        )
    greedy = temperature < TINY
    if not greedy and key is None:
        raise ConfigError(
            "drawing tokens needs a random key",
            where="key",
            cause=f"temperature is {temperature}",
            next="key=jax.random.key(0), or temperature=0 for the likeliest token",
        )
    if greedy or key is None:
        return Method(True), Settings(jnp.ones(()), jnp.ones(()), jax.random.key(0))
    numbers = jnp.float32(temperature), jnp.float32(1 if top_p is None else top_p)
    return Method(False, top_k, top_p not in (None, 1)), Settings(*numbers, key)


def log_distribution(logits: Array, method: Method, settings: Settings) -> Array:
    """Log probabilities `[B, vocab]` that tokens are drawn from; -inf for those cut off.

    First the temperature, then top-k, then top-p of what is left. Tokens as likely as the last one
    that stays all stay. Greedy: those of the logits as they are.
    """
    if method.greedy:
        return jax.nn.log_softmax(logits)
    # the largest is taken off first: at a low temperature a quotient could be infinite
    logits = (logits - jnp.max(logits, -1, keepdims=True)) / settings.temperature
    vocab = logits.shape[-1]
    if method.top_k is not None and method.top_k < vocab:
        least = jax.lax.top_k(logits, method.top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if method.top_p:
        falling = -jnp.sort(-logits, -1)
        share = jax.nn.softmax(falling)
        before = jnp.cumsum(share, -1) - share  # of the likelier tokens; 0 for the first
        enough = jnp.sum(before < settings.top_p, -1, keepdims=True)
        least = jnp.take_along_axis(falling, jnp.maximum(enough - 1, 0), 1)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.nn.log_softmax(logits)


def sample(
    logits: Array, lengths: Array, method: Method, settings: Settings
) -> tuple[Array, Array]:
    """Draw a token for every row.

    Chance depends on the key, the row and the position alone: not on the size of the batch, nor on
    how many calls a text takes.

    Args:
        logits: `[B, vocab]` float32.
        lengths: `[B]` int, positions of the tokens drawn.
        method: of the sampling.
        settings: of the sampling.

    Returns:
        Tokens `[B]` int32 and their log probabilities `[B]`, see `log_distribution`.
    """
    log_p = log_distribution(logits, method, settings)
    if method.greedy:
        tokens = jnp.argmax(logits, -1)
    else:
        rows = jnp.arange(len(logits))
        draw = lambda row, at, p: jax.random.categorical(
            jax.random.fold_in(jax.random.fold_in(settings.key, row), at), p
        )
        tokens = jax.vmap(draw)(rows, lengths, log_p)
    return tokens.astype(jnp.int32), jnp.take_along_axis(log_p, tokens[:, None], 1)[:, 0]
