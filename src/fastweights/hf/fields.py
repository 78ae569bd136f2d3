"""Values of a config.json, checked one by one."""

from typing import Any

from fastweights.errors import ConfigError

#: a key without a default
REQUIRED: Any = object()


def field(raw: dict[str, Any], key: str, kind: type, default: Any = REQUIRED) -> Any:
    """A value of `kind` (an int passes for a float); null and absence are the default.

    Raises:
        ConfigError: the key is needed and absent, or its value is of another kind.
    """
    value = raw.get(key)
    if value is None:
        if default is REQUIRED:
            raise ConfigError(
                f"the key {key!r} is missing",
                where=f"config.json: {key}",
                cause="the file is not that of a whole Qwen3 or Llama model",
                next=f"add {key!r}, a value of type {kind.__name__}, or download the file again",
            )
        return default
    wide = (int, float) if kind is float else kind
    if not isinstance(value, wide) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(
            f"{key} is {value!r}, which is not of type {kind.__name__}",
            where=f"config.json: {key}",
            next=f"write a value of type {kind.__name__}",
        )
    return float(value) if kind is float else value


def unsupported(key: str, value: Any, only: str, next: str | None = None) -> ConfigError:
    """The error for a value that would need code we have not.

    Args:
        key: where the value stands.
        value: what it is.
        only: what is supported, as the end of "only ... is supported".
        next: what the user can do.
    """
    return ConfigError(
        f"{key} is {value!r}; only {only} is supported",
        where=f"config.json: {key}",
        cause="the checkpoint is of an architecture, or a variant, that fastweights does not build",
        next=next or "use a Qwen3 or Llama 3 checkpoint without it",
    )
