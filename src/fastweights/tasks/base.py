"""What training needs of a task: its data, its model, its loss and the score to select by."""

import dataclasses
import os
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from fastweights.rules import Rule


@dataclasses.dataclass(frozen=True)
class Data:
    """Where data sets are.

    Attributes:
        dir: folder of prepared TFDS data sets; `$TFDS_DATA_DIR` or `~/tensorflow_datasets` if None.
        manual_dir: folder with original files to prepare a data set from, where there is no
        network.
    """

    dir: str | None = None
    manual_dir: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of prepared data sets."""
        return Path(
            self.dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        ).expanduser()


class Task(Protocol):
    """A task: hyper-parameters as fields of a frozen dataclass, and these methods."""

    #: class, or classes, of the model configs the task can build
    model_config: ClassVar[type | tuple[type, ...]]
    #: the score of the validation split by which the best checkpoint is chosen; less is better
    select_by: ClassVar[str]

    def problems(self, model: Any) -> list[str]:
        """What cannot work in this task with that model config, in words."""
        ...

    def load(self, split: str, data: Data) -> dict[str, np.ndarray]:
        """One split in memory: name -> array `[N, ...]`; splits are train, validation and test."""
        ...

    def build(self, model: Any, rngs: nnx.Rngs) -> nnx.Module:
        """A freshly initialised model."""
        ...

    def measure(self, model: Any, batch: dict[str, Array]) -> dict[str, Array]:
        """Scores of each example, `[B]` each; "loss" and `select_by` among them.

        "weight", where it is given, is no score: it says how much each example counts in the means
        of all scores, in training as in evaluation. Without it all count the same.
        """
        ...


def classification(logits: Array, target: Array) -> dict[str, Array]:
    """Cross-entropy in nats and error (0 or 1) of each example: `[B, classes]`, `[B]` -> `[B]`."""
    return {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, target),
        "error": (jnp.argmax(logits, -1) != target).astype(jnp.float32),
    }


def too_small(config: Any, names: tuple[str, ...]) -> list[str]:
    """A complaint for every named size of a config that is not positive."""
    return [
        f"model.{name} is {getattr(config, name)}; it must be at least 1"
        for name in names
        if getattr(config, name) < 1
    ]


def cell_problems(config: Any) -> list[str]:
    """What cannot work in a config with a recurrent cell: its name, sizes and rule together."""
    found = rule_problems(config.rule)
    if config.cell == "associative-lstm" and config.hidden % 2:
        found.append(f"model.hidden is {config.hidden}; an associative LSTM needs an even number")
    return found


def rule_problems(rule: Rule) -> list[str]:
    """A complaint for every hyper-parameter of a rule that is out of its range."""
    if not rule.slots:
        name = type(rule).__name__
        return [f"model.rule is {name}, which declares no slots, so no cell can feed it"]
    return [f"model.rule.{text}" for text in rule.problems()]
