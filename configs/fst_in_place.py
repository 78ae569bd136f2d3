"""Fast-slow training of a model whose MLPs learn while it reads: three speeds at once.

    fastweights train configs/fst_base_in_place.py --run-dir runs/fst_base_in_place   # once
    fastweights train configs/fst_in_place.py --run-dir runs/fst_in_place

The task of `configs/fst_programs.py`. Within an answer the fast weights of the MLPs move, between
updates the prompts, with every update the weights. The learning rate is the one that
`benchmarks/fst.py` chose.
"""

import dataclasses

from fastweights.fastslow.config import FastSlow
from fastweights.tasks.programs import Programs

config = FastSlow(
    task=Programs(),
    base="runs/fst_base_in_place",
    optim=dataclasses.replace(FastSlow.optim, lr=3e-4),
)
