"""The outer training: slow weights moved by optax on a mesh, saved so that nothing is lost."""

from fastweights.train.config import Config, Data, Mesh, Optim, Train
from fastweights.train.loop import Result, evaluate_run, train

__all__ = ["Config", "Data", "Mesh", "Optim", "Result", "Train", "evaluate_run", "train"]
