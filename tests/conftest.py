"""A strict environment: eight CPU devices, warnings are errors, rank promotion raises."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# set once and not in each test: it is part of what jit looks programs up by, and fixtures of a
# module compile before a test begins
jax.config.update("jax_numpy_rank_promotion", "raise")
