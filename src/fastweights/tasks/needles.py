"""Needles in a haystack, made from a seed: facts hidden in a long text, and a question at its end.

The kinds are those of RULER (Hsieh et al. 2024, arXiv 2404.06654); the wording is our own.

    single          one key with one value
    multi-key       other keys with other values around it
    multi-value     the key asked for has several values, all of them wanted
    tracking        x1 = number, x2 = x1, ... among other such chains: who has the number?

Everything is text, so any tokenizer will do. `Needles.length` is in characters; `fitted` makes a
prompt as long as a number of tokens allows.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fastweights.errors import ConfigError
from fastweights.nn.cross_entropy import NO_TARGET
from fastweights.tasks.haystack import Draw, made_up, sentences
from fastweights.tasks.text_tokens import Tokenizer

Kind = Literal["single", "multi-key", "multi-value", "tracking"]
Asked = Literal["answer", "text"]
KINDS: tuple[Kind, ...] = ("single", "multi-key", "multi-value", "tracking")
#: number of the first question of each split of a training task, and of the evaluation: no question
#: with its key and its values is in two of them
FIRST = {"train": 0, "validation": 10**9, "test": 2 * 10**9, "evaluation": 3 * 10**9}
#: between the question and the beginning of the answer
ANSWER = " Answer: "
#: prompts that `fitted` makes at most on the way to one as long as it can be
ATTEMPTS = 8
#: characters that a made-up sentence has at most
SENTENCE = 64


class Needle(NamedTuple):
    """One question."""

    prompt: str  # haystack, question, and the beginning of the answer
    answer: str  # what a perfect reader writes next, up to a full stop
    answers: tuple[str, ...]  # the parts of it, in the order of the text
    depths: tuple[float, ...]  # where in the haystack each was said, 0 to 1


@dataclasses.dataclass(frozen=True)
class Needles:
    """A family of questions; `make(i)` is the i-th, the same for ever.

    Attributes:
        kind: see the module.
        length: characters of the prompt, reached to within one sentence from below.
        keys: keys in the text, for "multi-key"; chains, for "tracking".
        values: values of the key asked for, for "multi-value".
        hops: links of each chain after its first, for "tracking".
        digits: of each number.
        seed: of everything.
    """

    kind: Kind = "single"
    length: int = 1000
    keys: int = 4
    values: int = 4
    hops: int = 2
    digits: int = 5
    seed: int = 0

    def make(self, index: int, haystack: str | None = None) -> Needle:
        """Question number `index`.

        Args:
            index: >= 0.
            haystack: text to hide the needles in, such as a book; needles go between its sentences.
                None for made-up sentences.

        Raises:
            ConfigError: needles and question alone are longer than `length`, there are too few
                different numbers, or `haystack` is too short.
        """
        draw, facts, question, wanted = self._said(index)
        room = self.length - characters(facts, question)
        if room < 0:
            raise ConfigError(
                f"the needles and the question take {self.length - room} characters, more than the "
                f"length of {self.length}",
                next="a greater length, or fewer needles",
            )
        hay = made_up(draw, room) if haystack is None else sentences(haystack, draw, room)
        places = sorted(draw.below(len(hay) + 1) for _ in facts)
        lines: list[str] = []
        for i, sentence in enumerate([*hay, None]):
            lines += [facts[n] for n, place in enumerate(places) if place == i]
            lines += [] if sentence is None else [sentence]
        text = " ".join(lines)
        said = {wanted[fact]: text.index(fact) / len(text) for fact in facts if fact in wanted}
        return Needle(f"{text} {question}", ", ".join(said) + ".", tuple(said), (*said.values(),))

    def least(self, index: int) -> int:
        """Characters of the needles and the question alone, the shortest length that can be.

        Raises:
            ConfigError: there are too few different numbers.
        """
        _, facts, question, _ = self._said(index)
        return characters(facts, question)

    def _said(self, index: int) -> tuple[Draw, list[str], str, dict[str, str]]:
        """The facts in their order, the question, and the value of each fact asked for."""
        self._check()
        draw = Draw(self.seed, index, *self.kind.encode())
        return draw, *getattr(self, "_" + self.kind.replace("-", "_"))(draw)

    def _single(self, draw: Draw):
        return self._numbers(draw, [1])

    def _multi_key(self, draw: Draw):
        return self._numbers(draw, [1] * self.keys)

    def _multi_value(self, draw: Draw):
        return self._numbers(draw, [self.values])

    def _numbers(self, draw: Draw, counts: list[int]):
        """Facts about keys with so many values each, in any order; the question is on the first."""
        keys, numbers = draw.words(len(counts)), draw.numbers(sum(counts), self.digits)
        owner = [key for key, count in zip(keys, counts, strict=True) for _ in range(count)]
        facts = {
            f"A secret number of {key} is {number}.": number
            for key, number in zip(owner, numbers, strict=True)
        }
        wanted = dict(list(facts.items())[: counts[0]])
        plural = "numbers" if counts[0] > 1 else "number"
        verb = "are" if counts[0] > 1 else "is"
        question = (
            f"Question: what {verb} the secret {plural} of {keys[0]}?{ANSWER}"
            f"the secret {plural} of {keys[0]} {verb}"
        )
        return draw.shuffled(list(facts)), question, wanted

    def _tracking(self, draw: Draw):
        """Chains whose links keep their order in the text, dealt into one another."""
        names = draw.words(self.keys * (self.hops + 1))
        numbers = draw.numbers(self.keys, self.digits)
        chains = [names[i :: self.keys] for i in range(self.keys)]
        facts: list[list[tuple[str, str]]] = []
        for chain, number in zip(chains, numbers, strict=True):
            links = zip(chain, [number, *chain[:-1]], strict=True)
            facts.append([(name, f"Let {name} = {value}.") for name, value in links])
        deal = draw.shuffled([i for i, chain in enumerate(facts) for _ in chain])
        left = [iter(chain) for chain in facts]
        order = [next(left[i]) for i in deal]
        wanted = {fact: name for name, fact in facts[0]}
        question = (
            f"Question: which names have the value {numbers[0]}?{ANSWER}"
            f"the names with the value {numbers[0]} are"
        )
        return [fact for _, fact in order], question, wanted

    def faults(self) -> list[str]:
        """What cannot work, in words."""
        found = [
            f"{name} is {getattr(self, name)}; it must be at least 1"
            for name in ("keys", "values", "digits")
            if getattr(self, name) < 1
        ]
        if self.hops < 0:
            found.append(f"hops is {self.hops}; it must not be negative")
        count = max(self.keys, self.values)
        if not found and 9 * 10 ** (self.digits - 1) < 2 * count:
            found.append(f"there are too few numbers of {self.digits} digits for {count} of them")
        return found

    def _check(self) -> None:
        if found := self.faults():
            raise ConfigError("these needles cannot be made: " + "; ".join(found))


def characters(facts: Sequence[str], question: str) -> int:
    """Characters of facts, each with a space after it, and of the question."""
    return len(question) + sum(len(fact) + 1 for fact in facts)


def fitted(
    task: Needles,
    index: int,
    tokens: int,
    count: Callable[[Needle], int],
    haystack: str | None = None,
) -> Needle:
    """Question number `index`, with as much haystack as fits in a number of tokens.

    Args:
        task: what is asked; its `length` does not matter.
        index: >= 0.
        tokens: the most that `count` may come to, short of which it stays by 1 % or a sentence.
        count: tokens of a question: of its prompt, or whatever must fit.
        haystack: as for `Needles.make`.

    Raises:
        ConfigError: needles and question have more tokens than that, or the haystack has fewer.
    """
    make = lambda length: dataclasses.replace(task, length=length).make(index, haystack)
    length = low = task.least(index)
    high = None if haystack is None else low + len(haystack)  # a length that cannot be
    whole = None if high is None else high - 1
    best = make(length)
    used = most = count(best)
    if most > tokens:
        raise ConfigError(
            f"without a haystack question {index} of kind {task.kind!r} has {most} tokens, more "
            f"than the length of {tokens}",
            next="a greater length, or fewer needles",
        )
    for _ in range(ATTEMPTS):
        # what the last length missed, at as many characters a token as it had
        missed = round((tokens - used) * length / used)
        if 0 <= missed <= max(SENTENCE, length // 100):
            break
        # a step back is one that a made-up sentence may be left out for
        missed = missed if missed > 0 else min(missed, -SENTENCE // 2)
        length = max(length + missed, low + 1)
        length = length if high is None else min(length, high - 1)
        if length <= low:
            break
        needle = make(length)
        used = count(needle)
        if used > tokens:
            high = length
            continue
        low = length
        if used > most:
            best, most = needle, used
    if low == whole and most < 0.98 * tokens:
        raise ConfigError(
            f"with all {len(haystack or '')} characters of the haystack question {index} of kind "
            f"{task.kind!r} has {most} tokens, less than the length of {tokens}",
            next="a longer text, or a smaller length",
        )
    return best


class Score(NamedTuple):
    """What an answer is worth."""

    found: tuple[bool, ...]  # of each value wanted: it is somewhere in what the model wrote
    exact: bool  # up to the first full stop or line end are the values wanted and no others

    @property
    def recall(self) -> float:
        """Share of the values wanted that were found, the score of RULER."""
        return sum(self.found) / max(1, len(self.found))


def score(needle: Needle, output: str) -> Score:
    """Compare what a model wrote after the prompt with the values wanted.

    A value is found as in RULER's `string_match_all`: anywhere in the output, as a part of another
    word too, and in any case of letters. "exact" allows another order, and "and" between values.
    """
    given = re.findall(r"\w+", re.split(r"[.\n]", output, maxsplit=1)[0])
    given = [word for word in given if word != "and"]
    found = tuple(answer.lower() in output.lower() for answer in needle.answers)
    return Score(found, sorted(given) == sorted(needle.answers))


def encoded(needle: Needle, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and of the answer with the tokenizer's separator if it has one."""
    end = [] if tokenizer.separator is None else [tokenizer.separator]
    prompt = [*tokenizer.opening, *tokenizer.encode(needle.prompt).tolist()]
    return prompt, [*tokenizer.encode(f" {needle.answer}").tolist(), *end]


def rows(
    needles: Sequence[Needle],
    tokenizer: Tokenizer,
    length: int | None = None,
    asked: Asked = "answer",
) -> dict[str, np.ndarray]:
    """Questions with their answers as rows; the last token of a row is a target only.

    Args:
        needles: the questions.
        tokenizer: of the model that will read them.
        length: T; None is that of the longest.
        asked: tokens with a target: those of the answer, or of the whole text.

    Returns:
        `inputs`, `target` int32 `[N, T]`, filled up on the right with id 0 and `NO_TARGET`;
        `places` int32 `[N, A]`, where in a row the targets are that make up the answer, filled up
        with -1 to the longest answer.

    Raises:
        ConfigError: a question and its answer have more than T + 1 tokens.
    """
    pairs = [encoded(needle, tokenizer) for needle in needles]
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1
    length = longest if length is None else length
    if longest > length:
        raise ConfigError(
            f"a question and its answer have {longest + 1} tokens, a row of {length} holds "
            f"{length + 1}",
            where="length",
        )
    inputs = np.zeros((len(pairs), length), np.int32)
    target = np.full((len(pairs), length), NO_TARGET, np.int32)
    places = np.full((len(pairs), max(len(answer) for _, answer in pairs)), -1, np.int32)
    for row, (prompt, answer) in enumerate(pairs):
        both, begin = np.array([*prompt, *answer], np.int32), len(prompt) - 1
        size, first = len(both) - 1, begin if asked == "answer" else 0
        inputs[row, :size] = both[:-1]
        target[row, first:size] = both[first + 1 :]
        places[row, : len(answer)] = np.arange(begin, size)
    return {"inputs": inputs, "target": target, "places": places}
