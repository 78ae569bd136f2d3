"""The slow optimiser, from its config."""

import optax

from fastweights.train.config import Optim


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
    """Adam (Kingma & Ba 2015), with clipping by global norm and decoupled weight decay if asked."""
    steps = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    steps.append(optax.scale_by_adam())
    if config.weight_decay:
        steps.append(optax.add_decayed_weights(config.weight_decay))
    steps.append(optax.scale_by_learning_rate(learning_rate(config)))
    return optax.chain(*steps)
