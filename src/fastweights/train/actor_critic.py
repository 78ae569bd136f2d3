"""Advantage actor-critic on whole games: play, losses and update, all inside one jitted scan.

Mnih et al. 2016 (arXiv 1602.01783), synchronous: a batch of games is played to its end, and one
gradient is taken through all of it, memory included. Play and learning share one forward pass, for
actions are integers and stop gradients by themselves.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from fastweights.models.catch import CatchModel, CatchNet
from fastweights.tasks.catch import ACTIONS, Board, Catch
from fastweights.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class ActorCritic:
    """What is maximised.

    Attributes:
        discount: γ, what a reward one move later is worth.
        trace: λ of generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438); 1 is
            the return of the whole game less the value, 0 the one-step error.
        entropy: weight of the policy's entropy.
        critic: weight of the value's squared error.
    """

    discount: float = 0.99
    trace: float = 0.95
    entropy: float = 1e-3
    critic: float = 0.5


class Moves(NamedTuple):
    """The T moves of one game; with a leading axis, of many."""

    board: Board  # [T] each, before the move
    action: Array  # [T] int32
    log_prob: Array  # [T], of the action taken
    entropy: Array  # [T] nats, of the policy
    value: Array  # [T]
    reward: Array  # [T]


def play(net: CatchNet, game: Catch, key: Array, greedy: bool = False) -> Moves:
    """One game from an empty memory to its end; differentiable in `net`.

    Args:
        net: the player.
        game: the rules.
        key: [] typed PRNG key, decides the start and the actions drawn.
        greedy: take the likeliest action rather than draw one.
    """
    start, draws = jax.random.split(key)
    # the largest of logit + Gumbel noise is a draw from the softmax
    noise = jax.random.gumbel(draws, (game.moves, len(ACTIONS)))

    def move(carry: tuple[Any, Board], noise: Array) -> tuple[tuple[Any, Board], Moves]:
        memory, board = carry
        memory, logits, value = net.step(memory, game.observe(board))
        log_probs = jax.nn.log_softmax(logits)
        action = jnp.argmax(logits if greedy else logits + noise)
        after, reward = game.step(board, action)
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs)
        return (memory, after), Moves(board, action, log_probs[action], entropy, value, reward)

    return jax.lax.scan(move, (net.initial(game.moves), game.reset(start)), noise)[1]


def advantages(reward: Array, value: Array, discount: float, trace: float) -> Array:
    """Generalised advantages of one finished game: `[T]`, `[T]` -> `[T]`.

    A_t = δ_t + γ λ A_{t+1}, δ_t = r_t + γ v_{t+1} - v_t, with A_T = v_T = 0: after the last move
    nothing follows.
    """
    following = jnp.concatenate([value[1:], jnp.zeros(1)])
    errors = reward + discount * following - value

    def back(later: Array, error: Array) -> tuple[Array, Array]:
        now = error + discount * trace * later
        return now, now

    return jax.lax.scan(back, jnp.zeros(()), errors, reverse=True)[1]


def losses(moves: Moves, config: ActorCritic) -> dict[str, Array]:
    """Loss of one game and its pieces, each a mean over its moves, `[]`.

    "policy" is -A log π(a) with A held fixed, "value" (v - (A + v))²/2 with the target held fixed,
    "entropy" in nats; "loss" = policy + critic · value - entropy weight · entropy.
    """
    fixed = jax.lax.stop_gradient(moves.value)
    advantage = advantages(moves.reward, fixed, config.discount, config.trace)
    policy = -jnp.mean(advantage * moves.log_prob)
    value = jnp.mean((moves.value - (advantage + fixed)) ** 2) / 2
    entropy = jnp.mean(moves.entropy)
    loss = policy + config.critic * value - config.entropy * entropy
    return {"loss": loss, "policy": policy, "value": value, "entropy": entropy}


def batch_losses(
    net: CatchNet, game: Catch, config: ActorCritic, keys: Array
) -> tuple[Array, dict[str, Array]]:
    """Play one game for every key; the mean loss, and the mean of every score, "reward" too."""
    moves = jax.vmap(lambda key: play(net, game, key))(keys)
    scores = jax.vmap(lambda one: losses(one, config))(moves)
    scores["reward"] = jnp.sum(moves.reward, -1)
    scores = {name: jnp.mean(x) for name, x in scores.items()}
    return scores["loss"], scores


def initial_state(
    model: CatchModel, game: Catch, transform: optax.GradientTransformation, seed: int
) -> TrainState:
    """A fresh net, its optimiser and the key of all games to come."""

    def init() -> TrainState:
        weights, games = jax.random.split(jax.random.key(seed))
        net = CatchNet(model, game.size, len(ACTIONS), rngs=nnx.Rngs(weights))
        return TrainState(jnp.zeros((), jnp.int32), net, transform.init(net), games)  # pyright: ignore[reportArgumentType]

    return jax.jit(init)()


def make_updates(
    game: Catch,
    config: ActorCritic,
    transform: optax.GradientTransformation,
    games: int,
    count: int,
) -> Callable[[TrainState], tuple[TrainState, dict[str, Array]]]:
    """`count` updates of `games` games each, one jitted function that takes the old state's memory.

    Returns:
        state -> the state after them, and the scores of every update `[count]`. From the first
        loss or gradient that is not finite on, nothing is changed and "not_finite" is 1.
    """

    def update(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), games)
        (loss, scores), grads = jax.value_and_grad(batch_losses, has_aux=True)(
            state.model, game, config, keys
        )
        norm = optax.tree.norm(grads)
        updates, optimizer = transform.update(grads, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = TrainState(state.step + 1, model, optimizer, state.key)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return kept, scores | {"grad_norm": norm, "not_finite": (~finite).astype(jnp.float32)}

    return jax.jit(lambda state: jax.lax.scan(update, state, length=count), donate_argnums=0)


def make_evaluation(game: Catch, games: int) -> Callable[[CatchNet], Array]:
    """Mean reward of `games` greedy games, always the same ones: net -> `[]`."""
    keys = jax.random.split(jax.random.key(2**31 - 1), games)

    def evaluate(net: CatchNet) -> Array:
        moves = jax.vmap(lambda key: play(net, game, key, greedy=True))(keys)
        return jnp.mean(jnp.sum(moves.reward, -1))

    return jax.jit(evaluate)
