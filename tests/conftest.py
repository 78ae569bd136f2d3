"""A strict environment: eight CPU devices, warnings are errors, rank promotion raises.

Most of the time of these tests is XLA's, compiling programs that run once. So they are compiled
without LLVM's optimizations and, where XLA still has it, in one piece and by the older and quicker
of its emitters; what XLA makes of the program itself, fusions among it, is as users have it.
`make parity` compiles its tests as users do, and so does JAX_DISABLE_MOST_OPTIMIZATIONS=0
XLA_FLAGS= make test.
"""

import importlib
import os
import sys

import jax
import pytest
from support import ROOT

if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:  # otherwise jax has read it
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the commands that tests start
    jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):  # later ones end the process at a flag they do not know
    QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", QUICK)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# set once and not in each test: it is part of what jit looks programs up by, and fixtures of a
# module compile before a test begins
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """A program maps memory, and Linux gives a process 65,530 maps: past them, XLA crashes."""
    yield
    jax.clear_caches()


@pytest.fixture
def script(monkeypatch):
    """A function that imports a script of benchmarks/; the test's are not the next one's."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def optimized():
    """LLVM's optimizations, for a test of two programs that are the same to the bit with them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
