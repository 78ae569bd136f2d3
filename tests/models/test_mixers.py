"""Decoders with update rules in place of attention: every rule reads on as it was trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

import fastweights as fw
from fastweights.errors import ConfigError
from fastweights.models.decoder import Decoder, build
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT, MemoryConfig
from fastweights.rules import (
    TTTMLP,
    Delta,
    GatedDelta,
    Hebbian,
    InPlace,
    LinearAttention,
    Online,
    TTTLinear,
)
from fastweights.tasks.base import Data
from fastweights.tasks.language import Language
from fastweights.train import Config, Optim, Train, train
from fastweights.train.config import from_json, to_json

VOCAB = 61
BASE = DecoderConfig(
    family="qwen3",
    vocab=VOCAB,
    hidden=32,
    intermediate=48,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    max_length=96,
    initializer_range=0.2,
)
MIXERS = {
    "gated delta and attention": (GatedDelta(), "attention"),
    "delta": (Delta(),),
    "linear attention": (LinearAttention(), "attention"),
    "hebbian": (Hebbian(steps=2), "attention"),
    "inner updates": (Online(batch=4), "attention"),
    "ttt-linear": (TTTLinear(batch=4), "attention"),
    "ttt-mlp": (TTTMLP(batch=4, width=2),),
}
HYBRID = (GatedDelta(), GatedDelta(), GatedDelta(), "attention")


def config(case, **changes):
    return dataclasses.replace(BASE, mixers=MIXERS[case], **changes)


@functools.cache
def model(case):
    """A decoder of random numbers around the start of each parameter."""
    rng = np.random.default_rng(1)
    start = Decoder(config(case), rngs=nnx.Rngs(0))
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), start
    )


@jax.jit
def logits_of(model, tokens, segment_ids=None):
    return model(tokens, segment_ids)


def text(shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


@pytest.mark.parametrize("case", MIXERS)
def test_a_state_reads_on_as_the_forward_pass_does(case):
    """A ragged prompt, then pieces, then a token at a time."""
    tokens, lengths = text((2, 23)), np.array([4, 9])
    expected = np.asarray(logits_of(model(case), np.pad(tokens, [(0, 0), (0, 9)])))
    state = fw.inference.prefill(model(case), tokens[:, :9], lengths, max_length=40)
    for row, length in enumerate(lengths):
        assert_close(state.logits[row], expected[row, length - 1], what="ragged prompt")
    rest = np.stack([tokens[row, length : length + 13] for row, length in enumerate(lengths)])
    for first, last in ((0, 6), (6, 7), (7, 13)):
        state = fw.inference.extend(model(case), state, rest[:, first:last])
        for row, length in enumerate(lengths):
            assert_close(state.logits[row], expected[row, length + last - 1], what=f"to {last}")


@pytest.mark.parametrize("case", MIXERS)
def test_documents_of_a_row_do_not_see_each_other(case):
    tokens = text((1, 32), seed=2)
    ids = np.repeat([[1, 2, 3, 0]], [9, 14, 6, 3], axis=1)
    packed = np.asarray(logits_of(model(case), tokens, ids))
    other = tokens.copy()
    other[0, 9:23] = text(14, seed=3)
    changed = np.asarray(logits_of(model(case), other, ids))
    np.testing.assert_array_equal(changed[0, :9], packed[0, :9])
    np.testing.assert_array_equal(changed[0, 23:29], packed[0, 23:29])
    assert np.abs(changed[0, 9:23] - packed[0, 9:23]).max() > 1e-2
    alone = np.zeros((1, 32), int)
    alone[0, :14] = tokens[0, 9:23]
    assert_close(packed[0, 9:23], logits_of(model(case), alone)[0, :14])


def test_attention_alone_is_the_decoder_without_mixers():
    """To the bit, weights and logits."""
    one = build(BASE, 0)
    other = build(dataclasses.replace(BASE, mixers=("attention", "attention")), 0)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    tokens = text((2, 20))
    np.testing.assert_array_equal(logits_of(one, tokens), logits_of(other, tokens))
    assert BASE.mixers == ("attention",) and BASE.period == 1


def test_mixers_are_cycled_over_the_layers():
    hybrid = dataclasses.replace(BASE, layers=8, mixers=HYBRID)
    kinds = [kind.mixer for kind in hybrid.kinds]
    assert kinds == [*HYBRID, *HYBRID] and hybrid.period == 4
    made = jax.eval_shape(lambda: Decoder(hybrid, rngs=nnx.Rngs(0)))
    assert [hasattr(block, "memory") for block in made.blocks] == [True, True, True, False]


def test_a_memory_layer_and_an_in_place_mlp_stand_in_one_block():
    learns = dataclasses.replace(
        config("gated delta and attention"), ttt=InPlaceTTT(layers=(0, 1), chunk=5, lr=0.1)
    )
    rng = np.random.default_rng(3)
    both = jax.tree.map(
        lambda x: x + jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype),
        Decoder(learns, rngs=nnx.Rngs(0)),
    )
    tokens = text((2, 17))
    expected = logits_of(both, tokens)
    state = fw.inference.prefill(both, tokens[:, :8], max_length=32)
    state = fw.inference.extend(both, state, tokens[:, 8:])
    assert_close(state.logits, expected[:, -1])
    assert set(state.layers[0]) == {"mixer", "mlp"} and state.layers[0]["mlp"] is not None


def test_bfloat16_keeps_float32_memories_and_decays():
    low = build(dataclasses.replace(config("gated delta and attention"), dtype="bfloat16"), 0)
    tokens = text((2, 20))
    state = fw.inference.prefill(low, tokens)
    memory = state.layers[0]["mixer"]
    assert memory.fast.S.dtype == jnp.float32 and memory.tail.dtype == jnp.bfloat16
    grads = jax.grad(lambda m: jnp.sum(jnp.sin(m(tokens))))(low)
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in jax.tree.leaves(grads))
    assert low.blocks[0].memory.slots.decays.g.rate.dtype == jnp.float32
    x = jax.random.normal(jax.random.key(0), (2, 20, 32))
    high = build(config("gated delta and attention"), 0).layer(0).memory
    y = low.layer(0).memory(x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert_close(y, high(x), "bfloat16")


@pytest.mark.parametrize("case", MIXERS)
def test_a_config_is_json_in_and_out(case):
    if case == "inner updates":  # its memory and loss are functions
        with pytest.raises(ConfigError, match="cannot hold the function"):
            to_json(config(case))
        return
    one = config(case, memory=MemoryConfig(heads=2, value_dim=16))
    assert from_json(to_json(one), DecoderConfig) == one


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mixers": ()}, r"mixers is \(\)"),
        ({"mixers": ["attention"]}, "mixers is a list"),
        ({"mixers": ("mamba",)}, r"mixers\[0\] is 'mamba'; it must be"),
        ({"mixers": (InPlace(),)}, "declares no slots"),
        ({"mixers": ("attention", Hebbian(decay=2.0))}, r"mixers\[1\].decay is 2.0"),
        ({"memory": MemoryConfig(conv=0)}, "memory.conv is 0"),
        ({"mixers": (Hebbian(form="attention"),)}, "needs the number of writes"),
        (
            {"mixers": (TTTLinear(),), "memory": MemoryConfig(value_dim=16)},
            "K = 8 and V = 16: .* of one size",
        ),
    ],
)
def test_impossible_mixers_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(dataclasses.replace(BASE, **changes), 0)


def test_there_is_no_hugging_face_layout_of_rules(tmp_path):
    with pytest.raises(ConfigError, match="no Hugging Face layout"):
        fw.hf.save(build(config("delta"), 0), tmp_path / "model")


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    """A folder of text files."""
    folder = tmp_path_factory.mktemp("books")
    lines = [f"{a} and {b} are {a + b}. " for a in range(40) for b in range(40)]
    for i in range(6):
        (folder / f"{i}.txt").write_text("".join(lines[i * 200 : i * 200 + 150]))
    return folder


def test_a_ttt_mlp_decoder_learns_and_resumes_to_the_bit(books, tmp_path):
    """Stopped after 10 updates and resumed is the run that was never stopped; the loss falls."""
    model = dataclasses.replace(BASE, vocab=264, mixers=(TTTMLP(width=2), "attention"))
    plan = Train(steps=20, batch=4, eval_every=10, checkpoint_every=10, log_every=5)
    whole = Config(
        task=Language(length=48, short="drop"),
        model=dataclasses.replace(model, initializer_range=0.02),
        optim=Optim(lr=1e-2),
        train=plan,
        data=Data(dir=str(books)),
    )
    half = dataclasses.replace(whole, train=dataclasses.replace(plan, steps=10))
    once = train(whole, tmp_path / "once", quiet=True)
    train(half, tmp_path / "twice", quiet=True)
    twice = train(whole, tmp_path / "twice", quiet=True)
    for a, b in zip(jax.tree.leaves(once.state), jax.tree.leaves(twice.state), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    losses = [line["train/loss"] for line in once.history if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0]
