"""Forms of a rule with their gradients, each compiled once and shared by all clauses.

Compiling takes nearly all the time of a check, running none. So a program takes everything that a
clause may vary as an argument: cotangents, segment ids, tokens of another dtype.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fastweights.rules import Rule, outputs, run
from fastweights.testing.trees import floating, merge, named

#: a program runs a few times, for milliseconds: LLVM's optimizations cost seconds and gain nothing
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):  # where XLA still has the quicker of its emitters
    QUICK |= {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}

Outcome = dict[str, Any]  # "output", "state", "gradient to state", "gradient to token"


class Form(NamedTuple):
    """A form of a rule: token by token, in chunks, or the rule's own `sequence`."""

    chunk: int | None = None
    own: bool = False

    def __str__(self):
        return "sequence" if self.own else f"chunk = {self.chunk}" if self.chunk else "scan"

    def drive(
        self, rule: Rule, state: Any, tokens: Any, segment_ids: Array | None = None
    ) -> tuple[Any, Any]:
        """Final state, None for `sequence`, which begins with `rule.reset(state)`; outputs."""
        if self.own:
            return None, outputs(rule, rule.reset(state), tokens, segment_ids=segment_ids)
        return run(rule, state, tokens, chunk=self.chunk, segment_ids=segment_ids)


SCAN = Form()
OWN = Form(own=True)


def compiled(function: Callable) -> Callable:
    """`jax.jit` that compiles quickly."""
    return jax.jit(function, compiler_options=QUICK if jax.default_backend() == "cpu" else None)


def with_gradients(function: Callable) -> Callable:
    """`program(arguments, cotangents, *rest) -> (outputs, gradients to arguments)`.

    Gradients are those of the inner product of the outputs with `cotangents`; integer leaves have
    None in both.
    """

    def program(arguments: tuple, cotangents: Any, *rest: Any):
        def value(floats: Any):
            out = function(*merge(floats, arguments), *rest)
            products = jax.tree.map(lambda c, y: jnp.sum(c * y), cotangents, floating(out))
            return sum(jax.tree.leaves(products), jnp.zeros(())), out

        gradients, out = jax.grad(value, has_aux=True)(floating(arguments))
        return out, gradients

    return program


class Programs:
    """Everything about one rule that is compiled.

    Attributes:
        rule: the rule.
        step: `rule.step` of arguments (state, token), with gradients.
        reset: `rule.reset` of a state.
        reset_gradient: the same of arguments (state,), with gradients.
        mask: `rule.mask` of tokens and `valid`.
        pad: `rule.pad` of a token and `valid`.
        pad_gradient: the same of arguments (token,) and `valid`, with gradients.
        batch: the scan of a batch of states and tokens.
        counted: the scan of a state and tokens as a user compiles it; `traces` counts.
        not_arrays: types of the leaves of an example that are no arrays, by name.
    """

    def __init__(self, rule: Rule):
        self.rule = rule
        self.step = compiled(with_gradients(rule.step))
        self.reset = compiled(rule.reset)
        self.reset_gradient = compiled(with_gradients(rule.reset))
        self.mask = compiled(rule.mask)
        self.pad = compiled(rule.pad)
        self.pad_gradient = compiled(with_gradients(rule.pad))
        self.batch = compiled(jax.vmap(lambda state, tokens: SCAN.drive(rule, state, tokens)))
        self.counted = compiled(self._count)
        self.traces = 0
        self.not_arrays: dict[str, str] = {}
        self._made: dict[Hashable, Any] = {}

    def _count(self, state: Any, tokens: Any):
        self.traces += 1  # runs when traced only
        return SCAN.drive(self.rule, state, tokens)

    def _get(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """A program or an example, made at the first call."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def outcome(
        self, form: Form, state: Any, tokens: Any, cotangents: Any, segment_ids: Any = None
    ) -> Outcome:
        """Outputs, final state, and gradients to the state that it started from and to tokens."""
        drive = lambda s, t, ids: form.drive(self.rule, s, t, ids)
        program = self._get(form, lambda: compiled(with_gradients(drive)))
        (final, ys), gradients = program((state, tokens), cotangents, segment_ids)
        return outcome(ys, final, *gradients)

    def forward(self, form: Form) -> Callable:
        """A form of arguments (state, tokens), without gradients."""
        drive = lambda s, t: form.drive(self.rule, s, t)
        return self._get(("forward", form), lambda: compiled(drive))

    def example(self, seed: int, salt: int, length: int, extreme: bool) -> tuple[Any, Any]:
        """`rule.example` for a seed and a salt, its Python numbers as arrays.

        Raises:
            AssertionError: a leaf is no array and no number.
        """

        def make(key):
            state, tokens = self.rule.example(key, length, extreme=extreme)
            self._inspect(named(state, "state") | named(tokens, "token"))
            return state, tokens

        def draw():
            key = jax.random.fold_in(jax.random.key(seed), salt)
            try:
                return self._get(("example", length, extreme), lambda: compiled(make))(key)
            except jax.errors.JAXTypeError:  # it asks for values, as NumPy does
                return jax.tree.map(jnp.asarray, make(key))

        return self._get(("example", seed, salt, length, extreme), draw)

    def _inspect(self, leaves: dict[str, Any]) -> None:
        for name, leaf in leaves.items():
            kind = type(leaf).__name__
            if isinstance(leaf, bool | int | float):
                self.not_arrays[name] = kind
            elif not isinstance(leaf, Array | np.ndarray | np.generic):
                raise AssertionError(f"{name} has type {kind}, which is no array")
            elif jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
                self.not_arrays[name] = str(leaf.dtype)


def outcome(ys: Any, final: Any, state_gradient: Any, token_gradient: Any) -> Outcome:
    """The parts of an outcome by the names that messages have."""
    return {
        "output": ys,
        "state": final,
        "gradient to state": state_gradient,
        "gradient to token": token_gradient,
    }


def values_of(outcome: Outcome) -> Outcome:
    """An outcome without its gradients."""
    return {"output": outcome["output"], "state": outcome["state"]}
