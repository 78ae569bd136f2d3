"""Flax modules: recurrent cells and the layers the models are made of."""

from fastweights.nn.associative_lstm import AssociativeLSTM
from fastweights.nn.attention import Attention
from fastweights.nn.in_place import InPlaceMLP, InPlaceTTT
from fastweights.nn.initializers import Start, embedding_start, kernel_start, scaled_identity
from fastweights.nn.parts import MLP, RMSNorm
from fastweights.nn.recurrent import (
    LSTM,
    RNN,
    CellName,
    FastWeightCell,
    make_cell,
    unroll,
    unroll_drives,
)
from fastweights.nn.rope import Rope

__all__ = [
    "LSTM",
    "MLP",
    "RNN",
    "AssociativeLSTM",
    "Attention",
    "CellName",
    "FastWeightCell",
    "InPlaceMLP",
    "InPlaceTTT",
    "RMSNorm",
    "Rope",
    "Start",
    "embedding_start",
    "kernel_start",
    "make_cell",
    "scaled_identity",
    "unroll",
    "unroll_drives",
]
