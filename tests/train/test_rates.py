"""Factors of the learning rate by parameter: some move faster, others not at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.errors import ConfigError
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT
from fastweights.models.decoder_mesh import path_name
from fastweights.tasks.language import Language
from fastweights.train.config import Config, Optim, Train, from_json, to_json
from fastweights.train.optim import optimizer
from fastweights.train.state import TrainState
from fastweights.train.step import make_update

MODEL = DecoderConfig(
    family="llama",
    vocab=256,
    hidden=16,
    intermediate=32,
    layers=4,
    heads=2,
    kv_heads=2,
    head_dim=8,
    max_length=32,
    ttt=InPlaceTTT(layers=(1, 3), chunk=4),
)
RATES = (("*.mlp.conv", 10.0), ("blocks.1.mlp.*", 1.0), ("*norm*", 0.5), ("*", 0.0))


def config(**optim):
    optim = Optim(lr=1e-3, clip=None, weight_decay=0.1, **optim)
    return Config(Language(length=16, tokenizer="bytes"), MODEL, optim, Train(batch=2))


def updated(config):
    """Each parameter before and after one update, by path, and the moments."""
    model = Decoder(MODEL, rngs=nnx.Rngs(0))
    # convolutions that start at 0 would have no gradient to the projections
    model = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), model)
    rng = np.random.default_rng(0)
    draw = lambda: jnp.asarray(rng.integers(0, 256, (2, 16)), jnp.int32)
    moments = optimizer(config.optim).init(model)
    state = TrainState(jnp.zeros((), jnp.int32), model, moments, jax.random.key(0))
    new, scores = jax.jit(make_update(config))(state, {"inputs": draw(), "target": draw()})
    leaves = lambda tree: {
        path_name(keys): np.asarray(x) for keys, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    return leaves(model), leaves(new.model), moments, scores


@pytest.mark.parametrize("method", ["adam", "muon"])
def test_each_parameter_moves_by_its_factor(method):
    before, everywhere, *_ = updated(config(method=method))
    _, after, moments, scores = updated(config(method=method, rates=RATES))
    seen = set()
    for path in before:
        factor = 10.0 if path.endswith(".mlp.conv") else 1.0
        if not path.startswith("blocks.1.mlp."):
            factor = 0.5 if "norm" in path else 0.0
        seen.add(factor)
        if factor == 0:
            np.testing.assert_array_equal(after[path], before[path])
        else:
            moved = everywhere[path] - before[path]
            assert np.abs(moved).max() > 1e-5
            assert_close(after[path] - before[path], factor * moved, what=path)
    assert seen == {0.0, 0.5, 1.0, 10.0}
    trained = sum(x.size for path, x in before.items() if not np.array_equal(x, after[path]))
    assert sum(x.size for x in jax.tree.leaves(moments) if x.ndim) <= 2 * trained
    assert 0 < scores["grad_norm"] < updated(config())[3]["grad_norm"]


def test_a_frozen_parameter_costs_no_gradient():
    """XLA counts fewer operations than with every parameter trained."""

    def flops(config):
        model = jax.eval_shape(lambda: Decoder(MODEL, rngs=nnx.Rngs(0)))
        tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)

        def update(model, inputs, target):
            moments = optimizer(config.optim).init(model)
            state = TrainState(jnp.zeros((), jnp.int32), model, moments, jax.random.key(0))
            return make_update(config)(state, {"inputs": inputs, "target": target})[0].model

        return jax.jit(update).lower(model, tokens, tokens).compile().cost_analysis()["flops"]

    assert flops(config(rates=RATES)) < 0.9 * flops(config())


def test_it_is_in_the_json():
    raw = to_json(config(rates=RATES))
    assert from_json(raw) == config(rates=RATES)
    raw["optim"]["rates"][0].append(2.0)
    with pytest.raises(ConfigError, match="cannot make"):
        from_json(raw)


@pytest.mark.parametrize(
    "rates,message",
    [
        ((("*.mlp.cnov", 1.0),), r"no parameter has a path that fits '\*.mlp.cnov'"),
        ((("*", 0.0),), "every parameter has the factor 0"),
    ],
)
def test_patterns_that_fit_no_parameter_are_refused(rates, message):
    model = Decoder(MODEL, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match=message):
        optimizer(Optim(rates=rates)).init(model)


def test_factors_are_numbers_from_0():
    assert "rates has -1.0 for '*'" in Optim(rates=(("*", -1.0),)).faults()[0]
    assert dataclasses.replace(Optim(), rates=RATES).faults() == []
