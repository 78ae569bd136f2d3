"""Flax modules: recurrent cells and the layers the models are made of."""

from fastweights.nn.associative_lstm import AssociativeLSTM
from fastweights.nn.initializers import Start, embedding_start, kernel_start, scaled_identity
from fastweights.nn.recurrent import LSTM, RNN, CellName, FastWeightCell, make_cell, unroll

__all__ = [
    "LSTM",
    "RNN",
    "AssociativeLSTM",
    "CellName",
    "FastWeightCell",
    "Start",
    "embedding_start",
    "kernel_start",
    "make_cell",
    "scaled_identity",
    "unroll",
]
