"""Needles in a haystack, made from a seed: facts hidden in a long text, and a question at its end.

The kinds are those of RULER (Hsieh et al. 2024, arXiv 2404.06654); the wording is our own.

    single          one key with one value
    multi-key       other keys with other values around it
    multi-value     the key asked for has several values, all of them wanted
    tracking        x1 = number, x2 = x1, ... among other such chains: who has the number?

Everything is text, so any tokenizer will do; lengths are in characters.
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
        self._check()
        draw = Draw(self.seed, index, *self.kind.encode())
        facts, question, wanted = getattr(self, "_" + self.kind.replace("-", "_"))(draw)
        room = self.length - len(question) - sum(len(fact) + 1 for fact in facts)
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
            f"Question: what {verb} the secret {plural} of {keys[0]}? "
            f"Answer: the secret {plural} of {keys[0]} {verb} "
        )
        return draw.shuffled(list(facts)), question.rstrip(), wanted

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
            f"Question: which names have the value {numbers[0]}? "
            f"Answer: the names with the value {numbers[0]} are"
        )
        return [fact for _, fact in order], question, wanted

    def _check(self) -> None:
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
        if found:
            raise ConfigError("these needles cannot be made: " + "; ".join(found))


class Score(NamedTuple):
    """What an answer is worth."""

    exact: float  # 1 if its parts are just those wanted, in any order
    recall: float  # share of the parts wanted that are in it


def score(needle: Needle, output: str) -> Score:
    """Compare what a model wrote after the prompt, up to its first full stop or line end."""
    given = re.findall(r"\w+", re.split(r"[.\n]", output, maxsplit=1)[0])
    given = [word for word in given if word != "and"]
    right = sum(answer in given for answer in needle.answers)
    return Score(
        float(sorted(given) == sorted(needle.answers)), right / max(1, len(needle.answers))
    )


def evaluate(
    needles: Sequence[Needle], decode: Callable[[list[str], int], list[str]], longest: int
) -> Score:
    """Mean scores of a model.

    Args:
        needles: the questions.
        decode: (prompts, new tokens at most) -> the text a model adds to each, greedily.
        longest: new tokens it may write; the bytes of the longest answer are enough.
    """
    outputs = decode([needle.prompt for needle in needles], longest)
    scores = [score(n, output) for n, output in zip(needles, outputs, strict=True)]
    return Score(*(float(np.mean(column)) for column in zip(*scores, strict=True)))


def rows(needles: Sequence[Needle], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Questions with their answers as rows where only the answer has targets.

    The loss of a model on them tells how near it is to an answer that it does not yet give.

    Returns:
        `inputs`, `target` int32 `[N, T]` for the longest, filled up on the right with id 0 and
        `NO_TARGET`.
    """
    pairs = [(tokenizer.encode(n.prompt), tokenizer.encode(f" {n.answer}")) for n in needles]
    length = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1
    inputs = np.zeros((len(pairs), length), np.int32)
    target = np.full((len(pairs), length), NO_TARGET, np.int32)
    for row, (prompt, answer) in enumerate(pairs):
        both = np.concatenate([prompt, answer])
        inputs[row, : len(both) - 1] = both[:-1]
        target[row, len(prompt) - 1 : len(both) - 1] = answer
    return {"inputs": inputs, "target": target}
