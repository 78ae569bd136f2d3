"""The one table of tolerances. Loosening one needs a sentence in the commit message."""

import numpy as np

#: largest difference, relative to the largest expected value (at least 1)
TOLERANCE = {"float64": 1e-11, "float32": 1e-5, "bfloat16": 2e-2}


def assert_close(actual, expected, dtype="float32", what=""):
    """Largest absolute difference against the table's tolerance for `dtype`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} against {expected.shape}"
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    worst = np.abs(actual - expected).max(initial=0.0) / scale
    assert worst <= TOLERANCE[dtype], f"{what}: {worst:.3g} > {TOLERANCE[dtype]:.3g} ({dtype})"
