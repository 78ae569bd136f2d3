"""A checkpoint in our decoder and in transformers, side by side on random tokens."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastweights.errors import ConfigError, FastWeightsError, install_extra
from fastweights.hf.config import read_config, read_json
from fastweights.hf.config_windows import expressible
from fastweights.hf.files import directory
from fastweights.hf.loading import load
from fastweights.models.decoder import Decoder
from fastweights.nn.layer import Reading
from fastweights.nn.rope import document_positions


@dataclasses.dataclass(frozen=True)
class Report:
    """How far two implementations are apart.

    Attributes:
        logits: largest absolute difference of a logit.
        kl: mean over tokens of KL(transformers, ours), in nats.
        agreement: the part of the tokens for which both have the same most likely next token.
        tolerance: what `logits` may be.
        tokens: how many tokens were compared.
        layers: largest absolute difference of the residual stream after each layer, the last after
            the final norm; () where the logits agree.
    """

    logits: float
    kl: float
    agreement: float
    tolerance: float
    tokens: int
    layers: tuple[float, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the logits agree; NaN does not."""
        return self.logits <= self.tolerance

    def __str__(self) -> str:
        lines = [
            f"{'same' if self.ok else 'DIFFERENT'}, {self.tokens} tokens compared in float32",
            f"  max |Δlogit|      {self.logits:.3g} (at most {self.tolerance:.3g} is the same)",
            f"  KL divergence     {self.kl:.3g} nats a token",
            f"  top-1 agreement   {100 * self.agreement:.2f} %",
        ]
        if self.layers:
            lines.append("  max |Δhidden| after layer")
            lines += [f"    {i:3}  {worst:.3g}" for i, worst in enumerate(self.layers)]
        return "\n".join(lines)


def parity(
    path: str | Path, batch: int = 2, length: int = 128, seed: int = 0, tolerance: float = 1e-4
) -> Report:
    """Compare the logits of a checkpoint with those of transformers, in float32 on random tokens.

    Transformers knows nothing of test-time training, so it is switched off in both. Each model is
    in memory alone.

    Args:
        path: a directory in Hugging Face layout.
        batch: rows of tokens.
        length: tokens a row, or the most the model takes if that is less.
        seed: of the tokens.
        tolerance: the largest difference of a logit that counts as the same.

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
    right, theirs = _transformers(folder, tokens)
    model = load(folder, ttt=False)
    left = np.asarray(jax.jit(lambda model, x: model(x))(model, jnp.asarray(tokens)))
    worst = float(np.abs(left - right).max())
    p, q = (_log_softmax(x) for x in (right, left))
    report = Report(
        logits=worst,
        kl=float(np.sum(np.exp(p) * (p - q), -1).mean()),
        agreement=float(np.mean(left.argmax(-1) == right.argmax(-1))),
        tolerance=tolerance,
        tokens=tokens.size,
    )
    if report.ok:
        return report
    ours = hidden_states(model, jnp.asarray(tokens))
    apart = tuple(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    return dataclasses.replace(report, layers=apart)


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


def _transformers(folder: Path, tokens: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits of transformers' model, and its residual stream after every layer."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"a comparison with transformers needs {error.name}",
            where="parity",
            next=install_extra("parity"),
        ) from None
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        use_safetensors=True,
    )
    with torch.no_grad():
        out = loaded.eval()(torch.tensor(tokens), output_hidden_states=True, use_cache=False)
    return out.logits.numpy(), [x.numpy() for x in out.hidden_states[1:]]


def main(path: str | Path, **options: Any) -> int:
    """Print the comparison; the exit code: 0 the same, 1 different, else that of the error."""
    try:
        report = parity(path, **options)
    except FastWeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(report)
    return 0 if report.ok else 1
