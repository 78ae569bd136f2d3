"""Associative retrieval, K = 4, fast-weight RNN with H = 50 (Ba et al. 2016, table 1, R = 50).

    fastweights train configs/retrieval.py --run-dir runs/retrieval
    fastweights eval --run-dir runs/retrieval

The paper's starting weights (`--model.start paper`) sit for tens of thousands of updates on the
plateau of a net that knows only which digits were there; weights of unit variance do not.
"""

from fastweights.models.retrieval import RetrievalModel
from fastweights.rules import Hebbian
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Config, Optim, Train

config = Config(
    task=Retrieval(pairs=4),
    model=RetrievalModel(hidden=50, start="unit", rule=Hebbian(decay=0.9, lr=0.5, steps=1)),
    optim=Optim(lr=1e-3, schedule="cosine", decay_steps=40_000, warmup=100, clip=5.0),
    train=Train(steps=40_000, batch=128, eval_every=1_000, checkpoint_every=1_000, log_every=100),
)
