"""How a line typed in a chat is put to a model, by the special tokens that its tokenizer has."""

from collections.abc import Container
from typing import NamedTuple


class Template(NamedTuple):
    """Text around a line, `{}`."""

    first: str  # of the first line
    line: str  # of each after it, when the answer and a stop token have been read
    stops: tuple[str, ...] = ()  # special tokens that end an answer, the one of a turn first


_CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
CHATML = Template(_CHATML, f"\n{_CHATML}", ("<|im_end|>",))
LLAMA3 = Template(f"<|begin_of_text|>{_LLAMA3}", _LLAMA3, ("<|eot_id|>",))
PLAIN = Template("{}\n", "{}\n")


def choose(added: Container[str]) -> Template:
    """ChatML, Llama 3's, or plain lines for a tokenizer that has the tokens of neither.

    Args:
        added: texts of the tokenizer's special tokens.
    """
    if "<|im_start|>" in added and "<|im_end|>" in added:
        return CHATML
    needed = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return LLAMA3 if all(token in added for token in needed) else PLAIN
