import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from fastweights.errors import ConfigError, DataError
from fastweights.tasks.context_loss import by_position, final_block, table_losses, windows


def test_bins_by_hand():
    losses = np.array([[1, 3, 10, 10], [5, 7, 30, 10], [0, 2, np.nan, 8]], np.float32)
    rows = by_position(losses, bins=2)
    assert rows.start.tolist() == [0, 2] and rows.documents == 3
    # rows' means are 2, 6, 1 and 10, 20, 8; the sample deviation over sqrt(3)
    assert_close(rows.mean, [3, 38 / 3])
    assert_close(
        rows.error, [np.std([2, 6, 1], ddof=1) / 3**0.5, np.std([10, 20, 8], ddof=1) / 3**0.5]
    )
    books = by_position(losses, np.array([4, 4, 9]), bins=2)
    # the first book has means 4 and 15, the second 1 and 8
    assert_close(books.mean, [2.5, 11.5])
    assert_close(books.error, [1.5, 3.5])
    assert books.documents == 2
    assert np.isnan(by_position(losses[:1], bins=4).error).all()
    with pytest.raises(ConfigError, match="no 3 equal parts"):
        by_position(losses, bins=3)


def test_the_difference_of_two_models_has_the_error_of_the_pairs():
    rng = np.random.default_rng(0)
    hard = rng.normal(3, 1, (50, 1))
    one = hard + rng.normal(0, 0.01, (50, 8))
    two = hard - 0.1 + rng.normal(0, 0.01, (50, 8))
    curve = by_position(one - two, bins=2)
    assert (np.abs(curve.mean - 0.1) < 0.01).all() and (curve.error < 0.003).all()
    assert (by_position(one, bins=2).error > 0.1).all()


def counting(batch):
    """A loss that tells what was seen: 1000 times the target plus how many tokens are before it."""
    before = jnp.arange(batch["inputs"].shape[1])[None] + jnp.zeros_like(batch["inputs"])
    return jnp.where(batch["target"] >= 0, 1000.0 * batch["target"] + before, 0.0)


def test_table_losses_take_any_number_of_rows_in_one_shape():
    table, document = windows([np.arange(24), np.arange(3), np.arange(9)], 4)
    assert document.tolist() == [0] * 5 + [2] * 2
    table["target"][2, 1] = -1
    shapes = set()

    def seen(batch):
        shapes.add(batch["inputs"].shape)
        return jax.jit(counting)(batch)

    expected = 1000.0 * table["target"] + np.arange(4)
    expected[2, 1] = np.nan
    for batch in (1, 3, 7, 8):
        np.testing.assert_array_equal(table_losses(seen, table, batch), expected)
    assert len(shapes) == 4


def test_the_final_block_is_the_same_tokens_with_more_before_them():
    texts = [np.arange(50, 50 + 41), np.arange(30), np.arange(5)]
    contexts, block = (0, 3, 10), 4
    calls = []

    def seen(batch):
        calls.append(batch["inputs"].shape)
        return counting(batch)

    curve = final_block(seen, texts, block=block, contexts=contexts, batch=2)
    # windows of 14 pairs: two in the first text, two in the second, none in the third
    finals = [np.arange(first + 11, first + 15) for first in (50, 64, 0, 14)]
    for i, context in enumerate(contexts):
        each = [np.mean(1000 * final + context + np.arange(4)) for final in finals]
        assert_close(curve.mean[i], np.mean(each))
        assert_close(curve.error[i], np.std(each, ddof=1) / 2)
    assert curve.documents == 4 and {shape[1] for shape in calls} == {4, 7, 14}
    books = final_block(seen, texts, block=block, contexts=contexts, by_document=True)
    assert books.documents == 2
    assert_close(books.mean, curve.mean)
    with pytest.raises(DataError, match="window of 104 tokens; the longest has 41"):
        final_block(seen, texts, block=4, contexts=(100,))


def test_a_model_that_remembers_gains_with_its_context():
    """Texts that repeat with period 8; a reader that looks 8 back knows what comes."""
    rng = np.random.default_rng(0)
    texts = [np.tile(rng.integers(0, 9, 8), 12) for _ in range(5)]

    def reader(batch, memory):
        inputs = batch["inputs"]
        known = jnp.roll(inputs, 7, 1) == batch["target"]
        return jnp.where(known & (jnp.arange(inputs.shape[1]) >= 7)[None] & memory, 0.0, 2.0)

    for memory in (True, False):
        losses = functools.partial(jax.jit(reader), memory=memory)
        curve = final_block(losses, texts, block=4, contexts=(0, 4, 16))
        assert curve.mean[0] == 2 and curve.mean[-1] == (0 if memory else 2)
        table, document = windows(texts, 32)
        positions = by_position(table_losses(losses, table), document, bins=4)
        expected = [(7 * 2 + 1 * 0) / 8, 0, 0, 0] if memory else [2] * 4
        assert_close(positions.mean, expected)
