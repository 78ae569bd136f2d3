"""MNIST through 24 glimpses (Ba et al. 2016, §4.2)."""

import dataclasses
from typing import ClassVar

import numpy as np
from flax import nnx
from jax import Array

from fastweights.models.convnet import ConvNet, ConvNetModel
from fastweights.models.glimpse import GlimpseModel, GlimpseNet
from fastweights.tasks.base import Data, cell_problems, classification, too_small
from fastweights.tasks.mnist_data import load_mnist

DIGITS = 10


@dataclasses.dataclass(frozen=True)
class Glimpses:
    """Digits of MNIST; a model looks at one 7 x 7 glimpse after the other."""

    select_by: ClassVar[str] = "error"
    model_config: ClassVar[type | tuple[type, ...]] = (GlimpseModel, ConvNetModel)

    def problems(self, model: GlimpseModel | ConvNetModel) -> list[str]:
        """See `Task.problems`."""
        if isinstance(model, ConvNetModel):
            return too_small(model, ("features",))
        return too_small(model, ("hidden", "embed", "expand", "head")) + cell_problems(model)

    @property
    def chance(self) -> float:
        """Error of always naming one digit, as good as blind on ten classes."""
        return 1 - 1 / DIGITS

    def load(self, split: str, data: Data) -> dict[str, np.ndarray]:
        """See `Task.load`: `inputs` uint8 `[N, 28, 28]`, `target` int32 `[N]`."""
        return load_mnist(split, data_dir=data.folder, manual_dir=data.manual_dir)

    def build(self, model: GlimpseModel | ConvNetModel, rngs: nnx.Rngs) -> GlimpseNet | ConvNet:
        """See `Task.build`."""
        if isinstance(model, ConvNetModel):
            return ConvNet(model, DIGITS, rngs=rngs)
        return GlimpseNet(model, DIGITS, rngs=rngs)

    def measure(self, model: GlimpseNet | ConvNet, batch: dict[str, Array]) -> dict[str, Array]:
        """See `Task.measure`."""
        return classification(model(batch["inputs"]), batch["target"])
