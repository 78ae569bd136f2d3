"""config.json of a Hugging Face directory to DecoderConfig and back: Qwen3 and Llama."""

import json
from pathlib import Path
from typing import Any, Literal, cast

from fastweights.errors import ConfigError
from fastweights.hf import config_ttt
from fastweights.hf.config_rope import ORIGINAL, read_rope, write_rope
from fastweights.hf.config_windows import OURS as OUR_WINDOWS
from fastweights.hf.config_windows import read_windows, write_windows
from fastweights.hf.fields import field, unsupported
from fastweights.models.decoder_config import DecoderConfig, Dtype, InPlaceTTT, check

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
#: what transformers takes for `max_position_embeddings` where the key is absent
MAX_LENGTH = {"qwen3": 32768, "llama": 2048}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ConfigError: it is not there, or is not that.
    """
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {file.name}",
            where=file,
            cause="the path is not a model directory in Hugging Face layout",
            next="give the folder that holds config.json and *.safetensors",
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file.name} cannot be read: {error}",
            where=file,
            cause="the file is damaged or its download was cut short",
            next="download it again",
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file.name} holds no JSON object", where=file, next="download it again")
    return raw


def read_config(
    raw: dict[str, Any],
    dtype: Dtype = "float32",
    ttt: InPlaceTTT | Literal[False] | None = None,
) -> DecoderConfig:
    """A config.json as a DecoderConfig; keys that concern neither us nor the network are ignored.

    Args:
        raw: the file.
        dtype: of the weights and the computation.
        ttt: None as the file says, False for a plain transformer, or what to do instead.

    Raises:
        ConfigError: an architecture or an option that we do not build, or impossible values.
    """
    family = _family(raw)
    _refuse_variants(raw)
    hidden, heads = field(raw, "hidden_size", int), field(raw, "num_attention_heads", int)
    layers = field(raw, "num_hidden_layers", int)
    max_length = field(raw, "max_position_embeddings", int, MAX_LENGTH[family])
    # the class defaults of transformers: an absent head_dim is 128 for Qwen3
    split = 128 if family == "qwen3" and "head_dim" not in raw else hidden // max(heads, 1)
    absent = 32 if family == "qwen3" and "num_key_value_heads" not in raw else heads
    if ttt is None:
        ttt = config_ttt.read_ttt(raw)
    config = DecoderConfig(
        family=family,
        vocab=field(raw, "vocab_size", int),
        hidden=hidden,
        intermediate=field(raw, "intermediate_size", int),
        layers=layers,
        heads=heads,
        kv_heads=field(raw, "num_key_value_heads", int, absent),
        head_dim=field(raw, "head_dim", int, split),
        rope=read_rope(raw, max_length),
        norm_eps=field(raw, "rms_norm_eps", float, 1e-6),
        tie_embeddings=field(raw, "tie_word_embeddings", bool, False),
        max_length=max_length,
        windows=read_windows(raw, family, layers),
        ttt=ttt or None,
        initializer_range=field(raw, "initializer_range", float, 0.02),
        dtype=dtype,
        param_dtype=dtype,
    )
    check(config)
    return config


def write_config(config: DecoderConfig, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """A DecoderConfig as a config.json.

    Args:
        config: what to write. How it is computed (`remat`, `attention`, `dtype`) is left out.
        like: a config.json whose other keys are kept.

    Raises:
        ConfigError: a layer has an update rule in place of attention.
    """
    if rules := [mixer for mixer in config.mixers if mixer != "attention"]:
        raise ConfigError(
            "a model with update rules has no Hugging Face layout",
            where="model.mixers",
            cause=f"no model of transformers has a layer with {rules[0]!r}",
            next="keep the run directory: generate, chat and eval read it as it is",
        )
    named = (OUR_WINDOWS, "layer_types", "dtype", ORIGINAL, *config_ttt.KEYS)
    kept = {k: v for k, v in (like or {}).items() if k not in named}
    return kept | {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        **({"mlp_bias": False} if config.family == "llama" else {}),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_length,
        "initializer_range": config.initializer_range,
        # every version of transformers reads this one; `dtype` only those from 4.56 on
        "torch_dtype": config.param_dtype,
        **write_rope(config.rope),
        **write_windows(config.windows, config.family),
        **config_ttt.write_ttt(config.ttt),
    }


def _family(raw: dict[str, Any]) -> Literal["qwen3", "llama"]:
    family = field(raw, "model_type", str)
    if family not in ARCHITECTURES:
        raise unsupported("model_type", family, "'qwen3' or 'llama'")
    named = field(raw, "architectures", list, [ARCHITECTURES[family]])
    if named != [ARCHITECTURES[family]]:
        raise unsupported("architectures", named, repr([ARCHITECTURES[family]]))
    return cast(Literal["qwen3", "llama"], family)


def _refuse_variants(raw: dict[str, Any]) -> None:
    """Refuse what would change the network in a way that we have not."""
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise unsupported("hidden_act", raw["hidden_act"], "'silu'")
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise unsupported(key, raw[key], "false")
    if raw.get("quantization_config") is not None:
        raise unsupported(
            "quantization_config",
            raw["quantization_config"],
            "an unquantised checkpoint",
            "download the original, in bfloat16, float16 or float32",
        )
