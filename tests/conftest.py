"""A strict environment: eight CPU devices, warnings are errors, rank promotion raises."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def no_rank_promotion():
    """Broadcasting across ranks raises, so that every such place is written out."""
    with jax.numpy_rank_promotion("raise"):
        yield
