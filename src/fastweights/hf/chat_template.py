"""The chat template of a checkpoint: a Jinja program that came with the weights.

It is a program of somebody else's, so it runs in Jinja's sandbox, which gives it no attribute of
Python's and lets it change no object, as in transformers.
"""

import datetime
import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from fastweights.errors import ConfigError, DataError, install_extra
from fastweights.hf.config import read_json
from fastweights.hf.files import refuse_link_out

FILE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
#: stands for an answer, to find what a template puts behind one
ANSWER = "@@answer@@"


class ChatTemplate:
    """Text around a line, as a checkpoint's own template writes it.

    A conversation is read further and never again from its start. So the template is asked for one
    turn at a time, each behind one earlier turn.

    Args:
        source: the template.
        special: texts of special tokens by their names, such as `bos_token`.
        added: texts of the tokenizer's special tokens.
        where: the file of the template, for errors.

    Attributes:
        stops: the special token that ends an answer; () where the template has none there.

    Raises:
        ConfigError: jinja2 is not installed.
        DataError: the template cannot be compiled or rendered, or leaves the answer out.
    """

    def __init__(
        self, source: str, special: dict[str, str], added: Container[str], where: Path | str
    ):
        self._where, self._special = where, special
        self._template = self._compiled(source)
        behind = self._behind("line").lstrip()
        # the longest, where the name of one token begins with that of another
        ends = [behind[:i] for i in range(len(behind), 0, -1) if behind[:i] in added]
        self.stops: tuple[str, ...] = tuple(ends[:1])

    def turn(self, line: str, first: bool) -> str:
        """What is read for a line.

        Args:
            line: what the user says.
            first: whether the text begins with it; if not, an answer and its end are before it.

        Raises:
            DataError: the template refuses the line.
        """
        if first:
            return self._render({"role": "user", "content": line})
        text = self._behind(line)
        return text.lstrip().removeprefix(self.stops[0]) if self.stops else text

    def _behind(self, line: str) -> str:
        """What follows an answer: its end, and the next line."""
        text = self._render(
            {"role": "user", "content": "line"},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": line},
        )
        before, found, after = text.partition(ANSWER)
        if not found:
            raise self._bad("it leaves out what the assistant said")
        return after

    def _render(self, *messages: dict[str, str]) -> str:
        given = {"messages": list(messages), "add_generation_prompt": True}
        try:
            return self._template.render(**self._special, **given, tools=None, documents=None)
        except Exception as error:  # whatever a program may raise
            raise self._bad(f"{type(error).__name__}: {error}") from error

    def _compiled(self, source: str) -> Any:
        try:
            import jinja2
            from jinja2.ext import Extension, loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise ConfigError(
                "a chat template is read by the package `jinja2`, which is not installed",
                where=self._where,
                next=f"pip install jinja2, or {install_extra('hf')}; --template needs no package",
            ) from error

        class Generation(Extension):
            """`{% generation %}` marks what a model is trained on, and changes no text."""

            tags = {"generation"}

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        def tojson(x: Any, ensure_ascii: bool = False, **options: Any) -> str:
            return json.dumps(x, ensure_ascii=ensure_ascii, **options)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        # the names that transformers gives a template
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            return environment.from_string(source)
        except jinja2.TemplateError as error:
            raise self._bad(f"{type(error).__name__}: {error}") from error

    def _bad(self, cause: str) -> DataError:
        return DataError(
            "the model's chat template cannot be used",
            where=self._where,
            cause=cause[:300],
            next="--template '{}' reads a line as it is; a template of yours has {} for the line",
        )


def read(folder: Path, added: Container[str]) -> ChatTemplate | None:
    """The chat template in a tokenizer's directory, None where there is none.

    Args:
        folder: holds chat_template.jinja, or a tokenizer_config.json with one in it.
        added: texts of the tokenizer's special tokens.

    Raises:
        ConfigError: tokenizer_config.json is no JSON object, or jinja2 is not installed.
        CheckpointError: a file is a link out of the directory.
        DataError: the template cannot be used.
    """
    raw: dict[str, Any] = {}
    if (folder / SETTINGS).exists():
        refuse_link_out(folder, folder / SETTINGS)
        raw = read_json(folder / SETTINGS)
    # a token is a text, or an object that has it as `content`
    tokens = {name: x.get("content") if isinstance(x, dict) else x for name, x in raw.items()}
    special = {
        name: x for name, x in tokens.items() if name.endswith("_token") and isinstance(x, str)
    }
    if (folder / FILE).exists():
        refuse_link_out(folder, folder / FILE)
        try:
            source = (folder / FILE).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{FILE} cannot be read: {error}", where=folder / FILE, next="download it again"
            ) from error
        return ChatTemplate(source, special, added, folder / FILE)
    source = raw.get("chat_template")
    if isinstance(source, list):  # several, each an object with a name
        named = {x.get("name"): x.get("template") for x in source if isinstance(x, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, special, added, folder / SETTINGS)
