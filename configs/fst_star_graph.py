"""Fast-slow training where RL alone has nothing to learn from: paths through a chain of stars.

    fastweights train configs/fst_base.py --run-dir runs/fst_base         # once
    fastweights train configs/fst_star_graph.py --run-dir runs/fst_star_graph
    fastweights train configs/fst_star_graph.py --arm rl --run-dir runs/fst_star_graph_rl
    fastweights train configs/fst_star_graph.py --arm rl-easy --run-dir runs/fst_star_graph_easy

Going forward, a path is right by chance once in 4^4 = 256; the reward is 1 or 0.
"""

import dataclasses

from fastweights.fastslow.config import FastSlow
from fastweights.tasks.star_graph import StarGraph

config = FastSlow(
    task=StarGraph(stars=4, degree=4),
    base="runs/fst_base",
    train=dataclasses.replace(FastSlow.train, steps=60),
)
