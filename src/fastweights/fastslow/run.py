"""A run of the two-speed loop: what it has come to, and what it works with."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from fastweights import pretrained
from fastweights.errors import ConfigError
from fastweights.fastslow.config import FastSlow, Tick
from fastweights.fastslow.judge import Direct, Judge
from fastweights.fastslow.population import Candidate, Population
from fastweights.fastslow.propose import Proposer
from fastweights.fastslow.proposers import make_proposer
from fastweights.fastslow.remote.reflection import Reflection
from fastweights.fastslow.rollouts import Sampler
from fastweights.fastslow.verifier import Verifier
from fastweights.tasks.continual import Continual
from fastweights.train.mesh import make_mesh, state_shardings
from fastweights.train.optim import optimizer
from fastweights.train.state import TrainState


@dataclasses.dataclass
class Run:
    """A run in the middle: what is saved, and what it works with."""

    config: FastSlow
    base: pretrained.Pretrained
    state: TrainState
    population: Population
    #: rollouts so far, of the slow and of the fast loop; those of evaluations are in neither
    counts: dict[str, int]
    #: the last thing it has done
    last: Tick | None = None
    #: of a proposer on a server, as it was after the last tick
    reflected: dict[str, Any] | None = None
    reflection: Reflection | None = None
    #: what judges answers in a process of its own, and the task it does so for
    verifier: tuple[Any, Verifier] | None = None

    @property
    def policy(self) -> pretrained.Pretrained:
        """The model that is trained, with what it shares with its base."""
        return self.base._replace(model=self.state.model)

    def task(self, updates: int) -> Any:
        """The task after so many updates."""
        task = self.config.task
        return task.at(updates) if isinstance(task, Continual) else task

    def sampler(self, task: Any) -> Sampler:
        """How the policy answers."""
        return Sampler(
            self.base.tokenizer,
            self.base.stop_tokens,
            task.answer_length,
            self.config.rl.temperature,
        )

    def judge(self, task: Any) -> Judge:
        """What judges the answers, in a process of its own where there is a limit of time."""
        limit = self.config.verdict_limit
        if limit is None:
            return Direct(task.verify)
        if self.verifier is None or self.verifier[0] != task:
            self.close()
            self.verifier = task, Verifier(task.verify, limit=limit)
        return self.verifier[1]

    def close(self) -> None:
        """End the process that judges, if there is one."""
        if self.verifier:
            self.verifier[1].close()
        self.verifier = None

    def proposer(self, task: Any) -> Proposer:
        """Who writes the prompts."""
        if self.reflection:
            return self.reflection.proposer(task)
        return make_proposer(self.config.proposer, task, self.base)


def begin(config: FastSlow, mesh: jax.sharding.Mesh | None = None) -> Run:
    """A run before its first tick.

    Args:
        config: of the run.
        mesh: where it goes; None is the config's.

    Raises:
        ConfigError: there is no base model, it is no language model, or the mesh cannot be made or
            cannot split it.
        CheckpointError: the base model is damaged.
    """
    if not Path(config.base).expanduser().is_dir():
        raise ConfigError(
            "there is no base model",
            where=config.base,
            cause="it is not trained yet, or this is another folder",
            next="train it as the header of the config says, for the small world by fastweights "
            "train configs/fst_base.py --run-dir runs/fst_base; or give --base the directory of a "
            "run or a Hugging Face checkpoint",
        )
    mesh = mesh or make_mesh(config.mesh)
    base = pretrained.load(config.base, mesh=mesh)
    task = config.task.at(0) if isinstance(config.task, Continual) else config.task
    first = cast(Any, task).oracle if config.prompt == "oracle" else task.seed_prompt

    def fresh(model: Any) -> TrainState:
        # of its own memory, which updates take: the base model stays as it is
        model = jax.tree.map(jnp.copy, model)
        moments = optimizer(config.optim).init(model)
        return TrainState(jnp.zeros((), jnp.int32), model, moments, jax.random.key(config.seed))

    # put where a restored state will be, or a resumed run would compile everything a second time
    placed = state_shardings(mesh, jax.eval_shape(fresh, base.model))
    base = base._replace(model=jax.device_put(base.model, placed.model))
    state = jax.jit(fresh, out_shardings=placed)(base.model)
    return Run(config, base, state, Population((Candidate(0, first),)), {"slow": 0, "fast": 0})
