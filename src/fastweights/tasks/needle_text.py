"""Needles in a haystack as a training task: a question and its answer a row, see `needles`."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from fastweights.errors import ConfigError
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.models.decoder_config import problems as decoder_problems
from fastweights.nn.choices import not_a_choice
from fastweights.tasks.base import Data
from fastweights.tasks.language import mean
from fastweights.tasks.language_data import find_files, read_text
from fastweights.tasks.needles import (
    FIRST,
    KINDS,
    Asked,
    Kind,
    Needle,
    Needles,
    encoded,
    fitted,
    rows,
)
from fastweights.tasks.text_tokens import Tokenizer, load_tokenizer, tokenizer_faults


@dataclasses.dataclass(frozen=True)
class NeedleText:
    """Questions on facts hidden in a text, with their answers; the loss is that of the answers.

    Attributes:
        kinds: of the questions, in turn.
        length: T, tokens of a row: a text as long as fits, its answer, and the separator if the
            tokenizer has one.
        examples: rows of the training split.
        held_out: rows of each of the others.
        keys: keys in the text, for "multi-key"; chains, for "tracking".
        values: values of the key asked for, for "multi-value".
        hops: links of each chain after its first, for "tracking".
        digits: of each number.
        files: glob of UTF-8 files in `data.dir`, in turn the haystack; None for made-up sentences.
        tokenizer: "bytes", or the path of a `tokenizer.json` or of the folder it is in.
        separator: special token of that `tokenizer.json` that ends an answer; bytes have their own.
        asked: tokens with a loss: those of the "answer", or of the whole "text".
        seed: of the questions.
    """

    kinds: tuple[Kind, ...] = KINDS
    length: int = 512
    examples: int = 20_000
    held_out: int = 256
    keys: int = 4
    values: int = 4
    hops: int = 2
    digits: int = 5
    files: str | None = None
    tokenizer: str = "bytes"
    separator: str | None = None
    asked: Asked = "answer"
    seed: int = 0

    select_by: ClassVar[str] = "answer_loss"
    model_config: ClassVar[type | tuple[type, ...]] = DecoderConfig

    def problems(self, model: DecoderConfig) -> list[str]:
        """See `Task.problems`; a `tokenizer.json` is looked at if it is there."""
        found = [f"model.{text}" for text in decoder_problems(model)]
        found += not_a_choice(self, "task.")
        if not self.kinds or not {*self.kinds} <= {*KINDS}:
            found.append(f"task.kinds is {self.kinds}; it needs some of {', '.join(KINDS)}")
        counts = {"examples": self.examples, "held_out": self.held_out}
        found += [f"task.{k} is {v}; it must be at least 1" for k, v in counts.items() if v < 1]
        if self.examples > FIRST["validation"] or self.held_out > FIRST["validation"]:
            found.append(f"task.examples and task.held_out must be at most {FIRST['validation']}")
        found += [f"task.{text}" for text in self.questions("single").faults()]
        if not 2 <= self.length <= model.max_length:
            found.append(
                f"task.length is {self.length}; it must be from 2 to model.max_length, "
                f"{model.max_length}"
            )
        return found + tokenizer_faults(self.tokenizer, self.separator, model.vocab)

    @property
    def tokens(self) -> Tokenizer:
        """The tokenizer."""
        return load_tokenizer(self.tokenizer, self.separator)

    def questions(self, kind: Kind) -> Needles:
        """The questions of a kind."""
        return Needles(
            kind,
            keys=self.keys,
            values=self.values,
            hops=self.hops,
            digits=self.digits,
            seed=self.seed,
        )

    def needles(self, split: str, data: Data) -> list[Needle]:
        """The questions of a split.

        Raises:
            ConfigError: there is no such split, or a row is too short for its needles.
            DataError: no file matches `files`, or one is not UTF-8.
        """
        if split not in ("train", "validation", "test"):
            raise ConfigError(f"there is no split {split!r}", next="train, validation or test")
        texts: list[str | None] = [None]
        if self.files is not None:
            texts = [read_text(file) for file in find_files(data.folder, self.files)]
        tokenizer = self.tokens
        count = lambda needle: sum(map(len, encoded(needle, tokenizer)))
        made = []
        for i in range(self.examples if split == "train" else self.held_out):
            task, index = self.questions(self.kinds[i % len(self.kinds)]), FIRST[split] + i
            text = texts[i // len(self.kinds) % len(texts)]
            made.append(fitted(task, index, self.length + 1, count, text))
        return made

    def load(self, split: str, data: Data) -> dict[str, np.ndarray]:
        """See `Task.load`; the columns are those of `needles.rows`."""
        return rows(self.needles(split, data), self.tokens, self.length, self.asked)

    def build(self, model: DecoderConfig, rngs: nnx.Rngs) -> Decoder:
        """See `Task.build`."""
        return Decoder(model, rngs=rngs)

    def measure(self, model: Any, batch: dict[str, Array]) -> dict[str, Array]:
        """See `Task.measure`.

        "answer_loss", the mean over the tokens of the answer in nats; "error", 1 where one of them
        is not the likeliest, so that a greedy answer would be another one, else 0; "loss", the
        answer's or that of the whole text, as `asked` says.
        """
        features = model.features(batch["inputs"])
        there, at = batch["places"] >= 0, jnp.maximum(batch["places"], 0)
        logits = model.logits(jnp.take_along_axis(features, at[..., None], 1))
        wanted = jnp.take_along_axis(batch["target"], at, 1)
        right = jnp.take_along_axis(logits, wanted[..., None], -1)[..., 0]
        answer = mean(jnp.where(there, jax.nn.logsumexp(logits, -1) - right, 0.0), there * 1.0)
        wrong = jnp.any(there & (jnp.argmax(logits, -1) != wanted), 1)
        loss = answer
        if self.asked == "text":
            losses = model.head_losses(features, batch["target"])
            loss = mean(losses, (batch["target"] >= 0) * 1.0)
        return {"loss": loss, "answer_loss": answer, "error": wrong * 1.0}
