"""Scores and texts through lm-evaluation-harness, against the whole forward pass done plainly."""

import dataclasses
import json

import numpy as np
import pytest
from hf.tiny import LLAMA, logits, model

from fastweights.models.decoder_config import InPlaceTTT
from fastweights.pretrained import Pretrained
from fastweights.tasks.text_tokens import Bytes

# what the harness imports is not ours to mend
pytestmark = pytest.mark.filterwarnings("ignore::Warning")
REASON = "needs lm-evaluation-harness, the [eval] extra"
instance = pytest.importorskip("lm_eval.api.instance", reason=REASON)

CONFIG = dataclasses.replace(
    LLAMA,
    vocab=264,
    layers=2,
    max_length=300,
    ttt=InPlaceTTT(layers=(0, 1), chunk=8, lr=0.5, target="input_embed"),
)
PAIRS = [("the cat sat", " on"), ("", "mat"), ("a" * 170, " b" * 9), ("x ", "y")]


@pytest.fixture(scope="module")
def decoder():
    return model(CONFIG, seed=2)


@pytest.fixture(scope="module")
def lm(decoder):
    from fastweights.eval_harness import DecoderLM

    return DecoderLM(Pretrained(decoder, Bytes(), (256,)), batch_size=3, max_gen_toks=40)


def requests(kind, arguments):
    return [instance.Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def plainly(decoder, tokens, asked):
    """Log-probability of the last `asked` of the tokens, float64, and whether all are likeliest."""
    tokens = np.asarray(tokens)
    scores = np.asarray(logits(decoder, tokens[None, :-1])[0], np.float64)[-asked:]
    scores -= scores.max(-1, keepdims=True)
    log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    wanted = tokens[-asked:]
    return log_probs[np.arange(asked), wanted].sum(), bool((scores.argmax(-1) == wanted).all())


def test_loglikelihoods_are_those_of_a_plain_forward_pass(lm, decoder):
    """In their order; an empty context is the separator, and a trailing space is asked for."""
    found = lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    for (context, continuation), (log_prob, greedy) in zip(PAIRS, found, strict=True):
        whole = list((context + continuation).encode())
        asked = len(whole) - len(context.rstrip().encode())
        expected = plainly(decoder, whole if context else [256, *whole], asked)
        assert log_prob == pytest.approx(expected[0], rel=1e-5) and greedy == expected[1]


def test_what_is_too_long_loses_its_beginning(decoder):
    from fastweights.eval_harness import DecoderLM

    short = DecoderLM(Pretrained(decoder, Bytes(), (256,)), max_length=20)
    (found,) = short.loglikelihood(
        requests("loglikelihood", [("b" * 50, "cde")]), disable_tqdm=True
    )
    assert found[0] == pytest.approx(plainly(decoder, list(b"b" * 18 + b"cde"), 3)[0], rel=1e-5)


def test_a_text_is_scored_in_windows_each_token_once(decoder):
    """37 bytes in windows of 16: all of two are asked for, and the last 5 of the third."""
    from fastweights.eval_harness import DecoderLM

    text = "a whole text, longer than one window."
    short = DecoderLM(Pretrained(decoder, Bytes(), (256,)), max_length=16)
    (found,) = short.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    tokens = [256, *text.encode()]
    pieces = [(tokens[:17], 16), (tokens[16:33], 16), (tokens[21:], 5)]
    assert found == pytest.approx(sum(plainly(decoder, *piece)[0] for piece in pieces), rel=1e-5)


def test_texts_end_where_they_are_told_to(lm, decoder):
    """Greedy, byte by byte with the whole forward pass; several contexts at a time."""
    contexts = ["the cat sat on", "no", "a dog " * 5]

    def slowly(context, count):
        tokens = list(context.encode())
        for _ in range(count):
            tokens.append(int(logits(decoder, np.asarray([tokens]))[0, -1].argmax()))
            if tokens[-1] == 256:
                break
        return Bytes().decode(tokens[len(context.encode()) :])

    expected = [slowly(context, 6) for context in contexts]
    ask = lambda **settings: lm.generate_until(
        requests("generate_until", [(context, settings) for context in contexts])
    )
    assert ask(max_gen_toks=6, until=[]) == expected
    stop = expected[0][2]
    cut = [text.split(stop)[0] for text in expected]
    assert ask(max_gen_toks=6, until=[stop]) == cut and cut[0] != expected[0]


def test_a_whole_evaluation_offline(lm, tmp_path):
    """A task of the harness on a file of two lines: two answers each, of which one is right."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    lines = [{"q": "one and", "a": [" two", " xyz"]}, {"q": "up and", "a": [" qqq", " down"]}]
    (tmp_path / "lines.json").write_text("\n".join(json.dumps(line) for line in lines))
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "lines.json")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": 0,
        "doc_to_choice": "{{a}}",
        "metric_list": [{"metric": "acc"}],
    }
    result = lm_eval.simple_evaluate(
        model=lm, tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
    )
    found = lm.loglikelihood(
        requests("loglikelihood", [(x["q"], a) for x in lines for a in x["a"]]), disable_tqdm=True
    )
    right = [found[0][0] > found[1][0], found[2][0] > found[3][0]]
    assert result["results"]["tiny"]["acc,none"] == pytest.approx(np.mean(right))
