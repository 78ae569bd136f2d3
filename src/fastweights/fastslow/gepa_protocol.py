"""Both ways between this library and `gepa` (Agrawal et al. 2025, arXiv 2507.19457).

`TaskAdapter` gives GEPA's engine a task of ours, answered by a model of ours. `Adapted` gives our
evolution a system that was written for GEPA, and any of its reflection models, unchanged: `evolve`
then differs from `gepa.optimize` in that it starts from a whole population, scores it anew in every
cycle, and has its state in JSON. Both need the `fst` extra: in the
checkout, `pip install -e '.[fst]'`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastweights.errors import ConfigError, DataError
from fastweights.fastslow.evolution import Event, Evolution, Judged, mean_scores, tick
from fastweights.fastslow.judge import Direct, Judge
from fastweights.fastslow.population import Candidate, Population
from fastweights.fastslow.propose import ProposalError, Record, any_component
from fastweights.fastslow.reflective import extract
from fastweights.fastslow.rollouts import Sampler
from fastweights.fastslow.seeds import seed_of
from fastweights.models.decoder import Decoder
from fastweights.tasks.haystack import Draw
from fastweights.tasks.prompted import Outcome, Problem, Prompt, PromptedTask, Score, Unscorable


class TaskAdapter:
    """A task and a model as the `adapter` of `gepa.optimize`; instances are the task's problems.

        adapter = TaskAdapter(task, base.model, sampler)
        gepa.optimize(seed_candidate=dict(task.seed_prompt), adapter=adapter,
                      trainset=task.problems("train", 32), reflection_lm=..., ...)

    Args:
        task: whose prompts.
        model: answers.
        sampler: how it does.
        samples: answers to each problem; a score is their mean.
        judge: of the answers; the task's own verifier, called in this process, by default.
        seed: of the sampling, which is another in every evaluation.
    """

    #: GEPA writes new texts itself, with its reflection model
    propose_new_texts = None

    def __init__(
        self,
        task: PromptedTask,
        model: Decoder,
        sampler: Sampler,
        *,
        samples: int = 1,
        judge: Judge | None = None,
        seed: int = 0,
    ):
        self.task, self.model, self.sampler, self.samples = task, model, sampler, samples
        self.judge, self.seed, self.evaluations = judge or Direct(task.verify), seed, 0

    def evaluate(
        self, batch: list[Problem], candidate: dict[str, str], capture_traces: bool = False
    ) -> Any:
        """GEPA's `EvaluationBatch` of a prompt; traces are the judged answers to each problem.

        A prompt that the task cannot use is worth 0 everywhere, and the model is not asked.

        Raises:
            DataError: no answer to some problem could be scored. GEPA has no word for that, and a
                score of 0 would be a lie.
        """
        from gepa.core.adapter import EvaluationBatch

        wrong = "; ".join(self.task.prompt_problems(candidate))
        if wrong:
            judged = [[Judged("", Score(0.0, False, wrong))] for _ in batch]
        else:
            seed = seed_of(self.seed, "gepa", self.evaluations)
            self.evaluations += 1
            texts = [self.task.text(candidate, problem) for problem in batch]
            answers = self.sampler(self.model, texts, self.samples, seed).texts
            asked = [problem for problem in batch for _ in range(self.samples)]
            every = iter(map(Judged, answers, self.judge.verify_many(asked, answers)))
            judged = [[next(every) for _ in range(self.samples)] for _ in batch]
        scores = [float(x) for x in mean_scores(judged)]
        for problem, score, answers in zip(batch, scores, judged, strict=True):
            if math.isnan(score):
                raise DataError(
                    f"no answer could be scored: {answers[0].outcome}",
                    where=f"problem {problem.id}",
                    cause="the verifier failed",
                    next="mend the verifier; gepa.optimize goes on from its run_dir",
                )
        traces = list(zip(batch, judged, strict=True)) if capture_traces else None
        return EvaluationBatch([[x.answer for x in row] for row in judged], scores, traces)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Queries, answers and the verifier's words; the same for each component."""
        shown = [
            {"Inputs": problem.query, "Generated Outputs": x.answer, "Feedback": x.outcome.feedback}
            for problem, judged in eval_batch.trajectories
            for x in judged
            if isinstance(x.outcome, Score)
        ]
        return {name: list(shown) for name in components_to_update}

    def get_adapter_state(self) -> dict[str, Any]:
        """What a resumed run needs to sample as an uninterrupted one."""
        return {"evaluations": self.evaluations}

    def set_adapter_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `get_adapter_state`; a new run of GEPA begins with an empty state."""
        self.evaluations = state.get("evaluations", 0)


class Adapted:
    """A system with an adapter for GEPA, as task, evaluation and proposer of our evolution.

    Args:
        adapter: a `GEPAAdapter`.
        instances: what prompts are scored on, in the adapter's own form.
        seed_prompt: GEPA's `seed_candidate`.
        reflection_lm: `prompt -> text`; not needed if the adapter has `propose_new_texts`.
        proposer: GEPA's `custom_candidate_proposer`, instead of it.
        perfect_score: GEPA's, the most that the adapter's scores can be: nothing is proposed where
            a parent has it throughout. None if that is not known.

    Raises:
        ConfigError: nothing there could write a new text.
    """

    description = "the proposer of a GEPA adapter"

    def __init__(
        self,
        adapter: Any,
        instances: Sequence[Any],
        seed_prompt: Prompt,
        *,
        reflection_lm: Callable[[Any], str] | None = None,
        proposer: Callable[..., Mapping[str, str]] | None = None,
        perfect_score: float | None = None,
    ):
        self.perfect_score = perfect_score
        self.adapter, self.instances, self.seed_prompt = adapter, list(instances), dict(seed_prompt)
        self.reflection_lm = reflection_lm
        self.writes = proposer or getattr(adapter, "propose_new_texts", None)
        if not self.writes and not reflection_lm:
            raise ConfigError(
                "nothing writes new prompts: the adapter has no propose_new_texts",
                next="give reflection_lm or proposer",
            )
        if not self.instances:
            raise ConfigError("there are no instances to score prompts on", where="instances")
        self._last: tuple[dict[str, str], Any] | None = None

    def problems(self, split: str, count: int, seed: int = 0) -> list[Problem]:
        """Some instances, none twice; all of them if `count` is more. `split` is not looked at."""
        order = Draw(5, seed).shuffled([str(i) for i in range(len(self.instances))])[:count]
        return [Problem(i, "", "") for i in sorted(order, key=int)]

    def prompt_problems(self, prompt: Prompt) -> list[str]:
        """Why a prompt cannot be used: it has other components than the seed."""
        if set(prompt) == set(self.seed_prompt):
            return []
        return [f"components are {', '.join(self.seed_prompt)}, not {', '.join(prompt)}"]

    def evaluate(
        self, candidates: Sequence[Prompt], problems: Sequence[Problem], samples: int, seed: int
    ) -> list[list[list[Judged]]]:
        """See `evolution.Evaluate`. The adapter's chance is its own, `seed` is not looked at."""
        batch = [self.instances[int(problem.id)] for problem in problems]
        found = []
        for prompt in candidates:
            rows: list[list[Judged]] = [[] for _ in batch]
            for _ in range(samples):
                got = self.adapter.evaluate(batch, dict(prompt), capture_traces=True)
                self._last = dict(prompt), got
                if not len(got.scores) == len(got.outputs) == len(batch):
                    raise DataError(
                        f"the adapter gave {len(got.scores)} scores and {len(got.outputs)} outputs "
                        f"for {len(batch)} instances",
                        where=type(self.adapter).__name__,
                    )
                for row, output, score in zip(rows, got.outputs, got.scores, strict=True):
                    row.append(Judged(str(output), outcome(score)))
            found.append(rows)
        return found

    def choose(self, prompt: Prompt, records: Sequence[Record], draw: Draw) -> str:
        """One of the components, each as likely as the others."""
        return any_component(prompt, draw)

    def propose(self, prompt: Prompt, component: str, records: Sequence[Record], draw: Draw) -> str:
        """A text by the adapter, by the proposer, or by the reflection model, as GEPA would ask it.

        Raises:
            ProposalError: there is none.
        """
        assert self._last and self._last[0] == dict(prompt), "the parent is always evaluated before"
        shown = self.adapter.make_reflective_dataset(dict(prompt), self._last[1], [component])
        if self.writes:
            text = self.writes(dict(prompt), shown, [component]).get(component)
            if not isinstance(text, str):
                raise ProposalError(f"the proposer has no text for {component}")
            return text
        from gepa.strategies.instruction_proposal import InstructionProposalSignature

        assert self.reflection_lm
        about = {
            "current_instruction_doc": prompt[component],
            "dataset_with_feedback": json.loads(json.dumps(shown[component], default=str)),
            "prompt_template": None,
        }
        return extract(self.reflection_lm(InstructionProposalSignature.prompt_renderer(about)))


def outcome(score: Any) -> Outcome:
    """A score of an adapter, on whatever scale; one that is no finite number is no score."""
    try:
        value = float(score)  # NumPy's and JAX's numbers too
    except (TypeError, ValueError):
        value = math.nan
    return Score(value, value >= 1.0) if math.isfinite(value) else Unscorable(f"score {score!r}")


def evolve(
    config: Evolution,
    system: Adapted,
    cycles: int,
    *,
    population: Population | None = None,
    first: int = 0,
    seed: int = 0,
) -> tuple[Population, list[Event]]:
    """Evolutions of a system's prompts, without any weights.

    Args:
        config: how prompts evolve.
        system: what they are for.
        cycles: how many evolutions.
        population: to go on from; the seed prompt by default. `population.to_json` stores one.
        first: number of the first evolution: those done before, when going on.
        seed: of everything but the adapter.

    Returns:
        The population, and all that happened.
    """
    population = population or Population((Candidate(0, system.seed_prompt),))
    events = []
    for cycle in range(first, first + cycles):
        for number in range(config.ticks):
            population, event = tick(
                config,
                system,
                population,
                cycle,
                number,
                evaluate=system.evaluate,
                proposer=system,
                seed=seed,
                perfect_score=system.perfect_score,
            )
            events.append(event)
    return population, events
