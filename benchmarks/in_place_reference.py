"""In-Place TTT on one sequence in float64 NumPy: what the contenders of `in_place.py` must give."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Size(NamedTuple):
    """T tokens in chunks of C; W0 is `[d, f]`."""

    length: int
    chunk: int
    d: int
    f: int

    @property
    def lr(self) -> float:
        """η with which what is learned is as large as what W0 gives: z z' is of size √f."""
        return 1 / (self.length * self.f) ** 0.5

    @property
    def chunks(self) -> int:
        """Chunks, the last of which may be a part of one."""
        return -(-self.length // self.chunk)


class Problem(NamedTuple):
    """One sequence, and the weights of the projection whose gradients are taken."""

    w0: np.ndarray  # [d, f]
    z: np.ndarray  # [T, f]
    v: np.ndarray  # [T, d]
    dy: np.ndarray  # [T, d]


def problem(size: Size, seed: int) -> Problem:
    """Normal float32 numbers; W0 keeps the size of what it multiplies."""
    rng = np.random.default_rng(seed)
    shapes = (size.d, size.f), (size.length, size.f), *[(size.length, size.d)] * 2
    w0, *rest = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return Problem(w0 / np.float32(size.f**0.5), *rest)


def pieces(size: Size) -> Iterator[slice]:
    """The tokens of each chunk."""
    for start in range(0, size.length, size.chunk):
        yield slice(start, min(start + size.chunk, size.length))


def weights(p: Problem, size: Size) -> list[np.ndarray]:
    """The matrix that each chunk reads: W0 and η V' Z of all chunks before."""
    found = [p.w0.astype(np.float64)]
    for at in pieces(size):
        delta = p.v[at].astype(np.float64).T @ p.z[at].astype(np.float64)
        found.append(found[-1] + size.lr * delta)
    return found[:-1]


def outputs(p: Problem, size: Size, learns: bool = True) -> np.ndarray:
    """`[T, d]`; of a plain down projection if it does not learn."""
    z = p.z.astype(np.float64)
    if not learns:
        return z @ p.w0.astype(np.float64).T
    found = zip(pieces(size), weights(p, size), strict=True)
    return np.concatenate([z[at] @ w.T for at, w in found])


def gradients(p: Problem, size: Size, learns: bool = True) -> list[np.ndarray]:
    """Of Σ dy y: to W0, z and, of what learns, v.

    Chunk i's write is read by the chunks after it, so its gradient is the sum of dYⱼᵀ Zⱼ over them.
    """
    _, z, v, dy = (x.astype(np.float64) for x in p)
    if not learns:
        return [dy.T @ z, dy @ p.w0.astype(np.float64)]
    read = [dy[at].T @ z[at] for at in pieces(size)]
    later = [sum(read[i + 1 :], np.zeros_like(read[0])) for i in range(len(read))]
    rows = list(zip(pieces(size), weights(p, size), later, strict=True))
    dz = np.concatenate([dy[at] @ w + size.lr * v[at] @ g for at, w, g in rows])
    dv = np.concatenate([size.lr * z[at] @ g.T for at, _, g in rows])
    return [sum(read, np.zeros_like(read[0])), dz, dv]
