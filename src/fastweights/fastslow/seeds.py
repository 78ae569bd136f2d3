"""Seeds of a run: every use has its own, so that no two loops ever draw the same problems."""

from typing import Literal, get_args

import numpy as np

#: the first five are of evolutions, the others of updates
Use = Literal[
    "instances", "scoring", "minibatch", "trial", "proposal", "problems", "easy", "rollouts", "gepa"
]


def seed_of(run: int, use: Use, *numbers: int) -> int:
    """A seed below 2**31.

    Args:
        run: the run's own.
        use: what is drawn with it.
        numbers: which of the draws of that kind, always as many.
    """
    parts = (run, get_args(Use).index(use), *numbers)
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)
