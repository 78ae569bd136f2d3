"""Fast-slow training on string programs whose rule is longer than a prompt may be.

    fastweights train configs/fst_base.py --run-dir runs/fst_base         # once
    fastweights train configs/fst_short_prompts.py --run-dir runs/fst_short_prompts
    fastweights train configs/fst_short_prompts.py --arm fst-one-prompt \\
        --run-dir runs/fst_short_prompts_one

The task of `configs/fst_programs.py` with room for three operations in place of six, where the two
halves of the rule have five: a prompt can own one kind of input at most. This is what several
prompts should be for; docs/fast_slow_measured.md has what came of it. The arm `rl-oracle` is told
the whole rule all the same.
"""

import dataclasses

from fastweights.fastslow.config import FastSlow
from fastweights.tasks.programs import Programs

config = FastSlow(
    task=Programs(longest=3),
    base="runs/fst_base",
    optim=dataclasses.replace(FastSlow.optim, lr=3e-4),
)
