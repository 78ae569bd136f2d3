"""The verbs of language models: `generate`, `chat`, `import-hf`, `export-hf`, and needles."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from fastweights.cli_args import (
    ChatArguments,
    ExportArguments,
    GenerateArguments,
    ImportArguments,
    Writing,
)
from fastweights.cli_parse import parse
from fastweights.errors import ConfigError, nearest
from fastweights.fastslow import report as report  # makes the policies of its runs loadable
from fastweights.hf import chat_template
from fastweights.inference import chat as chats
from fastweights.inference import checks, prefill
from fastweights.inference.templates import Lines, Template, choose
from fastweights.needle_eval import Answered, NeedleEval, evaluate, summary
from fastweights.pretrained import Pretrained, load
from fastweights.tasks.language_data import read_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleArguments(NeedleEval):
    """Ask a language model for facts hidden in long texts; scores as one JSON object.

    Attributes:
        model: a Hugging Face checkpoint or the directory of a run, whose best checkpoint it is.
        haystack: a UTF-8 file to hide the facts in, such as a book; by default made-up sentences.
        ttt: whether the fast weights of an in-place model learn.
        dtype: of a Hugging Face checkpoint's weights and computation; a run has its own.
        answers: a file to write every question and answer to, a JSON object a line.
    """

    model: Path
    haystack: Path | None = None
    ttt: Literal["on", "off"] = "on"
    dtype: Literal["float32", "bfloat16"] = "float32"
    answers: Path | None = None


def load_model(given: Writing) -> Pretrained:
    """The model that is asked for."""
    return load(given.model, given.dtype, given.ttt == "on")


def sampling_of(given: Writing, found: Pretrained, stops: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments of `inference.stream`.

    Args:
        given: of the command line.
        found: the model.
        stops: special tokens that end a text, beside those asked for.

    Raises:
        ConfigError: the tokenizer has no such token.
    """
    added = found.tokenizer.added
    for text in given.stop:
        if text not in added:
            raise ConfigError(
                f"this tokenizer has no special token {text!r}{nearest(text, added)}",
                where="--stop",
                next=f"one of {', '.join(list(added)[:8])}" if added else "leave --stop out",
            )
    tokens = {*found.stop_tokens, *(added[text] for text in (*given.stop, *stops))}
    return {
        "max_new_tokens": given.max_new_tokens,
        "temperature": given.temperature,
        "top_k": given.top_k,
        "top_p": given.top_p,
        "stop_tokens": sorted(tokens),
        "key": jax.random.key(given.seed),
    }


def generate(given: GenerateArguments) -> None:
    """`generate --model PATH [--prompt TEXT | --prompt-file FILE]`."""
    if given.prompt is not None and given.prompt_file is not None:
        raise ConfigError("there are two prompts", next="--prompt or --prompt-file, one of them")
    checks.amount(given.max_new_tokens)
    text = read_prompt(given)
    found = load_model(given)
    sampling = sampling_of(given, found)
    prompt = np.array([*found.tokenizer.opening, *found.tokenizer.encode(text)], np.int32)
    state = prefill(found.model, prompt[None], max_length=len(prompt) + given.max_new_tokens)
    state, new = chats.write(found.model, found.tokenizer, state, sampling, show)
    print(
        f"\n[{len(prompt)} tokens read, {len(new)} written{chats.summary(found.model, state)}]",
        file=sys.stderr,
    )


def read_prompt(given: GenerateArguments) -> str:
    """The text to continue.

    Raises:
        ConfigError: it is empty.
        DataError: the file cannot be read, or is not UTF-8.
    """
    if given.prompt is not None:
        text = given.prompt
    elif given.prompt_file is not None:
        text = read_text(given.prompt_file)
    else:
        if sys.stdin.isatty():
            print("[the text to continue, then ctrl-D]", file=sys.stderr)
        text = sys.stdin.read()
    if not text:
        raise ConfigError("there is no text to continue", next="--prompt TEXT")
    return text


def show(text: str) -> None:
    """Write a piece of text at once."""
    print(text, end="", flush=True)


def chat(given: ChatArguments) -> None:
    """`chat --model PATH`."""
    found = load_model(given)
    template = template_of(given.template, found)
    print(chats.banner(found.model, str(given.model)), file=sys.stderr)
    chats.chat(
        found.model,
        found.tokenizer,
        **sampling_of(given, found, template.stops),
        max_length=given.max_length,
        template=template,
        end=found.tokenizer.added[template.stops[0]] if template.stops else None,
    )


def template_of(asked: str | None, found: Pretrained) -> Template:
    """The template of a chat.

    Args:
        asked: the user's, for every line.
        found: the model.

    Raises:
        ConfigError: the user's has no place for the line, or a package is missing.
        CheckpointError: the checkpoint's is a link out of its directory.
        DataError: the checkpoint's cannot be used.
    """
    if asked is not None:
        return Lines(asked, asked)
    tokenizer = found.tokenizer
    own = chat_template.read(tokenizer.folder, tokenizer.added) if tokenizer.folder else None
    if own is not None:
        return own
    template = choose(tokenizer.added)
    if template.stops:  # the tokens that open a text are in it
        return template
    names = {token: text for text, token in tokenizer.added.items()}
    opening = "".join(names[token] for token in tokenizer.opening)
    return dataclasses.replace(template, first=opening + template.first)


def needles(arguments: list[str]) -> None:
    """`eval --task needles --model PATH`."""
    given: NeedleArguments = parse(NeedleArguments, arguments, "fastweights eval --task needles")
    given.check()
    haystack = None if given.haystack is None else read_text(given.haystack)
    if given.answers is not None:
        write_answers(given.answers, [])  # what cannot be written is known before the work
    report = lambda line: print(line, file=sys.stderr, flush=True)
    found = evaluate(load(given.model, given.dtype, given.ttt == "on"), given, haystack, report)
    if given.answers is not None:
        write_answers(given.answers, found)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(given).items()
    }
    print(json.dumps({"settings": settings, **summary(found, given.depths)}))


def write_answers(file: Path, found: list[Answered]) -> None:
    """Every question and answer, a JSON object a line; the text around the needles is left out.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with open(file, "w", encoding="utf-8") as out:
            for each in found:
                line = {
                    "length": each.length,
                    "kind": each.kind,
                    "number": each.number,
                    "prompt_tokens": each.tokens,
                    "question": each.needle.prompt[each.needle.prompt.rindex("Question: ") :],
                    "wanted": each.needle.answers,
                    "depths": [round(depth, 4) for depth in each.needle.depths],
                    "found": each.score.found,
                    "exact": each.score.exact,
                    "output": each.output,
                }
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(
            f"the answers cannot be written: {error.strerror}", where=file, next="another place"
        ) from error


def import_hf(given: ImportArguments) -> None:
    """`import-hf PATH OUT.py [--tokenizer bytes|FILE]`."""
    from fastweights.continued import continued, source

    out = given.out
    if out.suffix != ".py":
        raise ConfigError(f"{out} is no name of a config file", next=f"{out.stem}.py")
    if out.exists():
        raise ConfigError(
            f"{out} is there already and is never overwritten", next="give another name"
        )
    text = source(continued(given.path, given.tokenizer), out)
    try:
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"the config file cannot be written: {error.strerror}", where=out, next="another place"
        ) from error
    print(f"wrote {out}; next: fastweights train {out} --data.dir DIR --run-dir runs/{out.stem}")


def export_hf(given: ExportArguments) -> None:
    """`export-hf --run-dir DIR OUT [--which best|last]`."""
    from fastweights.export import export_run

    step = export_run(given.run_dir, given.out, given.which)
    print(f"wrote {given.out}, the model at step {step}; fastweights generate --model {given.out}")
