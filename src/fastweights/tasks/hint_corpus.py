"""What the small world's base model is trained on: hints and what they stand for, and back.

A document is a hint and some problems with their answers (`programs`, `conventions`, `star_graph`),
or solved problems and the hint that explains them, which makes the same model a reflector. The
language of the hints is all there; which rule will be hidden in a task is not.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.models.decoder_config import problems as decoder_problems
from fastweights.tasks import conventions, programs, star_graph
from fastweights.tasks.base import Data
from fastweights.tasks.haystack import Draw
from fastweights.tasks.hints import SPLITS, Document
from fastweights.tasks.language import mean
from fastweights.tasks.packing import pack
from fastweights.tasks.text_tokens import Bytes

#: name of a kind -> makes one document
KINDS: dict[str, Callable[[Draw], Document]] = {
    "programs": programs.random_document,
    "conventions": conventions.random_document,
    "star_graph": star_graph.random_document,
    "programs_inverse": programs.inverse_document,
    "conventions_inverse": conventions.inverse_document,
    "star_graph_inverse": star_graph.inverse_document,
}
#: ends every answer
END = "\n"


@dataclasses.dataclass(frozen=True)
class HintCorpus:
    """Documents of every kind, packed in rows, as bytes; only answers have a loss.

    Attributes:
        weights: documents of each kind of `KINDS`, in its order, in every `sum(weights)`.
        examples: documents of the training split.
        held_out: documents of each of the others.
        length: tokens of a row.
        seed: of the documents.
    """

    weights: tuple[int, ...] = (6, 5, 7, 2, 1, 1)
    examples: int = 300_000
    held_out: int = 2_000
    length: int = 128
    seed: int = 0

    select_by: ClassVar[str] = "loss"
    model_config: ClassVar[type | tuple[type, ...]] = DecoderConfig

    def problems(self, model: DecoderConfig) -> list[str]:
        """See `Task.problems`."""
        found = [f"model.{text}" for text in decoder_problems(model)]
        if len(self.weights) != len(KINDS) or min(self.weights, default=0) < 0:
            found.append(f"task.weights is {self.weights}; it needs {len(KINDS)} numbers >= 0")
        elif not sum(self.weights):
            found.append("task.weights are all 0; one of them must not be")
        counts = {"examples": self.examples, "held_out": self.held_out}
        found += [f"task.{k} is {v}; it must be at least 1" for k, v in counts.items() if v < 1]
        if not 2 <= self.length <= model.max_length:
            found.append(
                f"task.length is {self.length}; it must be from 2 to model.max_length, "
                f"{model.max_length}"
            )
        if model.vocab < Bytes.vocab:
            found.append(f"model.vocab is {model.vocab}; bytes need at least {Bytes.vocab}")
        return found

    @property
    def tokens(self) -> Bytes:
        """The tokenizer."""
        return Bytes()

    def documents(self, split: str) -> list[Document]:
        """The documents of a split."""
        makers = [
            make
            for make, times in zip(KINDS.values(), self.weights, strict=True)
            for _ in range(times)
        ]
        count = self.examples if split == "train" else self.held_out
        draw = Draw(4, SPLITS[split], self.seed)
        return [makers[draw.below(len(makers))](draw) for _ in range(count)]

    def load(self, split: str, data: Data) -> dict[str, np.ndarray]:
        """See `Task.load`: `inputs`, `target` and `segment_ids`, int32 `[N, length]`."""
        tokens, asked = [], []
        for document in self.documents(split):
            parts = [(text, i == 1) for turn in document for i, text in enumerate(turn)]
            texts = [self.tokens.encode(text + END if mine else text) for text, mine in parts]
            tokens.append(np.concatenate(texts))
            asked.append(np.repeat([mine for _, mine in parts], [len(x) for x in texts]))
        return pack(tokens, self.length, asked)

    def build(self, model: DecoderConfig, rngs: nnx.Rngs) -> Decoder:
        """See `Task.build`."""
        return Decoder(model, rngs=rngs)

    def measure(self, model: Any, batch: dict[str, Array]) -> dict[str, Array]:
        """See `Task.measure`: "loss" in nats, the mean over the asked tokens of each row."""
        features = model.features(batch["inputs"], batch["segment_ids"])
        losses = model.head_losses(features, batch["target"])
        return {"loss": mean(losses, (batch["target"] >= 0).astype(jnp.float32))}
