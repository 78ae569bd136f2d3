"""Puzzles of reasoning-gym (the `[fst]` extra): a generator by name, and its own scoring.

reasoning-gym (open-thought/reasoning-gym, Apache-2.0, 0.1.25) generates problem `i` of a data set
from its seed and `i`. Here one data set is cut into splits, and no question of one is in another.
Some data sets score an answer by running it as Python (`eval`, SymPy's `parse_expr`); those are
refused.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import json
import re
import sys
from typing import Any

from fastweights.errors import ConfigError, install_extra
from fastweights.tasks.haystack import Draw
from fastweights.tasks.hints import SPLITS
from fastweights.tasks.instructed import Instructed
from fastweights.tasks.prompted import Problem, Score

#: what in a module means that it may run text as code
RUNS = {"eval", "exec", "parse_expr", "sympify"}
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ReasoningGym(Instructed):
    """See the module. Reward: the data set's own score, 0 to 1; right is 1.

    Attributes:
        dataset: its name, such as "chain_sum"; not one that runs answers as code.
        options: its options as "name=value", the value in JSON: "max_terms=3", "names=[1, 2]".
        train: problems of training, before those that are held out are left out.
        held: problems of validation, and as many of test.
        seed: of the data set.
    """

    dataset: str = "chain_sum"
    options: tuple[str, ...] = ()
    train: int = 10_000
    held: int = 256
    seed: int = 0
    _: dataclasses.KW_ONLY
    instructions: str = "Give the answer between <answer> and </answer>."

    def faults(self) -> list[str]:
        """What cannot work, in words; making the data set needs reasoning-gym."""
        sizes = {"train": self.train, "held": self.held}
        found = [f"{k} is {v}; it must be at least 1" for k, v in sizes.items() if v < 1]
        try:
            source(self)
        except ConfigError as error:
            found.append(f"dataset: {error.what}" + (f"; next: {error.next}" if error.next else ""))
        return found + super().faults()

    def problems(self, split: str, count: int, seed: int = 0) -> list[Problem]:
        """See `PromptedTask`: some of a split's problems, no question twice.

        Raises:
            ConfigError: the split has fewer, or the data set cannot be made.
        """
        order = Draw(7, SPLITS[split], seed).shuffled(list(self._places(split)))
        later = {"train": ("validation", "test"), "validation": ("test",), "test": ()}[split]
        seen = {query for other in later for query in questions(self, other)}
        found: list[Problem] = []
        for place in order:
            if len(found) == count:
                return found
            entry = entry_of(self, place)
            if entry["question"] not in seen:
                seen.add(entry["question"])
                answer = "" if entry["answer"] is None else str(entry["answer"])
                found.append(Problem(f"{self.dataset}:{place}", entry["question"], answer))
        if len(found) == count:
            return found
        raise ConfigError(
            f"{count} problems are asked for, and the {split} split has {len(found)} different",
            where=self.dataset,
            cause="it is smaller, or the data set has few different questions",
            next="fewer problems, a larger --task.train or --task.held, or --task.options that "
            "leave more to vary",
        )

    def _places(self, split: str) -> range:
        """Where a split is in the data set."""
        if split == "train":
            return range(2 * self.held, 2 * self.held + self.train)
        return range(self.held) if split == "test" else range(self.held, 2 * self.held)

    def prepare(self) -> None:
        """Import reasoning-gym and make the data set: seconds, which are no verdict's.

        Raises:
            ConfigError: see `source`.
        """
        source(self)

    def verify(self, problem: Problem, answer: str) -> Score:
        """See `PromptedTask`. The answer is what the last <answer> holds, or all of the text.

        The data set's scoring is code of others: judge it in a process of its own, with a limit of
        time (`FastSlow.verdict_limit`).
        """
        given = (_ANSWER.findall(answer) or [answer])[-1].strip()
        place = int(problem.id.rpartition(":")[2])
        value = min(max(float(source(self).score_answer(given, entry_of(self, place))), 0.0), 1.0)
        if value == 1:
            return Score(1.0, True, "right")
        right = f"; a right answer is:\n{problem.answer}" if problem.answer else ""
        return Score(value, False, f"the answer is worth {value:.2g}{right}")


@functools.lru_cache(4)
def source(task: ReasoningGym) -> Any:
    """The data set of a task.

    Raises:
        ConfigError: reasoning-gym is absent, there is no such data set, its options are wrong, or
            it scores answers by running them.
    """
    try:
        # 3 s, and only this task needs it
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise ConfigError(
            "reasoning-gym is not installed",
            cause=str(error),
            next=install_extra("fst"),
        ) from None
    if task.dataset not in DATASETS or task.dataset == "composite":
        near = difflib.get_close_matches(task.dataset, DATASETS)
        raise ConfigError(
            f"reasoning-gym has no data set {task.dataset!r} for us",
            next=f"{', '.join(near)}?" if near else "one of reasoning_gym.factory.DATASETS",
        )
    if runs := runs_text(DATASETS[task.dataset][0]):
        raise ConfigError(
            f"{task.dataset!r} may run answers as code ({', '.join(runs)} in its module)",
            next="another data set",
        )
    options = {}
    for option in task.options:
        name, _, value = option.partition("=")
        try:
            options[name] = json.loads(value)
        except ValueError:
            raise ConfigError(
                f"option {option!r} is not name=value with a value in JSON",
                next='such as max_terms=3, or letters="abc" with its quotes',
            ) from None
    if own := {"seed", "size"} & set(options):
        raise ConfigError(
            f"option {own.pop()!r} is ours to give: splits are cut by it",
            next="--task.seed, --task.train and --task.held",
        )
    size = 2 * task.held + task.train
    try:
        return create_dataset(task.dataset, seed=task.seed, size=size, **options)
    except Exception as error:  # code of others: what it raises is not agreed
        raise refused(task, error) from None


def refused(task: ReasoningGym, error: Exception) -> ConfigError:
    """What to say where a data set raises."""
    return ConfigError(
        f"{task.dataset!r} fails with its options: {type(error).__name__}: {error}",
        where=", ".join(task.options) or "no options",
        next="other --task.options, or another --task.dataset",
    )


def runs_text(dataset: type) -> list[str]:
    """What the modules of a data set's class use that may run text as code.

    Whole modules are looked at, and not what a call of `score_answer` reaches: that refuses some
    data sets that run text of their own only.
    """
    modules = {c.__module__ for c in dataset.__mro__ if c.__module__.startswith("reasoning_gym.")}
    names = set()
    for module in modules:
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
            names.add(getattr(node, "id", None) or getattr(node, "attr", None))
    return sorted(RUNS & names)


@functools.lru_cache(4096)
def entry_of(task: ReasoningGym, place: int) -> dict[str, Any]:
    """Problem `place` of a data set: some take 50 ms to make, and every rollout is judged by it.

    Raises:
        ConfigError: the data set was made, and its options do not work after all.
    """
    data = source(task)
    try:
        return data[place]
    except Exception as error:
        raise refused(task, error) from None


@functools.lru_cache(8)
def questions(task: ReasoningGym, split: str) -> frozenset[str]:
    """All questions of a split, also those that are left out of it."""
    return frozenset(entry_of(task, place)["question"] for place in task._places(split))
