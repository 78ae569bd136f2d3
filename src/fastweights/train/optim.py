"""The slow optimiser, from its config."""

import difflib
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers, muon

from fastweights.errors import ConfigError
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_mesh import path_name
from fastweights.train.config import Optim

#: not for Muon: an embedding's rows are each a token's own, a depthwise convolution's rows each a
#: channel's
ROW_BY_ROW = ("embedding", "conv")
#: nor are read-outs, whose columns are each a class's, an action's or a token's own
READ_OUTS = ("out", "policy", "value")
#: in the other nets a layer of this name is a hidden one
DECODER_READ_OUTS = ("head",)
#: root mean square of Muon's steps before the learning rate: about Adam's (arXiv 2502.16982)
MUON_RMS = 0.2


def learning_rate(config: Optim) -> optax.Schedule:
    """Learning rate at an update: linear warmup, then constant or cosine to 0 at `decay_steps`."""
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup else config.lr, config.lr, config.warmup, config.decay_steps
        )
    if config.warmup:
        return optax.linear_schedule(0.0, config.lr, config.warmup)
    return optax.constant_schedule(config.lr)


def optimizer(config: Optim) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) or Muon, with clipping and decoupled weight decay if asked.

    Muon is that of Jordan et al. 2024 (kellerjordan.github.io/posts/muon), its steps scaled as in
    Liu et al. 2025 (arXiv 2502.16982); Adam has Nesterov momentum beside it.
    """
    plain = _optimizer(config)
    if not config.rates:
        return plain
    trained = lambda params: jax.tree.map(lambda factor: factor > 0, factors(config, params))
    # a masked transform hands on the gradient of what it leaves out, which has the factor 0
    return optax.chain(optax.masked(plain, trained), _scale_by_factors(config))


def _optimizer(config: Optim) -> optax.GradientTransformation:
    rate, decay = learning_rate(config), config.weight_decay
    steps = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    if config.method == "muon":
        matrix = {"muon_weight_dimension_numbers": matrices, "consistent_rms": MUON_RMS}
        steps.append(muon(rate, weight_decay=decay, adam_weight_decay=decay, **matrix))
        return optax.chain(*steps)
    steps.append(optax.scale_by_adam())
    if decay:
        steps.append(optax.add_decayed_weights(decay))
    steps.append(optax.scale_by_learning_rate(rate))
    return optax.chain(*steps)


def factors(config: Optim, params: Any) -> Any:
    """The factor of the learning rate of each parameter, as `Optim.rates` says.

    Raises:
        ConfigError: a pattern fits no parameter, or no parameter is trained.
    """
    fits = fnmatch.fnmatchcase

    def of(keys: tuple[Any, ...], _: Any) -> float:
        path = path_name(keys)
        return next((factor for pattern, factor in config.rates if fits(path, pattern)), 1.0)

    found = jax.tree_util.tree_map_with_path(of, params)
    paths = [path_name(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    for pattern, _ in config.rates:
        if not any(fits(path, pattern) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or paths[:3]
            raise ConfigError(
                f"no parameter has a path that fits {pattern!r}",
                where="optim.rates",
                next=f"paths are such as {', '.join(near)}",
            )
    if not any(jax.tree.leaves(found)):
        raise ConfigError(
            "every parameter has the factor 0: none is trained",
            where="optim.rates",
            next="a pattern with a positive factor before the others",
        )
    return found


def without_frozen(config: Optim, params: Any) -> Any:
    """The parameters, of which those of factor 0 have no gradient."""
    if not config.rates:
        return params
    still = jax.lax.stop_gradient
    return jax.tree.map(lambda x, f: x if f else still(x), params, factors(config, params))


def with_inner_warmup(config: Optim, params: Any, step: Array) -> Any:
    """The parameters at an update, with the η of in-place layers as small as `inner_warmup` says.

    The gradient to a learned η is that of the η in use.

    Args:
        config: the optimiser.
        params: of the model.
        step: `[]` int, updates done.

    Raises:
        ConfigError: no layer has a learned η.
    """
    if not config.inner_warmup:
        return params
    share = jnp.log(jnp.minimum((step + 1) / config.inner_warmup, 1.0))
    is_gain = lambda keys: path_name(keys).endswith(".log_gain")
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    if not any(is_gain(keys) for keys, _ in flat):
        raise ConfigError(
            "no in-place layer of this model has a learned η",
            where="optim.inner_warmup",
            next="ttt.lr_learned True, or optim.inner_warmup 0",
        )
    return tree.unflatten([x + share if is_gain(keys) else x for keys, x in flat])


def _scale_by_factors(config: Optim) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scale = lambda x, factor: x * factor if factor else jnp.zeros_like(x)
        return jax.tree.map(scale, updates, factors(config, params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def matrices(params: Any) -> Any:
    """Which axes of each parameter are a matrix for Muon; None for those that it does not take.

    Those are vectors, convolutions, embeddings and read-outs. A decoder's layers are stacked along
    a first axis, and each has its own matrix.
    """
    readouts = DECODER_READ_OUTS if isinstance(params, Decoder) else READ_OUTS
    left = {*ROW_BY_ROW, *readouts}

    def axes(keys: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers | None:
        path = path_name(keys).split(".")
        first = int("blocks" in path)
        plain = leaf.ndim - first == 2 and not left & {*path}
        return MuonDimensionNumbers(first, first + 1) if plain else None

    return jax.tree_util.tree_map_with_path(axes, params)
