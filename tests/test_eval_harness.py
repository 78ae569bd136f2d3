"""Scores and texts through lm-evaluation-harness, against the whole forward pass done plainly."""

import dataclasses
import json

import numpy as np
import pytest
from hf.tiny import LLAMA, logits, model

from fastweights.errors import ConfigError
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


def test_a_context_of_white_space_is_no_context(lm, decoder):
    """It becomes part of the continuation, all of which is asked for."""
    (found,) = lm.loglikelihood(requests("loglikelihood", [(" ", "mat")]), disable_tqdm=True)
    expected = plainly(decoder, [256, *b" mat"], 4)
    assert found[0] == pytest.approx(expected[0], rel=1e-5) and found[1] == expected[1]


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


def test_an_empty_context_is_the_separator(lm, decoder):
    (found,) = lm.generate_until(
        requests("generate_until", [("", {"max_gen_toks": 1, "until": []})])
    )
    first = int(logits(decoder, np.asarray([[256]]))[0, -1].argmax())
    assert found == Bytes().decode([first])


def test_repeats_are_draws_of_their_own(lm):
    """Of 2 batches at a temperature, by the settings' own names; the likeliest text without one."""
    ask = lambda settings: lm.generate_until(
        requests("generate_until", [("the cat", {"until": [], **settings})] * 6)
    )
    warm = ask({"temperature": 1.0, "max_tokens": 12})
    assert len({*warm}) == 6 and ask({"temperature": 1.0, "max_completion_tokens": 12}) == warm
    assert all(len(text) <= 12 for text in warm)
    (cold,) = {*ask({"do_sample": False, "temperature": 1.0, "max_new_tokens": 12})}
    for cut in ({"top_k": 1}, {"top_p": 1e-6}):
        assert {*ask({"do_sample": True, "temperature": 1.0, "max_gen_toks": 12} | cut)} == {cold}
    for no_cut in ({"top_k": 0}, {"top_k": -1}, {"top_p": 1.0}):
        assert ask({"temperature": 1.0, "max_gen_toks": 12} | no_cut) == warm


def test_a_stop_string_that_is_a_special_token_stops(decoder):
    """Here the token that the model writes first, under a name that decoding leaves out."""
    from fastweights.eval_harness import DecoderLM

    context, text = "the cat sat on", Bytes()
    first = int(logits(decoder, np.asarray([[*context.encode()]]))[0, -1].argmax())
    text.added = {"<|stop|>": first}
    named = DecoderLM(Pretrained(decoder, text, (256,)))
    ask = lambda *until: named.generate_until(
        requests("generate_until", [(context, {"max_gen_toks": 6, "until": [*until]})])
    )
    assert ask("<|stop|>") == [""] and ask("<|other|>")[0].startswith(Bytes().decode([first]))
    assert Bytes().decode([first])


def test_what_cannot_be_is_refused(decoder):
    from fastweights.eval_harness import DecoderLM

    made = Pretrained(decoder, Bytes(), (256,))
    for size in ("auto", "auto:4", 0, -1):
        with pytest.raises(ConfigError, match="batch_size"):
            DecoderLM(made, batch_size=size)
    short = DecoderLM(made, max_length=20, max_gen_toks=20)
    with pytest.raises(ConfigError, match="20 new tokens leave no room"):
        short.generate_until(requests("generate_until", [("b" * 50, {"until": []})]))
    with pytest.raises(ConfigError, match="continuation has 21 tokens, max_length is 20"):
        short.loglikelihood(requests("loglikelihood", [("a", "b" * 21)]), disable_tqdm=True)
    short.loglikelihood(requests("loglikelihood", [("a", "b" * 20)]), disable_tqdm=True)


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
