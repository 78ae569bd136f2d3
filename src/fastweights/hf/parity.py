"""A checkpoint in our decoder and in transformers, side by side on random tokens.

Two correct implementations in float32 differ by rounding, and how much that is depends on the
model: where a channel of the residual stream is in the thousands, its last digit is 1e-4. So the
measure of a difference is the oracle's own: how far transformers in float32 is from itself in
float64.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastweights.errors import ConfigError, FastWeightsError
from fastweights.hf import oracle
from fastweights.hf.config import read_config, read_json
from fastweights.hf.config_windows import expressible
from fastweights.hf.files import directory
from fastweights.hf.loading import load
from fastweights.models.decoder import Decoder
from fastweights.nn.layer import Reading
from fastweights.nn.rope import document_positions

#: nats a token between the two distributions, at most: more matters to who uses the model, even
#: where float32 cannot do better
MOST_KL = 1e-6


class Distance(NamedTuple):
    """Between logits: root mean square over those of a token."""

    median: float  # of the median token
    worst: float  # of the token that is furthest


#: our distance over that of transformers in float32, at most; which token is rounded worst, and by
#: how much, is a matter of luck
MOST = Distance(median=4, worst=32)


@dataclasses.dataclass(frozen=True)
class Report:
    """How far two implementations are apart.

    Attributes:
        ours: distance of our logits in float32 from transformers' in float64.
        theirs: the same of transformers' logits in float32.
        unit: half of a unit in the last place of the largest logit in float32; a distance below
            it counts as this.
        kl: mean over tokens of KL(transformers, ours), both in float32, in nats.
        logits: largest absolute difference of a logit, both in float32.
        agreement: the part of the tokens for which both have the same most likely next token.
        tokens: how many tokens were compared.
        layers: distances, root mean square, of the residual stream after each layer from
            transformers' in float64, ours and that of transformers in float32, the last after the
            final norm; () where the models are the same.
    """

    ours: Distance
    theirs: Distance
    unit: float
    kl: float
    logits: float
    agreement: float
    tokens: int
    layers: tuple[tuple[float, float], ...] = ()

    @property
    def ratio(self) -> Distance:
        """Our distance over that of transformers in float32."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return Distance(*(x / max(y, self.unit) for x, y in pairs))

    @property
    def ok(self) -> bool:
        """Whether rounding explains the difference; NaN is not explained."""
        explained = all(x <= most for x, most in zip(self.ratio, MOST, strict=True))
        return explained and self.kl <= MOST_KL

    def __str__(self) -> str:
        verdict = "same up to rounding" if self.ok else "DIFFERENT"
        lines = [
            f"{verdict}, {self.tokens} tokens compared in float32",
            "  distance from transformers in float64, root mean square over the logits of a token",
            f"    {'':12}{'here':>10}{'transformers':>14}{'ratio':>10}",
        ]
        rows = zip(Distance._fields, self.ours, self.theirs, self.ratio, MOST, strict=True)
        lines += [
            f"    {name + ' token':12}{x:10.2e}{y:14.2e}{ratio:10.3g}  (rounding: at most {most:g})"
            for name, x, y, ratio, most in rows
        ]
        lines += [
            f"  KL divergence     {self.kl:.3g} nats a token (at most {MOST_KL:.0e})",
            f"  max |Δlogit|      {self.logits:.3g}",
            f"  top-1 agreement   {100 * self.agreement:.2f} %",
        ]
        if self.layers:
            lines.append("  distance of the residual stream after layer: here, transformers, ratio")
            lines += [
                f"    {i:3}{x:10.2e}{y:10.2e}{x / max(y, sys.float_info.min):10.3g}"
                for i, (x, y) in enumerate(self.layers)
            ]
        return "\n".join(lines)


def parity(path: str | Path, batch: int = 2, length: int = 128, seed: int = 0) -> Report:
    """Compare the logits of a checkpoint with those of transformers, in float32 on random tokens.

    Transformers knows nothing of test-time training, so it is switched off in both. Each model is
    in memory alone.

    Args:
        path: a directory in Hugging Face layout.
        batch: rows of tokens.
        length: tokens a row, or the most the model takes if that is less.
        seed: of the tokens.

    Raises:
        ConfigError: torch or transformers is not installed, or the model's windows are of a kind
            that transformers has not.
        CheckpointError: see `load`.
    """
    folder = directory(path)
    config = read_config(read_json(folder / "config.json"), ttt=False)
    if not expressible(config.windows, config.family):
        raise ConfigError(
            "transformers has no such sliding windows, so there is nothing to compare with",
            where="config.json: fastweights_windows",
            cause="it has windows for Qwen3 only, of one width",
            next="compare a model with full attention",
        )
    shape = (batch, min(length, config.max_length))
    tokens = np.random.default_rng(seed).integers(0, config.vocab, shape)
    narrow, wide = oracle.read(folder, tokens)
    # or a GPU and a TPU would round the factors of products to fewer digits
    with jax.default_matmul_precision("highest"):
        model = load(folder, ttt=False)
        ours = np.asarray(jax.jit(lambda model, x: model(x))(model, jnp.asarray(tokens)))
        report = compare(ours, narrow.logits, wide.logits)
        if report.ok:
            return report
        found = hidden_states(model, jnp.asarray(tokens))
    rms = lambda x, exact: float(np.sqrt(np.square(x - exact).mean()))
    layers = zip(found, narrow.layers, wide.layers, strict=True)
    return dataclasses.replace(
        report, layers=tuple((rms(x, exact), rms(y, exact)) for x, y, exact in layers)
    )


def compare(ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray) -> Report:
    """The report on logits `[B, T, vocab]`: ours and transformers' in float32, its in float64."""
    p, q = (_log_softmax(x) for x in (theirs, ours))

    def distance(x: np.ndarray) -> Distance:
        tokens = np.sqrt(np.square(x - exact).mean(-1))
        return Distance(float(np.median(tokens)), float(tokens.max()))

    return Report(
        ours=distance(ours),
        theirs=distance(theirs),
        unit=float(np.spacing(np.float32(np.abs(exact).max()))) / 2,
        kl=float(np.sum(np.exp(p) * (p - q), -1).mean()),
        logits=float(np.abs(ours - theirs).max()),
        agreement=float(np.mean(ours.argmax(-1) == theirs.argmax(-1))),
        tokens=ours.shape[0] * ours.shape[1],
    )


def hidden_states(model: Decoder, tokens: jax.Array) -> list[np.ndarray]:
    """The residual stream `[B, T, D]` after every layer, the last after the final norm."""
    x = model.embedded(tokens)
    reading = Reading(x, document_positions(jnp.ones_like(tokens)))
    found = []
    for i in range(model.config.layers):
        x, *_ = model.layer(i)(x, reading)
        found.append(x)
    return [np.asarray(x) for x in (*found[:-1], model.final_norm(x))]


def _log_softmax(x: np.ndarray) -> np.ndarray:
    """In float64: the divergence of two models that agree is less than float32 resolves."""
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def main(path: str | Path, **options: Any) -> int:
    """Print the comparison; the exit code: 0 the same, 1 different, else that of the error."""
    try:
        report = parity(path, **options)
    except FastWeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(report)
    return 0 if report.ok else 1
