"""The arguments of the command line's verbs; help is shown before anything heavy is imported."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """Who writes, and how.

    Attributes:
        model: a Hugging Face checkpoint or the directory of a run, whose best checkpoint it is.
        max_new_tokens: the most tokens of a text.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the fewest likeliest tokens that have this probability together.
        seed: of what is drawn.
        stop: texts of special tokens that end a text, beside those of the model.
        ttt: whether the fast weights of an in-place model learn.
        dtype: of a Hugging Face checkpoint's weights and computation; a run has its own.
    """

    model: Path
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    ttt: Literal["on", "off"] = "on"
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateArguments(Writing):
    """Continue a text: the new text on standard output, everything else on standard error.

    Attributes:
        prompt: the text; without it and `prompt_file`, standard input is.
        prompt_file: a UTF-8 file with the text.
    """

    prompt: str | None = None
    prompt_file: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatArguments(Writing):
    """A conversation; /help lists its commands.

    Attributes:
        template: what is read for a line, {} in it; by default the chat template of the checkpoint,
            and without one that of the tokenizer's special tokens: ChatML, Llama 3, or the line and
            a line end.
        max_length: tokens of the whole conversation; by default those that the model is made for.
    """

    template: str | None = None
    max_length: int | None = None


@dataclasses.dataclass(frozen=True)
class ImportArguments:
    """Write the config of a run that continues a checkpoint with in-place test-time training.

    Attributes:
        path: a Qwen3 or Llama checkpoint in Hugging Face layout.
        out: the Python file to write; never overwritten.
        tokenizer: "bytes", or a tokenizer.json or its folder; by default the checkpoint's own.
    """

    path: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    tokenizer: str | None = None


@dataclasses.dataclass(frozen=True)
class ExportArguments:
    """Write the model of a run in Hugging Face layout, with its tokenizer.

    Attributes:
        run_dir: directory of the run.
        out: the directory to write; never overwritten.
        which: best (by the validation score) or last.
    """

    out: tyro.conf.Positional[Path]
    run_dir: Path
    which: Literal["best", "last"] = "best"


@dataclasses.dataclass(frozen=True)
class RetrievalDemo:
    """Train the two nets, print their errors, save one picture.

    Attributes:
        out: directory for data, runs and the picture; a demo that was stopped goes on there.
        updates: updates of each net.
        seed: of weights and data order.
    """

    out: Path = Path("demo")
    updates: int = 1_500
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class CatchDemo:
    """Train a player of Catch (or take one that is trained) and show its games.

    Attributes:
        run_dir: the run; if it is finished it is not trained again.
        updates: updates of 128 games each, when it is trained here; a multiple of 20.
        games: games to show.
        pause: seconds between frames on a terminal.
        seed: of weights and of training games.
    """

    run_dir: Path = Path("demo/catch")
    updates: int = 800
    games: int = 3
    pause: float = 0.15
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class FastSlowDemo:
    """Evolve prompts and train weights on hinted string programs, beside training weights only.

    Attributes:
        base: run directory of the base language model; trained first if it does not exist,
            which takes most of the time. Asks first if it is not the default.
        train_base: train a base model in `base` without asking.
        run_dir: directory of the two runs; what is done is not done again.
        updates: of the weights, in each.
        lr: learning rate of both.
        seed: of both.
        out: the picture.
    """

    base: Path = Path("demo/fst_base")
    train_base: bool = False
    run_dir: Path = Path("demo/fast_slow")
    updates: int = 60
    lr: float = 3e-4
    seed: int = 0
    out: Path = Path("demo/fast_slow.png")
