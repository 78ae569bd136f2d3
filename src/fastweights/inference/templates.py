"""How a line typed in a chat is put to a model."""

import dataclasses
from collections.abc import Container
from typing import Protocol

from fastweights.errors import ConfigError


class Template(Protocol):
    """Text around a line."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Special tokens that end an answer, the one of a turn first."""
        ...

    def turn(self, line: str, first: bool) -> str:
        """What is read for a line.

        Args:
            line: what the user says.
            first: whether the text begins with it; if not, an answer and a stop token are before.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Lines:
    """Text around a line, `{}`.

    Attributes:
        first: around the first line.
        line: around each after it.
        stops: see `Template`.

    Raises:
        ConfigError: a text has no place for the line.
    """

    first: str
    line: str
    stops: tuple[str, ...] = ()

    def __post_init__(self):
        for text in (self.first, self.line):
            if "{}" not in text:
                raise ConfigError(f"template {text!r} has no {{}} for the line", where="template")

    def turn(self, line: str, first: bool) -> str:
        """What is read for a line; see `Template`."""
        return (self.first if first else self.line).replace("{}", line)


_CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
CHATML = Lines(_CHATML, f"\n{_CHATML}", ("<|im_end|>",))
LLAMA3 = Lines(f"<|begin_of_text|>{_LLAMA3}", _LLAMA3, ("<|eot_id|>",))
PLAIN = Lines("{}\n", "{}\n")


def choose(added: Container[str]) -> Lines:
    """ChatML, Llama 3's, or plain lines for a tokenizer that has the tokens of neither.

    Args:
        added: texts of the tokenizer's special tokens.
    """
    if "<|im_start|>" in added and "<|im_end|>" in added:
        return CHATML
    needed = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return LLAMA3 if all(token in added for token in needed) else PLAIN
