"""Associative retrieval (Ba et al. 2016, §4.1): which digit came with the letter asked for?

K letter-digit pairs, two question marks and one of the letters: `c9k8j3f1??c` -> 9.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from flax import nnx
from jax import Array

from fastweights.models.retrieval import RetrievalModel, RetrievalNet
from fastweights.tasks import retrieval_data
from fastweights.tasks.base import Data, cell_problems, classification, too_small
from fastweights.tasks.retrieval_strings import VOCABULARY, chance_error

DIGITS = 10


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """The task with K = `pairs`; the paper's examples have four."""

    pairs: int = 4

    select_by: ClassVar[str] = "error"
    model_config: ClassVar[type | tuple[type, ...]] = RetrievalModel

    def problems(self, model: RetrievalModel) -> list[str]:
        """See `Task.problems`."""
        found = too_small(model, ("hidden", "embed", "expand", "head")) + cell_problems(model)
        if not 1 <= self.pairs <= 26:
            found.append(f"task.pairs is {self.pairs}; it must be from 1 to 26, one letter each")
        return found

    @property
    def chance(self) -> float:
        """Error of the best net that knows only which digits were there."""
        return chance_error(self.pairs)

    def load(self, split: str, data: Data) -> dict[str, np.ndarray]:
        """See `Task.load`: `inputs` int32 `[N, 2K+3]`, `target` int32 `[N]`."""
        return retrieval_data.load(split, data_dir=data.folder, pairs=self.pairs)

    def build(self, model: RetrievalModel, rngs: nnx.Rngs) -> RetrievalNet:
        """See `Task.build`."""
        return RetrievalNet(model, len(VOCABULARY), DIGITS, rngs=rngs)

    def measure(self, model: RetrievalNet, batch: dict[str, Array]) -> dict[str, Array]:
        """See `Task.measure`."""
        return classification(model(batch["inputs"]), batch["target"])
