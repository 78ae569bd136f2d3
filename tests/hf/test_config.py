"""config.json of both families, in both layouts of rotary embeddings, to our config and back."""

import dataclasses

import pytest

from fastweights.errors import ConfigError
from fastweights.hf.config import read_config, write_config
from fastweights.models.decoder_config import InPlaceTTT, Rope
from hf.tiny import LLAMA, QWEN3, RAW

#: as published with Llama 3.1 8B, before transformers 5
LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
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
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA3_ROPE = Rope(5e5, "llama3", factor=8.0, original_length=8192, low_freq=1.0, high_freq=4.0)


def test_llama_31_8b():
    config = read_config(LLAMA_31_8B)
    assert (config.family, config.layers, config.hidden) == ("llama", 32, 4096)
    assert (config.heads, config.kv_heads, config.head_dim) == (32, 8, 128)
    assert (config.intermediate, config.vocab, config.max_length) == (14336, 128256, 131072)
    assert (config.norm_eps, config.tie_embeddings, config.windows) == (1e-5, False, ())
    assert config.rope == LLAMA3_ROPE
    assert config.ttt is None


def test_both_layouts_of_rotary_embedding_are_read():
    old = LLAMA_31_8B
    values = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    rest = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_scaling")}
    assert read_config(rest | {"rope_parameters": values}) == read_config(old)
    legacy = {**old["rope_scaling"], "type": "llama3"}
    del legacy["rope_type"]
    assert read_config(old | {"rope_scaling": legacy}) == read_config(old)


def test_yarn():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    rope = read_config(RAW | {"rope_scaling": scaling}).rope
    assert rope == Rope(1e4, "yarn", factor=4.0, original_length=32768)
    tuned = scaling | {"beta_fast": 16, "beta_slow": 2.0, "attention_factor": 1.5}
    rope = read_config(RAW | {"rope_scaling": tuned}).rope
    assert (rope.beta_fast, rope.beta_slow, rope.attention_factor) == (16.0, 2.0, 1.5)
    only = {"rope_type": "yarn", "original_max_position_embeddings": 64}
    raw = RAW | {"rope_scaling": only, "max_position_embeddings": 256}
    assert read_config(raw).rope.factor == 4.0


def test_an_original_length_beside_the_other_values_counts():
    """Transformers 5 takes it over theirs; it is not left in what is written."""
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 64}
    raw = RAW | {"rope_scaling": scaling, "max_position_embeddings": 256}
    raw["original_max_position_embeddings"] = 128
    rope = read_config(raw).rope
    assert (rope.original_length, rope.factor) == (128, 2.0)
    written = write_config(CONFIGS["yarn"], raw)
    assert "original_max_position_embeddings" not in written
    assert read_config(written) == CONFIGS["yarn"]


def test_transformers_takes_the_same_original_length():
    pytest.importorskip("transformers", reason="the parity extra is not installed")
    from transformers import Qwen3Config

    key = "original_max_position_embeddings"
    scaling = {"rope_type": "yarn", "factor": 2.0, key: 64}
    raw = RAW | {"rope_scaling": scaling, "max_position_embeddings": 256, key: 128}
    for each in (raw, write_config(CONFIGS["yarn"], raw)):
        theirs = Qwen3Config(**each)
        theirs.standardize_rope_params()  # as their model does when it is built
        assert theirs.rope_parameters[key] == read_config(each).rope.original_length


def test_head_dim_that_is_not_given():
    absent = {k: v for k, v in RAW.items() if k != "head_dim"}
    assert read_config(absent).head_dim == 128  # the default of transformers' class
    assert read_config(RAW | {"head_dim": None}).head_dim == 8
    assert read_config({k: v for k, v in LLAMA_31_8B.items()}).head_dim == 128


@pytest.mark.parametrize(
    ("keys", "windows"),
    [
        ({"use_sliding_window": False, "sliding_window": 5}, ()),
        ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, (None, 5)),
        ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}, (5, 5)),
        ({"use_sliding_window": True, "sliding_window": 5}, ()),  # from layer 28 on
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, ()),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 7,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (7, None),
        ),
    ],
)
def test_sliding_windows(keys, windows):
    assert read_config(RAW | keys).windows == windows


def test_released_ttt_keys_and_their_defaults():
    assert read_config(RAW | {"ttt_mode": False, "ttt_chunk": 4}).ttt is None
    assert read_config(RAW | {"ttt_mode": True}).ttt == InPlaceTTT(
        layers=(0, 6, 12, 18, 24, 30), chunk=8192, lr=0.3, proj=True, target="hidden_states"
    )
    keys = {
        "ttt_mode": True,
        "ttt_layers": [1],
        "ttt_chunk": 4096,
        "ttt_lr": 3,
        "ttt_proj": False,
        "ttt_target": "input_embed",
    }
    wanted = InPlaceTTT(layers=(1,), chunk=4096, lr=3.0, proj=False, target="input_embed")
    assert read_config(RAW | keys).ttt == wanted
    assert read_config(RAW | keys, ttt=False).ttt is None
    other = InPlaceTTT(layers=(0,), chunk=8)
    assert read_config(RAW | keys, ttt=other).ttt == other


YARN = Rope(1e4, "yarn", factor=4.0, original_length=64, beta_slow=2.0, attention_factor=1.2)
CONFIGS = {
    "qwen3": QWEN3,
    "llama": LLAMA,
    "llama3": dataclasses.replace(LLAMA, rope=LLAMA3_ROPE),
    "yarn": dataclasses.replace(QWEN3, rope=YARN, tie_embeddings=False),
    "windows": dataclasses.replace(QWEN3, windows=(None, 7, None, 7)),
    "windows_of_two_widths": dataclasses.replace(QWEN3, windows=(3, 7, None, 7)),
    "windows_in_llama": dataclasses.replace(LLAMA, windows=(7, 7, 7, 7)),
    "ttt": dataclasses.replace(QWEN3, ttt=InPlaceTTT(layers=(0, 2), chunk=8192, lr=3.0)),
    "ttt_of_ours": dataclasses.replace(
        LLAMA,
        ttt=InPlaceTTT(
            layers=(1,),
            chunk=4,
            target="input_embed",
            proj=False,
            conv=False,
            window="forward",
            clip=0.5,
            clip_relative=True,
            clip_after_lr=False,
            decay=0.9,
            decay_learned=True,
            lr_learned=True,
            spectral=True,
            residual=True,
            cap=0.02,
            row_norm=True,
        ),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name):
    raw = write_config(CONFIGS[name])
    assert read_config(raw) == CONFIGS[name]
    ours = {key for key in raw if key.startswith("fastweights_")}
    assert bool(ours) == (name in ("ttt_of_ours", "windows_of_two_widths", "windows_in_llama"))


def test_other_keys_are_kept_and_stale_ones_are_not():
    like = RAW | {"bos_token_id": 7, "note": {"a": [1]}, "ttt_mode": True, "ttt_layers": [0]}
    like |= {"layer_types": ["full_attention"] * 2, "fastweights_windows": [1, 2], "rope_theta": 3}
    raw = write_config(QWEN3, like)
    assert raw["bos_token_id"] == 7 and raw["note"] == {"a": [1]}
    assert read_config(raw) == QWEN3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'; only 'qwen3' or 'llama'"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "architectures is"),
        ({"model_type": None}, "'model_type' is missing"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "16"}, "hidden_size is '16', which is not of type int"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True; only false"),
        ({"mlp_bias": True}, "mlp_bias is True; only false"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "kv_heads is 3; it must divide heads"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'low_freq_factor' is missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 values for 2 layers"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "none is given"),
        ({"ttt_mode": True, "ttt_target": "logits"}, "ttt_target is 'logits'"),
        ({"ttt_mode": True, "ttt_layers": [0.5]}, "ttt_layers"),
        ({"ttt_mode": True, "ttt_layers": [-1]}, "ttt.layers is (-1,)"),
        ({"ttt_mode": True, "ttt_chunk": 0}, "ttt.chunk is 0"),
        ({"ttt_mode": "yes"}, "ttt_mode is 'yes'"),
        ({"ttt_mode": True, "fastweights_ttt_window": "left"}, "'left'"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(change, says):
    with pytest.raises(ConfigError) as caught:
        read_config(RAW | change)
    assert says in str(caught.value)
    assert "next" in str(caught.value) and "where" in str(caught.value)
