"""Fast-slow training on chains of operators whose meaning is hidden.

    fastweights train configs/fst_base.py --run-dir runs/fst_base         # once
    fastweights train configs/fst_conventions.py --run-dir runs/fst_conventions
    fastweights train configs/fst_conventions.py --arm rl --optim.lr 1e-3 \\
        --run-dir runs/fst_conventions_rl

The learning rates are those that `benchmarks/fst.py` chose; RL only wants the larger one.
"""

import dataclasses

from fastweights.fastslow.config import FastSlow
from fastweights.tasks.conventions import Conventions

config = FastSlow(
    task=Conventions(),
    base="runs/fst_base",
    optim=dataclasses.replace(FastSlow.optim, lr=3e-4),
)
