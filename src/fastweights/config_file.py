"""A Python config file: its `config`, and messages that name the line of a mistake."""

import ast
import dataclasses
import importlib.util
import re
import traceback
import types
import typing
from pathlib import Path
from typing import Any

from fastweights.errors import ConfigError, nearest


def load_config(path: str) -> Any:
    """The `config` of a Python config file.

    Raises:
        ConfigError: there is no such file, it fails, defines no config, or gives a field a value of
            the wrong type; with the line.
    """
    from fastweights.fastslow.config import FastSlow
    from fastweights.train import Config
    from fastweights.train.agent import AgentConfig
    from fastweights.train.sweep import Sweep

    file = Path(path)
    if not file.is_file():
        known = sorted(
            str(p) for p in (file.parent if file.parent.is_dir() else Path()).glob("*.py")
        )
        raise ConfigError(
            f"there is no config file {path}{nearest(path, known)}",
            next="give the path of a Python file like configs/retrieval.py of the repository",
        )
    spec = importlib.util.spec_from_file_location(f"fastweights_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file", next="its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file does wrong
        raise failure(module, path, error) from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config | AgentConfig | Sweep | FastSlow):
        raise ConfigError(
            "this config file defines no `config`"
            if config is None
            else f"`config` of this file is of type {type(config).__name__}",
            where=path,
            next="let it end in `config = Config(...)`; see configs/retrieval.py",
        )
    if found := wrong_types(config):
        name, value, hint = found[0]
        lines = "".join(f"\n  - {n} is {v!r}; it must be {words(h)}" for n, v, h in found)
        raise ConfigError(
            f"this config file gives a field a value of the wrong type:{lines}",
            where=place(path, line_of(file.read_bytes(), name, value)),
        )
    return config


def failure(module: types.ModuleType, path: str, error: Exception) -> ConfigError:
    """The message for an error that a config file raised while it was run."""
    here = Path(path).resolve()
    if isinstance(error, SyntaxError) and Path(error.filename or "").resolve() == here:
        return ConfigError(
            f"this config file is no Python: {error.msg}", where=place(path, error.lineno)
        )
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if Path(frame.filename).resolve() == here]
    where = place(path, own[-1] if own else None)
    unknown = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword.*? '(\w+)'", str(error))
    kind = class_named(module, unknown[1]) if unknown else None
    if unknown is None or kind is None:
        return ConfigError(
            f"this config file fails: {type(error).__name__}: {error}",
            where=where,
            next="change this line",
        )
    fields = [field.name for field in dataclasses.fields(kind)]
    return ConfigError(
        f"{kind.__name__} has no field {unknown[2]!r}{nearest(unknown[2], fields)}",
        where=where,
        next=f"its fields are {', '.join(fields)}",
    )


def class_named(module: types.ModuleType, name: str) -> type | None:
    """The dataclass of that name in a config file, or in what is loaded of the library."""
    import sys

    library = [m for key, m in sys.modules.items() if key.startswith("fastweights.")]
    found = (vars(place).get(name) for place in (module, *library))
    return next((x for x in found if isinstance(x, type) and dataclasses.is_dataclass(x)), None)


def place(path: str, line: int | None) -> str:
    """A file and a line of it."""
    return path if line is None else f"{path}, line {line}"


def wrong_types(value: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Fields of a dataclass, by dotted name, that its annotations do not allow: name, value, type.

    A dataclass in the place of another one is not compared with the annotation: tasks, models and
    rules may be classes of the user's.
    """
    import typeguard

    try:
        hints = typing.get_type_hints(type(value))
    except (NameError, AttributeError, TypeError):  # only a type checker can read them
        return []
    found = []
    for field in dataclasses.fields(value):
        own, hint = getattr(value, field.name), hints[field.name]
        path = f"{name}.{field.name}" if name else field.name
        if dataclasses.is_dataclass(own) and not isinstance(own, type):
            found += wrong_types(own, path)
            continue
        try:
            typeguard.check_type(
                own, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS
            )
        except typeguard.TypeCheckError:
            found.append((path, own, hint))
    return found


def words(hint: Any) -> str:
    """A type as a user reads it."""
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(words(option) for option in typing.get_args(hint))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def line_of(source: bytes, name: str, value: Any) -> int | None:
    """The one line of a config file that gives the last part of a dotted name this value."""
    field, found = name.split(".")[-1], []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == field:
            try:
                if ast.literal_eval(node.value) == value:
                    found.append(node.value.lineno)
            except (ValueError, TypeError):  # no literal, or an array, whose == is no bool
                continue
    return found[0] if len(found) == 1 else None
