"""Catch with a screen that goes blank (Ba et al. 2016, arXiv 1610.06258, §4.4), as pure functions.

A ball of one pixel falls one row a frame on an N x N screen; a paddle of two pixels on the bottom
row goes left, stays or goes right. When the ball is in the bottom row the game is over: +1 if the
paddle is under it, -1 if not. The first M of the N frames are shown, the rest are blank: ball,
paddle and the moves made since must be remembered.

Where the paper is silent: the paddle starts anywhere with equal chance (or in the middle); a move
into a wall leaves it where it is; blank means every pixel, the paddle's too; the N-th frame ends
the game, so a game has N - 1 moves. A paddle that does not know where the ball is hits with chance
2/N, whatever it does: it always covers 2 of the N columns.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fastweights.models.catch import CatchModel
from fastweights.tasks.base import rule_problems, too_small

#: actions, by number; an action moves the paddle `action - 1` columns
ACTIONS = ("left", "stay", "right")
PADDLE = 2


class Board(NamedTuple):
    """A game between two moves."""

    frame: Array  # [] int32, 0 to N - 1; also the row the ball is in
    ball: Array  # [] int32, its column
    paddle: Array  # [] int32, column of its left pixel, 0 to N - 2


@dataclasses.dataclass(frozen=True)
class Catch:
    """The rules of the game.

    Attributes:
        size: N, rows and columns of the screen; N frames a game.
        visible: M, frames shown before the screen goes blank; M >= N shows all of it.
        start: where the paddle starts.
    """

    size: int = 16
    visible: int = 3
    start: Literal["random", "middle"] = "random"

    @property
    def moves(self) -> int:
        """Moves a game has, N - 1."""
        return self.size - 1

    @property
    def chance(self) -> float:
        """Expected reward of any policy that does not look: 2 · 2/N - 1."""
        return 2 * PADDLE / self.size - 1

    def problems(self, model: Any) -> list[str]:
        """What cannot work in this game with that model config, in words."""
        found = too_small(model, ("features", "hidden")) + rule_problems(model.rule)
        if not isinstance(model, CatchModel):
            found.append(f"the game needs model = CatchModel(...), not {type(model).__name__}")
        if self.size < PADDLE + 1:
            found.append(f"task.size is {self.size}; it must be at least {PADDLE + 1}")
        if self.visible < 1:
            found.append(f"task.visible is {self.visible}; it must be at least 1")
        return found

    def reset(self, key: Array) -> Board:
        """A new game: the ball in the top row, in any column with equal chance."""
        ball, paddle = jax.random.split(key)
        places = self.size - PADDLE + 1
        start = (
            jax.random.randint(paddle, (), 0, places)
            if self.start == "random"
            else jnp.asarray((places - 1) // 2)
        )
        column = jax.random.randint(ball, (), 0, self.size)
        return Board(jnp.zeros((), jnp.int32), column, start.astype(jnp.int32))

    def screen(self, board: Board) -> Array:
        """What is there, seen or not: `[N, N]` float32, 1 where a pixel is lit, row 0 on top."""
        rows, columns = jnp.indices((self.size, self.size))
        ball = (rows == board.frame) & (columns == board.ball)
        under = (columns >= board.paddle) & (columns < board.paddle + PADDLE)
        return (ball | (under & (rows == self.size - 1))).astype(jnp.float32)

    def observe(self, board: Board) -> Array:
        """What the player sees, `[N, N]` float32: `screen`, and zeros after frame M."""
        return jnp.where(board.frame < self.visible, self.screen(board), 0.0)

    def step(self, board: Board, action: Array) -> tuple[Board, Array]:
        """One move and one row down.

        Args:
            board: before the move. A finished game stays as it is and pays nothing more.
            action: [] int, index into `ACTIONS`.

        Returns:
            The board after it, and the reward [] float32: +1 or -1 with the last move, else 0.
        """
        over = board.frame >= self.size - 1
        paddle = jnp.clip(board.paddle + action - 1, 0, self.size - PADDLE).astype(jnp.int32)
        moved = Board(board.frame + 1, board.ball, paddle)
        new = jax.tree.map(lambda old, new: jnp.where(over, old, new), board, moved)
        ends = ~over & (new.frame == self.size - 1)
        return new, jnp.where(ends, jnp.where(self.hit(new), 1.0, -1.0), 0.0)

    def hit(self, board: Board) -> Array:
        """Whether the paddle is under the ball's column, [] bool."""
        return (board.ball >= board.paddle) & (board.ball < board.paddle + PADDLE)
