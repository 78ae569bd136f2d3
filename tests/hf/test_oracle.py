"""The float64 pass of transformers is float64 throughout, and leaves the weights as they were."""

import numpy as np
import pytest

from fastweights.hf import oracle
from hf.tiny import raw_tensors, write

torch = pytest.importorskip("torch", reason="needs torch, the [parity] extra")
pytest.importorskip("transformers", reason="needs transformers, the [parity] extra")


def by_hand(tensors, tokens):
    """`hf.tiny.RAW` on one row of tokens, in float64."""
    w = {name: x.astype(np.float64) for name, x in tensors.items()}
    norm = lambda x, scale: x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * scale
    # transformers keeps the frequencies in float32: 1, 1/10, 1/100, 1/1000
    turn = np.arange(len(tokens))[:, None] * (1 / np.float32([1, 10, 100, 1000])).astype(float)
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]

    def rotate(x):
        a, b = x[..., :4], x[..., 4:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(2):
        part = lambda name, i=i: w[f"model.layers.{i}.{name}.weight"]
        h = norm(x, part("input_layernorm"))
        heads = lambda name, h=h, part=part: (h @ part(f"self_attn.{name}").T).reshape(
            len(h), -1, 8
        )
        q = rotate(norm(heads("q_proj"), part("self_attn.q_norm")))
        k = rotate(norm(heads("k_proj"), part("self_attn.k_norm")))
        scores = np.einsum("tnh,sh->nts", q, k[:, 0]) / 8**0.5
        scores = np.where(np.tri(len(h), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("nts,sh->tnh", weights, heads("v_proj")[:, 0]).reshape(len(h), -1)
        x = x + mixed @ part("self_attn.o_proj").T
        h = norm(x, part("post_attention_layernorm"))
        gate, up = h @ part("mlp.gate_proj").T, h @ part("mlp.up_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ part("mlp.down_proj").T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def test_the_wide_pass_is_that_of_a_loop_in_float64(tmp_path):
    tensors = raw_tensors()
    tokens = np.random.default_rng(1).integers(0, 19, (1, 23))
    narrow, wide = oracle.read(write(tmp_path / "model"), tokens)
    expected = by_hand(tensors, tokens[0])
    assert wide.logits.dtype == wide.layers[0].dtype == np.float64
    np.testing.assert_allclose(wide.logits[0], expected, rtol=0, atol=1e-12)
    # and float32 is float32: a thousand million times as far
    assert narrow.logits.dtype == np.float32
    assert 1e-7 < np.abs(narrow.logits[0] - expected).max() < 1e-4


def test_weights_are_float32_again_and_tied_as_before(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=19,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    tokens = torch.arange(7)[None]
    with torch.no_grad(), oracle._widened(model):
        assert model(tokens).logits.dtype == torch.float64
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, x in model.state_dict().items():
        assert x.dtype == torch.float32 and torch.equal(x, before[name])
    with torch.no_grad():
        assert model(tokens).logits.dtype == torch.float32
