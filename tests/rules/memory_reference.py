"""Linear attention and the delta rules in float64 NumPy loops, with gradients by hand.

    linear         S <- e^g S + k vᵀ
    delta          S <- e^g S, then S <- S + beta k (v - Sᵀ k)ᵀ
    both           y = Sᵀ q after the write

A rule without decay has g = 0. A document starts from S = 0. Padding leaves S as it is and reads 0.
"""

import numpy as np


def forward(S, q, k, v, beta, g, starts, valid):
    """Outputs `[T, V]`, the final S, and a tape; `beta` None is the linear rule."""
    ys, tape = np.zeros((len(q), v.shape[1])), []
    for t in range(len(q)):
        if starts[t]:
            S = np.zeros_like(S)
        if not valid[t]:
            tape.append(None)
            continue
        decayed = np.exp(g[t]) * S
        error = v[t] if beta is None else v[t] - decayed.T @ k[t]
        new = decayed + np.outer(k[t], error) * (1 if beta is None else beta[t])
        tape.append((S, decayed, error, new))
        S = new
        ys[t] = S.T @ q[t]
    return ys, S, tape


def backward(tape, q, k, v, beta, g, starts, valid, d_ys, d_S):
    """Gradients of sum(d_ys * ys) + sum(d_S * S(T)), by argument name of `forward`."""
    d = {"q": np.zeros_like(q), "k": np.zeros_like(k), "v": np.zeros_like(v)}
    d["beta"], d["g"] = np.zeros(len(q)), np.zeros(len(q))
    G = d_S.copy()  # the gradient to S after the write of token t
    for t in reversed(range(len(q))):
        if not valid[t]:
            continue
        S, decayed, error, new = tape[t]
        d["q"][t] = new @ d_ys[t]
        G = G + np.outer(q[t], d_ys[t])
        if beta is None:
            d["k"][t], d["v"][t] = G @ v[t], G.T @ k[t]
        else:
            d["beta"][t] = k[t] @ G @ error
            d_error = beta[t] * G.T @ k[t]
            d["v"][t] = d_error
            d["k"][t] = beta[t] * G @ error - decayed @ d_error
            G = G - np.outer(k[t], d_error)
        d["g"][t] = np.sum(G * decayed)
        G = np.exp(g[t]) * G
        if starts[t]:
            G = np.zeros_like(G)
    return d | {"S": G}


def run(S, q, k, v, beta, g, segments, d_ys, d_S):
    """Outputs, the final S, and the gradients, of one row with segment ids (0 is padding)."""
    valid = segments > 0
    starts, last = np.zeros(len(q), bool), None
    for t in np.flatnonzero(valid):
        starts[t] = last is not None and segments[t] != last
        last = segments[t]
    g = np.zeros(len(q)) if g is None else g
    ys, final, tape = forward(S, q, k, v, beta, g, starts, valid)
    return ys, final, backward(tape, q, k, v, beta, g, starts, valid, d_ys, d_S)
