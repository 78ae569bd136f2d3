"""The chat template of a checkpoint: a Jinja program that came with the weights.

The program is untrusted. As in transformers, it runs in Jinja's sandbox: it reaches no private
attribute of Python and changes no object.
"""

import datetime
import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from fastweights.errors import ConfigError, DataError, install_extra
from fastweights.hf.config import read_json
from fastweights.hf.files import refuse_link_out

FILE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
#: stands for an answer or the end of one, to find it in the text that a template writes
MARK = "@@answer@@"


class ChatTemplate:
    """The text of a conversation, as the checkpoint's own template writes it.

    `render` writes a whole conversation. A chat keeps its state and reads each new line once, so
    `turn` writes the text of one line: the template renders it after one earlier turn, and the
    earlier turn is cut off.

    Args:
        source: the template.
        special: special tokens by name, such as {"bos_token": "<s>"}.
        added: special tokens of the tokenizer.
        where: the file of the template, for errors.

    Attributes:
        source: the template.
        stops: the special token after an answer, or () if the template writes no such token.

    Raises:
        ConfigError: jinja2 is not installed.
        DataError: the template does not compile or render, or omits the answer.
    """

    def __init__(
        self, source: str, special: dict[str, str], added: Container[str], where: Path | str
    ):
        self.source, self._where, self._special = source, where, special
        self._template = self._compiled(source)
        after = self._after_answer("line").lstrip()
        # the longest: one token's text can begin with another's
        ends = [after[:i] for i in range(len(after), 0, -1) if after[:i] in added]
        self.stops: tuple[str, ...] = tuple(ends[:1])

    def turn(self, line: str, first: bool) -> str:
        """The text that the model reads for a line of the user.

        Args:
            line: the line.
            first: the conversation begins with it. Otherwise it follows an answer and its stop
                token.

        Raises:
            DataError: the template refuses the line.
        """
        if first:
            return self.render([{"role": "user", "content": line}])
        text = self._after_answer(line)
        return text.lstrip().removeprefix(self.stops[0]) if self.stops else text

    def _after_answer(self, line: str) -> str:
        """The text after an answer: its end, and the next line."""
        text = self.render(
            [
                {"role": "user", "content": "line"},
                {"role": "assistant", "content": MARK},
                {"role": "user", "content": line},
            ]
        )
        before, found, after = text.partition(MARK)
        if not found:
            raise self._bad("it omits the assistant's answers")
        return after

    def render(self, messages: Sequence[dict[str, str]], *, go_on: bool = False) -> str:
        """The text of a conversation.

        Args:
            messages: turns, each with a "role" and a "content".
            go_on: end the text inside the last turn, which the model continues. Otherwise the text
                ends with the opening of the assistant's next turn.

        Raises:
            DataError: the template refuses the conversation, or omits the turn to continue.
        """
        if go_on:  # a mark after the last turn, with a space that a template may trim
            last = messages[-1]
            messages = [*messages[:-1], last | {"content": f"{last['content']}{MARK} "}]
        given = {"messages": list(messages), "add_generation_prompt": not go_on}
        try:
            text = self._template.render(**self._special, **given, tools=None, documents=None)
        except Exception as error:  # a template can raise Jinja's errors and any of Python's
            raise self._bad(f"{type(error).__name__}: {error}") from error
        if not go_on:
            return text
        before, found, after = text.rpartition(MARK)
        if not found:
            raise self._bad("it omits the turn to continue")
        return before if after.startswith(" ") else before.rstrip()

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
            """`{% generation %}` marks tokens with a loss in training; the text is the same."""

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
            "the model's chat template failed",
            where=self._where,
            cause=cause[:300],
            next="mend the template; or in a chat --template '{}', which reads lines unchanged",
        )


def read(folder: Path, added: Container[str]) -> ChatTemplate | None:
    """The chat template in a tokenizer's directory, or None without one.

    Args:
        folder: holds chat_template.jinja, or a tokenizer_config.json with one in it.
        added: special tokens of the tokenizer.

    Raises:
        ConfigError: tokenizer_config.json is no JSON object, or jinja2 is not installed.
        CheckpointError: a file is a link out of the directory.
        DataError: the template does not compile or render.
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
