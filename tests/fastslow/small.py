"""A language model of a few thousand weights over bytes, for tests of the loops around one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.pretrained import Pretrained
from fastweights.tasks.prompted import Score
from fastweights.tasks.text_tokens import Bytes

CONFIG = DecoderConfig(
    family="qwen3",
    vocab=264,
    hidden=16,
    intermediate=32,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    tie_embeddings=True,
    max_length=128,
    initializer_range=0.3,
)


@functools.cache
def model(seed=0):
    """Random weights, far from uniform in what they predict."""
    return jax.jit(lambda: Decoder(CONFIG, rngs=nnx.Rngs(seed)))()


forward = jax.jit(lambda policy, tokens: policy(tokens))


def distributions(policy, text, temperature=1.0):
    """Log probabilities after each token of one text, `[n, vocab]` float64; padded behind, so that
    one program does for every length.
    """
    row = np.zeros((1, 64), np.int32)
    row[0, : len(text)] = text
    logits = np.asarray(forward(policy, jnp.asarray(row)), np.float64)[0, : len(text)] / temperature
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def graded(self, problem, answer):
    """A reward that a random model gets a part of, so that weights and prompts do move."""
    value = (sum((answer + problem.query).encode()) % 17) / 16
    return Score(value, value > 0.5, "some")


def stopping(patch, loop, ticks, names=("evolve", "update")):
    """Let a run of `loop` be asked to stop when so many of these ticks are done."""
    done = []

    class Stop:
        @property
        def name(self):
            return "SIGTERM" if len(done) >= ticks else ""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def counted(action):
        return lambda *given: (done.append(1), action(*given))[1]

    patch.setattr(loop, "StopRequest", Stop)
    for name in names:
        patch.setattr(loop, name, counted(getattr(loop, name)))


def base(seed=0):
    """It, as a model to start from."""
    return Pretrained(model(seed), Bytes(), (ord("\n"),))
