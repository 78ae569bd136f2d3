"""MNIST in 24 glimpses, fast-weight RNN on two levels with 50 features (Ba et al. 2016, table 2).

    fastweights train configs/glimpses.py --run-dir runs/glimpses
    fastweights eval --run-dir runs/glimpses

Its control, the same net with nothing written (η = 0):

    fastweights train configs/glimpses.py --model.rule.lr 0 --run-dir runs/glimpses_control
"""

from fastweights.models.glimpse import GlimpseModel
from fastweights.rules import Hebbian
from fastweights.tasks.glimpses import Glimpses
from fastweights.train import Config, Optim, Train

config = Config(
    task=Glimpses(),
    model=GlimpseModel(hidden=50, rule=Hebbian(decay=0.95, lr=0.5, steps=1)),
    optim=Optim(lr=1e-3, schedule="cosine", decay_steps=20_000, clip=5.0),
    train=Train(steps=20_000, batch=128, eval_every=1_000, checkpoint_every=1_000, log_every=100),
)
