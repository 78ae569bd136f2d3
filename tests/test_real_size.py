"""The configs of the paper's models at their real size: shapes only, nothing is allocated."""

import dataclasses
import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from support import ROOT

from fastweights.fastslow.config import check as check_fast_slow
from fastweights.fastslow.slow import make_update as policy_update
from fastweights.hf import names
from fastweights.hf.config import read_config, write_config
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_mesh import path_name
from fastweights.train.config import check
from fastweights.train.mesh import AXES, state_shardings
from fastweights.train.optim import optimizer
from fastweights.train.state import TrainState, fresh_state
from fastweights.train.step import make_update

#: parameters of the published model, and in its embedding and head; layers and hidden size
PUBLISHED = {
    "qwen3_4b_continual": (4_022_468_096, 388_956_160, 36, 2560),
    "llama3_8b_continual": (8_030_261_248, 2 * 525_336_576, 32, 4096),
}
#: what stands in the published config.json, as far as it says what the network is
PUBLISHED_CONFIG = {
    "qwen3_4b_continual": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": 9728,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "llama3_8b_continual": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
}
TTT_LAYERS = (0, 6, 12, 18, 24, 30)
each = pytest.mark.parametrize("name", PUBLISHED)


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    check(module.config)
    return module.config


@functools.cache
def abstract(name):
    config = load(name)
    return jax.eval_shape(lambda: fresh_state(config, 0))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@each
def test_the_model_is_the_published_one(name):
    config = load(name)
    model = config.model
    there = read_config(PUBLISHED_CONFIG[name])
    network = dataclasses.replace(
        model, ttt=None, dtype="float32", param_dtype="float32", remat="none"
    )
    assert there == network
    parameters, embeddings, layers, hidden = PUBLISHED[name]
    built = abstract(name).model
    target = hidden * 5 + hidden * hidden  # convolution and projection
    assert count(built) == parameters + len(TTT_LAYERS) * target
    outer = built.embed.embedding.size + (0 if built.head is None else built.head.kernel.size)
    assert outer == embeddings
    assert model.layers == layers and model.ttt_layers == TTT_LAYERS
    assert {leaf.dtype for leaf in jax.tree.leaves(built)} == {jnp.dtype("float32")}


@each
def test_tensors_have_the_names_and_shapes_of_the_released_format(name):
    config = load(name)
    hidden = config.model.hidden
    leaves = jax.tree_util.tree_leaves_with_path(abstract(name).model)
    ours = {path_name(keys): leaf.shape for keys, leaf in leaves}
    tensors = {
        tensor: names.theirs(ours[array.path][1 if array.stacked else 0 :], array.layout)
        for array in names.arrays(config.model, ours.__contains__)
        for tensor in array.tensors
    }
    found = {tensor: shape for tensor, shape in tensors.items() if names.is_ttt(tensor)}
    expected = {}
    for i in TTT_LAYERS:
        expected[f"model.layers.{i}.mlp.ttt_conv.weight"] = (hidden, 1, 5)
        expected[f"model.layers.{i}.mlp.ttt_proj.weight"] = (hidden, hidden)
    assert found == expected
    assert sum(map(math.prod, tensors.values())) == sum(map(math.prod, ours.values()))
    down = tensors["model.layers.6.mlp.down_proj.weight"]
    assert down == (hidden, config.model.intermediate)
    keys = write_config(config.model)
    assert keys["ttt_mode"] and keys["ttt_layers"] == list(TTT_LAYERS)
    assert (keys["ttt_chunk"], keys["ttt_lr"], keys["ttt_proj"]) == (1024, 3.0, True)
    assert keys["ttt_target"] == "hidden_states"


@each
def test_the_recipe_is_the_papers(name):
    config = load(name)
    optim, plan = config.optim, config.train
    assert (optim.lr, optim.weight_decay, optim.clip) == (5e-6, 0.1, 1.0)
    assert config.task.length == 32_768 and plan.batch == 64
    assert plan.steps * plan.batch * config.task.length == pytest.approx(20e9, rel=1e-3)
    assert optim.warmup == round(0.02 * plan.steps) and optim.decay_steps == plan.steps


def on_64_devices(name, tensor):
    """The config on 64 devices, `tensor` of them sharing layers, and how the state lies there."""
    config = load(name)
    if tensor > 1:
        mesh = dataclasses.replace(config.mesh, fsdp=64 // tensor, tensor=tensor)
        config = dataclasses.replace(config, mesh=mesh)
        check(config)
    sizes = dataclasses.astuple(config.mesh)
    assert math.prod(sizes) == 64
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)
    return config, state_shardings(mesh, abstract(name))


@each
@pytest.mark.parametrize("tensor", [1, 8])
def test_the_state_divides_over_64_devices(name, tensor):
    placed = on_64_devices(name, tensor)[1]
    leaves = jax.tree_util.tree_leaves_with_path(abstract(name))
    here = 0
    for (keys, leaf), sharding in zip(leaves, jax.tree.leaves(placed), strict=True):
        local = math.prod(sharding.shard_shape(leaf.shape))  # raises where an axis does not divide
        here += local
        if math.prod(leaf.shape) > 10_000_000:
            parts = 64 // tensor if path_name(keys).endswith(".proj") else 64
            assert math.prod(leaf.shape) == parts * local, path_name(keys)
    assert here * 64 < 1.1 * count(abstract(name))


@pytest.mark.parametrize(
    "name,tensor",
    [("qwen3_4b_continual", 1), ("qwen3_4b_continual", 8), ("llama3_8b_continual", 1)],
)
def test_an_update_keeps_every_shape(name, tensor):
    config, placed = on_64_devices(name, tensor)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s, weak_type=x.weak_type),
        abstract(name),
        placed,
    )
    rows = jax.ShapeDtypeStruct((64, config.task.length), jnp.int32)
    new, scores = jax.eval_shape(make_update(config), state, {"inputs": rows, "target": rows})
    same = lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype)
    assert jax.tree.all(jax.tree.map(same, new, state))
    assert {"loss", "grad_norm", *(f"drift_{i}" for i in TTT_LAYERS)} <= scores.keys()


QWEN3_8B = PUBLISHED_CONFIG["qwen3_4b_continual"] | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


def test_an_update_of_fast_slow_training_at_its_real_size():
    """512 rollouts of 2,048 tokens each: shapes through loss, gradient and Adam."""
    file = ROOT / "configs" / "fst_qwen3_8b.py"
    spec = importlib.util.spec_from_file_location("fst_qwen3_8b", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.config
    check_fast_slow(config)
    model = jax.eval_shape(lambda: Decoder(read_config(QWEN3_8B), rngs=nnx.Rngs(0)))
    # as published: 8.2 billion, 6.95 without the embeddings
    assert count(model) == 8_190_735_360
    assert count(model) - 2 * 151_936 * 4096 == 6_946_075_648
    state = jax.eval_shape(
        lambda model: TrainState(
            jnp.zeros((), jnp.int32), model, optimizer(config.optim).init(model), jax.random.key(0)
        ),
        model,
    )
    rows, answer = config.rl.problems * config.rl.rollouts, config.task.answer_length
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    batch = {
        "tokens": array(jnp.int32, rows, 512 + answer),
        "at": array(jnp.int32, rows, answer),
        "answers": array(jnp.int32, rows, answer),
        "behaviour": array(jnp.float32, rows, answer),
        "advantage": array(jnp.float32, rows),
        "used": array(bool, rows, answer),
        "there": array(bool, rows, answer),
    }
    after, scores = jax.eval_shape(policy_update(config.rl, config.optim), state, None, batch)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert all(jax.tree.leaves(same)) and scores["loss"].shape == ()
    # what the config says it would take: weights, gradients and two moments; the base model
    assert 16 * count(model) == pytest.approx(131e9, rel=0.01)
    assert 4 * count(model) == pytest.approx(33e9, rel=0.01)
    sizes = dataclasses.astuple(config.mesh)
    placed = state_shardings(AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3), state)
    here = sum(
        math.prod(sharding.shard_shape(x.shape))
        for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True)
    )
    assert 3 * count(model) / 8 <= here < 1.001 * 3 * count(model) / 8
