"""The rules of Catch against play by brute force in plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastweights.models.catch import CatchModel
from fastweights.tasks.catch import Board, Catch


def play_by_hand(size, ball, paddle, actions):
    """The rules as the paper tells them, with a list of lit columns: screens and final reward."""
    lit, screens = [paddle, paddle + 1], []
    for row in range(size):
        screen = [[0] * size for _ in range(size)]
        for column in lit:
            screen[size - 1][column] = 1
        screen[row][ball] = 1
        screens.append(screen)
        if row == size - 1:
            break
        shift = {0: -1, 1: 0, 2: 1}[actions[row]]
        moved = [column + shift for column in lit]
        if min(moved) >= 0 and max(moved) < size:
            lit = moved
    return screens, 1 if ball in lit else -1


@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_game_there_is(size):
    """All balls, paddle starts and action sequences of a small board: screens and rewards."""
    game = Catch(size=size, visible=size)
    starts = list(
        itertools.product(
            range(size), range(size - 1), itertools.product((0, 1, 2), repeat=size - 1)
        )
    )

    def run(ball, paddle, actions):
        begin = Board(jnp.zeros((), jnp.int32), ball, paddle)

        def step(board, action):
            after, reward = game.step(board, action)
            return after, (game.observe(after), reward)

        _, (screens, rewards) = jax.lax.scan(step, begin, actions)
        return jnp.concatenate([game.observe(begin)[None], screens]), rewards

    balls, paddles, actions = (np.array(column, np.int32) for column in zip(*starts, strict=True))
    screens, rewards = jax.jit(jax.vmap(run))(balls, paddles, actions)
    hits = 0
    for i, start in enumerate(starts):
        expected, reward = play_by_hand(size, *start)
        np.testing.assert_array_equal(screens[i], expected)
        np.testing.assert_array_equal(rewards[i], [0] * (size - 2) + [reward])
        hits += reward > 0
    # a uniform paddle stays uniform under random moves, and covers 2 of the columns
    assert hits / len(starts) == pytest.approx(2 / size)


@pytest.mark.parametrize(("size", "chance"), [(16, -0.75), (24, -5 / 6)])
@pytest.mark.parametrize("start", ["random", "middle"])
def test_random_play_earns_the_papers_chance(size, chance, start):
    """60,000 games of random moves; the exact rate is 2/N, four standard errors are allowed."""
    game, count = Catch(size=size, start=start), 60_000

    def one(key):
        begin, moves = jax.random.split(key)
        actions = jax.random.randint(moves, (game.moves,), 0, 3)
        return jnp.sum(jax.lax.scan(game.step, game.reset(begin), actions)[1])

    rewards = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count))
    assert game.chance == pytest.approx(chance)
    rate = 2 / size
    allowed = 4 * 2 * (rate * (1 - rate) / count) ** 0.5
    assert abs(float(rewards.mean()) - chance) < allowed


def test_the_chance_of_random_play_exactly():
    """By dynamic programming over the paddle's place, from the middle, N = 7: 2/7."""
    size, places = 7, 6
    here = np.zeros(places)
    here[(places - 1) // 2] = 1
    for _ in range(size - 1):
        moved = np.zeros(places)
        for place, shift in itertools.product(range(places), (-1, 0, 1)):
            moved[min(max(place + shift, 0), places - 1)] += here[place] / 3
        here = moved
    hit = sum(here[p] * (b in (p, p + 1)) for p in range(places) for b in range(size)) / size
    assert hit == pytest.approx(2 / 7)
    assert Catch(size=size).chance == pytest.approx(2 * hit - 1)


@pytest.mark.parametrize("visible", [1, 3, 5])
def test_the_screen_is_blank_after_frame_m_and_only_then(visible):
    game = Catch(size=6, visible=visible)
    board = game.reset(jax.random.key(3))
    for frame in range(6):
        seen = np.asarray(game.observe(board))
        # while it falls the ball is above the paddle: three pixels
        if frame < visible:
            assert seen.sum() == 3 if frame < 5 else seen.sum() in (2, 3)
        else:
            assert not seen.any()
            assert np.asarray(game.screen(board)).any()
        board, _ = game.step(board, jnp.asarray(frame % 3))


def test_a_finished_game_stays_as_it_is():
    game = Catch(size=5)
    board = Board(*(jnp.asarray(x, jnp.int32) for x in (4, 2, 1)))
    for action in range(3):
        after, reward = game.step(board, jnp.asarray(action))
        assert float(reward) == 0
        assert [int(x) for x in after] == [4, 2, 1]


def test_every_start_is_drawn():
    game = Catch(size=5)
    boards = jax.vmap(game.reset)(jax.random.split(jax.random.key(1), 4_000))
    counts = np.bincount(np.asarray(boards.ball) * 4 + np.asarray(boards.paddle), minlength=20)
    # 200 of each are expected, standard deviation 13.8
    assert counts.min() > 140 and counts.max() < 260
    middle = jax.vmap(Catch(size=5, start="middle").reset)(jax.random.split(jax.random.key(1), 9))
    assert set(np.asarray(middle.paddle).tolist()) == {1}


def test_what_cannot_work_is_told_in_words():
    found = Catch(size=2, visible=0).problems(CatchModel(hidden=0))
    assert [text.split(" ")[0] for text in found] == ["model.hidden", "task.size", "task.visible"]
    assert Catch().problems(CatchModel()) == []
