"""Answers sampled from the policy, with what a policy gradient needs to know of them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from fastweights import inference
from fastweights.inference.prompt import bucket
from fastweights.models.decoder import Decoder
from fastweights.tasks.text_tokens import Tokenizer


class Rollouts(NamedTuple):
    """Answers to B inputs, as tokens; NumPy arrays on the host."""

    inputs: np.ndarray  # [B, P] int32, right-padded with 0
    input_lengths: np.ndarray  # [B] int32
    answers: np.ndarray  # [B, A] int32, the stop token included, then 0
    answer_lengths: np.ndarray  # [B] int32
    log_probs: np.ndarray  # [B, A] float32, of the distribution drawn from; 0 beyond the answer
    texts: list[str]  # [B], without the stop token


class Sampler(NamedTuple):
    """How a policy answers.

    Attributes:
        tokenizer: between text and tokens.
        stop_tokens: any of them ends an answer.
        max_new_tokens: the most tokens of an answer.
        temperature: of the sampling, more than 0.
    """

    tokenizer: Tokenizer
    stop_tokens: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 1.0

    def __call__(self, model: Decoder, texts: Sequence[str], times: int, seed: int) -> Rollouts:
        """Answer every text `times` times, the answers to one text next to each other.

        Each text is read once: its answers share what the model has read, keys, values and fast
        weights, until they part. Numbers of rows are rounded up to powers of two, 16 at
        least, so that few programs are compiled.

        Args:
            model: the policy.
            texts: what to answer.
            times: answers to each.
            seed: of the sampling.
        """
        rows = max(16, power_of_two(len(texts)))
        inputs, lengths = token_rows([self.tokenizer.encode(text) for text in texts], rows)
        room = inputs.shape[1] + self.max_new_tokens
        state = inference.prefill(model, inputs, lengths, max_length=room)
        out = inference.generate(
            model,
            state=inference.fork(state, times),
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            stop_tokens=self.stop_tokens,
            key=jax.random.key(seed),
        )
        count = len(texts) * times
        answers, sizes, log_probs = (np.asarray(x)[:count] for x in out)
        return Rollouts(
            np.repeat(inputs[: len(texts)], times, 0),
            np.repeat(lengths[: len(texts)], times),
            answers,
            sizes,
            log_probs,
            [self.text(row[:size]) for row, size in zip(answers, sizes, strict=True)],
        )

    def text(self, answer: np.ndarray) -> str:
        """The text of an answer's tokens, without the stop token."""
        ended = len(answer) > 0 and int(answer[-1]) in self.stop_tokens
        return self.tokenizer.decode(answer[:-1] if ended else answer)


def token_rows(texts: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts of tokens as rows of one width, and copies of the first to make up the number of rows.

    Returns:
        `[rows, P]` int32, right-padded with 0, and lengths `[rows]` int32; P is rounded up, so that
        few programs are compiled.
    """
    lengths = np.array([len(x) for x in texts], np.int32)
    found = np.zeros((rows, bucket(int(lengths.max()))), np.int32)
    for row, x in zip(found, texts, strict=False):
        row[: len(x)] = x
    found[len(texts) :] = found[:1]
    return found, np.concatenate([lengths, np.full(rows - len(texts), lengths[0], np.int32)])


def power_of_two(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()
