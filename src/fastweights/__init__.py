"""fastweights: models whose variables change at different speeds. `write` a fast state, `read` it.

    import fastweights as fw
    rule = fw.rules.Hebbian(decay=0.9, lr=0.5)

Submodules are loaded when they are first used, so that importing the package costs nothing.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastweights import hf, inference, models, nn, plot, rules, tasks, testing, train

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "hf",
    "inference",
    "models",
    "nn",
    "plot",
    "rules",
    "tasks",
    "testing",
    "train",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"fastweights.{name}")
    raise AttributeError(f"module 'fastweights' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
