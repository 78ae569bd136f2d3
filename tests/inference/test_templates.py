"""Transcripts that the chat templates make."""

import pytest

from fastweights.errors import ConfigError
from fastweights.inference.templates import CHATML, LLAMA3, PLAIN, Lines, choose


def test_templates_make_the_transcripts_of_their_models():
    """As the chat templates of Qwen3 and Llama 3 write two turns."""
    added = {"<|im_start|>": 1, "<|im_end|>": 2, "<|endoftext|>": 0}
    assert choose(added) is CHATML and choose({"<|endoftext|>": 0}) is PLAIN
    stop = CHATML.stops[0]
    text = CHATML.turn("A", first=True) + "B" + stop + CHATML.turn("C", first=False)
    assert text == (
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
        "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n"
    )
    names = ("begin_of_text", "start_header_id", "end_header_id", "eot_id", "end_of_text")
    assert choose([f"<|{name}|>" for name in names]) is LLAMA3
    stop = LLAMA3.stops[0]
    text = LLAMA3.turn("A", first=True) + "B" + stop + LLAMA3.turn("C", first=False)
    user = "<|start_header_id|>user<|end_header_id|>\n\n"
    model = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert text == (f"<|begin_of_text|>{user}A<|eot_id|>{model}B<|eot_id|>{user}C<|eot_id|>{model}")


def test_a_template_without_a_place_for_the_line():
    with pytest.raises(ConfigError, match="no {} for the line"):
        Lines("{}", "hello")
