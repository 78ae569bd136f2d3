"""Catch, N = 16 and M = 3, RNN + fast weights with 128 units (Ba et al. 2016, figure 5).

    fastweights train configs/catch_16.py --run-dir runs/catch_16
    fastweights demo --task catch --run-dir runs/catch_16

3,200 updates of 128 games, with the best setting of a random search: the run of docs/catch.md. All
arms: `python benchmarks/catch.py --size 16 --confirm`.
"""

from fastweights.models.catch import CatchModel
from fastweights.rules import Hebbian
from fastweights.tasks.catch import Catch
from fastweights.train import Optim, Train
from fastweights.train.actor_critic import ActorCritic
from fastweights.train.agent import AgentConfig

config = AgentConfig(
    task=Catch(size=16, visible=3),
    model=CatchModel(rule=Hebbian(decay=0.47, lr=0.16, steps=1)),
    learn=ActorCritic(entropy=1e-3),
    optim=Optim(lr=8.4e-3, schedule="cosine", warmup=50, decay_steps=3_200, clip=1.0),
    train=Train(steps=3_200, batch=128, eval_every=200, checkpoint_every=200, log_every=20),
)
