"""Ba et al. 2016 in float64 NumPy loops, written from the equations, with gradients by hand."""

import numpy as np

EPS = 1e-5


def layer_norm(x, gain, bias):
    mean, var = x.mean(), x.var()
    normed = (x - mean) / np.sqrt(var + EPS)
    return gain * normed + bias, (normed, np.sqrt(var + EPS))


def layer_norm_backward(d, gain, cache):
    normed, std = cache
    d_normed = d * gain
    d_x = (d_normed - d_normed.mean() - normed * (d_normed * normed).mean()) / std
    return d_x, d * normed, d.copy()


def forward(p, xs, A, h, decay, lr, steps):
    """p: dict of W [H,H], C [H,I], gain [H], bias [H]. Returns hs, every A(t), and a tape."""
    hs, matrices, tape = [], [], []
    for x in xs:
        z = p["W"] @ h + p["C"] @ x
        inner = [np.maximum(z, 0.0)]
        caches, summed = [], []
        for _ in range(steps):
            a, cache = layer_norm(z + A @ inner[-1], p["gain"], p["bias"])
            caches.append(cache)
            summed.append(a)
            inner.append(np.maximum(a, 0.0))
        tape.append(dict(x=x, h_prev=h, A=A, z=z, inner=inner, caches=caches, summed=summed))
        h = inner[-1]
        A = decay * A + lr * np.outer(h, h)
        hs.append(h)
        matrices.append(A)
    return np.array(hs), np.array(matrices), tape


def backward(p, tape, d_hs, d_A, decay, lr):
    """Gradients of sum(d_hs * hs) + sum(d_A * A(T)) to parameters, inputs, A(0) and h(0)."""
    grads = {k: np.zeros_like(v) for k, v in p.items()}
    d_xs = np.zeros((len(tape), p["C"].shape[1]))
    d_h_next = np.zeros(len(p["gain"]))
    G = d_A.copy()  # dL/dA after the write at this step
    for t in reversed(range(len(tape))):
        s = tape[t]
        h = s["inner"][-1]
        d_h = d_hs[t] + d_h_next + lr * (G + G.T) @ h
        G = decay * G
        d_z = np.zeros_like(d_h)
        for i in reversed(range(len(s["caches"]))):
            d_a = d_h * (s["summed"][i] > 0)
            d_sum, d_gain, d_bias = layer_norm_backward(d_a, p["gain"], s["caches"][i])
            grads["gain"] += d_gain
            grads["bias"] += d_bias
            d_z += d_sum
            G = G + np.outer(d_sum, s["inner"][i])
            d_h = s["A"].T @ d_sum
        d_z += d_h * (s["z"] > 0)  # through the preliminary h_0
        grads["W"] += np.outer(d_z, s["h_prev"])
        grads["C"] += np.outer(d_z, s["x"])
        d_xs[t] = p["C"].T @ d_z
        d_h_next = p["W"].T @ d_z
    return grads, d_xs, G, d_h_next
