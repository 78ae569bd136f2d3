"""Find the way through a chain of stars: easy backwards, a guess at every star forwards.

From the centre of a star lead `degree` arms of `arm` edges; the goal is the end of one arm of the
last star, and the end of one arm of each star before it is the centre of the next. With one star
this is the path-finding task of Bachmann and Nagarajan 2024 (arXiv 2403.06963). Edges are shuffled.
Going forward, the right arm cannot be told from the others without looking ahead, so a model that
writes the path from its start has a chance of degree^-stars; every node has one parent, so from the
goal back there is no choice. A prompt's strategy says which way to write: `f` or `b`.

    b|ab,cd,ac,...:a>d=<dca
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from fastweights.tasks.haystack import Draw
from fastweights.tasks.hints import SPLITS, Document, inverse_text
from fastweights.tasks.prompted import Problem, Prompt, Score

NODES = "abcdefghijklmnopqrstuvwxyz"
STRATEGIES = "fb"


class Graph(NamedTuple):
    """A question: directed edges in the order they are shown, and the path that is asked for."""

    edges: tuple[tuple[str, str], ...]
    path: str

    @property
    def query(self) -> str:
        """As the model reads it."""
        shown = ",".join(a + b for a, b in self.edges)
        return f"{shown}:{self.path[0]}>{self.path[-1]}"


def random_graph(draw: Draw, stars: int, degree: int, arm: int) -> Graph:
    """A chain of stars with letters in random order for nodes."""
    names = draw.shuffled(list(NODES))
    path, edges = [names.pop()], []
    for _ in range(stars):
        way = [path[-1]]
        for branch in range(degree):
            place = path[-1]
            for _ in range(arm):
                edges.append((place, names.pop()))
                place = edges[-1][1]
                way += [place] if branch == 0 else []
        path += way[1:]
    return Graph(tuple(draw.shuffled(edges)), "".join(path))


def children_of(edges: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Where edges, pairs of nodes, lead to from each node."""
    found: dict[str, list[str]] = {}
    for a, b in edges:
        found.setdefault(a, []).append(b)
    return found


def written(path: str, strategy: str) -> str:
    """A path as an answer: `>` and the nodes from the start, or `<` and those from the goal."""
    return "<" + path[::-1] if strategy == "b" else ">" + path


@dataclasses.dataclass(frozen=True)
class StarGraph:
    """See the module. Reward: 1 for a path from start to goal, written either way, else 0.

    Attributes:
        stars: of the chain.
        degree: arms of a star.
        arm: edges of an arm.
    """

    stars: int = 3
    degree: int = 5
    arm: int = 1

    #: see `HintedTask`
    pairs: ClassVar[int] = 1

    @property
    def seed_prompt(self) -> dict[str, str]:
        """See `PromptedTask`."""
        return {"strategy": ""}

    @property
    def oracle(self) -> dict[str, str]:
        """See `HintedTask`."""
        return {"strategy": "b"}

    @property
    def answer_length(self) -> int:
        """See `PromptedTask`."""
        return self.stars * self.arm + 3

    def easier(self) -> "StarGraph":
        """See `HintedTask`: one star, where a guess is often right."""
        return dataclasses.replace(self, stars=1)

    def faults(self) -> list[str]:
        """See `HintedTask`."""
        sizes = {"stars": self.stars, "degree": self.degree, "arm": self.arm}
        found = [f"{k} is {v}; it must be at least 1" for k, v in sizes.items() if v < 1]
        nodes = 1 + self.stars * self.degree * self.arm
        if nodes > len(NODES):
            found.append(f"a chain of these stars has {nodes} nodes, and there are {len(NODES)}")
        return found

    def problems(self, split: str, count: int, seed: int = 0) -> list[Problem]:
        """See `PromptedTask`."""
        draw = Draw(3, SPLITS[split], seed)
        graphs = [random_graph(draw, self.stars, self.degree, self.arm) for _ in range(count)]
        return [Problem(graph.query, graph.query, written(graph.path, "b")) for graph in graphs]

    def text(self, prompt: Prompt, problem: Problem) -> str:
        """See `PromptedTask`."""
        return f"{hint(prompt)}|{problem.query}="

    def verify(self, problem: Problem, answer: str) -> Score:
        """See `PromptedTask`."""
        shown, ends = problem.query.split(":")
        start, goal = ends.split(">")
        children = children_of(shown.split(","))
        if answer[:1] not in ("<", ">"):
            return Score(0.0, False, f"{answer!r} begins with neither > nor <")
        path = answer[1:] if answer[0] == ">" else answer[:0:-1]
        if path[:1] != start:
            return Score(0.0, False, f"the path does not begin at {start}")
        for a, b in zip(path, path[1:], strict=False):
            if b not in children.get(a, ()):
                why = "a dead end: a wrong turn before it" if a not in children else "no edge"
                return Score(0.0, False, f"there is no step from {a} to {b}: {why}")
        if path[-1] != goal:
            return Score(0.0, False, f"the path ends at {path[-1]} and not at {goal}")
        return Score(1.0, True, "right")

    def prompt_problems(self, prompt: Prompt) -> list[str]:
        """See `PromptedTask`."""
        if set(prompt) != {"strategy"}:
            return [f"the component is strategy, not {', '.join(prompt)}"]
        strategy = prompt["strategy"]
        if strategy and strategy not in STRATEGIES or len(strategy) > 1:
            return [f"strategy: {strategy!r} is none of {', '.join(STRATEGIES)}"]
        return []

    def units(self, component: str) -> Sequence[str]:
        """See `HintedTask`."""
        return STRATEGIES

    def evidence(self, component: str, query: str, answer: str) -> list[tuple[str, str]]:
        """See `HintedTask`: the problem itself."""
        return [(query, answer)]

    def explain(self, component: str, text: str, question: str) -> str:
        """See `HintedTask`: the path going back; going forward, no strategy says which arm."""
        shown, ends = question.split(":")
        start, goal = ends.split(">")
        if text != "b":
            return ">" + start
        parent = {b: a for a, b in shown.split(",")}
        path = [goal]
        while path[-1] != start:
            path.append(parent[path[-1]])
        return "<" + "".join(path)


def hint(prompt: Prompt) -> str:
    """A prompt as the model reads it: the strategy, or a dot."""
    return prompt["strategy"] or "."


def wandered(draw: Draw, graph: Graph) -> str:
    """A way from the start to some end, every arm as likely: all that going forward can know."""
    children = children_of(graph.edges)
    path = graph.path[0]
    while path[-1] in children:
        path += draw.choice(children[path[-1]])
    return path


def answered(draw: Draw, graph: Graph, strategy: str) -> str:
    """An answer as the corpus has it: right going back; going forward each arm is a guess.

    Were it right in both, the model would be taught to look ahead in small graphs, and a task's
    reward would no longer be out of reach without the hint.
    """
    path = graph.path if strategy == "b" else wandered(draw, graph)
    return written(path, strategy)


def random_document(draw: Draw) -> Document:
    """A strategy, a graph of up to 20 edges and an answer written that way, or forward."""
    said = ("", "f", "b", "b", "b")[draw.below(5)]
    degree = 1 + draw.below(4)
    graph = random_graph(draw, 1 + draw.below(min(6, 20 // degree)), degree, 1)
    return [(f"{hint({'strategy': said})}|{graph.query}=", answered(draw, graph, said))]


def inverse_document(draw: Draw) -> Document:
    """A graph and an answer written one way, then the strategy that writes so."""
    strategy = STRATEGIES[draw.below(2)]
    graph = random_graph(draw, 1 + draw.below(2), 2 + draw.below(2), 1)
    return [(inverse_text([(graph.query, answered(draw, graph, strategy))]), strategy)]
