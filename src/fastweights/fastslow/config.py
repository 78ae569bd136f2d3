"""The config of fast-slow training, its arms, and the order of what a run does."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from fastweights.errors import ConfigError
from fastweights.fastslow.evolution import Evolution
from fastweights.fastslow.objective import PolicyGradient
from fastweights.fastslow.remote.reflection import RemoteModel, endpoint
from fastweights.tasks.continual import Continual
from fastweights.tasks.conventions import Conventions
from fastweights.tasks.instructed import Instructed
from fastweights.tasks.maths import Maths
from fastweights.tasks.programs import Programs
from fastweights.tasks.reasoning_gym import ReasoningGym
from fastweights.tasks.star_graph import StarGraph
from fastweights.train.config import Mesh, Optim, Train

Order = Literal["fast-slow", "slow", "fast", "fast then slow", "slow then fast"]


@dataclasses.dataclass(frozen=True)
class FastSlow:
    """Everything that decides what a run of fast-slow training does.

    Lengths and rhythms of `train` are in updates of the weights; an order without any counts
    `evolution.every` updates for each evolution, so that all arms end at the same `train.steps`.
    `train.batch` is not used: an update has `rl.problems` x `rl.rollouts` rollouts.

    Attributes:
        task: what is learned.
        base: run directory or Hugging Face checkpoint of the model that is started from.
        rl: the slow loop.
        evolution: the fast loop.
        order: which of the two happen, and when: "fast-slow" is an evolution before every
            `evolution.every` updates; "fast then slow" has `lead` evolutions before all updates,
            "slow then fast" after them; "slow" is RL only, "fast" evolution only.
        lead: evolutions of the orders that have them all at once.
        prompt: what the population starts from: the task's empty seed, or, as a control, the oracle
            that states the hidden rule.
        proposer: who writes prompts; see `fastweights.fastslow.proposers`.
        remote: the model on a server that does, if the proposer is "remote".
        optim: the slow weights' optimiser.
        mesh: devices; rollouts and updates are split over `data` and `fsdp` where they divide the
            number of answers.
        train: length and rhythm.
        evaluation: problems of an evaluation.
        verdict_limit: seconds that judging an answer may take, in a process of its own that is
            killed then, and the answer is unscored; None judges in the run's own process, without
            a limit, for verifiers that surely return.
        seed: of everything.
    """

    task: Programs | Conventions | StarGraph | Continual | Maths | ReasoningGym
    base: str
    rl: PolicyGradient = PolicyGradient()
    evolution: Evolution = Evolution()
    order: Order = "fast-slow"
    lead: int = 5
    prompt: Literal["seed", "oracle"] = "seed"
    proposer: Literal["blind", "directed", "inductive", "self", "remote"] = "inductive"
    remote: RemoteModel = RemoteModel()
    optim: Optim = Optim(lr=1e-4, clip=1.0)
    mesh: Mesh = Mesh()
    train: Train = Train(steps=120, eval_every=6, checkpoint_every=30, log_every=6)
    evaluation: int = 128
    verdict_limit: float | None = None
    seed: int = 0

    @property
    def asks_remote(self) -> bool:
        """Whether a model on a server is asked at all."""
        return self.proposer == "remote" and self.order != "slow"


class Tick(NamedTuple):
    """One thing a run does: an update, or a part of an evolution."""

    updates: int  # done before it
    cycle: int | None = None  # which evolution, None for an update
    part: int = 0  # which tick of the evolution


def timeline(config: FastSlow) -> list[Tick]:
    """All a run does, in order."""
    steps, every = config.train.steps, config.evolution.every

    def evolution(updates: int, cycle: int) -> list[Tick]:
        return [Tick(updates, cycle, part) for part in range(config.evolution.ticks)]

    updates = [Tick(u) for u in range(steps)]
    if config.order == "slow":
        return updates
    if config.order == "fast":
        return [t for c in range(-(-steps // every)) for t in evolution(c * every, c)]
    if config.order == "fast-slow":
        before = lambda u: [] if u % every else evolution(u, u // every)
        return [t for u in range(steps) for t in (*before(u), Tick(u))]
    first = config.order == "fast then slow"
    together = [t for c in range(config.lead) for t in evolution(0 if first else steps, c)]
    return together + updates if first else updates + together


def _rl(config: FastSlow, **change: Any) -> FastSlow:
    return dataclasses.replace(config, rl=dataclasses.replace(config.rl, **change))


def _slow(config: FastSlow, **change: Any) -> FastSlow:
    return _rl(dataclasses.replace(config, order="slow"), **change)


def _order(order: Order) -> Callable[[FastSlow], FastSlow]:
    return lambda config: dataclasses.replace(config, order=order)


#: name -> what it makes of a config
ARMS: dict[str, Callable[[FastSlow], FastSlow]] = {
    "fst": lambda config: config,
    "rl": _slow,
    "evolution": _order("fast"),
    "evolution-rl": _order("fast then slow"),
    "rl-evolution": _order("slow then fast"),
    "fst-one-prompt": lambda config: dataclasses.replace(
        config, evolution=dataclasses.replace(config.evolution, keep=1)
    ),
    "fst-per-prompt": lambda config: _rl(config, baseline="prompt"),
    "rl-entropy": lambda config: _slow(config, entropy=0.003),
    "rl-kl": lambda config: _slow(config, kl=0.01),
    "rl-oracle": lambda config: dataclasses.replace(_slow(config), prompt="oracle"),
    "rl-easy": lambda config: _slow(config, easy=0.5),
}


def arm(config: FastSlow, name: str) -> FastSlow:
    """A config as one of the arms.

    Raises:
        ConfigError: there is no such arm.
    """
    if name not in ARMS:
        raise ConfigError(f"no arm {name!r}", next=f"one of {', '.join(ARMS)}")
    return ARMS[name](config)


def check(config: FastSlow) -> None:
    """Check a config before anything is loaded.

    Raises:
        ConfigError: with every problem found, not only the first.
    """
    rl, evolution, plan = config.rl, config.evolution, config.train
    positive = {
        f"{part}.{name}": getattr(value, name)
        for part, value, names in (
            ("train", plan, ("steps", "eval_every", "checkpoint_every", "log_every", "keep_last")),
            ("rl", rl, ("problems", "rollouts", "passes")),
            ("evolution", evolution, ("keep", "every", "proposals", "minibatch", "instances")),
            ("evolution", evolution, ("samples",)),
        )
        for name in names
    }
    positive |= {f"mesh.{name}": size for name, size in dataclasses.asdict(config.mesh).items()}
    positive |= {"lead": config.lead, "evaluation": config.evaluation}
    found = [f"{k} is {v}; it must be at least 1" for k, v in positive.items() if v < 1]
    over = {
        "rl.truncate": rl.truncate,
        "rl.temperature": rl.temperature,
    }
    found += [f"{k} is {v}; it must be more than 0" for k, v in over.items() if not v > 0]
    least = {"rl.entropy": rl.entropy, "rl.kl": rl.kl, "seed": config.seed}
    found += [f"{k} is {v}; it must not be negative" for k, v in least.items() if v < 0]
    shares = {"rl.easy": rl.easy, "evolution.crossover": evolution.crossover}
    found += [f"{k} is {v}; it must be from 0 to 1" for k, v in shares.items() if not 0 <= v <= 1]
    if rl.rollouts < 2:
        found.append(f"rl.rollouts is {rl.rollouts}; a group needs at least 2")
    if evolution.keep > 0 and rl.rollouts % evolution.keep and config.order != "slow":
        found.append(
            f"rl.rollouts is {rl.rollouts}; it must be a multiple of evolution.keep, "
            f"{evolution.keep}, so that every prompt has as many of a problem's rollouts"
        )
    task = config.task
    if config.verdict_limit is not None and not 0 < config.verdict_limit < math.inf:
        found.append(f"verdict_limit is {config.verdict_limit}; it must be more than 0 seconds")
    if isinstance(task, ReasoningGym) and config.verdict_limit is None:
        found.append("verdict_limit is None; data sets of reasoning-gym judge with code of others")
    if isinstance(task, Instructed):
        found += needs_hints(config)
    elif rl.easy and not isinstance(task, Continual) and task.easier() == task:
        found.append(f"rl.easy is {rl.easy}; {type(task).__name__} has no easier problems")
    found += [f"task.{text}" for text in task.faults()]
    found += [f"optim.{text}" for text in config.optim.faults()]
    if found:
        raise ConfigError(
            "this config cannot run:" + "".join(f"\n  - {text}" for text in found),
            next="change the values above; `fastweights train CONFIG --help` lists them all",
        )
    if config.asks_remote:
        endpoint(config.remote, {})


def needs_hints(config: FastSlow) -> list[str]:
    """What a config asks for that only a task with a language of hints can give, in words."""
    found, name = [], type(config.task).__name__
    if config.proposer != "remote" and config.order != "slow":
        found.append(
            f'proposer is "{config.proposer}"; prompts of {name} are free text, which only '
            '"remote" writes'
        )
    if config.prompt == "oracle":
        found.append(f'prompt is "oracle"; {name} has none')
    if config.rl.easy:
        found.append(f"rl.easy is {config.rl.easy}; {name} has no easier problems")
    return found
