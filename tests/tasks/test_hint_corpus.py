"""The base model's documents: right by the tasks' own rules, masked and packed as they say."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastweights.models.decoder_config import DecoderConfig
from fastweights.nn.cross_entropy import NO_TARGET
from fastweights.tasks import conventions, programs, star_graph
from fastweights.tasks.base import Data
from fastweights.tasks.haystack import Draw
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
    seen, turns = {}, {}
    for document in HintCorpus(examples=2_000).documents("train"):
        kind = kind_of(document[0][0])
        seen[kind] = seen.get(kind, 0) + 1
        turns[kind] = max(turns.get(kind, 0), len(document))
        if kind == "inverse":
            continue
        hint = document[0][0].partition("|")[0]
        for given, asked in document:
            query = given[:-1].removeprefix(hint + "|")
            CHECKS[kind](hint, query, asked)
    assert len(seen) == 4 and all(count > 100 for count in seen.values())
    assert turns == {"inverse": 1, "word": 3, "chain": 4, "star": 1}


def check_word(hint, query, asked):
    word = (hint[:3] if int(query[0]) % 2 else hint[3:]).rstrip(".")
    if word:
        assert programs.apply(word, query) == asked


def check_chain(hint, query, asked):
    meanings = {k: v for k, v in zip("@#&", hint, strict=True) if v != "."}
    now = query[0]
    for operator, digit, value in zip(query[1::2], query[2::2], asked, strict=True):
        if operator in meanings:
            assert conventions.evaluate(meanings, f"{now}{operator}{digit}") == value
        now = value


def check_star(hint, query, asked):
    """Going back is right; going forward is some way to some end."""
    nodes = asked[1:] if asked[0] == ">" else asked[:0:-1]
    edges, ends = query.split(":")
    edges = edges.split(",")
    assert all(a + b in edges for a, b in zip(nodes, nodes[1:], strict=False))
    assert nodes[0] == ends[0] and not any(edge[0] == nodes[-1] for edge in edges)
    assert (asked[0] == "<") == (hint == "b")
    if hint == "b":
        assert nodes[-1] == ends[-1]


CHECKS = {"word": check_word, "chain": check_chain, "star": check_star}


def test_problems_of_a_document_without_a_hint_share_a_rule():
    """Some operators of one meaning give all of them."""
    found = 0
    for document in HintCorpus(examples=3_000).documents("train"):
        if kind_of(document[0][0]) == "chain" and document[0][0].startswith("...|"):
            pairs = [(given[:-1].removeprefix("...|"), asked) for given, asked in document]
            rules = itertools.product(conventions.MEANINGS, repeat=3)
            fits = [
                all(
                    conventions.evaluate(dict(zip("@#&", rule, strict=True)), chain) == asked
                    for chain, asked in pairs
                )
                for rule in rules
            ]
            assert any(fits), document
            found += len(document) > 1
    assert found > 5


def test_going_forward_no_arm_is_preferred():
    """Right by chance once in degree^stars, here 27."""
    draw = Draw(0, 0, 0)
    graphs = [star_graph.random_graph(draw, 3, 3, 1) for _ in range(4_000)]
    right = sum(star_graph.answered(draw, graph, "f") == ">" + graph.path for graph in graphs)
    assert right / len(graphs) == pytest.approx(1 / 27, abs=4 * (1 / 27 / len(graphs)) ** 0.5)
    assert all(
        star_graph.answered(draw, graph, "b") == "<" + graph.path[::-1] for graph in graphs[:50]
    )


def test_only_answers_are_asked():
    corpus = HintCorpus(held_out=30)
    table = corpus.load("validation", Data())
    documents = corpus.documents("validation")
    asked = "".join(text + "\n" for document in documents for _, text in document)
    targets = table["target"][table["target"] != NO_TARGET]
    assert sorted(targets.tolist()) == sorted(asked.encode())
    # every asked token follows the tokens before it in its own document
    row, at = np.argwhere(table["target"] != NO_TARGET)[0]
    assert table["segment_ids"][row, at] > 0
    assert chr(table["inputs"][row, at]) in "=|"


def test_given_tokens_are_masked_across_the_pieces_of_a_long_document():
    document = np.arange(1, 12)
    asked = np.isin(document, [1, 4, 8, 9, 10])  # the first token is nobody's target
    table = pack([document], 4, [asked])
    no = NO_TARGET
    # pairs (1,2) ... (10,11)
    assert table["target"].tolist() == [[no, no, 4, no], [no, no, 8, 9], [10, no, no, no]]
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
