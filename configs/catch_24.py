"""Catch, N = 24 and M = 5, RNN + fast weights with 128 units (Ba et al. 2016, figure 5).

    fastweights train configs/catch_24.py --run-dir runs/catch_24
    fastweights demo --task catch --run-dir runs/catch_24

4,800 updates of 128 games, with the best setting of a random search: the run of docs/catch.md. All
arms: `python benchmarks/catch.py --size 24 --confirm`.
"""

from fastweights.models.catch import CatchModel
from fastweights.rules import Hebbian
from fastweights.tasks.catch import Catch
from fastweights.train import Optim, Train
from fastweights.train.actor_critic import ActorCritic
from fastweights.train.agent import AgentConfig

config = AgentConfig(
    task=Catch(size=24, visible=5),
    model=CatchModel(rule=Hebbian(decay=0.59, lr=0.14, steps=1)),
    learn=ActorCritic(entropy=1e-3),
    optim=Optim(lr=7.9e-3, schedule="cosine", warmup=50, decay_steps=4_800, clip=1.0),
    train=Train(steps=4_800, batch=128, eval_every=400, checkpoint_every=400, log_every=20),
)
