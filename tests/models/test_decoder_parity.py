"""The decoder against transformers' Qwen3 and Llama, float32: logits and every gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig, Rope
from fastweights.nn.rope import amplitude, frequencies

torch = pytest.importorskip("torch", reason="parity needs torch, the [parity] extra")
transformers = pytest.importorskip("transformers", reason="parity needs transformers, [parity]")

SIZES = {
    "vocab": 97,
    "hidden": 48,
    "intermediate": 80,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.1,
}
QWEN3 = DecoderConfig(family="qwen3", **SIZES, rope=Rope(theta=1e6))
LLAMA = DecoderConfig(family="llama", **SIZES, rope=Rope(theta=5e5), norm_eps=1e-5)
LLAMA3 = Rope(theta=5e5, scaling="llama3", factor=8.0, original_length=64)
YARN = Rope(theta=1e4, scaling="yarn", factor=4.0, original_length=32)

#: (ours, length of the sequences)
CASES = {
    "qwen3": (QWEN3, 33),
    "llama": (dataclasses.replace(LLAMA, kv_heads=1), 17),
    "qwen3_tied_yarn": (dataclasses.replace(QWEN3, tie_embeddings=True, rope=YARN), 101),
    "llama_tied_llama3": (dataclasses.replace(LLAMA, tie_embeddings=True, rope=LLAMA3), 150),
    "llama_yarn_tuned": (
        dataclasses.replace(
            LLAMA,
            kv_heads=4,
            rope=dataclasses.replace(YARN, attention_factor=1.3, beta_fast=8.0, beta_slow=2.0),
        ),
        51,
    ),
    "windows": (dataclasses.replace(QWEN3, windows=(None, 7, None, 7), remat="block"), 45),
    "windows_in_blocks": (dataclasses.replace(QWEN3, windows=(40,) * 4, remat="dots"), 201),
}

#: transformers' name of each of ours in a block
BLOCK = {
    "attention_norm.scale": "input_layernorm.weight",
    "attention.q.kernel": "self_attn.q_proj.weight",
    "attention.k.kernel": "self_attn.k_proj.weight",
    "attention.v.kernel": "self_attn.v_proj.weight",
    "attention.o.kernel": "self_attn.o_proj.weight",
    "attention.q_norm.scale": "self_attn.q_norm.weight",
    "attention.k_norm.scale": "self_attn.k_norm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.kernel": "mlp.gate_proj.weight",
    "mlp.up.kernel": "mlp.up_proj.weight",
    "mlp.down.kernel": "mlp.down_proj.weight",
}


def names(config):
    """(path of ours, layer or None, transformers' name) of every array."""
    yield ("embed.embedding", None, "model.embed_tokens.weight")
    yield ("final_norm.scale", None, "model.norm.weight")
    if not config.tie_embeddings:
        yield ("head.kernel", None, "lm_head.weight")
    for i in range(config.layers):
        for ours, theirs in BLOCK.items():
            if config.family == "qwen3" or "_norm.scale" not in ours or "attention." not in ours:
                yield (ours, i, f"model.layers.{i}.{theirs}")


def array(model, path, layer):
    """An array of ours by path, in transformers' orientation."""
    at = model if layer is None else model.blocks[layer % model.config.period]
    for part in path.split("."):
        at = getattr(at, part)
    x = np.asarray(at[...] if layer is None else at[...][layer // model.config.period])
    return x.T if path.endswith("kernel") else x


def oracle(config):
    """Transformers' model of the same config, in eager attention."""
    rope = {"rope_type": "default", "rope_theta": config.rope.theta}
    if config.rope.scaling != "none":
        rope |= {
            "rope_type": config.rope.scaling,
            "factor": config.rope.factor,
            "original_max_position_embeddings": config.rope.original_length,
        }
    if config.rope.scaling == "llama3":
        rope |= {"low_freq_factor": config.rope.low_freq, "high_freq_factor": config.rope.high_freq}
    if config.rope.scaling == "yarn":
        rope |= {"beta_fast": config.rope.beta_fast, "beta_slow": config.rope.beta_slow}
        if config.rope.attention_factor is not None:
            rope["attention_factor"] = config.rope.attention_factor
    shared = {
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_length,
        "rope_parameters": rope,
        "attn_implementation": "eager",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if config.family == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shared)).float()
    if config.windows:
        shared |= {
            "use_sliding_window": True,
            "sliding_window": next(w for w in config.windows if w is not None),
            "layer_types": [
                "full_attention" if w is None else "sliding_attention" for w in config.windows
            ],
        }
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shared)).float()


def pair(config, seed):
    """Our model with random numbers everywhere, norms too, and transformers' with the same."""
    rng = np.random.default_rng(seed)
    shapes: Decoder = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))

    def draw(path, x):
        mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(mean + 0.1 * rng.standard_normal(x.shape, np.float32))

    model = jax.tree_util.tree_map_with_path(draw, shapes)
    theirs = oracle(config)
    weights = {t: torch.tensor(array(model, ours, i)) for ours, i, t in names(config)}
    missing, surplus = theirs.load_state_dict(weights, strict=False)
    assert not surplus and set(missing) <= {"lm_head.weight"}
    assert sum(w.numel() for w in weights.values()) == sum(x.size for x in jax.tree.leaves(model))
    return model, theirs


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case):
    config, length = CASES[case]
    model, theirs = pair(config, seed=len(case))
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, config.vocab, (2, length))
    weight = rng.standard_normal((2, length, config.vocab)).astype(np.float32)

    def loss(model):
        logits = model(jnp.asarray(tokens))
        return jnp.sum(jax.nn.log_softmax(logits) * weight) / length, logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(model)
    out = theirs(torch.tensor(tokens)).logits
    (torch.sum(torch.log_softmax(out, -1) * torch.tensor(weight)) / length).backward()

    expected = out.detach().numpy()
    assert np.std(expected) > 0.5  # the tolerance below is absolute
    assert np.abs(np.asarray(logits) - expected).max() <= 1e-4
    parameters = dict(theirs.named_parameters())
    for ours, i, name in names(config):
        right = parameters[name].grad.numpy()
        worst = np.linalg.norm(array(grads, ours, i) - right) / np.linalg.norm(right)
        assert worst <= 1e-4, (name, worst)


@pytest.mark.parametrize(
    "case", ["qwen3", "qwen3_tied_yarn", "llama_tied_llama3", "llama_yarn_tuned"]
)
def test_frequencies_are_those_of_transformers(case):
    """To the last digits: at position 100,000 a relative error of 1e-6 is 0.1 radians."""
    config = CASES[case][0]
    embedding = oracle(config).model.rotary_emb
    mine = frequencies(config.rope, config.head_dim)
    np.testing.assert_allclose(mine, embedding.inv_freq.numpy(), rtol=2e-7)
    assert amplitude(config.rope) == pytest.approx(embedding.attention_scaling, rel=1e-6)
