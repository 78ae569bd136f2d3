"""The base model's documents: right by the tasks' own rules, masked and packed as they say."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastweights.models.decoder_config import DecoderConfig
from fastweights.nn.cross_entropy import NO_TARGET
from fastweights.tasks import conventions, programs
from fastweights.tasks.base import Data
from fastweights.tasks.hint_corpus import KINDS, HintCorpus
from fastweights.tasks.packing import pack

MODEL = DecoderConfig(
    family="qwen3",
    vocab=264,
    hidden=16,
    intermediate=16,
    layers=1,
    heads=2,
    kv_heads=2,
    head_dim=8,
    max_length=128,
)


def kind_of(given):
    if given.startswith("?"):
        return "inverse"
    return "star" if ":" in given else "chain" if set("@#&") & set(given.split("|")[1]) else "word"


def test_documents_obey_the_hints_that_they_give():
    seen = {}
    for given, asked in HintCorpus(examples=2_000).documents("train"):
        kind = kind_of(given)
        seen[kind] = seen.get(kind, 0) + 1
        hint, _, query = given[:-1].partition("|")
        if kind == "word":
            word = (hint[:3] if int(query[0]) % 2 else hint[3:]).rstrip(".")
            if word:
                assert programs.apply(word, query) == asked, (given, asked)
        elif kind == "chain":
            meanings = {k: v for k, v in zip("@#&", hint, strict=True) if v != "."}
            now = query[0]
            for operator, digit, value in zip(query[1::2], query[2::2], asked, strict=True):
                if operator in meanings:
                    chain = f"{now}{operator}{digit}"
                    assert conventions.evaluate(meanings, chain) == value, (given, asked)
                now = value
        elif kind == "star":
            nodes = asked[1:] if asked[0] == ">" else asked[:0:-1]
            edges = query.split(":")[0].split(",")
            assert all(a + b in edges for a, b in zip(nodes, nodes[1:], strict=False))
            assert (asked[0] == "<") == (hint == "b")
    assert len(seen) == 4 and all(count > 100 for count in seen.values())


def test_only_answers_are_asked():
    corpus = HintCorpus(held_out=30)
    table = corpus.load("validation", Data())
    asked = "".join(text + "\n" for _, text in corpus.documents("validation"))
    targets = table["target"][table["target"] != NO_TARGET]
    assert sorted(targets.tolist()) == sorted(asked.encode())
    # every asked token follows the tokens before it in its own document
    row, at = np.argwhere(table["target"] != NO_TARGET)[0]
    assert table["segment_ids"][row, at] > 0
    assert chr(table["inputs"][row, at]) in "=|"


def test_given_tokens_are_masked_across_the_pieces_of_a_long_document():
    document = np.arange(1, 12)
    table = pack([document], 4, [7])
    # pairs (1,2) ... (10,11); targets 2..7 are given
    expected = [[NO_TARGET] * 4, [NO_TARGET, NO_TARGET, 8, 9], [10, 11, NO_TARGET, NO_TARGET]]
    assert table["target"].tolist() == expected
    assert pack([document], 4)["target"].tolist()[0] == [2, 3, 4, 5]


def test_splits_differ_and_the_loss_is_finite():
    corpus = HintCorpus(examples=200, held_out=20, length=96)
    train, test = (corpus.load(split, Data()) for split in ("train", "test"))
    assert len(train["inputs"]) > len(test["inputs"]) > 0
    assert corpus.documents("train")[0] != corpus.documents("test")[0]
    model = corpus.build(MODEL, nnx.Rngs(0))
    scores = corpus.measure(model, {k: jnp.asarray(v) for k, v in test.items()})
    # of a fresh model: near uniform over the vocabulary
    assert float(scores["loss"].mean()) == pytest.approx(np.log(264), abs=0.1)


@pytest.mark.parametrize(
    "corpus, word",
    [
        (HintCorpus(weights=(1, 2)), "weights"),
        (HintCorpus(weights=(0,) * len(KINDS)), "all 0"),
        (HintCorpus(length=500), "length"),
        (HintCorpus(examples=0), "examples"),
    ],
)
def test_what_cannot_work_is_found(corpus, word):
    assert word in " ".join(corpus.problems(MODEL))
