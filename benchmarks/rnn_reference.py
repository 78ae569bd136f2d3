"""Float64 NumPy loops that the contenders of `rnn.py` must reproduce, and their parameters."""

import numpy as np

FEATURES, DECAY, LR, EPS = 100, 0.9, 0.5, 1e-5
Arrays = dict[str, np.ndarray]


def fast_parameters(hidden: int, seed: int) -> Arrays:
    """Weights of the fast-weight layer, float32: W `[H, H]`, C `[I, H]`, gain and bias `[H]`."""
    rng = np.random.default_rng(seed)
    values = {
        "W": 0.05 * np.eye(hidden) + rng.normal(size=(hidden, hidden)) * 0.3 / hidden**0.5,
        "C": rng.normal(size=(FEATURES, hidden)) / FEATURES**0.5,
        "gain": rng.uniform(0.5, 1.5, hidden),
        "bias": rng.normal(size=hidden) * 0.1,
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


def lstm_parameters(hidden: int, seed: int) -> Arrays:
    """Weights of an LSTM, gates in the order i f g o: U `[I, 4H]`, R `[H, 4H]`, b `[4H]`."""
    rng = np.random.default_rng(seed)
    values = {
        "U": rng.normal(size=(FEATURES, 4 * hidden)) / FEATURES**0.5,
        "R": rng.normal(size=(hidden, 4 * hidden)) / hidden**0.5,
        "b": rng.normal(size=4 * hidden) * 0.1,
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


def fast_weights(p: Arrays, xs: np.ndarray, steps: int) -> np.ndarray:
    """Activities `[B, T, H]` of the layer of Ba et al. 2016, the matrix written out."""
    p = {name: value.astype(np.float64) for name, value in p.items()}
    batch, hidden = len(xs), len(p["gain"])
    h, A = np.zeros((batch, hidden)), np.zeros((batch, hidden, hidden))
    hs = []
    for x in xs.astype(np.float64).swapaxes(0, 1):
        z = h @ p["W"] + x @ p["C"]
        h = np.maximum(z, 0)
        for _ in range(steps):
            a = z + np.einsum("bij,bj->bi", A, h)
            a = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + EPS)
            h = np.maximum(p["gain"] * a + p["bias"], 0)
        A = DECAY * A + LR * h[:, :, None] * h[:, None, :]
        hs.append(h)
    return np.stack(hs, 1)


def lstm(p: Arrays, xs: np.ndarray) -> np.ndarray:
    """Activities `[B, T, H]` of an LSTM."""
    p = {name: value.astype(np.float64) for name, value in p.items()}
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    h = c = np.zeros((len(xs), p["R"].shape[0]))
    hs = []
    for x in xs.astype(np.float64).swapaxes(0, 1):
        i, f, g, o = np.split(x @ p["U"] + h @ p["R"] + p["b"], 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return np.stack(hs, 1)
