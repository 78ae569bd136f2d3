"""Algebra that update rules share, on one unbatched chunk of a sequence; imports only jax."""

from fastweights.ops.decay import decays, reachable
from fastweights.ops.norm import root, shortening
from fastweights.ops.triangular import unit_lower_inverse

__all__ = ["decays", "reachable", "root", "shortening", "unit_lower_inverse"]
