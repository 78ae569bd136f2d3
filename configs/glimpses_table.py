"""MNIST in glimpses, the whole of table 2 of Ba et al. 2016 with a control and seeds.

    fastweights train configs/glimpses_table.py --run-dir runs/glimpses_table
    fastweights train configs/glimpses_table.py --run-dir runs/glimpses_quick --quick

Writes RUN/table.json and RUN/table.md. `--quick` has one seed, one size and 500 updates. Rows of a
process of its own: `--arms "fast weights" LSTM`; processes may share the run directory.
A copy of another run's table.json in RUN is gone on with: only cells it lacks are run.
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


def row(cell: Any, rule: Hebbian = RULE, paper: tuple[float, ...] = ()) -> Arm:
    """A row: another recurrent layer, reading in a row, or fast weights on two levels."""
    return Arm(
        lambda units: GlimpseModel(cell=cell, hidden=units, rule=rule),
        dict(zip(UNITS, paper, strict=False)),
    )


def optim(lr: float) -> Optim:
    """Adam with a cosine to zero."""
    return Optim(lr=lr, schedule="cosine", warmup=100, clip=5.0)


ARMS = {
    "IRNN": row("irnn", paper=(12.95, 1.95, 1.42)),
    "LSTM": row("lstm", paper=(12.0, 1.55, 1.10)),
    "ConvNet": Arm(
        lambda units: ConvNetModel(features=units),
        dict(zip(UNITS, (1.81, 1.00, 0.9), strict=True)),
    ),
    "fast weights, η = 0": row("fast-weights", dataclasses.replace(RULE, lr=0.0)),
    "fast weights": row("fast-weights", paper=(7.21, 1.30, 0.85)),
}

quick = Sweep(
    title="MNIST in glimpses, quick",
    task=Glimpses(),
    arms=ARMS,
    units=(50,),
    grid=(optim(2e-3),),
    train=Train(steps=500, batch=128, eval_every=500, checkpoint_every=500, log_every=100),
    seeds=(1,),
    chance=0.9,
)
config = dataclasses.replace(
    quick,
    title="MNIST in glimpses, table 2",
    units=UNITS,
    grid=(optim(1e-3), optim(3e-3)),
    tuning_steps=4_000,
    train=Train(steps=20_000, batch=128, eval_every=1_000, checkpoint_every=1_000, log_every=100),
    seeds=(1, 2, 3),
    quick=quick,
)
