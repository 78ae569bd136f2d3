"""Chat templates: the text that a model reads for a line of the user."""

import dataclasses
from collections.abc import Container
from typing import Protocol

from fastweights.errors import ConfigError


class Template(Protocol):
    """A chat template."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Special tokens that end an answer, first the one that a turn ends with."""
        ...

    def turn(self, line: str, first: bool) -> str:
        """The text that the model reads for a line of the user.

        Args:
            line: the line.
            first: the conversation begins with it. Otherwise it follows an answer and its stop
                token.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Lines:
    """A chat template of two texts, in which `{}` is the line.

    Attributes:
        first: text of the first line.
        line: text of every later line.
        stops: see `Template`.

    Raises:
        ConfigError: a text has no `{}`.
    """

    first: str
    line: str
    stops: tuple[str, ...] = ()

    def __post_init__(self):
        for text in (self.first, self.line):
            if "{}" not in text:
                raise ConfigError(f"template {text!r} has no {{}} for the line", where="template")

    def turn(self, line: str, first: bool) -> str:
        """See `Template.turn`."""
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
    """ChatML or Llama 3's template, by the special tokens; plain lines for other tokenizers.

    Args:
        added: special tokens of the tokenizer.
    """
    if "<|im_start|>" in added and "<|im_end|>" in added:
        return CHATML
    needed = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return LLAMA3 if all(token in added for token in needed) else PLAIN
