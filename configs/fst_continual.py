"""Fast-slow training on three tasks in one uninterrupted run; nobody is told when they change.

fastweights train configs/fst_base.py --run-dir runs/fst_base         # once
fastweights train configs/fst_continual.py --run-dir runs/fst_continual
fastweights train configs/fst_continual.py --arm rl --run-dir runs/fst_continual_rl
"""

import dataclasses

from fastweights.fastslow.config import FastSlow
from fastweights.tasks.continual import Continual
from fastweights.tasks.conventions import Conventions
from fastweights.tasks.programs import Programs
from fastweights.tasks.star_graph import StarGraph

config = FastSlow(
    task=Continual((Conventions(), Programs(), StarGraph(stars=4, degree=4)), updates=102),
    base="runs/fst_base",
    train=dataclasses.replace(FastSlow.train, steps=306),
)
