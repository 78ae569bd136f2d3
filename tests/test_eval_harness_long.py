"""Long contexts through lm-evaluation-harness: pieces, chat templates, RULER offline."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from hf.tiny import model
from test_eval_harness import CONFIG as SHORT
from test_eval_harness import requests

from fastweights import hf, inference
from fastweights.errors import ConfigError
from fastweights.pretrained import Pretrained
from fastweights.tasks import bytes_file
from fastweights.tasks.text_tokens import Bytes

# what the harness imports is not ours to mend
pytestmark = pytest.mark.filterwarnings("ignore::Warning")
REASON = "needs lm-evaluation-harness, the [eval] extra"
lm_eval = pytest.importorskip("lm_eval", reason=REASON)

assert SHORT.ttt is not None
CONFIG = dataclasses.replace(SHORT, max_length=1300, ttt=dataclasses.replace(SHORT.ttt, chunk=64))
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if not loop.last or "
    "add_generation_prompt %}; {% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% endif %}"
)


forward = jax.jit(lambda model, tokens: model(tokens))


@pytest.fixture(scope="module")
def decoder():
    return model(CONFIG, seed=2)


@pytest.fixture(scope="module")
def folder(decoder, tmp_path_factory):
    """A checkpoint with the tokenizer of bytes and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    hf.save(decoder, folder)
    bytes_file.write(folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"eos_token_id": 256}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_contexts_are_read_in_pieces(decoder, monkeypatch):
    """Of one shape, for a batch that is full and one that is not; each answer is the greedy one."""
    from fastweights.eval_harness import DecoderLM

    shapes, read = [], inference.prefill

    def prefill(model, tokens, lengths, **settings):
        shapes.append((tokens.shape, settings))
        return read(model, tokens, lengths, **settings)

    monkeypatch.setattr(inference, "prefill", prefill)
    lm = DecoderLM(Pretrained(decoder, Bytes(), (256,)), batch_size=2, piece=64)
    contexts = ["the cat sat " * 30, "on the mat, " * 29, "and why not? " * 20]
    found = lm.generate_until(
        requests("generate_until", [(x, {"until": [], "max_gen_toks": 6}) for x in contexts])
    )
    settings = {"max_length": 512 + 64, "piece": 64}
    assert shapes == [((2, 512), settings), ((2, 512), settings)]
    for context, text in zip(contexts, found, strict=True):
        tokens = [*context.encode()]
        for _ in range(6):
            row = np.pad(tokens, (0, 512 - len(tokens)))[None]
            tokens.append(int(forward(decoder, row)[0, len(tokens) - 1].argmax()))
        assert text == Bytes().decode(tokens[len(context) :])


def test_a_chat_template_is_the_checkpoints_own(folder):
    from fastweights.eval_harness import DecoderLM

    pytest.importorskip("jinja2", reason="needs jinja2, the [hf] extra")
    lm = DecoderLM(folder)
    turns = [{"role": "user", "content": "hello"}]
    assert lm.apply_chat_template(turns) == "<user>hello; <assistant>"
    begun = [*turns, {"role": "assistant", "content": "I say"}]
    text = lm.apply_chat_template(begun, add_generation_prompt=False)
    assert text == "<user>hello; <assistant>I say"
    assert lm.chat_template(True) == TEMPLATE and lm.chat_template(False) is None
    assert lm.tokenizer_name == lm.text.fingerprint


def test_chat_templates_that_are_not_there(decoder, folder, tmp_path):
    from fastweights.eval_harness import DecoderLM

    with pytest.raises(ConfigError, match="has no chat template"):
        DecoderLM(Pretrained(decoder, Bytes(), (256,))).apply_chat_template([])
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="has no chat template"):
        DecoderLM(bare).apply_chat_template([])


def test_what_opens_a_text_is_put_there_once(decoder):
    """A chat template may write it itself."""
    from fastweights.eval_harness import DecoderLM

    class Opened(Bytes):
        opening = (1,)

    lm = DecoderLM(Pretrained(decoder, Opened(), (256,)))
    assert lm.tok_encode("ab") == lm.tok_encode("\x01ab") == [1, 97, 98]
    assert lm.tok_encode("ab", add_special_tokens=False) == [97, 98]


@pytest.fixture
def ruler(monkeypatch):
    """What the tasks of RULER need, and no try at a download."""
    reason = "needs wonderwords, nltk, scipy and transformers: pip install 'lm-eval[ruler]'"
    for name in ("transformers", "wonderwords", "nltk", "scipy"):
        pytest.importorskip(name, reason=reason)
    import nltk

    monkeypatch.setattr(nltk, "download", lambda *_: False)


@pytest.mark.parametrize("chat", [False, True])
def test_a_task_of_ruler_offline(ruler, folder, decoder, chat, monkeypatch):
    """niah_single_1 by the model's registered name: prompts as RULER made them, greedy answers.

    A second model cheats: it looks the number up in the tokens that it is given, and has it all.
    """
    from fastweights.eval_harness import DecoderLM

    def evaluate(lm):
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=["niah_single_1"],
            metadata={"pretrained": str(folder), "max_seq_lengths": [1200]},
            apply_chat_template=chat,
            bootstrap_iters=0,
            limit=2,
        )
        return found["results"]["niah_single_1"]["1200,none"], found["samples"]["niah_single_1"]

    # as the harness's own command makes the model
    lm = DecoderLM.create_from_arg_obj(
        {"pretrained": str(folder), "piece": 256}, {"batch_size": 2, "device": "cuda:0"}
    )
    assert lm_eval.api.registry.get_model("fastweights") is DecoderLM
    score, samples = evaluate(lm)
    assert score == 0 and len(samples) == 2
    for sample in samples:
        prompt = sample["arguments"][0][0]
        # the template of the task ends with the beginning of the answer, as RULER has it
        assert re.search(r"mentioned in the provided text is$", prompt)
        assert prompt.startswith("<user>A special" if chat else "A special")
        assert ("; <assistant>The special" in prompt) == chat
        assert 700 < len(prompt) <= 1200 - 128 + len("<user>; <assistant>") + 80
        ids = np.array([*prompt.encode()])[None]
        out = inference.generate(decoder, ids, max_new_tokens=128, stop_tokens=(256,))
        assert sample["resps"] == [[Bytes().decode(np.asarray(out.tokens[0]))]]

    def look_up(contexts, settings, key):
        texts = [Bytes().decode(context) for context in contexts]
        return [re.search(r"is: (\d+)\.", text)[1] for text in texts]

    monkeypatch.setattr(lm, "_write", look_up)
    assert evaluate(lm)[0] == 1
