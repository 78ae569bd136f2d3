"""Returns, losses and updates against slow loops and arithmetic; runs against resumed runs."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import assert_close

from fastweights.demo_catch import frames, show
from fastweights.errors import ConfigError, NumericalError
from fastweights.models.catch import CatchModel
from fastweights.rules import Hebbian
from fastweights.tasks.catch import Board, Catch
from fastweights.train import Optim, Train
from fastweights.train.actor_critic import (
    ActorCritic,
    Moves,
    advantages,
    batch_losses,
    initial_state,
    losses,
    make_updates,
    play,
)
from fastweights.train.agent import AgentConfig, load_agent, train_agent
from fastweights.train.checkpoint import Checkpoints

SMALL = Catch(size=5, visible=2)
MODEL = CatchModel(hidden=16, features=16, rule=Hebbian(decay=0.5, lr=0.1))


def state_of(game=SMALL, model=MODEL, transform=None, seed=0):
    return initial_state(model, game, transform or optax.sgd(0.1), seed)


@pytest.mark.parametrize(("discount", "trace"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_advantages_by_their_definition(discount, trace):
    """Schulman et al. 2015, equation 16: Σ_l (γλ)^l δ_{t+l}, in two plain loops."""
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 9))
    after = [*value[1:], 0.0]
    delta = [reward[t] + discount * after[t] - value[t] for t in range(9)]
    expected = [
        sum((discount * trace) ** (u - t) * delta[u] for u in range(t, 9)) for t in range(9)
    ]
    found = advantages(jnp.float32(reward), jnp.float32(value), discount, trace)
    assert_close(found, expected)


def test_without_discount_and_fading_the_advantage_is_the_return_less_the_value():
    value = jnp.array([0.3, -0.2, 0.5])
    found = advantages(jnp.array([0.0, 0.0, -1.0]), value, 1.0, 1.0)
    assert_close(found, [-1.3, -0.8, -1.5])


def moves_of(log_prob, value, reward, entropy=0.0):
    zero = jnp.zeros(len(value), jnp.int32)
    return Moves(
        Board(zero, zero, zero),
        zero,
        jnp.asarray(log_prob),
        jnp.full(len(value), entropy),
        jnp.asarray(value),
        jnp.asarray(reward),
    )


def test_losses_by_arithmetic():
    """γ = λ = 1, rewards 0, 1, values 1/2, 1/4: advantages 1/2, 3/4.

    policy -(1/2 · -1 + 3/4 · -2)/2 = 1; value (1/4 + 9/16)/4 = 13/64; the whole with critic 2,
    entropy weight 1/10 and entropy 3: 1 + 13/32 - 3/10.
    """
    config = ActorCritic(discount=1.0, trace=1.0, entropy=0.1, critic=2.0)
    found = losses(moves_of([-1.0, -2.0], [0.5, 0.25], [0.0, 1.0], 3.0), config)
    assert_close(found["policy"], 1.0)
    assert_close(found["value"], 13 / 64)
    assert_close(found["loss"], 1 + 13 / 32 - 0.3)


def test_what_is_held_fixed():
    """The policy's loss moves only log π, by -A/T; the value's only v, by (v - target)/T."""
    config = ActorCritic(discount=1.0, trace=1.0, entropy=0.0, critic=1.0)

    def loss(log_prob, value):
        return losses(moves_of(log_prob, value, [0.0, 1.0]), config)["loss"]

    given = (jnp.array([-1.0, -2.0]), jnp.array([0.5, 0.25]))
    by_log_prob, by_value = jax.grad(loss, (0, 1))(*given)
    assert_close(by_log_prob, [-0.5 / 2, -0.75 / 2])
    assert_close(by_value, [-0.5 / 2, -0.75 / 2])


@pytest.mark.parametrize("reward", [1.0, -1.0])
def test_an_update_makes_what_was_rewarded_likelier(reward):
    """Whatever the net does in one game, a step along the gradient must follow the reward."""
    net = state_of().model
    config = ActorCritic(discount=1.0, trace=1.0, entropy=0.0, critic=0.0)
    key = jax.random.key(0)
    drawn = play(net, SMALL, key)

    def again(net):
        """Log-probabilities of the actions drawn, and of no others."""
        moves = play(net, SMALL, key)
        return moves._replace(reward=jnp.array([0, 0, 0, reward]), value=jnp.zeros(4))

    grads = jax.grad(lambda net: losses(again(net), config)["loss"])(net)
    better = jax.tree.map(lambda p, g: p - 1e-3 * g, net, grads)
    after = again(better)
    np.testing.assert_array_equal(after.action, drawn.action)
    change = float(jnp.sum(after.log_prob) - jnp.sum(drawn.log_prob))
    assert change * reward > 0


def test_the_gradient_reaches_what_was_seen_first():
    """Full backpropagation: a screen that is blank in all but frame one still teaches pixels."""
    game = Catch(size=5, visible=1)
    net = state_of(game).model
    net.policy.kernel[...] = jax.random.normal(jax.random.key(1), (16, 3))

    def last(net):
        return play(net, game, jax.random.key(2)).log_prob[-1]

    board = play(net, game, jax.random.key(2)).board
    pixel = int(board.ball[0])  # row 0 of the screen
    grad = np.asarray(jax.grad(last)(net).see.kernel)
    assert np.abs(grad[pixel]).max() > 1e-6
    assert not grad[(pixel + 1) % 5].any()


@pytest.mark.parametrize("cell", ["fast-weights", "irnn", "lstm"])
def test_a_game_is_what_its_moves_say(cell):
    """Boards follow from actions, log-probabilities are those of a second reading."""
    net = state_of(model=dataclasses.replace(MODEL, cell=cell)).model
    net.policy.kernel[...] = jax.random.normal(jax.random.key(1), (16, 3))
    moves = play(net, SMALL, jax.random.key(7))
    memory, board = net.initial(4), jax.tree.map(lambda x: x[0], moves.board)
    for t in range(4):
        memory, logits, value = net.step(memory, SMALL.observe(board))
        p = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum()
        assert_close(moves.log_prob[t], np.log(p[int(moves.action[t])]))
        assert_close(moves.entropy[t], -(p * np.log(p)).sum())
        assert_close(moves.value[t], value)
        board, reward = SMALL.step(board, moves.action[t])
        assert float(reward) == float(moves.reward[t])
    assert abs(float(moves.reward[-1])) == 1.0 and not moves.reward[:-1].any()


def test_actions_are_drawn_with_their_probabilities():
    """A policy of (0.7, 0.2, 0.1) whatever it sees; 4,000 games of 4 moves, 4 standard errors."""
    net = state_of().model
    net.policy.bias[...] = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    keys = jax.random.split(jax.random.key(3), 4_000)
    actions = np.asarray(jax.jit(jax.vmap(lambda k: play(net, SMALL, k).action))(keys))
    rates = np.bincount(actions.ravel(), minlength=3) / actions.size
    assert np.abs(rates - [0.7, 0.2, 0.1]).max() < 4 * (0.21 / actions.size) ** 0.5
    assert not np.asarray(play(net, SMALL, keys[0], greedy=True).action).any()


def test_updates_in_a_scan_are_gradient_steps():
    """Two updates of plain gradient descent, done again outside the scan."""
    state = state_of()
    expected = state.model
    for step in range(2):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 8)
        grads = jax.grad(lambda net, k=keys: batch_losses(net, SMALL, ActorCritic(), k)[0])(
            expected
        )
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, grads)
    expected = jax.tree.map(np.asarray, jax.tree.leaves(expected))
    found, scores = make_updates(SMALL, ActorCritic(), optax.sgd(0.1), 8, 2)(state)
    for a, b in zip(jax.tree.leaves(found.model), expected, strict=True):
        assert_close(a, b)
    assert int(found.step) == 2 and scores["reward"].shape == (2,)


def test_it_learns_to_catch():
    """N = 5, M = 2: chance is -0.2; memory is needed for two of four moves."""
    transform = optax.adam(5e-3)
    updates = make_updates(SMALL, ActorCritic(entropy=1e-3), transform, 64, 200)
    state, first = updates(state_of(transform=transform))
    state, last = updates(state)
    assert abs(float(first["reward"][:2].mean()) + 0.2) < 0.4
    assert float(last["reward"][-20:].mean()) > 0.9


def config_of(**plan):
    lengths = {"steps": 8, "batch": 4, "eval_every": 4, "checkpoint_every": 4, "log_every": 2}
    return AgentConfig(SMALL, MODEL, train=Train(**(lengths | plan)), optim=Optim(lr=1e-2))


def same(a, b):
    keys = lambda s: s._replace(key=jax.random.key_data(s.key))
    for x, y in zip(jax.tree.leaves(keys(a)), jax.tree.leaves(keys(b)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_resumed_run_is_the_run_never_stopped(tmp_path):
    whole = train_agent(config_of(), tmp_path / "whole", quiet=True)
    train_agent(config_of(steps=4), tmp_path / "parts", quiet=True)
    parts = train_agent(config_of(), tmp_path / "parts", quiet=True)
    same(whole.state, parts.state)
    score = lambda run: [{k: v for k, v in x.items() if k != "wall_time"} for x in run.history]
    once = {json.dumps(x) for x in score(whole)}
    assert {json.dumps(x) for x in score(parts)} == once
    assert {x["step"] for x in whole.history} == {2, 4, 6, 8}
    config, loaded = load_agent(tmp_path / "parts")
    same(whole.state, loaded)
    assert config == config_of()
    other = jax.tree.leaves(state_of(seed=1).model)
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(state_of().model), other, strict=True)
    )


def test_a_run_that_is_done_stays_as_it_is(tmp_path):
    first = train_agent(config_of(), tmp_path, quiet=True)
    again = train_agent(config_of(), tmp_path, quiet=True)
    same(first.state, again.state)
    assert first.history == again.history


def test_a_run_that_diverges_keeps_its_last_good_state(tmp_path):
    config = dataclasses.replace(config_of(), optim=Optim(lr=1e30, clip=None))
    with pytest.raises(NumericalError, match="after update 1"):
        train_agent(config, tmp_path, quiet=True)
    state = load_agent(tmp_path)[1]
    assert int(state.step) == 1


def test_a_state_that_is_saved_with_its_score_is_not_saved_without(tmp_path):
    """Update 1 is evaluated and saved, update 2 is not finite: twice, and all stays as it was."""
    plan = config_of(eval_every=1, checkpoint_every=1, log_every=1)
    config = dataclasses.replace(plan, optim=Optim(lr=1e30, clip=None))
    for _ in range(2):
        with pytest.raises(NumericalError, match="after update 1"):
            train_agent(config, tmp_path, quiet=True)
        with Checkpoints(tmp_path / "checkpoints") as saves:
            assert [(info.step, info.best) for info in saves.infos()] == [(1, True)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 9}, "train.steps is 9; it must be a multiple of train.log_every, 2"),
        ({"log_every": 0}, "train.log_every is 0; it must be at least 1"),
    ],
)
def test_a_rhythm_that_cannot_work(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        train_agent(config_of(**change), tmp_path)


def test_frames_show_the_game():
    """A ball in column 2 and a paddle at 0 that goes right, right, stays, stays: caught."""
    steps = jnp.arange(4)
    board = Board(steps, jnp.full(4, 2), jnp.array([0, 1, 2, 2]))
    reward, zeros = jnp.array([0.0, 0, 0, 1]), jnp.zeros(4)
    moves = Moves(board, jnp.array([2, 2, 1, 1]), zeros, zeros, zeros, reward)
    shown = frames(SMALL, moves)
    assert len(shown) == 5
    assert shown[0].splitlines()[1] == "..o..   ..o.." and "right" in shown[0]
    assert shown[0].splitlines()[5] == "==...   ==..."
    assert shown[2].splitlines()[3] == "..o..   ....."  # the third frame is blank
    assert shown[4].splitlines()[5] == "..o=.   ....."
    assert shown[4].splitlines()[6] == "caught (+1)"


def test_show_prints_frames_where_there_is_no_terminal():
    out = io.StringIO()
    mean = show(state_of().model, SMALL, 2, stream=out)
    text = out.getvalue()
    assert text.count("frame 5") == 2 and "\x1b" not in text
    assert mean in (-1.0, 0.0, 1.0) and "mean reward of 2 games" in text
    assert text.count("caught") - text.count("missed") == 2 * mean
