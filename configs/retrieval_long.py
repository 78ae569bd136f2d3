"""Associative retrieval with five times the updates of table 1, and λ and η chosen too.

    fastweights train configs/retrieval_long.py --run-dir runs/retrieval_long
    fastweights train configs/retrieval_long.py --run-dir runs/retrieval_long_quick --quick

For 20 units, the hardest column of the paper's table 1, in which so few must hold four pairs, and
for baselines of 50 and 100, which learn more slowly than fast weights. λ = 0.9 and η = 0.5 are the
paper's for this task; λ = 0.95 and 1 and η = 0.25 and 0.1 are tried beside them. Which are taken
is chosen on validation, with the learning rate, in runs of 20,000 updates. Rows and sizes of a
process of its own: `--arms LSTM --units 50`. A copy of another run's table.json in RUN is gone on
with: only cells it lacks are run.

What to expect at 20 units: half an hour a row on a core that is shared. `--quick` has 20 units, one
seed, one learning rate and 10,000 updates, four minutes on one core.
"""

import dataclasses
from typing import Any

from fastweights.models.retrieval import RetrievalModel
from fastweights.rules import Hebbian
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Optim, Train
from fastweights.train.sweep import Arm, Sweep

RULES = [
    Hebbian(decay=decay, lr=lr, steps=1) for decay in (0.9, 0.95, 1.0) for lr in (0.5, 0.25, 0.1)
]


def model(cell: Any, rule: Hebbian = RULES[0]) -> Any:
    """A model of a size, around a recurrent layer."""
    return lambda units: RetrievalModel(cell=cell, hidden=units, start="unit", rule=rule)


TASK = Retrieval(pairs=4)


def optim(lr: float) -> Optim:
    """Adam with a short warmup and a cosine to zero."""
    return Optim(lr=lr, schedule="cosine", warmup=100, clip=5.0)


quick = Sweep(
    title="Associative retrieval, 20 units, quick",
    task=TASK,
    arms={
        "IRNN": Arm(model("irnn"), {20: 62.11, 50: 60.23, 100: 0.34}),
        "layer-normed RNN": Arm(model("ln-rnn")),
        "LSTM": Arm(model("lstm"), {20: 60.81, 50: 1.85, 100: 0.0}),
        "fast weights": Arm(
            model("fast-weights"),
            {20: 1.81, 50: 0.0, 100: 0.0},
            variants=tuple(model("fast-weights", rule) for rule in RULES[1:]),
        ),
    },
    units=(20,),
    grid=(optim(1e-3),),
    tuning_steps=2_500,
    train=Train(steps=10_000, batch=128, eval_every=1_000, checkpoint_every=1_000, log_every=100),
    seeds=(1,),
    chance=TASK.chance,
)
config = dataclasses.replace(
    quick,
    title="Associative retrieval, 200,000 updates",
    units=(20, 50, 100),
    grid=(optim(1e-3), optim(3e-3)),
    tuning_steps=20_000,
    train=Train(steps=200_000, batch=128, eval_every=1_000, checkpoint_every=5_000, log_every=100),
    seeds=(1, 2, 3),
    quick=quick,
)
