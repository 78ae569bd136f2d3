"""The in-place MLP against the released semantics in torch: outputs, and torch's own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from fastweights.nn.in_place import InPlaceMLP, InPlaceTTT

torch = pytest.importorskip("torch", reason="torch is the oracle: pip install torch to compare")


def released(p, x, t, *, chunk, lr):
    """Outputs `[B, T, D]`; p has weights as a checkpoint does, `[out, in]`, conv `[D, 1, 5]`.

    The row is padded with zeros to whole chunks, the convolution runs in each of them, every delta
    is made at once, and chunk i reads the weights of the deltas before it.
    """
    batch, length, hidden = x.shape
    count = -(-length // chunk)
    z = torch.nn.functional.silu(x @ p["gate"].T) * (x @ p["up"].T)
    pad = lambda a: torch.nn.functional.pad(a, (0, 0, 0, count * chunk - length))
    z, t = (pad(a).reshape(batch, count, chunk, -1) for a in (z, t))
    rows = t.reshape(batch * count, chunk, hidden).transpose(1, 2)
    v = torch.nn.functional.conv1d(rows, p["conv"], padding=2, groups=hidden)
    v = v.transpose(1, 2).reshape(batch, count, chunk, hidden)
    if "proj" in p:
        v = v @ p["proj"]
    deltas = lr * torch.einsum("bncd,bncf->bndf", v, z)
    before = torch.cat([torch.zeros_like(deltas[:, :1]), deltas.cumsum(1)[:, :-1]], 1)
    y = torch.einsum("bncf,bndf->bncd", z, p["down"] + before)
    return y.reshape(batch, count * chunk, hidden)[:, :length]


@pytest.mark.parametrize("target", ["hidden_states", "input_embed"])
@pytest.mark.parametrize(
    "seed,length,chunk,proj",
    [(0, 19, 4, True), (1, 24, 8, True), (2, 5, 8, True), (3, 21, 5, False)],
)
def test_outputs_and_every_gradient(seed, length, chunk, proj, target):
    """Odd and whole rows, shorter and longer than a chunk, both targets, in float64."""
    rng = np.random.default_rng(seed)
    hidden, inner = 6, 9
    shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    shapes |= {"conv": (hidden, 1, 5)} | ({"proj": (hidden, hidden)} if proj else {})
    values = {name: rng.normal(size=shape) * 0.6 for name, shape in shapes.items()}
    x, t, dy = rng.normal(size=(3, 2, length, hidden))
    same = target == "hidden_states"

    p = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    tx, tt = (torch.tensor(a, requires_grad=True) for a in (x, t))
    expected = released(p, tx, tx if same else tt, chunk=chunk, lr=0.3)
    (expected * torch.tensor(dy)).sum().backward()

    with jax.enable_x64(True):
        how = InPlaceTTT(chunk=chunk, lr=0.3, target=target, proj=proj)
        double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        mlp = InPlaceMLP(hidden, inner, how, **double, rngs=nnx.Rngs(0))
        for name in ("gate", "up", "down"):
            getattr(mlp, name).kernel[...] = jnp.asarray(values[name].T)
        mlp.conv[...] = jnp.asarray(values["conv"][:, 0])
        if proj:
            mlp.proj[...] = jnp.asarray(values["proj"])

        def value(mlp, x, t):
            y = mlp(x, x if same else t)
            return jnp.sum(y * dy), y

        derive = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))
        (_, y), (d_mlp, dx, dt) = derive(mlp, jnp.asarray(x), jnp.asarray(t))
    assert_close(y, expected.detach(), "float64", "y")
    if length > chunk:
        plain = torch.nn.functional.silu(tx @ p["gate"].T) * (tx @ p["up"].T) @ p["down"].T
        assert (expected - plain).abs().max() > 0.1, "the fast weights did nothing"
    zero = np.zeros_like(x)
    assert_close(dx, tx.grad, "float64", "dx")
    assert_close(dt, zero if same else tt.grad, "float64", "dt")
    for name in ("gate", "up", "down"):
        assert_close(getattr(d_mlp, name).kernel[...].T, p[name].grad, "float64", name)
    assert_close(d_mlp.conv[...], p["conv"].grad[:, 0], "float64", "conv")
    if proj:
        assert_close(d_mlp.proj[...], p["proj"].grad, "float64", "proj")
