"""The in-place layer in eager PyTorch as it is released: every chunk's matrix exists at once.

And the plain projection there, because PyTorch's products are not XLA's.
"""

import functools
import time

import torch
from harness import Contender
from in_place_reference import Problem, Size
from torch import Tensor


def layer(size: Size, w0: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """`[T, d]` from W0 `[d, f]`, z `[T, f]` and v `[T, d]`."""
    fill = size.chunks * size.chunk - size.length
    if fill:
        z, v = (torch.nn.functional.pad(x, (0, 0, 0, fill)) for x in (z, v))
    z, v = (x.view(size.chunks, size.chunk, -1) for x in (z, v))
    deltas = size.lr * torch.einsum("ncd,ncf->ndf", v[:-1], z[:-1])
    weights = torch.cat([w0[None], deltas]).cumsum(0)
    return torch.einsum("ncf,ndf->ncd", z, weights).reshape(-1, size.d)[: size.length]


def contender(size: Size, p: Problem, training: bool, learns: bool) -> Contender:
    """Eager, forward or with its gradients to w0, z and, of what learns, v."""
    dy = torch.from_numpy(p.dy)
    arrays = (p.w0, p.z, p.v) if learns else (p.w0, p.z)
    inputs = [torch.from_numpy(x).clone().requires_grad_(training) for x in arrays]
    forward = functools.partial(layer, size) if learns else lambda w0, z: z @ w0.T

    def run() -> list[Tensor]:
        if not training:
            with torch.no_grad():
                return [forward(*inputs)]
        return list(torch.autograd.grad((forward(*inputs) * dy).sum(), inputs))

    start = time.perf_counter()
    run()
    return Contender(run, time.perf_counter() - start)
