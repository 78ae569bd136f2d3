"""Rotary embedding in a config.json: `rope_theta` with `rope_scaling`, or `rope_parameters`."""

from typing import Any

from fastweights.hf.fields import field, unsupported
from fastweights.nn.rope import Rope

ORIGINAL = "original_max_position_embeddings"
SUPPORTED = "'default', 'llama3' or 'yarn'"


def read_rope(raw: dict[str, Any], max_length: int) -> Rope:
    """The rotary embedding of a config, in either layout.

    Transformers 5 puts everything in `rope_parameters`; before it, `rope_theta` stood beside
    `rope_scaling`. Where a file has both, `rope_scaling` wins, as in transformers; and so does an
    `original_max_position_embeddings` beside them over the one in them, as in transformers 5.

    Args:
        raw: the whole config.json.
        max_length: `max_position_embeddings`, the default of the pretrained length.

    Raises:
        ConfigError: a kind of scaling that we have not, or a value of the wrong type.
    """
    given = field(raw, "rope_scaling", dict, None) or field(raw, "rope_parameters", dict, {})
    theta = field(given, "rope_theta", float, field(raw, "rope_theta", float, 10_000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    part = given.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if part not in (None, 1, 1.0):
        raise unsupported("partial_rotary_factor", part, "1.0")
    if kind == "default":
        return Rope(theta=theta)
    if kind not in ("llama3", "yarn"):
        raise unsupported("rope_parameters.rope_type", kind, SUPPORTED)
    original = field(given, ORIGINAL, int, max_length)
    original = field(raw, ORIGINAL, int, original)
    if kind == "llama3":
        return Rope(
            theta=theta,
            scaling="llama3",
            factor=field(given, "factor", float),
            original_length=original,
            low_freq=field(given, "low_freq_factor", float),
            high_freq=field(given, "high_freq_factor", float),
        )
    for key in ("mscale", "mscale_all_dim"):
        if given.get(key):
            raise unsupported(
                f"rope_parameters.{key}", given[key], "attention_factor", "give that instead"
            )
    if given.get("truncate", True) is not True:
        raise unsupported("rope_parameters.truncate", given["truncate"], "true")
    return Rope(
        theta=theta,
        scaling="yarn",
        factor=field(given, "factor", float, max_length / original),
        original_length=original,
        beta_fast=field(given, "beta_fast", float, 32.0),
        beta_slow=field(given, "beta_slow", float, 1.0),
        attention_factor=field(given, "attention_factor", float, None),
    )


def write_rope(rope: Rope) -> dict[str, Any]:
    """The keys of both layouts: of transformers 5, and of the versions before it.

    Of the latter, those that do not know `rope_type` yet cannot read a scaled one.
    """
    values: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.scaling != "none":
        values |= {
            "rope_type": rope.scaling,
            "factor": rope.factor,
            ORIGINAL: rope.original_length,
        }
    if rope.scaling == "llama3":
        values |= {"low_freq_factor": rope.low_freq, "high_freq_factor": rope.high_freq}
    if rope.scaling == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if rope.attention_factor is not None:
            values["attention_factor"] = rope.attention_factor
    scaling = {k: v for k, v in values.items() if k != "rope_theta"}
    return {
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.scaling == "none" else scaling,
        "rope_parameters": values,
    }
