"""Expressions of Multi-PIE faces through 24 glimpses (Ba et al. 2016, §4.3)."""

import dataclasses
from typing import ClassVar

import numpy as np
from flax import nnx
from jax import Array

from fastweights.models.convnet import ConvNet, ConvNetModel
from fastweights.models.glimpse import GlimpseModel, GlimpseNet
from fastweights.tasks.base import Data, cell_problems, classification, too_small
from fastweights.tasks.faces_data import load_faces
from fastweights.tasks.faces_files import EXPRESSIONS

PATCH = 12


@dataclasses.dataclass(frozen=True)
class Faces:
    """Which of six expressions a face has; a model looks at one 12 x 12 glimpse after the other.

    The licensed data must be the user's own: `fastweights.tasks.faces_files` says what goes where.
    The paper reports accuracies, 1 - "error", with 200 units; its ConvNet has two layers.
    """

    select_by: ClassVar[str] = "error"
    model_config: ClassVar[type | tuple[type, ...]] = (GlimpseModel, ConvNetModel)

    def problems(self, model: GlimpseModel | ConvNetModel) -> list[str]:
        """See `Task.problems`."""
        if isinstance(model, ConvNetModel):
            return too_small(model, ("features",))
        return too_small(model, ("hidden", "embed", "expand", "head")) + cell_problems(model)

    def load(self, split: str, data: Data) -> dict[str, np.ndarray]:
        """See `Task.load`: `inputs` uint8 `[N, 48, 48]`, `target` int32 `[N]`."""
        return load_faces(split, data_dir=data.folder, manual_dir=data.manual_dir)

    def build(self, model: GlimpseModel | ConvNetModel, rngs: nnx.Rngs) -> GlimpseNet | ConvNet:
        """See `Task.build`."""
        if isinstance(model, ConvNetModel):
            return ConvNet(model, len(EXPRESSIONS), patch=PATCH, merge=(4,), rngs=rngs)
        return GlimpseNet(model, len(EXPRESSIONS), patch=PATCH, rngs=rngs)

    def measure(self, model: GlimpseNet | ConvNet, batch: dict[str, Array]) -> dict[str, Array]:
        """See `Task.measure`."""
        return classification(model(batch["inputs"]), batch["target"])
