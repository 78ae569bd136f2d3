"""The warm-up of η: a step's loss is that of layers with the smaller η; what is stored is η."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_rates import MODEL as PLAIN
from tolerances import assert_close

from fastweights.errors import ConfigError
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import InPlaceTTT
from fastweights.tasks.language import Language
from fastweights.train import Config, Optim, Train
from fastweights.train.config import check, from_json, to_json
from fastweights.train.optim import optimizer
from fastweights.train.state import TrainState
from fastweights.train.step import make_update

TTT = InPlaceTTT(layers=(1, 3), chunk=4, lr=0.5, lr_learned=True)
MODEL = dataclasses.replace(PLAIN, ttt=TTT)


def config(inner_warmup, ttt=TTT):
    optim = Optim(lr=1e-3, clip=None, inner_warmup=inner_warmup)
    model = dataclasses.replace(MODEL, ttt=ttt)
    return Config(Language(length=16, tokenizer="bytes"), model, optim, Train(batch=2))


def update(config, step):
    """Scores, and the learned η over `ttt.lr` of both layers before and after an update."""
    model, numbers = Decoder(config.model, rngs=nnx.Rngs(0)), np.random.default_rng(1)
    draw = lambda x: x + jnp.asarray(0.2 * numbers.standard_normal(x.shape), x.dtype)
    model = jax.tree.map(draw, model)  # convolutions that start at 0 would write nothing
    rng = np.random.default_rng(0)
    draw = lambda: jnp.asarray(rng.integers(0, 256, (2, 16)), jnp.int32)
    state = TrainState(
        jnp.asarray(step), model, optimizer(config.optim).init(model), jax.random.key(0)
    )
    new, scores = jax.jit(make_update(config))(state, {"inputs": draw(), "target": draw()})
    gains = [np.asarray(x.blocks[1].mlp.log_gain[...]) for x in (model, new.model)]
    return scores, *gains


@pytest.mark.parametrize("step,share", [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (9, 1.0)])
def test_an_update_has_the_loss_and_the_gradient_of_a_smaller_rate(step, share):
    scores, before, after = update(config(4), step)
    smaller = config(0, dataclasses.replace(TTT, lr=share * TTT.lr))
    expected, _, moved = update(smaller, step)
    assert_close(scores["loss"], expected["loss"])
    assert_close(scores["grad_norm"], expected["grad_norm"])
    assert_close(after, moved)
    assert 0 < np.abs(after - before).max() < 1.1e-3  # Adam's step; the share is not stored
    plain = update(config(0), step)[0]
    assert (abs(float(scores["loss"] - plain["loss"])) > 1e-6) == (share < 1)


def test_it_needs_a_learned_rate():
    given = config(4, dataclasses.replace(TTT, lr_learned=False))
    with pytest.raises(ConfigError, match="no in-place layer of this model has a learned η"):
        update(given, 0)
    with pytest.raises(ConfigError, match=r"optim.inner_warmup is 4; .* ttt.lr_learned"):
        check(given)


def test_it_is_checked_and_kept():
    assert Optim(inner_warmup=-1).faults() == ["inner_warmup is -1; it must not be negative"]
    assert from_json(to_json(config(7))) == config(7)
