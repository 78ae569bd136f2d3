"""Associative retrieval with weight decay, for LSTMs, which learn their strings by heart.

    fastweights train configs/retrieval_decay.py --run-dir runs/retrieval_decay
    fastweights train configs/retrieval_decay.py --run-dir runs/retrieval_decay_quick --quick

LSTMs of 50 and 100 units end the runs of `retrieval_long` with a training loss of 1e-5 and less,
and errors on other strings that more updates do not mend. Here decoupled weight decay (0.03, 0.1 or
0.3, times the learning rate an update) is chosen on validation for both, in runs of 20,000 updates.
The paper does not say whether it had any. Fast weights reach its numbers without. `--quick` has 50
units, one seed, one decay and 4,000 updates. A copy of another run's table.json in RUN is gone on
with: only cells it lacks are run.
"""

import dataclasses

from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Optim, Train
from fastweights.train.sweep import Arm, Sweep

TASK = Retrieval(pairs=4)


def optim(weight_decay: float) -> Optim:
    """Adam with decoupled weight decay and a cosine to zero."""
    return Optim(lr=3e-3, schedule="cosine", warmup=100, clip=5.0, weight_decay=weight_decay)


quick = Sweep(
    title="Associative retrieval, weight decay, quick",
    task=TASK,
    arms={
        "LSTM": Arm(
            lambda units: RetrievalModel(cell="lstm", hidden=units, start="unit"),
            {50: 1.85, 100: 0.0},
        ),
    },
    units=(50,),
    grid=(optim(0.1),),
    train=Train(steps=4_000, batch=128, eval_every=1_000, checkpoint_every=1_000, log_every=100),
    seeds=(1,),
    chance=TASK.chance,
)
config = dataclasses.replace(
    quick,
    title="Associative retrieval with weight decay",
    units=(50, 100),
    grid=(optim(0.03), optim(0.1), optim(0.3)),
    tuning_steps=20_000,
    train=Train(steps=80_000, batch=128, eval_every=1_000, checkpoint_every=4_000, log_every=100),
    seeds=(1, 2, 3),
    quick=quick,
)
