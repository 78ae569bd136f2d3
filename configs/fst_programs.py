"""Fast-slow training on hinted string programs: prompts evolve while RL moves the weights.

    fastweights train configs/fst_base.py --run-dir runs/fst_base         # once
    fastweights train configs/fst_programs.py --run-dir runs/fst_programs
    fastweights train configs/fst_programs.py --arm rl --optim.lr 1e-3 \\
        --run-dir runs/fst_programs_rl

The learning rates are those that `benchmarks/fst.py` chose; RL only wants the larger one. Arms:
fst, rl, evolution, evolution-rl, rl-evolution, fst-one-prompt, fst-per-prompt, rl-entropy, rl-kl,
rl-oracle.
"""

import dataclasses

from fastweights.fastslow.config import FastSlow
from fastweights.tasks.programs import Programs

config = FastSlow(
    task=Programs(),
    base="runs/fst_base",
    optim=dataclasses.replace(FastSlow.optim, lr=3e-4),
)
