"""`fastweights demo --task catch`: train a player with fast weights, then watch it play.

On a terminal the frames replace each other; elsewhere they are printed one below the other.
"""

import sys
import time
from typing import TextIO

import jax
import numpy as np

from fastweights.cli_args import CatchDemo
from fastweights.models.catch import CatchModel, CatchNet
from fastweights.rules import Hebbian
from fastweights.tasks.catch import ACTIONS, PADDLE, Board, Catch
from fastweights.train import manifest
from fastweights.train.actor_critic import Moves, play
from fastweights.train.agent import AgentConfig, load_agent, train_agent
from fastweights.train.config import Optim, Train


def player(updates: int, seed: int) -> AgentConfig:
    """N = 16, M = 3 with fast weights, a quarter as long as `configs/catch_16.py`."""
    return AgentConfig(
        model=CatchModel(rule=Hebbian(decay=0.5, lr=0.1, steps=1)),
        optim=Optim(lr=1e-2, schedule="cosine", decay_steps=max(updates, 51), warmup=50, clip=1.0),
        train=Train(steps=updates, batch=128, eval_every=100, checkpoint_every=100, log_every=20),
        seed=seed,
    )


def main(arguments: CatchDemo) -> None:
    """Run the demo."""
    if manifest.steps(arguments.run_dir / "checkpoints"):
        config, state = load_agent(arguments.run_dir)
        if int(state.step) < config.train.steps:
            state = train_agent(config, arguments.run_dir).state
    else:
        config = player(arguments.updates, arguments.seed)
        print(
            f"Catch: the ball is seen for {config.task.visible} of {config.task.size} frames.\n"
            f"A player that does not look earns {config.task.chance:+.2f} a game on average, "
            "a perfect one +1.00."
        )
        state = train_agent(config, arguments.run_dir).state
    show(state.model, config.task, arguments.games, arguments.pause, seed=arguments.seed)


def show(
    net: CatchNet,
    game: Catch,
    games: int,
    pause: float = 0.15,
    *,
    seed: int = 0,
    stream: TextIO | None = None,
) -> float:
    """Play greedy games to a stream, standard output by default; returns the mean reward."""
    out = sys.stdout if stream is None else stream
    live, rewards = out.isatty(), []
    one = jax.jit(lambda key: play(net, game, key, greedy=True))
    # training games come from split keys; these are others
    for number, key in enumerate(jax.random.split(jax.random.key(seed + 2**20), games), 1):
        moves = one(key)
        shown = frames(game, moves)
        for i, frame in enumerate(shown):
            if live and i:
                out.write(f"\x1b[{frame.count(chr(10)) + 1}A\x1b[J")
            out.write(f"game {number} of {games}\n{frame}")
            out.flush()
            if live:
                time.sleep(pause)
            else:
                out.write("\n")
        rewards.append(float(moves.reward.sum()))
    mean = float(np.mean(rewards)) if rewards else 0.0
    out.write(f"mean reward of {games} games: {mean:+.2f}; without looking {game.chance:+.2f}\n")
    return mean


def frames(game: Catch, moves: Moves) -> list[str]:
    """One game as text, N frames of N + 2 lines: a caption, the screen, a line below.

    Beside the true screen there is what the player sees: `o` ball, `=` paddle, `.` dark.
    """
    boards = [jax.tree.map(lambda x, t=t: x[t], moves.board) for t in range(game.moves)]
    boards.append(game.step(boards[-1], moves.action[-1])[0])
    pictures = []
    for t, board in enumerate(boards):
        if t < game.moves:
            below = f"{ACTIONS[int(moves.action[t])]:5s} value {float(moves.value[t]):+.2f}"
        else:
            below = "caught (+1)" if bool(game.hit(board)) else "missed (-1)"
        width = game.size + 3
        lines = [f"{'frame ' + str(t + 1):{width}s}seen"]
        seen = t < game.visible
        for row in range(game.size):
            true = line(game, board, row)
            lines.append(f"{true}   {true if seen else '.' * game.size}")
        pictures.append("\n".join([*lines, below, ""]))
    return pictures


def line(game: Catch, board: Board, row: int) -> str:
    """One row of the true screen."""
    pixels = ["."] * game.size
    if row == game.size - 1:
        for column in range(int(board.paddle), int(board.paddle) + PADDLE):
            pixels[column] = "="
    if row == int(board.frame):
        pixels[int(board.ball)] = "o"
    return "".join(pixels)
