"""Word problems whose answer is a number, from a user's files in the layout of GSM8K.

GSM8K (Cobbe et al. 2021, arXiv 2110.14168) is JSON Lines: a `question`, and an `answer` of worked
steps that ends in a line `#### 42`. Nothing is downloaded. What is evolved is one text of
instructions; an answer is judged by its number alone, and no code in it is ever run.
"""

import dataclasses
import decimal
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from fastweights.errors import ConfigError, DataError
from fastweights.tasks.haystack import Draw
from fastweights.tasks.hints import SPLITS
from fastweights.tasks.instructed import Instructed
from fastweights.tasks.prompted import Problem, Score

#: between the steps of an answer and its number
MARK = "####"
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")


@dataclasses.dataclass(frozen=True)
class Maths(Instructed):
    """See the module. Reward: 1 for the right number, else 0.

    Attributes:
        train: file of the training problems.
        test: file of the test problems.
        validation: problems at the end of the training file that are set aside for validation.
    """

    train: str = ""
    test: str = ""
    validation: int = 256
    _: dataclasses.KW_ONLY
    instructions: str = "Solve the problem. End with #### and the number."

    def faults(self) -> list[str]:
        """What cannot work in the fields, in words; the files are read later."""
        found = [
            f'{name} is ""; it must be a file in the layout of GSM8K'
            for name in ("train", "test")
            if not getattr(self, name)
        ]
        if self.validation < 1:
            found.append(f"validation is {self.validation}; it must be at least 1")
        return found + super().faults()

    def problems(self, split: str, count: int, seed: int = 0) -> list[Problem]:
        """See `PromptedTask`: some of a split's problems, none twice.

        Raises:
            DataError: a file is absent or damaged.
            ConfigError: the split has fewer problems.
        """
        mine = self._split(split)
        if count > len(mine):
            raise ConfigError(
                f"{count} problems are asked for, and the {split} split has {len(mine)}",
                where=self.test if split == "test" else self.train,
                next="fewer problems, or another number of --task.validation",
            )
        draw = Draw(6, SPLITS[split], seed)
        return draw.shuffled(mine)[:count]

    def _split(self, split: str) -> list[Problem]:
        if split == "test":
            return list(read(self.test))
        every = read(self.train)
        if self.validation >= len(every):
            raise ConfigError(
                f"validation is {self.validation}, and the file has {len(every)} problems",
                where=self.train,
                next="a smaller --task.validation",
            )
        held = len(every) - self.validation
        return list(every[:held] if split == "train" else every[held:])

    def verify(self, problem: Problem, answer: str) -> Score:
        """See `PromptedTask`; the feedback has the reference's own steps."""
        right, given = number(problem.answer), number(answer)
        if given is not None and given == right:
            return Score(1.0, True, "right")
        said = "there is no number in it" if given is None else f"{given:f} is not the number"
        return Score(0.0, False, f"{said}; a right answer is:\n{problem.answer}")


def number(text: str) -> decimal.Decimal | None:
    """The number an answer gives: the first after its last `####`, else its last one.

    Thousands' commas and a dollar sign are left out; None if there is none.
    """
    _, mark, rest = text.rpartition(MARK)
    found = _NUMBER.findall(rest)
    if not found:
        return None
    return decimal.Decimal(re.sub("[,$]", "", found[0] if mark else found[-1]))


@functools.lru_cache(8)
def read(path: str) -> Sequence[Problem]:
    """The problems of a file.

    Raises:
        DataError: it is absent, or a line is no problem, with its number.
    """
    file, found = Path(path).expanduser(), []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the problems cannot be read: {error}",
            where=path,
            cause="a wrong path, or no UTF-8 text",
            next='give JSON Lines of {"question": ..., "answer": "... #### 42"}',
        ) from None
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            problem = Problem(f"{file.name}:{place}", data["question"], data["answer"])
            good = isinstance(problem.query, str) and MARK in problem.answer
            good = good and number(problem.answer) is not None
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            raise DataError(
                f"line {place} is no problem with an answer that ends in {MARK} and a number",
                where=path,
                next="mend or remove the line",
            )
        found.append(problem)
    if not found:
        raise DataError("there are no problems in this file", where=path)
    return tuple(found)
