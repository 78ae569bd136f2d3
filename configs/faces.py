"""Facial expressions of Multi-PIE in 24 glimpses of 12 x 12 (Ba et al. 2016, table 3, 200 units).

    fastweights train configs/faces.py --data.manual-dir DIR --run-dir runs/faces

Multi-PIE is licensed: DIR is your own copy, and nothing is claimed without it.
"""

from fastweights.models.glimpse import GlimpseModel
from fastweights.rules import Hebbian
from fastweights.tasks.faces import Faces
from fastweights.train import Config, Optim, Train

config = Config(
    task=Faces(),
    model=GlimpseModel(hidden=200, rule=Hebbian(decay=0.95, lr=0.5, steps=1)),
    optim=Optim(lr=1e-3, schedule="cosine", decay_steps=20_000, clip=5.0),
    train=Train(steps=20_000, batch=128, eval_every=1_000, checkpoint_every=1_000, log_every=100),
)
