"""In-place test-time training in a config.json: the keys of the released format, and ours.

`ttt_mode`, `ttt_layers`, `ttt_chunk`, `ttt_lr`, `ttt_proj` and `ttt_target` are those of the code
released with arXiv 2604.06169, with its defaults. What that code cannot do stands under keys of
ours, and only where it is used.
"""

from typing import Any

from fastweights.hf.fields import field, unsupported
from fastweights.models.decoder_config import InPlaceTTT

#: those of the released class, not ours: absent keys mean what they mean there
DEFAULTS = InPlaceTTT(layers=(0, 6, 12, 18, 24, 30), chunk=8192, lr=0.3)
#: options that the released code has not, and the type of each
OURS: dict[str, type] = {
    "conv": bool,
    "window": str,
    "clip": float,
    "clip_relative": bool,
    "clip_after_lr": bool,
    "decay": float,
    "decay_learned": bool,
    "lr_learned": bool,
    "spectral": bool,
    "residual": bool,
    "cap": float,
    "row_norm": bool,
}
PREFIX = "fastweights_ttt_"
KEYS = (
    *("ttt_mode", "ttt_layers", "ttt_chunk", "ttt_lr", "ttt_proj", "ttt_target"),
    *(PREFIX + name for name in OURS),
)


def read_ttt(raw: dict[str, Any]) -> InPlaceTTT | None:
    """What the in-place layers do, or None where `ttt_mode` is not true.

    Raises:
        ConfigError: a value of the wrong type, or a target or window that there is not.
    """
    if not field(raw, "ttt_mode", bool, False):
        return None
    layers = field(raw, "ttt_layers", list, list(DEFAULTS.layers))
    if any(type(i) is not int for i in layers):
        raise unsupported("ttt_layers", layers, "a list of whole numbers")
    target = field(raw, "ttt_target", str, DEFAULTS.target)
    if target not in ("hidden_states", "input_embed"):
        raise unsupported("ttt_target", target, "'hidden_states' or 'input_embed'")
    ours = {
        name: field(raw, PREFIX + name, kind, getattr(DEFAULTS, name))
        for name, kind in OURS.items()
    }
    if ours["window"] not in ("centred", "forward", "reconstruction"):
        only = "'centred', 'forward' or 'reconstruction'"
        raise unsupported(PREFIX + "window", ours["window"], only)
    return InPlaceTTT(
        layers=tuple(layers),
        chunk=field(raw, "ttt_chunk", int, DEFAULTS.chunk),
        lr=field(raw, "ttt_lr", float, DEFAULTS.lr),
        target=target,
        proj=field(raw, "ttt_proj", bool, DEFAULTS.proj),
        **ours,
    )


def write_ttt(ttt: InPlaceTTT | None) -> dict[str, Any]:
    """The keys for these layers; none for a plain transformer."""
    if ttt is None:
        return {}
    released = {
        "ttt_mode": True,
        "ttt_layers": list(ttt.layers),
        "ttt_chunk": ttt.chunk,
        "ttt_lr": ttt.lr,
        "ttt_proj": ttt.proj,
        "ttt_target": ttt.target,
    }
    values = {name: getattr(ttt, name) for name in OURS}
    return released | {PREFIX + k: v for k, v in values.items() if v != getattr(DEFAULTS, k)}
