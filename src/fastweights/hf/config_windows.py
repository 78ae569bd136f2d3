"""Sliding windows in a config.json: which layers have one, and how wide it is."""

from typing import Any

from fastweights.errors import ConfigError
from fastweights.hf.fields import field, unsupported

Windows = tuple[int | None, ...]
#: the window of every layer, where transformers has no words for it
OURS = "fastweights_windows"


def read_windows(raw: dict[str, Any], family: str, layers: int) -> Windows:
    """The window of every layer, or () where all attention is full.

    Transformers has windows for Qwen3 only and one width for all of them: `sliding_window`, in the
    layers that `layer_types` names or else in those from `max_window_layers` on, and only where
    `use_sliding_window` is true.

    Raises:
        ConfigError: a kind of layer that we have not, or a list of the wrong length.
    """
    if raw.get(OURS) is not None:
        return _all_full(tuple(field(raw, OURS, list)))
    if family != "qwen3":
        return ()
    width = field(raw, "sliding_window", int, 4096 if "sliding_window" not in raw else None)
    if not field(raw, "use_sliding_window", bool, False):
        width = None
    kinds = field(raw, "layer_types", list, None)
    if kinds is None:
        first = field(raw, "max_window_layers", int, 28)
        return _all_full(tuple(width if i >= first else None for i in range(layers)))
    if len(kinds) != layers:
        raise ConfigError(
            f"layer_types has {len(kinds)} values for {layers} layers",
            where="config.json: layer_types",
            next="give one for each of num_hidden_layers, or leave the key out",
        )
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise unsupported("layer_types", kind, "'full_attention' or 'sliding_attention'")
    if "sliding_attention" in kinds and width is None:
        raise ConfigError(
            "layer_types asks for sliding windows, but none is given",
            where="config.json: layer_types",
            cause="use_sliding_window is false, or sliding_window null",
            next='set both, or every value of layer_types to "full_attention"',
        )
    return _all_full(tuple(width if kind == "sliding_attention" else None for kind in kinds))


def expressible(windows: Windows, family: str) -> bool:
    """Whether transformers can be told of these windows."""
    widths = {w for w in windows if w is not None}
    return not widths or (family == "qwen3" and len(widths) == 1)


def write_windows(windows: Windows, family: str) -> dict[str, Any]:
    """The keys for these windows; `fastweights_windows` where transformers has none for them."""
    if not expressible(windows, family):
        return {OURS: list(windows)}
    if family != "qwen3":
        return {}
    widths = [w for w in windows if w is not None]
    if not widths:
        return {"use_sliding_window": False, "sliding_window": None}
    kinds = ["full_attention" if w is None else "sliding_attention" for w in windows]
    return {"use_sliding_window": True, "sliding_window": widths[0], "layer_types": kinds}


def _all_full(windows: Windows) -> Windows:
    return windows if any(w is not None for w in windows) else ()
