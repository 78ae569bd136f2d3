"""A JAX function compiled ahead of time: as something to time, and XLA's plan of its memory."""

import time
from collections.abc import Callable
from typing import Any

import jax
from harness import Contender


def temporary(compiled: jax.stages.Compiled) -> int | None:
    """Bytes beside arguments and results, as XLA planned them; None if it does not say."""
    memory = compiled.memory_analysis()
    return None if memory is None else int(memory.temp_size_in_bytes)


def contender(function: Callable[..., Any], *arguments: Any, calls: int = 1) -> Contender:
    """Compile a function for its arguments.

    Args:
        function: of the arguments, not jitted yet or with its own options already.
        arguments: pytrees of arrays.
        calls: how often a run calls it before it waits, for what is short beside a wait.
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    start = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    seconds = time.perf_counter() - start

    def run() -> Any:
        for _ in range(calls - 1):
            compiled(*arguments)
        return jax.block_until_ready(compiled(*arguments))

    return Contender(run, seconds, temporary(compiled))
