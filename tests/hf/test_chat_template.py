"""Chat templates of checkpoints: the transcripts of transformers, in the sandbox, turn by turn."""

import json
import sys

import pytest

from fastweights.errors import CheckpointError, ConfigError, DataError
from fastweights.hf.chat_template import ChatTemplate, read

pytest.importorskip("jinja2", reason="needs jinja2, the [hf] extra")

#: template, and what it puts behind an answer, up to the token that ends it
CASES = {
    # a system prompt before the first message, unless the conversation has one
    "system": (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
        "<|im_start|>system\nYou answer.<|im_end|>\n{% endif %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_end|>",
    ),
    # the names of special tokens, blocks on lines of their own, a space before the end
    "instructions": (
        "{{ bos_token }}\n"
        "{% for message in messages %}\n"
        "    {% if message.role == 'user' %}\n"
        "        {{- '[INST] ' + message.content | trim + ' [/INST]' }}\n"
        "    {% elif message.role == 'assistant' %}\n"
        "        {{- ' ' + message.content | trim + ' ' + eos_token }}\n"
        "    {% else %}\n"
        "        {{- raise_exception('no ' + message.role) }}\n"
        "    {% endif %}\n"
        "{% endfor %}",
        " </s>",
    ),
    # what transformers adds to Jinja
    "extensions": (
        "{%- set state = namespace(turns=0) %}{{ {'a': [1, 'é<']} | tojson }}"
        "{{ strftime_now('%Y') }}{% if tools is not none %}tools{% endif %}\n"
        "{%- for message in messages %}{% if state.turns > 5 %}{% break %}{% endif %}"
        "{%- set state.turns = state.turns + 1 %}"
        "{%- if message.role == 'assistant' %}<|a|>{% generation %}{{ message.content }}<|end|>"
        "{% endgeneration %}{% else %}<|u|>{{ message.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|a|>{% endif %}",
        "<|end|>",
    ),
    # no special token
    "words": (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        "",
    ),
}
ADDED = {"<s>": 0, "</s>": 1, "<|im_start|>": 2, "<|im_end|>": 3, "<|end|>": 4, "<|e": 5}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None}
LINES = ("  Is it {}?  ", "ja – 'so' <b>\n")


def write(folder, source):
    """The files of a tokenizer with that template."""
    folder.mkdir(exist_ok=True)
    (folder / "chat_template.jinja").write_text(source)
    settings = SPECIAL | {"eos_token": {"content": "</s>", "lstrip": False}, "model_max_length": 9}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def theirs(source):
    """A tokenizer of transformers with that template."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, [parity]")
    tokenizers = pytest.importorskip("tokenizers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 6}, "a")),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=source,
    )


@pytest.mark.parametrize("case", CASES)
def test_the_transcript_is_that_of_transformers(case, tmp_path):
    source, end = CASES[case]
    there = theirs(source)
    render = lambda *messages: there.apply_chat_template(
        [{"role": role, "content": text} for role, text in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    ours = read(write(tmp_path / "in", source), ADDED)
    assert ours is not None and ours.stops == ((end.strip(),) if end else ())
    first = ours.turn(LINES[0], first=True)
    assert first == render(("user", LINES[0]))
    answer = ("B" if case in ("system", "extensions") else " B") + end  # as a model writes it
    whole = render(("user", LINES[0]), ("assistant", "B"), ("user", LINES[1]))
    assert first + answer + ours.turn(LINES[1], first=False) == whole


@pytest.mark.parametrize("begun", ["B and", "B and ", " B\n"])
@pytest.mark.parametrize("case", CASES)
def test_a_turn_to_continue_is_that_of_transformers(case, begun, tmp_path):
    there = theirs(CASES[case][0])
    turns = [{"role": "user", "content": "B?"}, {"role": "assistant", "content": begun}]
    whole = there.apply_chat_template(turns, tokenize=False, continue_final_message=True)
    ours = read(write(tmp_path / "in", CASES[case][0]), ADDED)
    assert ours is not None and ours.render(turns, go_on=True) == whole
    assert whole.rstrip().endswith(begun.strip())


def test_a_template_that_omits_the_turn_to_continue():
    """Earlier answers stay, so that the template itself is one that can be used."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' or not loop.last %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    turns = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    ours = ChatTemplate(source, {}, (), "there")
    with pytest.raises(DataError, match="omits the turn"):
        ours.render(turns, go_on=True)


def test_a_transcript_word_by_word(tmp_path):
    ours = read(write(tmp_path / "in", CASES["system"][0]), ADDED)
    assert ours is not None
    assert ours.turn("A", first=True) == (
        "<|im_start|>system\nYou answer.<|im_end|>\n"
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n"
    )
    line = "\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n"
    assert ours.turn("C", first=False) == line


def test_where_templates_are_found(tmp_path):
    """A file of its own before the settings; of several, the default."""
    words = CASES["words"][0]
    folder = write(tmp_path / "in", words)
    settings = json.loads((folder / "tokenizer_config.json").read_text())

    def with_settings(template):
        more = settings | {"chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(more))
        return read(folder, ADDED)

    there = with_settings("{{ messages }}")
    assert there is not None and there.turn("A", first=True) == "user: A\nassistant:"
    (folder / "chat_template.jinja").unlink()
    several = [
        {"name": name, "template": text} for name, text in (("rag", "x"), ("default", words))
    ]
    for given in (words, several):
        there = with_settings(given)
        assert there is not None and there.turn("A", first=True) == "user: A\nassistant:"
    assert with_settings(several[:1]) is None
    (folder / "tokenizer_config.json").unlink()
    assert read(folder, ADDED) is None


@pytest.mark.parametrize(
    "source, words",
    [
        ("{{ messages", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}{{ messages }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError"),
        ("{{ raise_exception('one at a time') }}", "one at a time"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include '/etc/hostname' %}", "no loader"),
        ("hello", "omits the assistant's answers"),
    ],
)
def test_templates_that_cannot_be_used(source, words, tmp_path):
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "in", source), ADDED)
    assert words in str(caught.value) and "--template" in str(caught.value)
    assert "chat_template.jinja" in str(caught.value)


def test_a_line_that_a_template_refuses():
    source = (
        "{% for m in messages %}{% if 'x' in m.content %}{{ raise_exception('no x') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    ours = ChatTemplate(source, {}, ADDED, "here")
    assert ours.turn("yes", first=True) == "yes"
    with pytest.raises(DataError, match="template failed"):
        ours.turn("xyz", first=False)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    folder = write(tmp_path / "in", CASES["words"][0])
    (folder / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="cannot be read"):
        read(folder, ADDED)
    secret = tmp_path / "secret"
    secret.write_text(CASES["words"][0])
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(CheckpointError, match="outside the directory"):
        read(folder, ADDED)
    folder = write(tmp_path / "other", CASES["words"][0])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jinja2", None)
        with pytest.raises(ConfigError) as caught:
            read(folder, ADDED)
        assert "pip install -e '.[hf]'" in str(caught.value)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="no JSON object"):
        read(folder, ADDED)
