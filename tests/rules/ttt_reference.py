"""TTT-Linear and TTT-MLP (Sun et al. 2024) in float64 NumPy loops, with gradients by hand."""

import numpy as np

EPS = 1e-6


def norm(z, gain, bias):
    """LN(z), and a function that takes a gradient to it back to z."""
    deviation = np.sqrt(z.var() + EPS)
    normed = (z - z.mean()) / deviation

    def back(d):
        d = d * gain
        return (d - d.mean() - normed * (d * normed).mean()) / deviation

    return gain * normed + bias, back


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x):
    inner = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * np.sqrt(2 / np.pi) * (
        1 + 3 * 0.044715 * x**2
    )


def linear_gradient(w, gain, bias, k, v):
    """Of ½‖k + LN(kS + b) − v‖² to S and b."""
    y, back = norm(k @ w["S"] + w["b"], gain, bias)
    d = back(k + y - v)
    return {"S": np.outer(k, d), "b": d}


def mlp_gradient(w, gain, bias, k, v):
    """Of ½‖k + LN(GELU(k W1 + b1) W2 + b2) − v‖² to the four weights."""
    before = k @ w["W1"] + w["b1"]
    hidden = gelu(before)
    y, back = norm(hidden @ w["W2"] + w["b2"], gain, bias)
    d = back(k + y - v)
    inner = (w["W2"] @ d) * gelu_slope(before)
    return {"W1": np.outer(k, inner), "b1": inner, "W2": np.outer(hidden, d), "b2": d}


def linear_read(w, x):
    return x @ w["S"] + w["b"]


def mlp_read(w, x):
    return gelu(x @ w["W1"] + w["b1"]) @ w["W2"] + w["b2"]


def loop(start, gain, bias, position, tokens, *, lr, batch, gradient, read):
    """The definition: outputs, and the weights and the sum that waits at the end.

    Gradients are taken at the mini-batch's first weights; each token reads the writes of the tokens
    up to itself, times the factor of its own place.
    """
    w, ys = start, []
    pending, count = {n: 0 * x for n, x in w.items()}, 0
    moved = lambda: {n: w[n] - lr * max(position[count - 1], 0) * pending[n] for n in w}
    for q, k, v, beta in zip(*(tokens[n] for n in ("q", "k", "v", "beta")), strict=True):
        g = gradient(w, gain, bias, k, v)
        pending, count = {n: pending[n] + beta * g[n] for n in w}, count + 1
        now = moved()
        ys.append(q + norm(read(now, q), gain, bias)[0])
        if count == batch:
            w, pending, count = now, {n: 0 * x for n, x in w.items()}, 0
    return np.array(ys), w, pending
