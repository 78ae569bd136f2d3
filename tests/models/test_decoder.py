"""The decoder by itself: the scan over layers, documents, causality, numerics, sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.models.decoder import Decoder, build
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT, Rope
from fastweights.nn.in_place import InPlaceMLP

SMALL = DecoderConfig(
    family="qwen3",
    vocab=61,
    hidden=32,
    intermediate=48,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=8,
    windows=(5, None, 5, None),
)
TTT = InPlaceTTT(layers=(0, 2, 99), chunk=8, lr=0.5)
LEARNS = dataclasses.replace(SMALL, ttt=TTT)
#: every layer alike, so quick to compile
ALIKE = dataclasses.replace(
    LEARNS, windows=(5,) * 4, ttt=dataclasses.replace(TTT, layers=(0, 1, 2, 3))
)
LLAMA = dataclasses.replace(SMALL, family="llama", windows=(), layers=3, tie_embeddings=True)


def random_model(config, seed=0):
    """Every array random and of a size that matters, so that no part is idle."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))

    def draw(path, x):
        name = jax.tree_util.keystr(path)
        mean = 1.0 if "scale" in name else 0.0
        size = 0.5 if "conv" in name or "proj" in name else 0.2
        return jnp.asarray(mean + size * rng.standard_normal(x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_tokens(seed, *shape, vocab=61):
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, shape))


@jax.jit
def run(model, tokens, segment_ids=None):
    return model(tokens, segment_ids)


def in_place_by_hand(mlp, h, target):
    """One row through an in-place MLP as the paper defines it, float64: outputs and mean drift."""
    ttt, (z, w) = mlp.ttt, (np.asarray(mlp.hidden(h), np.float64), mlp.down.kernel[...])
    start = np.asarray(w, np.float64).T
    now, out, drift = start.copy(), [], []
    for at in range(0, len(h), ttt.chunk):
        piece, t = z[at : at + ttt.chunk], np.asarray(target[at : at + ttt.chunk], np.float64)
        out.append(piece @ now.T)
        ratio = [np.linalg.norm((now - start) @ x) / np.linalg.norm(start @ x) for x in piece]
        drift += ratio
        padded = np.pad(t, [(2, 2), (0, 0)])
        taps = np.asarray(mlp.conv[...], np.float64)
        v = sum(padded[i : i + len(t)] * taps[:, i][None] for i in range(5))
        now += ttt.lr * (v @ np.asarray(mlp.proj[...], np.float64)).T @ piece
    return np.concatenate(out), np.mean(drift)


def by_hand(model, tokens):
    """Logits and drifts of one row, layer after layer with no scan and no stack."""
    config = model.config
    embedded = x = model.embed.embedding[...][tokens]
    positions = jnp.arange(len(tokens))[None]
    drifts = []
    for i in range(config.layers):
        block = model.layer(i)
        assert block.attention.window == (config.windows or [None] * config.layers)[i]
        x = x + block.attention(block.attention_norm(x)[None], positions)[0]
        h = block.mlp_norm(x)
        if i in config.ttt_layers:
            target = embedded if config.ttt.target == "input_embed" else h
            y, drift = in_place_by_hand(block.mlp, h, target)
            drifts.append(drift)
        else:
            y = block.mlp(h)
        x = x + jnp.asarray(y, jnp.float32)
    x = model.final_norm(x)
    head = model.embed.embedding[...].T if model.head is None else model.head.kernel[...]
    return x @ head, np.array(drifts)


@pytest.mark.parametrize(
    ("config", "period"),
    [
        (SMALL, 2),
        (LLAMA, 1),
        (LEARNS, 2),
        (dataclasses.replace(LEARNS, windows=(), layers=3), 3),
        (dataclasses.replace(LEARNS, ttt=dataclasses.replace(TTT, target="input_embed")), 2),
    ],
    ids=["windows", "alike", "hidden_states", "no_repetition", "input_embed"],
)
def test_the_scan_is_a_loop_over_layers(config, period):
    model, tokens = random_model(config), random_tokens(1, 2, 21)
    assert config.period == len(model.blocks) == period
    assert model.blocks[0].mlp.down.kernel.shape == (config.layers // period, 48, 32)
    features, drifts = jax.jit(lambda m, t: m.features(t, stats=True))(model, tokens)
    found = [by_hand(model, row) for row in tokens]
    assert_close(model.logits(features), np.stack([logits for logits, _ in found]))
    assert drifts.shape == (len(config.ttt_layers),) and drifts.dtype == jnp.float32
    right = np.mean([drift for _, drift in found], 0)
    assert_close(drifts, right)
    assert (right > 1e-2).all()


def test_remat_saves_memory_and_changes_no_gradient():
    tokens = random_tokens(1, 2, 40)

    def gradient(remat):
        other = random_model(dataclasses.replace(ALIKE, remat=remat))
        loss = lambda m: jnp.mean(jnp.sin(m(tokens)))
        compiled = jax.jit(jax.grad(loss)).lower(other).compile()
        used = compiled.memory_analysis()
        assert used is not None
        return compiled(other), used.temp_size_in_bytes

    (right, most), (block, least), (dots, between) = map(gradient, ("none", "block", "dots"))
    assert least < 0.8 * most and between < most
    for grads in (block, dots):
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(right), strict=True):
            assert_close(a, b)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(right))


#: row, start, stop, segment of documents that lie on the grid of chunks, but for the last of a row
DOCUMENTS = [(0, 0, 16, 1), (0, 16, 24, 2), (0, 24, 35, 3), (1, 0, 8, 1), (1, 8, 29, 2)]


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        LLAMA,
        LEARNS,
        dataclasses.replace(LEARNS, ttt=dataclasses.replace(TTT, target="input_embed")),
    ],
    ids=["windows", "llama", "hidden_states", "input_embed"],
)
def test_packed_documents_are_read_as_if_each_were_alone(config):
    model, tokens = random_model(config), np.array(random_tokens(2, 2, 37))
    ids = np.zeros((2, 37), int)
    for row, start, stop, name in DOCUMENTS:
        ids[row, start:stop] = name
    packed = run(model, jnp.asarray(tokens), jnp.asarray(ids))
    alone = np.zeros((len(DOCUMENTS), 37), int)
    for line, (row, start, stop, _) in zip(alone, DOCUMENTS, strict=True):
        line[: stop - start] = tokens[row, start:stop]
    lines = run(model, jnp.asarray(np.concatenate([alone, tokens])))
    for line, (row, start, stop, name) in zip(lines, DOCUMENTS):  # noqa: B905
        right = line[: stop - start]
        assert_close(packed[row, start:stop], right, what=str(name))
        if name > 1:  # and they would see each other if they were not kept apart
            assert np.abs(lines[len(DOCUMENTS) + row, start:stop] - right).max() > 0.1
    tokens[ids == 0] = 7
    np.testing.assert_array_equal(
        np.asarray(run(model, jnp.asarray(tokens), jnp.asarray(ids)))[ids > 0],
        np.asarray(packed)[ids > 0],
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("config", [SMALL, LEARNS], ids=["plain", "in_place"])
def test_no_token_reaches_back_or_another_row(config, packed):
    model, tokens = random_model(config), random_tokens(3, 2, 27)
    ids = jnp.asarray([[1] * 11 + [2] * 16] * 2) if packed else None
    before = np.asarray(run(model, tokens, ids))
    for at in (0, 6, 7, 8, 15, 16, 26):
        after = np.asarray(run(model, tokens.at[0, at].add(1), ids))
        np.testing.assert_array_equal(after[1], before[1])
        np.testing.assert_array_equal(after[0, :at], before[0, :at])
        assert (after[0, at] != before[0, at]).any()
        if at < 8 and not packed:  # and it is remembered for ever
            assert (after[0, -1] != before[0, -1]).any()


@pytest.mark.parametrize(("target", "packed"), [("hidden_states", True), ("input_embed", False)])
def test_before_training_the_model_is_bitwise_its_base(target, packed):
    config = dataclasses.replace(LEARNS, ttt=dataclasses.replace(TTT, target=target))
    model, tokens = random_model(config), random_tokens(4, 2, 29)
    learner = model.blocks[0].mlp
    learner.conv.set_value(jnp.zeros((2, 32, 5)))
    base = random_model(dataclasses.replace(config, ttt=None))
    base.embed, base.head, base.final_norm = model.embed, model.head, model.final_norm
    base.blocks[1] = model.blocks[1]
    for name in ("attention", "attention_norm", "mlp_norm"):
        setattr(base.blocks[0], name, getattr(model.blocks[0], name))
    for name in ("gate", "up", "down"):
        setattr(base.blocks[0].mlp, name, getattr(learner, name))
    ids = jnp.asarray([[1] * 18 + [2] * 9 + [0] * 2] * 2) if packed else None
    plain = run(base, tokens, ids)
    np.testing.assert_array_equal(run(model, tokens, ids), plain)

    def loss(model):
        features, drifts = model.features(tokens, stats=True)
        return jnp.mean(model.logits(features)[..., 3]), drifts

    grads, drifts = jax.jit(jax.grad(loss, has_aux=True))(model)
    np.testing.assert_array_equal(drifts, [0, 0])
    assert np.abs(grads.blocks[0].mlp.conv[...]).min() > 0  # so it can start to learn
    np.testing.assert_array_equal(grads.blocks[0].mlp.proj[...], 0)

    learner.conv.set_value(jnp.ones((2, 32, 5)))
    changed = np.any(np.asarray(run(model, tokens, ids) != plain), (0, 2))
    assert not np.any(changed[:8]) and np.all(changed[8 : 18 if packed else 29])


def test_bfloat16_keeps_float32_where_it_matters():
    config = dataclasses.replace(ALIKE, ttt=InPlaceTTT(layers=(0, 1, 2, 3), chunk=8, lr=0.05))
    model, tokens = random_model(config), random_tokens(5, 2, 21)
    half = random_model(dataclasses.replace(config, dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    right, found = run(model, tokens), run(half, tokens)
    assert found.dtype == jnp.float32
    assert jax.eval_shape(lambda m: m.features(tokens), half).dtype == jnp.bfloat16
    error = np.linalg.norm(found - right) / np.linalg.norm(right)
    assert 1e-4 < error < 5e-2
    # not rounded to bfloat16 on the way out
    assert (np.asarray(found) != np.asarray(found.astype(jnp.bfloat16), np.float32)).mean() > 0.5
    grads = jax.jit(jax.grad(lambda m: jnp.mean(jnp.sin(m(tokens)))))(half)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert g.dtype == jnp.float32 and np.isfinite(g).all(), path
    narrow = dataclasses.replace(config, param_dtype="bfloat16")
    small = jax.eval_shape(lambda: Decoder(narrow, rngs=nnx.Rngs(0)))
    assert {x.dtype for x in jax.tree.leaves(small)} == {jnp.dtype("bfloat16")}


QWEN3_4B = DecoderConfig(
    family="qwen3",
    vocab=151_936,
    hidden=2560,
    intermediate=9728,
    layers=36,
    heads=32,
    kv_heads=8,
    head_dim=128,
    rope=Rope(theta=1e6),
    tie_embeddings=True,
)
LLAMA_8B = DecoderConfig(
    family="llama",
    vocab=128_256,
    hidden=4096,
    intermediate=14_336,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    rope=Rope(theta=5e5, scaling="llama3", factor=8.0, original_length=8192),
)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (QWEN3_4B, 4_022_468_096),
        (LLAMA_8B, 8_030_261_248),
        # six layers with a convolution [d, 5] and a projection [d, d] more
        (
            dataclasses.replace(QWEN3_4B, ttt=InPlaceTTT()),
            4_022_468_096 + 6 * (2560 * 5 + 2560**2),
        ),
    ],
    ids=["qwen3_4b", "llama_8b", "qwen3_4b_in_place"],
)
def test_models_of_real_size_have_their_number_of_parameters(config, count):
    config = dataclasses.replace(config, dtype="bfloat16", remat="block")
    model = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(model)) == count
    tokens = jax.ShapeDtypeStruct((1, 4096), jnp.int32)
    logits = jax.eval_shape(lambda m, t: m(t), model, tokens)
    assert logits.shape == (1, 4096, config.vocab) and logits.dtype == jnp.float32


def test_the_numbers_depend_on_the_seed_and_not_on_the_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    one, same, other = build(ALIKE, 3), build(ALIKE, 3, mesh), build(ALIKE, 4)
    leaves = jax.tree_util.tree_leaves_with_path(one)
    for (path, a), b, c in zip(leaves, *map(jax.tree.leaves, (same, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert b.sharding.mesh == mesh
        if not any(name in str(path) for name in ("scale", "conv", "proj")):
            assert np.std(a) == pytest.approx(0.02, rel=0.1)
            assert (np.asarray(a) != np.asarray(c)).mean() > 0.99
    starts = one.blocks[0].mlp.gate.kernel[...]
    assert (starts[0] != starts[1]).mean() > 0.99  # layers of a stack do not start alike
    assert isinstance(one.blocks[0].mlp, InPlaceMLP)
    np.testing.assert_array_equal(one.blocks[0].mlp.conv[...], 0)


def test_a_token_that_is_none_shows_in_the_logits():
    model, tokens = random_model(SMALL), random_tokens(1, 2, 21)
    for none in (61, -1, -61):
        logits = run(model, tokens.at[0, 3].set(none))
        assert np.isnan(logits[0, 3:]).all() and np.isfinite(logits[1]).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32])
def test_tokens_of_any_integer_type_are_rows_of_the_table_or_none(dtype):
    """`vocab` is more than a byte holds."""
    model = random_model(dataclasses.replace(SMALL, vocab=300))
    limits = np.iinfo(dtype)
    tokens = np.unique(
        np.clip([-300, -1, 0, 60, 127, 255, 299, 300, 2**31], limits.min, limits.max)
    )
    rows = np.asarray(jax.jit(model.embedded)(jnp.asarray(tokens.astype(dtype))))
    table = np.asarray(model.embed.embedding[...])
    for token, row in zip(tokens, rows, strict=True):
        right = table[token] if 0 <= token < 300 else np.full(32, np.nan)
        np.testing.assert_array_equal(row, right)


@pytest.mark.parametrize("shape", [(0, 21), (2, 0), (0, 0)])
def test_of_no_tokens_there_are_no_logits(shape):
    model = random_model(LEARNS)
    for ids in (None, jnp.ones(shape, int)):
        assert run(model, jnp.zeros(shape, int), ids).shape == (*shape, 61)


@pytest.mark.parametrize("i", [-1, 4, 7])
def test_a_layer_there_is_not_is_refused(i):
    with pytest.raises(IndexError, match=f"no layer {i}: the model has 4"):
        random_model(SMALL).layer(i)
