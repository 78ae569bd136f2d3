"""MNIST in glimpses, table 2 of Ba et al. 2016, with weight decay.

    fastweights train configs/glimpses_decay.py --run-dir runs/glimpses_decay
    fastweights train configs/glimpses_decay.py --run-dir runs/glimpses_decay_quick --quick

Networks of `glimpses_table` learn their images by heart: fast weights and the ConvNet of 200
features end with a training loss of 1e-5 and less. Here decoupled weight decay (0.03, 0.1 or 0.3,
times the learning rate an update) is chosen on validation for every cell; the learning rate is what
every cell of that table took. The paper does not say whether it had any. `--quick` has one seed,
one size, one decay and 500 updates. A copy of another run's table.json in RUN is gone on with: only
cells it lacks are run.
"""

import dataclasses
from typing import Any

from fastweights.models.convnet import ConvNetModel
from fastweights.models.glimpse import GlimpseModel
from fastweights.rules import Hebbian
from fastweights.tasks.glimpses import Glimpses
from fastweights.train import Optim, Train
from fastweights.train.sweep import Arm, Sweep

RULE = Hebbian(decay=0.95, lr=0.5, steps=1)
UNITS = (50, 100, 200)


def row(cell: Any, paper: tuple[float, ...]) -> Arm:
    """A row: another recurrent layer, reading in a row, or fast weights on two levels."""
    return Arm(
        lambda units: GlimpseModel(cell=cell, hidden=units, rule=RULE),
        dict(zip(UNITS, paper, strict=True)),
    )


def optim(weight_decay: float) -> Optim:
    """Adam with decoupled weight decay and a cosine to zero."""
    return Optim(lr=3e-3, schedule="cosine", warmup=100, clip=5.0, weight_decay=weight_decay)


quick = Sweep(
    title="MNIST in glimpses, weight decay, quick",
    task=Glimpses(),
    arms={
        "IRNN": row("irnn", (12.95, 1.95, 1.42)),
        "LSTM": row("lstm", (12.0, 1.55, 1.10)),
        "ConvNet": Arm(
            lambda units: ConvNetModel(features=units),
            dict(zip(UNITS, (1.81, 1.00, 0.9), strict=True)),
        ),
        "fast weights": row("fast-weights", (7.21, 1.30, 0.85)),
    },
    units=(50,),
    grid=(optim(0.1),),
    train=Train(steps=500, batch=128, eval_every=500, checkpoint_every=500, log_every=100),
    seeds=(1,),
    chance=0.9,
)
config = dataclasses.replace(
    quick,
    title="MNIST in glimpses, table 2 with weight decay",
    units=UNITS,
    grid=(optim(0.03), optim(0.1), optim(0.3)),
    tuning_steps=10_000,
    train=Train(steps=20_000, batch=128, eval_every=1_000, checkpoint_every=1_000, log_every=100),
    seeds=(1, 2, 3),
    quick=quick,
)
