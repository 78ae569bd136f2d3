"""Tiny models with random numbers everywhere, and checkpoints written by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig, Rope

SIZES = {
    "vocab": 61,
    "hidden": 32,
    "intermediate": 40,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "max_length": 256,
}
QWEN3 = DecoderConfig(family="qwen3", **SIZES, rope=Rope(theta=1e6), tie_embeddings=True)
LLAMA = DecoderConfig(family="llama", **SIZES, rope=Rope(theta=5e5), norm_eps=1e-5)


def model(config, seed=0):
    """A decoder whose every array is random, norms and convolutions included."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))

    def draw(path, x):
        mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(mean + 0.2 * rng.standard_normal(x.shape, np.float32), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_same(left, right):
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def logits(model, tokens):
    """Logits of a decoder, float32."""
    return np.asarray(jax.jit(lambda model, x: model(x))(model, jnp.asarray(tokens)))


#: a Qwen3 as config.json describes it: 2 layers, hidden 16, 2 heads of 8, 1 of keys and values
RAW = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def raw_tensors(seed=0):
    """The tensors of `RAW`, written out from the shapes that transformers gives them."""
    shapes = {
        "model.embed_tokens.weight": (19, 16),
        "model.norm.weight": (16,),
        "lm_head.weight": (19, 16),
    }
    for i in range(2):
        layer = {
            "input_layernorm.weight": (16,),
            "post_attention_layernorm.weight": (16,),
            "self_attn.q_proj.weight": (16, 16),
            "self_attn.k_proj.weight": (8, 16),
            "self_attn.v_proj.weight": (8, 16),
            "self_attn.o_proj.weight": (16, 16),
            "self_attn.q_norm.weight": (8,),
            "self_attn.k_norm.weight": (8,),
            "mlp.gate_proj.weight": (24, 16),
            "mlp.up_proj.weight": (24, 16),
            "mlp.down_proj.weight": (16, 24),
        }
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(seed)
    return {name: 0.3 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(folder, raw=None, tensors=None, files=1):
    """A checkpoint in a directory; with more than one file, tensors are dealt out in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, tensors = RAW if raw is None else raw, raw_tensors() if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(raw))
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = [f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)]
    where = {tensor: names[i % files] for i, tensor in enumerate(tensors)}
    for name in names:
        save_file({k: v for k, v in tensors.items() if where[k] == name}, folder / name)
    write_index(folder, where)
    return folder


def write_index(folder, weight_map):
    """The index of a sharded checkpoint."""
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
