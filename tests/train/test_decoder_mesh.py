"""The decoder on meshes of eight devices: the numbers of one device, and what is communicated."""

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collective_arrays
from flax import nnx
from jax.sharding import PartitionSpec as P
from tolerances import TOLERANCE, assert_close

from fastweights.errors import ConfigError
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT
from fastweights.models.decoder_mesh import partition, path_name, shardings
from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.language import Language
from fastweights.tasks.retrieval import Retrieval
from fastweights.train.config import Config, Mesh, Train, check
from fastweights.train.mesh import make_mesh, put_batch, state_shardings
from fastweights.train.state import fresh_state

# lengths of which no weight has an axis, so that an array's shape tells activations from weights
BATCH, LENGTH, CHUNK = 8, 20, 6
PLAIN = DecoderConfig(
    family="qwen3",
    vocab=36,
    hidden=16,
    intermediate=48,
    layers=2,
    heads=4,
    kv_heads=4,
    head_dim=8,
)
TTT = InPlaceTTT(layers=(0, 1), chunk=CHUNK, lr=0.2)
LEARNS = dataclasses.replace(PLAIN, ttt=TTT)
TIED = dataclasses.replace(LEARNS, tie_embeddings=True, remat="block")
#: what is written is made of the embeddings, and clipped
CLIPS = dataclasses.replace(
    LEARNS,
    ttt=dataclasses.replace(TTT, target="input_embed", clip=0.02, clip_relative=True),
)
FORGETS = dataclasses.replace(LEARNS, ttt=dataclasses.replace(TTT, decay=0.6))
CAPPED = dataclasses.replace(
    LEARNS, ttt=dataclasses.replace(TTT, cap=0.05, row_norm=True, spectral=True)
)
RESIDUAL = dataclasses.replace(
    LEARNS, ttt=dataclasses.replace(TTT, residual=True, cap=0.05, clip=0.1)
)
LEARNED = dataclasses.replace(
    LEARNS,
    ttt=dataclasses.replace(TTT, decay=0.6, decay_learned=True, lr_learned=True, cap=0.05),
)
#: the partitioner is the same, only the code for each device is not optimised
QUICK = {"xla_backend_optimization_level": "0"}
TASK = Language(length=LENGTH, block=7)


@functools.cache
def random_model(config):
    """Every array random and of a size that matters."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))

    def draw(path, x):
        mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(mean + 0.25 * rng.standard_normal(x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_batch(packed):
    rng = np.random.default_rng(1)
    draw = lambda: rng.integers(0, PLAIN.vocab, (BATCH, LENGTH), dtype=np.int32)
    batch = {"inputs": draw(), "target": draw()}
    if packed:  # up to three documents a row, some rows with padding at the end
        ids = np.sort(rng.integers(1, 4, (BATCH, LENGTH)), 1)
        ids[::2, -3:] = 0
        batch["segment_ids"] = ids.astype(np.int32)
        batch["target"][ids == 0] = -1
    return batch


def loss(model, batch):
    return jnp.mean(TASK.losses(model, batch))


@functools.cache
def alone(config, packed):
    inputs = random_model(config), random_batch(packed)
    step = jax.jit(jax.value_and_grad(loss)).lower(*inputs).compile(compiler_options=QUICK)
    return step(*inputs)


@functools.cache
def compiled(config, sizes, packed, gradient):
    """The loss on a mesh, or loss and gradient, and what it takes."""
    mesh, model = make_mesh(Mesh(*sizes)), random_model(config)
    placed = shardings(mesh, model)
    inputs = jax.device_put(model, placed), put_batch(mesh, random_batch(packed))
    step = (
        jax.jit(jax.value_and_grad(loss), out_shardings=(None, placed))
        if gradient
        else jax.jit(loss)
    )
    return step.lower(*inputs).compile(compiler_options=QUICK), inputs


@pytest.mark.parametrize(
    "sizes,config,packed",
    [
        ((8, 1, 1), LEARNS, False),
        ((1, 8, 1), TIED, True),
        ((1, 1, 4), CLIPS, False),
        ((2, 1, 2), FORGETS, False),
        ((1, 1, 4), FORGETS, True),
        ((2, 1, 2), CAPPED, False),
        ((1, 1, 4), LEARNED, True),
        ((2, 1, 4), RESIDUAL, True),
        ((4, 1, 2), PLAIN, False),
        ((4, 1, 2), LEARNS, False),
        ((2, 2, 2), TIED, True),
    ],
)
def test_loss_and_every_gradient_are_those_of_one_device(sizes, config, packed):
    step, inputs = compiled(config, sizes, packed, True)
    found, expected = step(*inputs), alone(config, packed)
    assert abs(float(found[0] / expected[0]) - 1) < TOLERANCE["float32"]
    grads = jax.tree_util.tree_leaves_with_path(expected[1])
    for (path, want), got in zip(grads, jax.tree.leaves(found[1]), strict=True):
        scale = np.abs(np.asarray(want)).max()
        worst = np.abs(np.asarray(got) - np.asarray(want)).max()
        assert 0 < scale and worst <= TOLERANCE["float32"] * scale, path_name(path)


#: examples a device has on a mesh of 4 x 1 x 2
ROWS = BATCH // 4
ACTIVATIONS = (ROWS, LENGTH, PLAIN.hidden)


@pytest.mark.parametrize("config", [LEARNS, CAPPED])
def test_state_passing_is_that_of_one_device(config):
    """Of rows and columns that are split over devices; a device has whole pairs of rows."""
    batch = random_batch(True) | {"passed": np.arange(BATCH) % 4 > 1}
    score = lambda model, batch: jnp.mean(TASK.measure(model, batch)["loss"])
    step = jax.jit(jax.value_and_grad(score))
    mesh, model = make_mesh(Mesh(2, 1, 2)), random_model(config)
    one = step.lower(model, batch).compile(compiler_options=QUICK)(model, batch)
    placed = jax.device_put(model, shardings(mesh, model)), put_batch(mesh, batch)
    many = step.lower(*placed).compile(compiler_options=QUICK)(*placed)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        assert_close(a, b)
    none = batch | {"passed": np.zeros(BATCH, bool)}
    assert abs(float(one[0] - jax.jit(score)(model, none))) > 1e-4


def sent(config, sizes, packed=False, gradient=True):
    """Collectives; weight matrices take rows and tokens as one axis, which is split again here."""
    found = Counter()
    for (kind, dtype, shape), times in collective_arrays(
        compiled(config, sizes, packed, gradient)[0].as_text()
    ).items():
        whole = ACTIVATIONS if shape == (ROWS * LENGTH, PLAIN.hidden) else shape
        found[kind, dtype, whole] += times
    return found


def test_in_place_layers_send_nothing_more_forwards():
    """Counted in the compiled program, array by array, loops as often as they turn."""
    plain, learns, clips = (
        sent(config, (4, 1, 2), gradient=False) for config in (PLAIN, LEARNS, CLIPS)
    )
    assert learns == plain
    # the embedding, and the sums that end attention and MLP in each of two layers
    assert learns["all-reduce", "f32", ACTIVATIONS] == 5
    # clipping: a number a chunk that is written, of each row, and the norm of W0
    layers, writes = 2, -(-LENGTH // CHUNK) - 1
    assert clips - learns == {
        ("all-reduce", "f32", (ROWS,)): layers * writes,
        ("all-reduce", "f32", ()): layers,
    }
    assert not learns - clips


def test_in_place_layers_send_one_gradient_more_backwards():
    """That to V, and those of their own weights: a convolution and a projection."""
    plain, learns = (sent(config, (4, 1, 2)) for config in (PLAIN, LEARNS))
    assert learns - plain == {
        ("all-reduce", "f32", ACTIVATIONS): 2,
        ("all-reduce", "f32", (5, 16)): 2,
        ("all-reduce", "f32", (16, 16)): 2,
    }
    assert not plain - learns
    # the gradients of embedding and head are summed once and not once a block of tokens
    assert plain["all-reduce", "f32", (18, 16)] == plain["all-reduce", "f32", (16, 18)] == 1


def test_fsdp_gathers_weights_and_no_activations():
    found = sent(TIED, (2, 2, 2), packed=True)
    gathered = {shape: times for (kind, _, shape), times in found.items() if kind == "all-gather"}
    # the MLPs' three matrices of two layers, forwards and, as blocks are computed again, backwards
    mlp = gathered[1, 24, 16] + gathered[1, 16, 24]
    assert mlp == 3 * 2 * 2
    assert not any({LENGTH, CHUNK, TASK.block} & {*shape} for shape in gathered)
    assert not any(kind == "all-to-all" for kind, _, _ in found)


@pytest.mark.parametrize(
    "path,shape,expected",
    [
        ("embed.embedding", (36, 16), P("tensor", "fsdp")),
        ("head.kernel", (16, 36), P("fsdp", "tensor")),
        ("final_norm.scale", (16,), P(None)),
        ("blocks.0.attention.q.kernel", (64, 16, 32), P(None, "fsdp", "tensor")),
        ("blocks.0.attention.k.kernel", (64, 16, 32), P(None, "fsdp", "tensor")),
        ("blocks.0.attention.v.kernel", (64, 16, 32), P(None, "fsdp", "tensor")),
        ("blocks.0.attention.o.kernel", (64, 32, 16), P(None, "tensor", "fsdp")),
        ("blocks.0.attention.q_norm.scale", (64, 8), P(None, None)),
        ("blocks.1.mlp.gate.kernel", (64, 16, 48), P(None, "fsdp", "tensor")),
        ("blocks.1.mlp.up.kernel", (64, 16, 48), P(None, "fsdp", "tensor")),
        ("blocks.1.mlp.down.kernel", (64, 48, 16), P(None, "tensor", "fsdp")),
        ("blocks.1.mlp.conv", (64, 16, 5), P(None, "fsdp", None)),
        ("blocks.1.mlp.proj", (64, 16, 16), P(None, "fsdp", None)),
        ("optimizer.1.mu.blocks.1.mlp.up.kernel", (64, 16, 48), P(None, "fsdp", "tensor")),
        ("optimizer.1.count", (), P()),
    ],
)
def test_how_each_array_is_split(path, shape, expected):
    assert partition(path, shape, {"data": 2, "fsdp": 2, "tensor": 2}) == expected


def test_what_fsdp_does_not_divide_stays_whole():
    split = functools.partial(partition, "head.kernel")
    assert split((16, 36), {"fsdp": 4}) == P(None, "fsdp")  # the larger axis
    assert split((16, 36), {"fsdp": 8}) == P("fsdp", None)
    assert split((17, 35), {"fsdp": 8}) == P(None, None)


def config_of(model, **sizes):
    return Config(task=TASK, model=model, train=Train(batch=BATCH), mesh=Mesh(**sizes))


def test_moments_are_split_like_their_parameters():
    config = config_of(LEARNS, fsdp=2, tensor=2)
    state = jax.eval_shape(lambda: fresh_state(config, 0))
    placed = state_shardings(make_mesh(config.mesh), state)
    want = jax.tree.leaves(placed.model)
    assert P(None, "fsdp", "tensor") in {sharding.spec for sharding in want}
    moments = [
        sharding
        for sharding, x in zip(*map(jax.tree.leaves, (placed, state)), strict=True)
        if x.shape and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    ][len(want) :]
    assert moments == want * 2  # Adam's two


@pytest.mark.parametrize(
    "change,named",
    [
        ({"vocab": 265}, "model.vocab is 265; mesh.tensor, 4"),
        ({"intermediate": 50}, "model.intermediate is 50"),
        ({"heads": 6, "kv_heads": 6}, "model.heads is 6"),
        ({"kv_heads": 2}, "model.kv_heads is 2"),
    ],
)
def test_sizes_that_tensor_does_not_divide_are_named(change, named):
    model = dataclasses.replace(PLAIN, vocab=264)
    check(config_of(model, tensor=4))
    with pytest.raises(ConfigError, match=named):
        check(config_of(dataclasses.replace(model, **change), tensor=4))


def test_tensor_is_for_language_models():
    config = Config(task=Retrieval(), model=RetrievalModel(), mesh=Mesh(tensor=2))
    with pytest.raises(ConfigError, match=r"mesh\.tensor is 2.*must be 1 for others"):
        check(config)
