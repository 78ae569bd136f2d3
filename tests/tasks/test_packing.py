import itertools

import numpy as np
import pytest

from fastweights.errors import ConfigError
from fastweights.nn.cross_entropy import NO_TARGET
from fastweights.tasks.packing import pack, whole_rows


def documents(seed, count=40, longest=35):
    """Every token of all documents is another number, so that a pair tells where it is from."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, longest, count)
    ends = np.cumsum(sizes)
    return [
        np.arange(end - size, end, dtype=np.int32) + 7
        for size, end in zip(sizes, ends, strict=True)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", [1, 2, 5, 16, 64])
def test_every_pair_of_neighbours_is_in_exactly_one_place(seed, length):
    texts = documents(seed)
    table = pack(texts, length)
    there = table["segment_ids"] > 0
    np.testing.assert_array_equal(there, table["target"] != NO_TARGET)
    assert not table["inputs"][~there].any()
    expected = sorted(pair for text in texts for pair in itertools.pairwise(text.tolist()))
    actual = np.stack([table["inputs"][there], table["target"][there]], 1).tolist()
    assert sorted(map(tuple, actual)) == expected
    assert {name: x.dtype for name, x in table.items()} == dict.fromkeys(table, np.int32)


@pytest.mark.parametrize("seed", range(4))
def test_a_segment_is_a_piece_of_one_document_in_its_order(seed):
    texts, length = documents(seed), 16
    owner = {int(token): i for i, text in enumerate(texts) for token in text}
    table = pack(texts, length)
    pieces = {}
    for row in range(len(table["inputs"])):
        ids = table["segment_ids"][row]
        used = int((ids > 0).sum())
        assert not ids[used:].any(), "padding is at the end"
        assert np.array_equal(np.unique(ids[:used]), np.arange(1, ids.max() + 1))
        assert (np.diff(ids[:used]) >= 0).all()
        for segment in range(1, ids.max() + 1):
            tokens = table["inputs"][row][ids == segment]
            np.testing.assert_array_equal(np.diff(tokens), 1)  # our documents count upwards
            np.testing.assert_array_equal(table["target"][row][ids == segment], tokens + 1)
            assert len({owner[int(token)] for token in tokens}) == 1
            pieces.setdefault(owner[int(tokens[0])], []).append(len(tokens))
    for index, text in enumerate(texts):
        whole, rest = divmod(max(0, len(text) - 1), length)
        assert sorted(pieces.get(index, [])) == sorted([length] * whole + [rest] * (rest > 0))


def test_a_long_document_fills_rows_that_are_one_segment():
    table = pack([np.arange(3 * 8 + 1)], 8)
    np.testing.assert_array_equal(table["inputs"], np.arange(24).reshape(3, 8))
    np.testing.assert_array_equal(table["target"], table["inputs"] + 1)
    assert (table["segment_ids"] == 1).all()


def test_short_documents_share_rows_by_hand():
    # pairs: 5, 4, 3, 2 in rows of 8. 5 opens row 0, 4 does not fit and opens row 1, 3 fits both and
    # fills the fuller row 0, 2 goes to row 1
    texts = [np.arange(start, start + size) for start, size in ((10, 6), (20, 5), (30, 4), (40, 3))]
    table = pack(texts, 8)
    np.testing.assert_array_equal(
        table["inputs"],
        [[10, 11, 12, 13, 14, 30, 31, 32], [20, 21, 22, 23, 40, 41, 0, 0]],
    )
    np.testing.assert_array_equal(
        table["target"],
        [[11, 12, 13, 14, 15, 31, 32, 33], [21, 22, 23, 24, 41, 42, -1, -1]],
    )
    np.testing.assert_array_equal(
        table["segment_ids"], [[1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 2, 2, 0, 0]]
    )


def test_the_same_documents_give_the_same_rows_and_few_of_them():
    texts = documents(0, count=500)
    once, again = pack(texts, 32), pack(texts, 32)
    for name in once:
        np.testing.assert_array_equal(once[name], again[name])
    pairs = sum(max(0, len(text) - 1) for text in texts)
    assert len(once["inputs"]) * 32 < 1.1 * pairs  # under a tenth is padding


@pytest.mark.parametrize("texts", [[], [np.arange(0)], [np.arange(1)]])
def test_nothing_to_predict_is_no_rows(texts):
    for table in (pack(texts, 4), whole_rows(texts, 4)[0]):
        assert all(x.shape == (0, 4) and x.dtype == np.int32 for x in table.values())


def test_whole_rows_are_the_rows_of_one_segment_and_know_their_document():
    texts = documents(1, longest=70)
    table, owner = whole_rows(texts, 16)
    expected = [
        (i, text[start : start + 17])
        for i, text in enumerate(texts)
        for start in range(0, len(text) - 16, 16)
    ]
    assert len(expected) == len(owner) > 30
    for row, (index, piece) in enumerate(expected):
        assert owner[row] == index
        np.testing.assert_array_equal(table["inputs"][row], piece[:-1])
        np.testing.assert_array_equal(table["target"][row], piece[1:])
    assert "segment_ids" not in table


def test_rows_of_no_tokens_are_refused():
    with pytest.raises(ConfigError, match="0 tokens"):
        pack([np.arange(3)], 0)
    with pytest.raises(ConfigError, match="0 tokens"):
        whole_rows([np.arange(3)], 0)
