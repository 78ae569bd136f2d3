"""Needle-in-a-haystack accuracy of a language model, by kind, length in tokens, and depth.

    from fastweights.needle_eval import NeedleEval, evaluate, summary
    found = evaluate(load("PATH"), NeedleEval(lengths=(1024, 4096)))
    print(summary(found))

`tasks.needles` makes the questions; kinds and score follow RULER (Hsieh et al. 2024, arXiv
2404.06654). On the command line: `fastweights eval --task needles --model PATH`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastweights import inference
from fastweights.errors import ConfigError
from fastweights.hf.chat_template import read as read_template
from fastweights.inference.templates import Template, choose
from fastweights.pretrained import Pretrained
from fastweights.tasks.needles import (
    ANSWER,
    FIRST,
    KINDS,
    Kind,
    Needle,
    Needles,
    Score,
    fitted,
    score,
)
from fastweights.tasks.text_tokens import Tokenizer

#: questions of a length before those of the next one: no two lengths share one
APART = 10**5


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleEval:
    """Options of an evaluation.

    Attributes:
        kinds: of the questions: single, multi-key, multi-value, tracking.
        lengths: of the prompts, in tokens of the model's tokenizer.
        questions: of each kind and length.
        keys: keys in the text, for multi-key; chains, for tracking.
        values: values of the key asked for, for multi-value.
        hops: links of each chain after its first, for tracking.
        digits: of each number.
        seed: of the questions.
        max_new_tokens: the most tokens of an answer, greedy.
        batch: questions read at a time.
        piece: tokens of each prompt read at a time; attention's memory grows with it.
        depths: parts of the text that the scores by depth tell apart.
        chat: put a question as a turn of a chat, in ChatML or Llama 3's form.
    """

    kinds: tuple[Kind, ...] = KINDS
    lengths: tuple[int, ...] = (512, 1024, 2048)
    questions: int = 20
    keys: int = 4
    values: int = 4
    hops: int = 2
    digits: int = 5
    seed: int = 0
    max_new_tokens: int = 64
    batch: int = 8
    piece: int = 512
    depths: int = 5
    chat: bool = False

    def check(self) -> None:
        """Check all of it before a model is loaded.

        Raises:
            ConfigError: with every problem found.
        """
        counts = ("questions", "max_new_tokens", "batch", "piece", "depths")
        found = [
            f"{name} is {getattr(self, name)}; it must be at least 1"
            for name in counts
            if getattr(self, name) < 1
        ]
        found += self.needles("single").faults()
        if not self.kinds or not {*self.kinds} <= {*KINDS}:
            found.append(f"kinds is {self.kinds}; it needs some of {', '.join(KINDS)}")
        if not self.lengths or min(self.lengths) < 1:
            found.append(f"lengths is {self.lengths}; it needs numbers of at least 1")
        if self.questions > APART:
            found.append(f"questions is {self.questions}; it must be at most {APART}")
        if found:
            raise ConfigError("these needles cannot be asked for: " + "; ".join(found))

    def needles(self, kind: Kind) -> Needles:
        """The questions of a kind."""
        sizes = {name: getattr(self, name) for name in ("keys", "values", "hops", "digits", "seed")}
        return Needles(kind, **sizes)


class Answered(NamedTuple):
    """A question and what a model wrote."""

    length: int  # asked for, in tokens
    kind: Kind
    number: int  # of the question
    tokens: int  # of the prompt
    needle: Needle
    output: str
    score: Score


def evaluate(
    pretrained: Pretrained,
    settings: NeedleEval,
    haystack: str | None = None,
    report: Callable[[str], Any] = lambda line: None,
) -> list[Answered]:
    """Ask a model every question.

    Each prompt is read in pieces from the empty state, in-place layers learn from it, and the
    answer is greedy. A batch has questions of one kind and length, of which rows may differ.

    Args:
        pretrained: the model and its tokenizer.
        settings: which questions.
        haystack: text to hide the needles in; None for made-up sentences.
        report: gets a line for every kind and length.

    Raises:
        ConfigError: settings that cannot be, a length that needles do not fit in, a haystack that
            is too short, an answer longer than `max_new_tokens`, or a tokenizer without the tokens
            of a chat.
    """
    settings.check()
    template = chat_template(pretrained.tokenizer) if settings.chat else None
    # all questions are made before the first is asked: what cannot be is known at once
    cells: dict[tuple[int, Kind], list[Needle]] = {
        (length, kind): questions(pretrained.tokenizer, settings, kind, length, template, haystack)
        for length in settings.lengths
        for kind in settings.kinds
    }
    found: list[Answered] = []
    for (length, kind), needles in cells.items():
        cell = answers(pretrained, settings, kind, length, template, needles)
        recall = mean_and_error([each.score.recall for each in cell])
        report(f"{length} tokens, {kind}: recall {written(*recall)}")
        found += cell
    return found


def chat_template(tokenizer: Tokenizer) -> Template:
    """The form of a chat: the checkpoint's own, or by the special tokens of its tokenizer.

    Raises:
        ConfigError: it has no template, and neither the tokens of ChatML nor those of Llama 3.
    """
    own = read_template(tokenizer.folder, tokenizer.added) if tokenizer.folder else None
    template = own or choose(tokenizer.added)
    if not template.stops:
        raise ConfigError(
            "this tokenizer has neither the special tokens of ChatML nor those of Llama 3",
            where="--chat",
            cause="the model of a run from scratch, or a base model",
            next="leave --chat out: the question and the beginning of its answer are one text",
        )
    return template


def encoded(needle: Needle, tokenizer: Tokenizer, template: Template | None) -> list[int]:
    """Tokens of a prompt; in a chat the beginning of the answer begins the answer's turn."""
    if template is None:
        return [*tokenizer.opening, *tokenizer.encode(needle.prompt).tolist()]
    question, beginning = needle.prompt.rsplit(ANSWER, 1)
    return tokenizer.encode(template.turn(question, first=True) + beginning).tolist()


def questions(
    tokenizer: Tokenizer,
    settings: NeedleEval,
    kind: Kind,
    length: int,
    template: Template | None,
    haystack: str | None,
) -> list[Needle]:
    """The questions of one kind and length; errors are those of `evaluate`."""
    task, first = settings.needles(kind), FIRST["evaluation"] + APART * length
    count = lambda needle: len(encoded(needle, tokenizer, template))
    needles = [fitted(task, first + i, length, count, haystack) for i in range(settings.questions)]
    longest = max(len(tokenizer.encode(f" {needle.answer}")) for needle in needles)
    if longest > settings.max_new_tokens:
        raise ConfigError(
            f"the longest answer of kind {kind!r} has {longest} tokens, max_new_tokens is "
            f"{settings.max_new_tokens}",
            where="--max-new-tokens",
            next=f"--max-new-tokens {longest + 16}",
        )
    return needles


def answers(
    pretrained: Pretrained,
    settings: NeedleEval,
    kind: Kind,
    length: int,
    template: Template | None,
    needles: Sequence[Needle],
) -> list[Answered]:
    """The questions of one kind and length with a model's answers, a batch at a time."""
    model, tokenizer, stops = pretrained
    if template is not None:
        stops = (*stops, *(tokenizer.added[text] for text in template.stops))
    prompts = [encoded(needle, tokenizer, template) for needle in needles]
    outputs: list[str] = []
    for start in range(0, len(prompts), settings.batch):
        some = prompts[start : start + settings.batch]
        # the last batch is filled up with its last prompt: a program is compiled once a length
        rows = [*some, *[some[-1]] * (settings.batch - len(some))]
        tokens = np.zeros((len(rows), length), np.int32)
        for row, prompt in zip(tokens, rows, strict=True):
            row[: len(prompt)] = prompt
        state = inference.prefill(
            model,
            tokens,
            np.array([len(prompt) for prompt in rows]),
            max_length=length + settings.max_new_tokens,
            piece=settings.piece,
        )
        out, _ = inference.decode(
            model, state, max_new_tokens=settings.max_new_tokens, stop_tokens=stops
        )
        new = [
            row[:n] for row, n in zip(np.asarray(out.tokens), np.asarray(out.lengths), strict=True)
        ]
        outputs += [tokenizer.decode(row) for row in new[: len(some)]]
    return [
        Answered(length, kind, i, len(prompt), needle, output, score(needle, output))
        for i, (needle, prompt, output) in enumerate(zip(needles, prompts, outputs, strict=True))
    ]


def summary(found: Sequence[Answered], depths: int = 5) -> dict[str, Any]:
    """Means and standard errors over questions, as JSON data.

    Args:
        found: of `evaluate`.
        depths: parts of the text.

    Returns:
        "all"; "by_kind", "by_length"; "by_depth" of all; and "cells", one for each kind and length.
        "recall" is the share of a question's values in its answer. "exact" is 1 for an answer with
        all values and no others; see `tasks.needles.score`. The standard error of one
        question is null.
    """
    of = lambda **wanted: [
        each for each in found if all(getattr(each, k) == v for k, v in wanted.items())
    ]
    kinds = list(dict.fromkeys(each.kind for each in found))
    lengths = list(dict.fromkeys(each.length for each in found))
    return {
        "all": means(found),
        "by_kind": {kind: means(of(kind=kind)) for kind in kinds},
        "by_length": {str(length): means(of(length=length)) for length in lengths},
        "by_depth": by_depth(found, depths),
        "cells": [
            {
                "length": length,
                "kind": kind,
                **means(of(kind=kind, length=length)),
                "by_depth": by_depth(of(kind=kind, length=length), depths),
            }
            for length in lengths
            for kind in kinds
            if of(kind=kind, length=length)
        ],
    }


def means(found: Sequence[Answered]) -> dict[str, Any]:
    """Mean scores of some questions."""
    recall, recall_error = mean_and_error([each.score.recall for each in found])
    exact, exact_error = mean_and_error([float(each.score.exact) for each in found])
    return {
        "questions": len(found),
        "prompt_tokens": float(np.mean([each.tokens for each in found])),
        "recall": recall,
        "recall_error": recall_error,
        "exact": exact,
        "exact_error": exact_error,
    }


def by_depth(found: Sequence[Answered], depths: int) -> list[dict[str, Any]]:
    """Recall of the values that were said in each part of the text, from its start to its end.

    A question counts in the parts where one of its values was said, with the share found of those.
    """
    parts: list[list[float]] = [[] for _ in range(depths)]
    for each in found:
        hits: dict[int, list[bool]] = {}
        for depth, hit in zip(each.needle.depths, each.score.found, strict=True):
            hits.setdefault(min(int(depth * depths), depths - 1), []).append(hit)
        for part, some in hits.items():
            parts[part].append(sum(some) / len(some))
    rows = []
    for part, shares in enumerate(parts):
        recall, error = mean_and_error(shares) if shares else (None, None)
        edges = {"from": part / depths, "to": (part + 1) / depths, "questions": len(shares)}
        rows.append(edges | {"recall": recall, "recall_error": error})
    return rows


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, None for a single value."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return float(np.mean(values)), error


def written(mean: float, error: float | None) -> str:
    """A mean with its error."""
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"
