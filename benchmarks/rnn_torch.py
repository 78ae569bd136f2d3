"""The same layers in PyTorch, written to be fast there: whole batches, `baddbmm`, no masks.

The attention form grows its history by one row a step, so nothing is multiplied by zero. A buffer
written in place would save the copies, but autograd refuses to go back through it; it is used where
no gradient is asked for.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from harness import Contender
from rnn_reference import DECAY, EPS, FEATURES, LR, Arrays
from torch import Tensor
from torch.nn.functional import layer_norm

Parameters = dict[str, Tensor]
Layer = Callable[[Parameters, Tensor], Tensor]


def settle(p: Parameters, z: Tensor, recall: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """`steps` times h <- ReLU(LN(recall(h))) from ReLU(z); `recall` gives z + A h."""
    h = torch.relu(z)
    for _ in range(steps):
        h = torch.relu(layer_norm(recall(h), h.shape[-1:], p["gain"], p["bias"], EPS))
    return h


def matrix_layer(steps: int, compile_step: bool = False) -> Layer:
    """The explicit matrix, `[B, H, H]`; `compile_step` is for layers too long to compile whole."""

    def step(p: Parameters, h: Tensor, A: Tensor, drive: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.addmm(drive, h, p["W"])
        recall = lambda h: torch.baddbmm(z[:, :, None], A, h[:, :, None])[:, :, 0]
        h = settle(p, z, recall, steps)
        return h, torch.baddbmm(A, h[:, :, None], h[:, None, :], beta=DECAY, alpha=LR)

    advance = torch.compile(step, fullgraph=True, dynamic=False) if compile_step else step

    def layer(p: Parameters, xs: Tensor) -> Tensor:
        drives = xs @ p["C"]
        h = torch.zeros_like(drives[:, 0])
        A = h.new_zeros(len(xs), h.shape[1], h.shape[1])
        hs = []
        for t in range(xs.shape[1]):
            h, A = advance(p, h, A, drives[:, t])
            hs.append(h)
        return torch.stack(hs, 1)

    return layer


def attention_layer(steps: int, length: int) -> Layer:
    """Attention over the activities so far, `[B, t, H]`."""
    weights = LR * DECAY ** torch.arange(length - 1, -1, -1, dtype=torch.float32)

    def layer(p: Parameters, xs: Tensor) -> Tensor:
        drives = xs @ p["C"]
        in_place = not torch.is_grad_enabled()
        buffer = torch.empty_like(drives) if in_place else None
        h = torch.zeros_like(drives[:, 0])
        hs: list[Tensor] = []
        for t in range(length):
            z = torch.addmm(drives[:, t], h, p["W"])
            keys = None if t == 0 else torch.stack(hs, 1) if buffer is None else buffer[:, :t]

            def recall(h: Tensor, z: Tensor = z, keys: Tensor | None = keys, t: int = t) -> Tensor:
                if keys is None:
                    return z
                scores = torch.bmm(h[:, None, :], keys.transpose(1, 2)) * weights[length - t :]
                return torch.baddbmm(z[:, None, :], scores, keys)[:, 0]

            h = settle(p, z, recall, steps)
            if buffer is None:
                hs.append(h)
            else:
                buffer[:, t] = h
        return torch.stack(hs, 1) if buffer is None else buffer

    return layer


def lstm_layer(hidden: int) -> Layer:
    """`torch.nn.LSTM`; its second bias is zero."""
    module = torch.nn.LSTM(FEATURES, hidden, batch_first=True)
    zero = torch.zeros(4 * hidden)

    def layer(p: Parameters, xs: Tensor) -> Tensor:
        named = {"weight_ih_l0": p["U"].T, "weight_hh_l0": p["R"].T, "bias_ih_l0": p["b"]}
        named = {name: value.contiguous() for name, value in named.items()} | {"bias_hh_l0": zero}
        return torch.func.functional_call(module, named, (xs,))[0]

    return layer


def contender(
    layer: Layer, p: Arrays, xs: np.ndarray, d: np.ndarray, training: bool, compiled: bool
) -> Contender:
    """A layer eager or through `torch.compile`, forward or with its gradients."""
    names = sorted(p)
    tensors = {name: torch.from_numpy(p[name]).requires_grad_(training) for name in names}
    inputs, weights = torch.from_numpy(xs).clone().requires_grad_(training), torch.from_numpy(d)
    forward = torch.compile(layer, fullgraph=True, dynamic=False) if compiled else layer

    def run() -> list[Tensor]:
        if not training:
            with torch.no_grad():
                return [forward(tensors, inputs)]
        value = (forward(tensors, inputs) * weights).sum()
        return list(torch.autograd.grad(value, [*(tensors[n] for n in names), inputs]))

    start = time.perf_counter()
    run()  # the first call compiles, whole or one step, whatever is to be compiled
    return Contender(run, time.perf_counter() - start)
