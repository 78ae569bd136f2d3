"""The ConvNet beside the glimpse network: the same 7 x 7 patches at once (Ba et al. 2016, table 2).

fastweights train configs/glimpses_convnet.py --run-dir runs/glimpses_convnet
fastweights eval --run-dir runs/glimpses_convnet
"""

from fastweights.models.convnet import ConvNetModel
from fastweights.tasks.glimpses import Glimpses
from fastweights.train import Config, Optim, Train

config = Config(
    task=Glimpses(),
    model=ConvNetModel(features=50),
    optim=Optim(lr=1e-3, schedule="cosine", decay_steps=20_000, clip=5.0),
    train=Train(steps=20_000, batch=128, eval_every=1_000, checkpoint_every=1_000, log_every=100),
)
