"""A run whose slow weights start from a Hugging Face checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from fastweights import hf
from fastweights.errors import ConfigError
from fastweights.models.decoder_config import DecoderConfig
from fastweights.train import manifest
from fastweights.train.config import Config
from fastweights.train.optim import optimizer
from fastweights.train.state import TrainState, abstract_state, fresh_state

#: what of a model is a run's own: how it is computed, for how long, what learns in place
FREE = ("ttt", "max_length", "initializer_range", "dtype", "param_dtype", "remat", "attention")


def check_start(config: Config, run_dir: Path) -> None:
    """Check, before anything is made, the checkpoint that a run in `run_dir` would start from.

    Only config.json and the headers of the files are read. Nothing is checked where there is
    nothing to start: no `start`, or a run that has a checkpoint of its own.

    Raises:
        ConfigError: it is of a model that we do not build, or of another one than the config's;
            the message has every difference.
        CheckpointError: there is no such checkpoint, or tensors do not fit its config.json.
    """
    if config.start is None or manifest.steps(run_dir / "checkpoints"):
        return
    model: Any = config.model
    there = hf.inspect(config.start, model.ttt or False)
    different = differences(there, model)
    if different:
        raise ConfigError(
            f"the model is not that of {config.start}:"
            + "".join(
                f"\n  - model.{name}: the checkpoint has {a}, the config {b}"
                for name, (a, b) in different.items()
            ),
            where="start",
            cause="the config was written for another checkpoint",
            next=f"fastweights import-hf {config.start} NEW.py writes a config that fits",
        )


def differences(there: DecoderConfig, here: DecoderConfig) -> dict[str, tuple[Any, Any]]:
    """Fields in which two decoders are different networks, as (there, here)."""
    names = [field.name for field in dataclasses.fields(here) if field.name not in FREE]
    pairs: dict[str, Any] = {name: (getattr(there, name), getattr(here, name)) for name in names}
    # () is full attention in every layer
    pairs["windows"] = tuple(x.windows or (None,) * x.layers for x in (there, here))
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def start_state(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    """The state before the first update, its model read from `config.start`, the rest fresh.

    Raises:
        ConfigError: as `check_start`.
        CheckpointError: as `check_start`, or a file is damaged.
    """
    assert config.start is not None
    model: Any = config.model
    loaded = hf.load(config.start, model.param_dtype, mesh, model.ttt or False)
    abstract = abstract_state(config, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # the arrays are the file's; how they are computed with is the config's
    structure = jax.tree.structure(abstract.model)
    model = jax.device_put(jax.tree.unflatten(structure, jax.tree.leaves(loaded)), placed.model)

    def rest(model: Any) -> tuple[Any, ...]:
        fresh = fresh_state(config, config.seed)
        return fresh.step, optimizer(config.optim).init(model), fresh.key

    others = (placed.step, placed.optimizer, placed.key)
    step, moments, key = jax.jit(rest, out_shardings=others)(model)
    return TrainState(step, model, moments, key)
