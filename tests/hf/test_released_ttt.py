"""Checkpoints in the released In-Place TTT format, and base models it is switched on for."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import fastweights as fw
from fastweights import hf
from fastweights.errors import CheckpointError
from fastweights.models.decoder_config import InPlaceTTT
from hf.tiny import LLAMA, QWEN3, RAW, assert_same, logits, model, raw_tensors, write

KEYS = {
    "ttt_mode": True,
    "ttt_layers": [0, 6, 12],  # of two layers, as in the released configs some do not exist
    "ttt_chunk": 4,
    "ttt_lr": 0.5,
    "ttt_proj": True,
    "ttt_target": "hidden_states",
}
TOKENS = np.random.default_rng(5).integers(0, 19, (2, 15))


def ttt_tensors(layers=(0,), hidden=16, seed=1):
    """What a trained checkpoint has besides the base model's tensors."""
    rng = np.random.default_rng(seed)
    shapes = {"conv": (hidden, 1, 5), "proj": (hidden, hidden)}
    return {
        f"model.layers.{i}.mlp.ttt_{name}.weight": 0.2 * rng.standard_normal(shape, np.float32)
        for i in layers
        for name, shape in shapes.items()
    }


def test_it_loads_differs_from_its_base_and_goes_back(tmp_path):
    tensors = raw_tensors() | ttt_tensors()
    folder = write(tmp_path / "in", RAW | KEYS, tensors, files=3)
    loaded = hf.load(folder)
    assert loaded.config.ttt == InPlaceTTT(layers=(0, 6, 12), chunk=4, lr=0.5)
    assert loaded.config.ttt_layers == (0,)
    conv = tensors["model.layers.0.mlp.ttt_conv.weight"]
    np.testing.assert_array_equal(loaded.layer(0).mlp.conv[...], conv[:, 0])
    proj = tensors["model.layers.0.mlp.ttt_proj.weight"]
    np.testing.assert_array_equal(loaded.layer(0).mlp.proj[...], proj)

    base = hf.load(folder, ttt=False)
    assert base.config.ttt is None
    assert_same(base, hf.load(write(tmp_path / "base")))
    ours, plain = logits(loaded, TOKENS), logits(base, TOKENS)
    # the first chunk reads what nobody has written to
    np.testing.assert_allclose(ours[:, :4], plain[:, :4], atol=1e-5)
    assert np.abs(ours[:, 4:] - plain[:, 4:]).max() > 0.01

    hf.save(loaded, tmp_path / "out", like=folder)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_array_equal(written[name], x)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {k: raw[k] for k in KEYS} == KEYS
    assert not [key for key in raw if key.startswith("fastweights")]
    assert_same(hf.load(tmp_path / "out"), loaded)


def test_switching_it_on_for_a_base_changes_nothing_yet(tmp_path):
    """Every chunk writes zeros, to the bit.

    So logits differ by the rounding of products at most: as of jax 0.12 XLA's product of a chunk's
    4 rows on a CPU rounds otherwise than that of all rows.
    """
    folder = write(tmp_path / "in")
    ttt = InPlaceTTT(layers=(0, 1), chunk=4, lr=3.0)
    base, fresh = hf.load(folder), hf.load(folder, ttt=ttt)
    found, expected = logits(fresh, TOKENS), logits(base, TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    if jax.__version_info__ < (0, 11):
        np.testing.assert_array_equal(found, expected)
    layers = fw.inference.prefill(fresh, TOKENS).layers
    assert TOKENS.shape[1] >= 2 * ttt.chunk
    for place, i in enumerate(ttt.layers):
        slow = np.asarray(fresh.layer(i).mlp.slow)
        weights = np.asarray(layers[place % len(layers)]["mlp"].weights)[place // len(layers)]
        np.testing.assert_array_equal(weights, np.broadcast_to(slow, weights.shape))
    for i in ttt.layers:
        assert not np.any(fresh.layer(i).mlp.conv[...])
        diagonal = np.diag(np.asarray(fresh.layer(i).mlp.proj[...]))
        np.testing.assert_array_equal(fresh.layer(i).mlp.proj[...], np.diag(diagonal))
        assert 0.005 < diagonal.std() < 0.04  # initializer_range is 0.02
    assert np.any(fresh.layer(0).mlp.proj[...] != fresh.layer(1).mlp.proj[...])
    assert_same(fresh, hf.load(folder, ttt=ttt))
    hf.save(fresh, tmp_path / "out")
    assert_same(hf.load(tmp_path / "out"), fresh)


def test_more_layers_than_the_checkpoint_has(tmp_path):
    folder = write(tmp_path / "in", RAW | KEYS, raw_tensors() | ttt_tensors())
    loaded = hf.load(folder, ttt=InPlaceTTT(layers=(0, 1), chunk=4, lr=0.5))
    assert np.any(loaded.layer(0).mlp.conv[...])
    assert not np.any(loaded.layer(1).mlp.conv[...])
    np.testing.assert_allclose(
        logits(loaded, TOKENS), logits(hf.load(folder), TOKENS), rtol=1e-5, atol=1e-5
    )


def test_tensors_and_config_that_disagree(tmp_path):
    with pytest.raises(CheckpointError) as caught:  # keys, but no tensors
        hf.load(write(tmp_path / "a", RAW | KEYS))
    assert "model.layers.0.mlp.ttt_conv.weight is missing" in str(caught.value)
    assert "ttt=InPlaceTTT(...)" in str(caught.value)
    tensors = raw_tensors() | ttt_tensors()
    for keys in ({}, KEYS | {"ttt_proj": False}, KEYS | {"ttt_layers": [1]}):
        folder = write(tmp_path / "b", RAW | keys, tensors)
        ttt = InPlaceTTT(layers=(1,)) if keys.get("ttt_layers") == [1] else None
        with pytest.raises(CheckpointError) as caught:
            hf.load(folder, ttt=ttt)
        assert ".mlp.ttt_" in str(caught.value) and "ttt=False" in str(caught.value)
        hf.load(folder, ttt=False)


@pytest.mark.parametrize(
    ("base", "target", "proj"),
    [
        (QWEN3, "hidden_states", True),
        (QWEN3, "input_embed", False),
        (LLAMA, "hidden_states", False),
        (LLAMA, "input_embed", True),
    ],
    ids=["qwen3", "qwen3_embed_no_proj", "llama_no_proj", "llama_embed"],
)
def test_logits_are_those_of_the_released_method_in_torch(base, target, proj, tmp_path):
    """Transformers' model with its MLPs replaced by the released layer's arithmetic."""
    torch = pytest.importorskip("torch", reason="needs torch, the [parity] extra")
    transformers = pytest.importorskip("transformers", reason="needs transformers, [parity]")
    ttt = InPlaceTTT(layers=(0, 2), chunk=6, lr=0.7, target=target, proj=proj)
    config = dataclasses.replace(base, ttt=ttt)
    ours = model(config, seed=2)
    hf.save(ours, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").float()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    embedded = []
    theirs.model.embed_tokens.register_forward_hook(lambda m, i, out: embedded.append(out))

    def learn(layer, mlp):
        name = f"model.layers.{layer}.mlp.ttt_"
        conv = torch.tensor(stored[f"{name}conv.weight"])

        def forward(h):
            z = mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h)
            t = embedded[0] if target == "input_embed" else h
            rows = []
            for row in range(len(h)):
                weight, chunks = mlp.down_proj.weight, []
                for start in range(0, h.shape[1], ttt.chunk):
                    part = slice(start, start + ttt.chunk)
                    chunks.append(z[row, part] @ weight.T)
                    v = torch.nn.functional.conv1d(
                        t[row, part].T[None], conv, padding=2, groups=config.hidden
                    )[0].T
                    if proj:
                        v = v @ torch.tensor(stored[f"{name}proj.weight"])
                    weight = weight + ttt.lr * v.T @ z[row, part]
                rows.append(torch.cat(chunks))
            return torch.stack(rows)

        mlp.forward = forward

    for layer in ttt.layers:
        learn(layer, theirs.model.layers[layer].mlp)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (2, 20))
    with torch.no_grad():
        right = theirs(torch.tensor(tokens)).logits.numpy()
    plain = logits(hf.load(tmp_path / "out", ttt=False), tokens)
    assert np.abs(plain - right).max() > 0.1
    assert np.abs(logits(ours, tokens) - right).max() <= 1e-4
