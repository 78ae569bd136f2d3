"""Trees of arrays by name: the parts that have gradients, and comparisons that name a leaf."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

#: allowed difference between two forms of one computation, by dtype
TOLERANCE = {"float32": 2e-5, "float64": 1e-10, "bfloat16": 2e-2}


def is_floating(leaf: Any) -> bool:
    """True for an array that has gradients."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def floating(tree: Any) -> Any:
    """The tree with None for every leaf that has no gradient."""
    return jax.tree.map(lambda x: x if is_floating(x) else None, tree)


def merge(floats: Any, tree: Any) -> Any:
    """The tree with the leaves of `floats` where that has one; undoes `floating`."""
    pick = lambda new, old: old if new is None else new
    return jax.tree.map(pick, floats, tree, is_leaf=lambda x: x is None)


def cast(tree: Any, dtype: Any) -> Any:
    """The tree with its floating leaves in `dtype`, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x).astype(dtype) if is_floating(x) else x, tree)


def at(tree: Any, t: int) -> Any:
    """Time t of leaves `[T, ...]`, which NumPy takes without compiling."""
    return jax.tree.map(lambda x: np.asarray(x)[t], tree)


def stack(trees: list[Any]) -> Any:
    """Leaves `[N, ...]` of N trees."""
    return jax.tree.map(lambda *x: np.stack([np.asarray(leaf) for leaf in x]), *trees)


def named(tree: Any, name: str = "") -> dict[str, Any]:
    """Leaves by name: `{"state.S": ...}` of `named(state, "state")`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def leaves_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of several trees by name: `{"gradient to token.k": ...}`."""
    return {name: leaf for part, tree in parts.items() for name, leaf in named(tree, part).items()}


def require(problems: list[str]) -> None:
    """Raise the problems, one a line.

    Raises:
        AssertionError: the list is not empty.
    """
    if problems:
        raise AssertionError("\n".join(problems))


def require_close(
    actual: Mapping[str, Any], expected: Mapping[str, Any], where: str, tolerance: float
) -> None:
    """Compare trees by leaf, relative to the largest entry of an expected leaf, at least 1.

    Args:
        actual: trees by name, such as "gradient to token".
        expected: the same trees.
        where: the form and the input, as the message has it.
        tolerance: largest difference; 0 asks for the same bits.

    Raises:
        AssertionError: names every leaf that differs, the largest difference and its index.
    """
    actual, expected = leaves_of(actual), leaves_of(expected)
    different = sorted(set(actual) ^ set(expected))
    problems = [f"{name}, {where}: only one of the two has this leaf" for name in different]
    shared = [name for name in actual if name in expected]
    problems += [_difference(n, where, actual[n], expected[n], tolerance) for n in shared]
    require([problem for problem in problems if problem])


def _difference(name: str, where: str, actual: Any, expected: Any, tolerance: float) -> str:
    """The largest difference of two leaves in words, "" if it is allowed."""
    wide = np.float64 if is_floating(expected) else np.asarray(expected).dtype
    a, e = np.asarray(actual).astype(wide), np.asarray(expected).astype(wide)
    if a.shape != e.shape:
        return f"{name}, {where}: shape {a.shape} where {e.shape} is expected"
    if np.array_equal(a, e, equal_nan=wide is np.float64):
        return ""
    with np.errstate(invalid="ignore"):
        distance = np.abs(a.astype(np.float64) - e.astype(np.float64))
    allowed = tolerance * max(1.0, np.max(np.abs(e), initial=0.0))
    distance = np.where(np.isnan(distance), np.inf, distance)
    if tolerance and distance.max() <= allowed:
        return ""
    worst = np.unravel_index(distance.argmax(), distance.shape)
    index = f" at {[int(i) for i in worst]}" if worst else ""
    allowed = f"{allowed:.3g} allowed" if tolerance else "the same bits required"
    return (
        f"{name}, {where}: {a[worst]:.6g}{index} where {e[worst]:.6g} is expected, "
        f"largest difference {distance[worst]:.3g}, {allowed}"
    )


def require_zero(trees: Mapping[str, Any], where: str, rows: Any = slice(None)) -> None:
    """Every leaf is exactly zero at `rows` of its first axis.

    Raises:
        AssertionError: names the leaves that are not.
    """
    size = lambda leaf: np.abs(np.atleast_1d(leaf)[rows]).max(initial=0.0)
    largest = {name: size(leaf) for name, leaf in leaves_of(trees).items()}
    wrong = {name: size for name, size in largest.items() if not size == 0.0}
    require([f"{name}, {where}: {size:.3g}, exactly 0 required" for name, size in wrong.items()])


def require_same_kind(actual: Any, expected: Any, name: str, where: str) -> None:
    """Structure, shapes and dtypes of two trees are the same.

    Raises:
        AssertionError: names the leaves that are not.
    """
    kind = lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
    before, after = named(expected, name), named(actual, name)
    changed = {n: kind(leaf) for n, leaf in after.items() if n in before}
    changed = {n: k for n, k in changed.items() if k != kind(before[n])}
    require([f"{n}, {where}: {kind(before[n])} becomes {k}" for n, k in changed.items()])
    structures = jax.tree.structure(expected), jax.tree.structure(actual)
    if structures[0] != structures[1]:
        raise AssertionError(f"{name}, {where}: {structures[0]} becomes {structures[1]}")
