"""The Associative LSTM (Danihelka, Wayne, Uria, Kalchbrenner, Graves 2016, arXiv 1602.03032).

An LSTM whose memory cells are complex numbers and hold key-value pairs: a value is stored by
multiplying it with a key of about unit modulus and adding it to what is there, and recalled by
multiplying with the inverse key. What else is stored then comes out with random phases, as noise.
Several copies of the memory, each with its keys permuted in its own fixed way, make that noise
independent, so that averaging over copies reduces it.

A complex vector of M numbers is a real array `[..., 2, M]` here, real parts before imaginary ones:
no complex dtype, which not every accelerator has.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from fastweights.errors import ConfigError

_SEED = 1602_03032


def multiply(a: Array, b: Array) -> Array:
    """Product of complex vectors, number by number: `[..., 2, M]`, `[..., 2, M]` -> `[..., 2, M]`.

    Leading axes must match or be 1.
    """
    a_re, a_im, b_re, b_im = a[..., 0, :], a[..., 1, :], b[..., 0, :], b[..., 1, :]
    return jnp.stack([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], axis=-2)


def bound(z: Array) -> Array:
    """`z`, with every modulus above 1 cut to 1 and every phase kept: `[..., 2, M]`."""
    # The root is of at least 1, so its gradient is finite where z = 0.
    return z / jnp.sqrt(jnp.maximum(1.0, jnp.sum(z * z, axis=-2, keepdims=True)))


def permutations(copies: int, size: int) -> np.ndarray:
    """The fixed random permutation of each copy: int64 `[copies, size]`.

    A function of its arguments and nothing else, so that a checkpoint need not hold them. It sorts
    raw Philox output, a stream NumPy promises to keep from version to version.
    """
    bits = np.random.Philox(np.random.SeedSequence([_SEED, size]))
    return np.argsort(bits.random_raw(copies * size).reshape(copies, size), axis=-1)


def permuted(key: Array, order: np.ndarray) -> Array:
    """A key for every copy: `[..., 2, M]` and `[S, M]` -> `[..., S, 2, M]`."""
    return jnp.moveaxis(key[..., order], -2, -3)


def store(memory: Array, key: Array, value: Array, order: np.ndarray) -> Array:
    """Add one key-value pair to every copy: `[S, 2, M]`, `[2, M]`, `[2, M]` -> `[S, 2, M]`."""
    return memory + multiply(permuted(key, order), value[None])


def recall(memory: Array, key: Array, order: np.ndarray) -> Array:
    """Mean over copies of the memory times the permuted key: `[S, 2, M]`, `[2, M]` -> `[2, M]`.

    With the conjugate of a stored key of unit modulus this is the value, and noise from the rest.
    """
    return jnp.mean(multiply(permuted(key, order), memory), axis=0)


class AssociativeCarry(NamedTuple):
    """Activity and memory between two steps of `AssociativeLSTM`."""

    h: Array  # [H], real parts and then imaginary ones
    memory: Array  # [copies, 2, H / 2]


class AssociativeLSTM(nnx.Module):
    """The recurrent cell; with `heads` = 1, the equations that public implementations share.

    With x the input, P_s the permutation of copy s = 1..S, σ the logistic function, ⊛ the product
    of complex vectors, ⊙ a real gate times a complex vector, and z = W_x x(t) + W_h h(t-1) + b cut
    into one part for each name with a hat:

        f = σ(f̂), and for each head k:
        i_k = σ(î_k), o_k = σ(ô_k)                                       gates, real
        r_k = bound(r̂_k), q_k = bound(q̂_k), u_k = bound(û_k)         write key, read key, value
        c_s(t) = f ⊙ c_s(t-1) + Σ_k (P_s r_k) ⊛ (i_k ⊙ u_k)             every copy, one forget gate
        h(t)   = Σ_k o_k ⊙ bound(1/S Σ_s (P_s q_k) ⊛ c_s(t))

    Ba et al. 2016 use 4 copies and 3 read-write heads, the defaults, and say no more. Our choices:

    - several heads: each has its own keys, value and gates, and what they recall is added. With one
      value or one output gate for all heads, adding would make them one head with a summed key. (To
      hand on all reads side by side is the other way to have several; H would then not be the size
      of the activity, which is what a table that compares cells at equal R needs.)
    - R units: the activity has R real numbers, as in every other cell of the table: R / 2 complex
      ones. The memory has S · R real numbers. The weights do not depend on S.
    - start: LeCun normal for W_x and W_h; b = 0 but for the forget gate, at `forget_bias`.

    Args:
        features: input size I.
        hidden: number of units H (R in the table), even.
        copies: redundant copies of the memory, S.
        heads: read-write heads.
        forget_bias: start of the forget gate's bias; 1 keeps 73 % of the memory per step at first.
        rngs: flax's source of random keys.

    Raises:
        ConfigError: `hidden` is odd, or a size is not positive.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        copies: int = 4,
        heads: int = 3,
        forget_bias: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if hidden < 2 or hidden % 2 or copies < 1 or heads < 1:
            raise ConfigError(
                f"an Associative LSTM of {hidden} units, {copies} copies and {heads} heads",
                cause="its units are pairs of a real and an imaginary part",
                next="choose an even number of units, and at least one copy and one head",
            )
        self.hidden, self.copies, self.heads = hidden, copies, heads
        cells = hidden // 2
        width = cells * (1 + 8 * heads)
        lecun = nnx.initializers.lecun_normal()

        def bias(key, shape, dtype=jnp.float32, out_sharding=None):
            return jnp.zeros(shape, dtype).at[:cells].set(forget_bias)

        self.input = nnx.Linear(features, width, kernel_init=lecun, bias_init=bias, rngs=rngs)
        self.recurrent = nnx.Linear(hidden, width, use_bias=False, kernel_init=lecun, rngs=rngs)

    def initial(self, length: int) -> AssociativeCarry:
        """Zero activity and empty memory, whatever the length."""
        shape = (self.copies, 2, self.hidden // 2)
        return AssociativeCarry(jnp.zeros(self.hidden), jnp.zeros(shape))

    def project(self, xs: Array) -> Array:
        """W_x x + b for the whole sequence: `[T, I] -> [T, (1 + 8 heads) H / 2]`."""
        return self.input(xs)

    def step(self, carry: AssociativeCarry, drive: Array) -> tuple[AssociativeCarry, Array]:
        """One step: write with every head, then read with every head.

        What it works with is many times its carry: the backward pass works it out again, which
        takes less time than keeping it.
        """
        return jax.checkpoint(self._step, prevent_cse=False)(carry, drive)

    def _step(self, carry: AssociativeCarry, drive: Array) -> tuple[AssociativeCarry, Array]:
        cells = self.hidden // 2
        order = permutations(self.copies, cells)
        z = self.recurrent(carry.h) + drive
        forget = jax.nn.sigmoid(z[:cells])
        # [heads, 8, M]: two gates; then write key, read key and value, two rows each
        parts = z[cells:].reshape(self.heads, 8, cells)
        gates = jax.nn.sigmoid(parts[:, :2, None])
        write_key, read_key, value = (bound(parts[:, i : i + 2]) for i in (2, 4, 6))
        memory = forget[None, None] * carry.memory
        h = jnp.zeros((2, cells))
        for head in range(self.heads):
            memory = store(memory, write_key[head], gates[head, 0] * value[head], order)
        for head in range(self.heads):
            h = h + gates[head, 1] * bound(recall(memory, read_key[head], order))
        h = h.reshape(self.hidden)
        return AssociativeCarry(h, memory), h
