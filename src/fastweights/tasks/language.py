"""Language modelling: the next token of text files, with rows of one length and chunked loss."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from fastweights.errors import DataError
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_config import DecoderConfig
from fastweights.models.decoder_config import problems as decoder_problems
from fastweights.tasks.base import Data
from fastweights.tasks.language_data import Document, split_documents
from fastweights.tasks.packing import pack, whole_rows
from fastweights.tasks.text_tokens import Tokenizer, load_tokenizer, tokenizer_faults


@dataclasses.dataclass(frozen=True)
class Language:
    """Next-token prediction on the UTF-8 text files of `data.dir`, a document each.

    Attributes:
        files: which files, a glob relative to `data.dir`.
        length: T, tokens in a row.
        tokenizer: "bytes", or the path of a `tokenizer.json` or of the folder it is in.
        separator: special token of that `tokenizer.json` put around documents; bytes have their
            own.
        validation: names of files held out for validation, relative to `data.dir`.
        test: names of files held out for the test split.
        holdout: with no names in either, the share of every file that is held out, at its end.
        short: what becomes of text that fills no row: "pack" puts several pieces in a row, with
            segment ids; "drop" leaves it out, and rows need no segment ids, which is faster.
        block: tokens of each sequence whose logits exist at once.
        drift: also score how far the in-place layers move while they read.
        passed: state passing, the share from 0 to 1 of training rows that start from the final fast
            weights of another row: of every second row of a batch, in the in-place layers. These
            layers then learn to read a state of more writes than a row has. Validation and test
            rows start from the slow weights.
    """

    files: str = "*.txt"
    length: int = 1024
    tokenizer: str = "bytes"
    separator: str | None = None
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    holdout: float = 0.1
    short: Literal["pack", "drop"] = "pack"
    block: int = 512
    drift: bool = True
    passed: float = 0.0

    select_by: ClassVar[str] = "loss"
    model_config: ClassVar[type | tuple[type, ...]] = DecoderConfig

    def problems(self, model: DecoderConfig) -> list[str]:
        """See `Task.problems`; a `tokenizer.json` is looked at if it is there."""
        found = [f"model.{text}" for text in decoder_problems(model)]
        if self.length < 2:
            found.append(f"task.length is {self.length}; it must be at least 2")
        if self.length > model.max_length:
            found.append(
                f"task.length is {self.length}; it must be at most model.max_length, "
                f"{model.max_length}"
            )
        if not 0 < self.holdout < 1:
            found.append(f"task.holdout is {self.holdout}; it must be between 0 and 1")
        if self.block < 1:
            found.append(f"task.block is {self.block}; it must be at least 1")
        if not 0 <= self.passed <= 1:
            found.append(f"task.passed is {self.passed}; it must be from 0 to 1")
        elif self.passed and not model.ttt_layers:
            found.append(f"task.passed is {self.passed}, and the model has no in-place layer")
        return found + tokenizer_faults(self.tokenizer, self.separator, model.vocab)

    @property
    def tokens(self) -> Tokenizer:
        """The tokenizer."""
        return load_tokenizer(self.tokenizer, self.separator)

    def documents(self, split: str, data: Data) -> list[Document]:
        """The documents of a split; errors are those of `language_data.split_documents`."""
        return split_documents(
            data.folder,
            self.files,
            split,
            self.tokens,
            validation=self.validation,
            test=self.test,
            holdout=self.holdout,
        )

    def load(self, split: str, data: Data) -> dict[str, np.ndarray]:
        """See `Task.load`: `inputs` and `target` int32 `[N, T]`, and `segment_ids` when packed.

        With state passing the training split has `passed [N]` bool.
        """
        table = self._rows(split, data)
        if self.passed and split == "train":
            draw = np.random.default_rng(0).random(len(table["target"]))
            table["passed"] = draw < self.passed
        return table

    def _rows(self, split: str, data: Data) -> dict[str, np.ndarray]:
        documents = self.documents(split, data)
        tokens = [document.tokens for document in documents]
        if self.short == "pack":
            return pack(tokens, self.length)
        table = whole_rows(tokens, self.length)[0]
        if not len(table["target"]):
            longest = max(documents, key=lambda document: len(document.tokens))
            raise DataError(
                f"no document of the {split} split fills a row of {self.length} tokens",
                where=data.folder / longest.name,
                cause=f"the longest one, that file, has {len(longest.tokens)} tokens, and a row "
                f"takes {self.length + 1}",
                next="a smaller --task.length, longer files, or --task.short pack",
            )
        return table

    def build(self, model: DecoderConfig, rngs: nnx.Rngs) -> Decoder:
        """See `Task.build`."""
        return Decoder(model, rngs=rngs)

    def losses(self, model: Any, batch: dict[str, Array]) -> Array:
        """Loss of every token of a batch in nats, `[B, T]` float32, 0 where there is no target."""
        return model.losses(batch["inputs"], batch["target"], batch.get("segment_ids"), self.block)

    def measure(self, model: Any, batch: dict[str, Array]) -> dict[str, Array]:
        """See `Task.measure`: means over the tokens of each row that have a target.

        "loss" in nats; "loss_end" the same over the second half of the row, where there is context
        to use (over the whole row if a packed row ends before); "bits_per_byte" for bytes, with the
        separators counted as bytes; "drift_i" of each in-place layer i, the mean of |ΔW z| / |W z|
        over all tokens of the batch, for every row the same. Packed rows have as "weight" the share
        of their tokens that have a target, so that the mean loss of rows is that of tokens.
        """
        passed = {"passed": batch["passed"]} if "passed" in batch else {}
        ids = batch.get("segment_ids")
        features, drift = model.features(batch["inputs"], ids, stats=True, **passed)
        losses = model.head_losses(features, batch["target"], self.block)
        there = (batch["target"] >= 0).astype(jnp.float32)
        loss = mean(losses, there)
        half = losses.shape[1] // 2
        end = jnp.sum(there[:, half:], 1)
        scores = {
            "loss": loss,
            "loss_end": jnp.where(end > 0, mean(losses[:, half:], there[:, half:]), loss),
        }
        if self.tokenizer == "bytes":
            scores["bits_per_byte"] = loss / math.log(2)
        if "segment_ids" in batch:
            scores["weight"] = jnp.mean(there, 1)
        if self.drift:
            drift = jax.lax.stop_gradient(drift)
            for place, layer in enumerate(model.config.ttt_layers):
                scores[f"drift_{layer}"] = jnp.full(loss.shape, drift[place])
        return scores


def mean(losses: Array, there: Array) -> Array:
    """Mean over the tokens that are there: `[B, T]` twice -> `[B]`, 0 for none."""
    return jnp.sum(losses * there, 1) / jnp.maximum(jnp.sum(there, 1), 1.0)
