"""Associative retrieval, the whole of table 1 of Ba et al. 2016 with two controls and seeds.

    fastweights train configs/retrieval_table.py --run-dir runs/retrieval_table
    fastweights train configs/retrieval_table.py --run-dir runs/retrieval_quick --quick

Writes RUN/table.json and RUN/table.md. `--quick` has one seed, one size, 2,500 updates and no
associative LSTM, an update of which takes ten times as long as the others'. Rows of a process of
its own: `--arms "fast weights" LSTM`; processes may share the run directory.
A copy of another run's table.json in RUN is gone on with: only cells it lacks are run.
"""

import dataclasses
from typing import Any

from fastweights.models.retrieval import RetrievalModel
from fastweights.rules import Hebbian
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Optim, Train
from fastweights.train.sweep import Arm, Sweep

RULE = Hebbian(decay=0.9, lr=0.5, steps=1)


def row(cell: Any, rule: Hebbian = RULE, paper: tuple[float, ...] = (), **more: Any) -> Arm:
    """A row: the same network around another recurrent layer."""
    return Arm(
        lambda units: RetrievalModel(cell=cell, hidden=units, start="unit", rule=rule),
        dict(zip((20, 50, 100), paper, strict=False)),
        **more,
    )


def optim(lr: float) -> Optim:
    """Adam with a short warmup and a cosine to zero."""
    return Optim(lr=lr, schedule="cosine", warmup=100, clip=5.0)


SLOW = "associative LSTM"
ARMS = {
    "IRNN": row("irnn", paper=(62.11, 60.23, 0.34)),
    "layer-normed RNN": row("ln-rnn"),
    "LSTM": row("lstm", paper=(60.81, 1.85, 0.0)),
    SLOW: row("associative-lstm", paper=(60.13, 1.62, 0.0), steps=10_000, tuning_steps=3_000),
    "fast weights, η = 0": row("fast-weights", dataclasses.replace(RULE, lr=0.0)),
    "fast weights": row("fast-weights", paper=(1.81, 0.0, 0.0)),
}
TASK = Retrieval(pairs=4)

quick = Sweep(
    title="Associative retrieval, quick",
    task=TASK,
    arms={name: arm for name, arm in ARMS.items() if name != SLOW},
    units=(100,),
    grid=(optim(2e-3),),
    train=Train(steps=2_500, batch=128, eval_every=500, checkpoint_every=500, log_every=100),
    seeds=(1,),
    chance=TASK.chance,
)
config = dataclasses.replace(
    quick,
    title="Associative retrieval, table 1",
    arms=ARMS,
    units=(20, 50, 100),
    grid=(optim(1e-3), optim(3e-3)),
    train=Train(steps=40_000, batch=128, eval_every=1_000, checkpoint_every=1_000, log_every=100),
    seeds=(1, 2, 3),
    quick=quick,
)
