"""Talk to a model that learns while it reads, in a terminal.

Everything typed and everything answered is one text. The state is read further with every line, so
a long conversation costs no more a line than a short one, and the fast weights move with it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array

from fastweights.errors import ConfigError, DataError, FastWeightsError, nearest
from fastweights.inference.prompt import extend
from fastweights.inference.state import State, capacity, drift, empty, reset
from fastweights.inference.storage import load, save
from fastweights.inference.stream import stream
from fastweights.inference.templates import PLAIN, Template
from fastweights.models.decoder import Decoder

#: tokens of a file read at a time, so that memory does not grow with its length
PIECE = 512
HELP = """commands:
  /read FILE    read a text file, and answer nothing
  /reset        forget everything: text and fast weights
  /save FILE    write the state to a file
  /load FILE    go on from such a file
  /fork         keep the present state; go back to it with /back
  /back [N]     go back to the last fork, or to number N
  /drift        how far each in-place layer's fast weights have moved
  /quit         end; so does ctrl-D"""
COMMANDS = [line.split()[0] for line in HELP.splitlines()[1:]]


class Tokenizer(Protocol):
    """What a chat needs of a tokenizer."""

    @property
    def opening(self) -> Sequence[int]:
        """Tokens that every text begins with."""
        ...

    def encode(self, text: str) -> Any:
        """Token ids of a text."""
        ...

    def decode(self, tokens: Any) -> str:
        """The text of token ids."""
        ...


def chat(
    model: Decoder,
    tokenizer: Tokenizer,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    key: Array | None = None,
    max_length: int | None = None,
    template: Template = PLAIN,
    end: int | None = None,
    ask: Callable[[str], str] = input,
    show: Callable[[str], Any] = lambda text: print(text, end="", flush=True),
) -> State:
    """A conversation on the terminal; `/help` lists the commands.

    Args:
        model: who answers.
        tokenizer: text to tokens and back.
        max_new_tokens: the most tokens of an answer, fewer where the room ends; ctrl-C takes the
            answer back, and the line with it.
        temperature: of the sampling, see `generate`.
        top_k: of the sampling.
        top_p: of the sampling.
        stop_tokens: an answer ends with the first of these.
        key: of the sampling.
        max_length: tokens of the whole conversation; None is the model's `max_length`.
        template: what is read for a line.
        end: the token that `template` takes to be before it. It is read after an answer that came
            to no stop token; None for none.
        ask: shows a prompt, returns a line, raises EOFError at the end.
        show: writes a piece of text.

    Returns:
        The state at the end.

    Raises:
        ConfigError: the sampling cannot be.
    """
    state = empty(model, 1, max_length or model.config.max_length)
    forks: list[State] = []
    sampling: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop_tokens": stop_tokens,
        "key": key,
    }
    while True:
        try:
            line = ask("> ")
        except EOFError:
            return state
        except KeyboardInterrupt:
            show("\n[/quit or ctrl-D ends]\n")
            continue
        if line.strip() == "/quit":
            return state
        try:
            if line.startswith("/"):
                state = command(model, tokenizer, state, forks, line, show)
            elif line:
                text = template.turn(line, first=not int(state.lengths[0]))
                read = np.asarray(tokenizer.encode(text), np.int32)
                # the state moves when the answer is done: a line is kept with it or not at all
                state = answer(model, tokenizer, state, read, end, sampling, show)
        except FastWeightsError as error:
            show(f"{error}\n")
        except KeyboardInterrupt:
            show("\n(line and answer taken back: an unfinished answer is not learned)\n")


def answer(
    model: Decoder,
    tokenizer: Tokenizer,
    state: State,
    line: np.ndarray,
    end: int | None,
    sampling: dict[str, Any],
    show: Callable[[str], Any],
) -> State:
    """Read a line `[n]`, write its answer and how long the text is now.

    Returns:
        The state that has read both, and `end` where no stop token ended the answer.

    Raises:
        ConfigError: there is no room for the line and a token of an answer.
    """
    closing = [] if end is None else [end]
    read, most = int(state.lengths[0]) + len(line), sampling["max_new_tokens"]
    room = capacity(state) - read - len(closing)
    if room < 1:
        raise ConfigError(
            f"with this line the conversation comes to {read} tokens, the state holds "
            f"{capacity(state)}, the answer among them",
            where="max_length",
            next="/reset forgets the conversation; --max-length makes room for a longer one",
        )
    state = extend(model, state, line[None])
    sampling = {**sampling, "max_new_tokens": min(most, room)}
    state, new = write(model, tokenizer, state, sampling, show)
    if closing and new[-1] not in sampling["stop_tokens"]:
        state = extend(model, state, np.array([closing]))
    show(f"\n{status(model, state)}")
    return state


def write(
    model: Decoder,
    tokenizer: Tokenizer,
    state: State,
    sampling: dict[str, Any],
    show: Callable[[str], Any],
) -> tuple[State, list[int]]:
    """Go on from a state of one row and show the text while it comes, without stop tokens.

    A character may take several tokens, so text is shown when it no longer ends within one.

    Args:
        model: the decoder.
        tokenizer: tokens to text.
        state: what has been read.
        sampling: arguments of `stream`, `stop_tokens` among them.
        show: writes a piece of text.

    Returns:
        The state that has read the new tokens, and these, a stop token included.
    """
    steps = stream(model, state, **sampling)
    tokens: list[int] = []
    shown = text = ""
    while True:
        try:
            token = int(next(steps).tokens[0])
        except StopIteration as end:
            show(text[len(shown) :])  # a character that was never completed
            return end.value, tokens
        tokens.append(token)
        if token in sampling["stop_tokens"]:
            continue
        text = tokenizer.decode(np.asarray(tokens, np.int32))
        if not text.endswith("\ufffd"):
            show(text[len(shown) :])
            shown = text


def read_file(model: Decoder, tokenizer: Tokenizer, state: State, file: Path) -> State:
    """The state that has read a text file too, in pieces.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
        ConfigError: there is no room for it.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "this file cannot be read as UTF-8 text", where=file, cause=str(error)
        ) from error
    begun = int(state.lengths[0])
    opening = () if begun else tokenizer.opening
    tokens = np.array([*opening, *tokenizer.encode(text)], np.int32)
    if begun + len(tokens) >= capacity(state):
        raise ConfigError(
            f"the conversation has {begun} tokens and the file {len(tokens)}, the state holds "
            f"{capacity(state)}, an answer among them",
            where=file,
            next="/reset forgets the conversation; --max-length makes room for a longer one",
        )
    for start in range(0, len(tokens), PIECE):
        state = extend(model, state, tokens[None, start : start + PIECE])
    return state


def command(
    model: Decoder,
    tokenizer: Tokenizer,
    state: State,
    forks: list[State],
    line: str,
    show: Callable[[str], Any],
) -> State:
    """Carry out a line that starts with /; the state to go on with."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name == "/reset":
        show("[forgotten]\n")
        return reset(model, state)
    if name in ("/read", "/save", "/load") and not rest:
        raise ConfigError(f"{name} needs a file", where=line)
    if name == "/read":
        state = read_file(model, tokenizer, state, Path(rest))
        show(status(model, state))
        return state
    if name == "/save":
        save(model, state, rest)
        show(f"[saved to {rest}]\n")
        return state
    if name == "/load":
        loaded = load(model, rest)
        if len(loaded.lengths) != 1:
            raise ConfigError(f"the state has {len(loaded.lengths)} rows, not 1", where=rest)
        show(status(model, loaded))
        return loaded
    if name == "/fork":
        forks.append(state)
        show(f"[fork {len(forks)}: /back {len(forks)} returns here]\n")
        return state
    if name == "/back":
        if not (rest or "1").isdigit() or not 1 <= int(rest or len(forks)) <= len(forks):
            raise ConfigError(f"there are {len(forks)} forks", where=line, next="/fork makes one")
        state = forks[int(rest or len(forks)) - 1]
        show(status(model, state))
        return state
    if name == "/drift":
        if not model.config.ttt_layers:
            show("[no layer of this model learns in place]\n")
            return state
        for layer, far in zip(model.config.ttt_layers, drift(model, state)[:, 0], strict=True):
            show(f"layer {layer}: {100 * float(far):.3g} %\n")
        return state
    if name != "/help":
        raise ConfigError(
            f"no such command: {name}{nearest(name, COMMANDS)}", next="/help lists the commands"
        )
    show(f"{HELP}\n")
    return state


def banner(model: Decoder, name: str) -> str:
    """The lines before a chat: the model, its fast weights, and how to get help.

    Args:
        model: the decoder.
        name: as the user knows it.
    """
    size = sum(x.size for x in jax.tree.leaves(model))
    config, learns = model.config, "It does not learn from the text."
    if config.ttt is not None and config.ttt_layers:
        layers = ", ".join(map(str, config.ttt_layers))
        learns = f"Layers {layers} learn from the text, every {config.ttt.chunk:,} tokens."
    return (
        f"{name}: {size:,} parameters, made for up to {config.max_length:,} tokens.\n{learns}\n"
        "/help lists the commands; /quit or ctrl-D ends."
    )


def status(model: Decoder, state: State) -> str:
    """A line on the text so far, and a warning where it is too long for the model."""
    length, most = int(state.lengths[0]), model.config.max_length
    line = f"[{length} tokens{summary(model, state)}]\n"
    if length > most:
        line += f"[the model is made for {most:,} tokens: answers beyond them may be poor]\n"
    return line


def summary(model: Decoder, state: State) -> str:
    """The largest drift, of a model that learns, as the end of a sentence."""
    ttt = model.config.ttt
    if ttt is None or not model.config.ttt_layers:
        return ""
    if int(state.lengths[0]) < ttt.chunk:
        return f", first write after {ttt.chunk:,}"
    far = float(jax.numpy.max(drift(model, state)))
    return f", fast weights moved by up to {100 * far:.3g} %"
