"""XLA's own count of the memory of one in-place layer at real size; compiled, never run."""

import functools

import jax
import jax.numpy as jnp
import pytest

from fastweights.rules import InPlace, chunk_scan
from fastweights.rules.in_place import Token

D, F, T = 2560, 9728, 32_768  # the MLP of Qwen3-4B, a row of 32k
GIB = 2**30


def materialised(w0, z, v, *, chunk, lr):
    """As released: every chunk's delta, their prefix sums, every chunk's weights."""
    z, v = (x.reshape(-1, chunk, x.shape[-1]) for x in (z, v))
    deltas = lr * jnp.einsum("ncd,ncf->ndf", v, z)
    weights = w0[None] + jnp.cumsum(deltas, 0) - deltas
    return jnp.einsum("ncf,ndf->ncd", z, weights).reshape(T, D), None


#: a decay that has a gradient
LEARNED = "learned"


@functools.cache
def temporary(form, chunk, packed=False, **options):
    """GiB of temporaries of output and every gradient, float32, for a cotangent that is given."""
    learned = options.get("decay") == LEARNED

    def forward_and_backward(w0, z, v, decay, dy, ids):
        more = options | ({"segments": ids} if packed else {})

        def read(w0, z, v, decay):
            how = more | ({"decay": decay} if learned else {})
            return form(w0, z, v, chunk=chunk, lr=0.1, **how)[0]

        y, pull = jax.vjp(read, w0, z, v, decay)
        return y, pull(dy)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((D, F), (T, F), (T, D), (), (T, D))]
    shapes.append(jax.ShapeDtypeStruct((T,), jnp.int32))
    compiled = jax.jit(forward_and_backward).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes / GIB


ours = functools.partial(chunk_scan, final=False)


@pytest.mark.parametrize("chunk", [512, 1024])
def test_one_layer_needs_less_than_2_5_gib(chunk):
    assert temporary(ours, chunk) <= 2.5


@pytest.mark.parametrize(
    "options", [{}, {"decay": 0.9}, {"decay": LEARNED}, {"cap": 0.1}, {"row_norm": True}]
)
def test_memory_does_not_grow_with_the_number_of_chunks(options):
    """8 to 128 chunks: no more, where the form that keeps every chunk's weights has all of them."""
    few, many = temporary(ours, 4096, **options), temporary(ours, 256, **options)
    assert many <= 1.05 * few
    assert temporary(materialised, 1024) >= 8.0


@pytest.mark.parametrize("chunk", [1024, 256])
@pytest.mark.parametrize("options", [{"cap": 0.1, "decay": 0.9}, {"residual": True}])
def test_matrices_that_are_kept_are_about_twice_the_root_of_the_chunks(options, chunk):
    """Those before each block, and those within one; beside the memory of a decay."""
    matrices = (temporary(ours, chunk, **options) - temporary(ours, chunk, decay=0.9)) * GIB
    assert 2 <= matrices / (4 * D * F) <= 2 * (T / chunk) ** 0.5 + 2


@pytest.mark.parametrize("options", [{"packed": True}, {"clip": 1.0}, {"decay": 0.9}])
def test_packed_and_clipped_rows_stay_below_too(options):
    assert temporary(ours, 512, **options) <= 2.5


def test_a_block_of_many_chunks_needs_no_more_than_one_of_few():
    """The rule's own closed form, which takes a block of any length: 64 and 256 chunks."""
    rule, shape = InPlace(chunk_size=64), jax.ShapeDtypeStruct

    def used(length):
        state = jax.eval_shape(rule.init, shape((32, 48), jnp.float32))
        tokens = Token(shape((length, 48), jnp.float32), shape((length, 32), jnp.float32))
        compiled = jax.jit(rule.chunk).lower(state, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert used(16_384) <= 1.05 * used(4096)
