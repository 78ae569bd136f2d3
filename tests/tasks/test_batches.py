import json
from itertools import islice
from typing import Any

import jax
import numpy as np
import pytest

from fastweights.errors import ConfigError
from fastweights.tasks.batches import epoch_order, eval_batches, train_batches

N = 50
TABLE = {"inputs": 10 * np.arange(N)[:, None] + np.arange(3), "target": np.arange(N)}


def first(batches, count):
    return [batch["target"].tolist() for batch in islice(batches, count)]


def test_batches_are_rows_of_the_table():
    for batch in islice(train_batches(TABLE, 8, seed=0), 20):
        assert sorted(batch) == ["inputs", "target"]
        assert batch["inputs"].shape == (8, 3) and batch["inputs"].dtype == np.int64
        np.testing.assert_array_equal(batch["inputs"], TABLE["inputs"][batch["target"]])


@pytest.mark.parametrize("batch_size", [1, 10, 25, 50])
def test_each_example_once_an_epoch(batch_size):
    steps = N // batch_size
    batches = train_batches(TABLE, batch_size, seed=3)
    epochs = [sum(first(batches, steps), []) for _ in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(N)) != epoch
    assert len({tuple(epoch) for epoch in epochs}) == 4  # each has its own order


def test_the_remainder_is_dropped_and_is_not_always_the_same():
    batches = train_batches(TABLE, 12, seed=3)  # 4 batches an epoch, 2 examples left out
    epochs = [sum(first(batches, 4), []) for _ in range(30)]
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    left_out = [set(range(N)) - set(epoch) for epoch in epochs]
    assert len(set.union(*left_out)) > 20


def test_order_is_a_function_of_the_seed():
    assert first(train_batches(TABLE, 7, seed=1), 40) == first(train_batches(TABLE, 7, seed=1), 40)
    assert first(train_batches(TABLE, 7, seed=1), 1) != first(train_batches(TABLE, 7, seed=2), 1)
    # a seed's later epochs are not another seed's earlier ones
    orders = {tuple(epoch_order(seed, epoch, N)) for seed in range(6) for epoch in range(6)}
    assert len(orders) == 36


def test_epoch_order_sorts_the_philox_stream():
    words = np.random.Philox(np.random.SeedSequence([5, 2])).random_raw(N).tolist()
    assert epoch_order(5, 2, N).tolist() == sorted(range(N), key=words.__getitem__)


def test_every_example_comes_first_equally_often():
    firsts = np.bincount([epoch_order(0, epoch, 5)[0] for epoch in range(5_000)], minlength=5)
    np.testing.assert_allclose(firsts, 1_000, atol=5 * np.sqrt(5_000 * 0.2 * 0.8))


# 6 batches an epoch: inside the first, at its end, just after, and in the ninth
@pytest.mark.parametrize("stop", [0, 1, 4, 6, 7, 52])
def test_resume_is_exact(stop):
    batches = train_batches(TABLE, 8, seed=9)
    first(batches, stop)
    state = json.loads(json.dumps(batches.get_state()))  # plain data, one number
    expected = first(batches, 15)
    fresh = train_batches(TABLE, 8, seed=9)
    fresh.set_state(state)
    assert first(fresh, 15) == expected
    batches.set_state(state)  # and back, in an iterator that has gone on
    assert first(batches, 15) == expected


def test_state_counts_steps():
    batches = train_batches(TABLE, 8, seed=9)
    expected = first(batches, 23)[-1]
    fresh = train_batches(TABLE, 8, seed=9)
    fresh.set_state({"next_index": 22})
    assert first(fresh, 1) == [expected]


@pytest.mark.parametrize("count", [2, 4])
def test_global_order_does_not_depend_on_the_number_of_processes(count):
    whole = first(train_batches(TABLE, 8, seed=4), 20)
    parts = [
        first(train_batches(TABLE, 8, seed=4, process_index=p, process_count=count), 20)
        for p in range(count)
    ]
    assert all(len(part[0]) == 8 // count for part in parts)
    assert [sum(together, []) for together in zip(*parts, strict=True)] == whole


def test_resume_on_another_number_of_processes():
    whole = train_batches(TABLE, 8, seed=4)
    first(whole, 10)
    half = train_batches(TABLE, 8, seed=4, process_index=1, process_count=2)
    half.set_state(whole.get_state())
    assert first(half, 1)[0] == first(whole, 1)[0][4:]


@pytest.mark.parametrize("batch_size", [1, 8, 25, 50, 64])
@pytest.mark.parametrize("count", [1, 2])
def test_eval_sees_every_example_once_in_order(batch_size, count):
    batch_size *= count
    seen = []
    streams = [
        eval_batches(TABLE, batch_size, process_index=p, process_count=count) for p in range(count)
    ]
    for parts in zip(*streams, strict=True):
        whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        assert whole["inputs"].shape == (batch_size, 3) and whole["mask"].dtype == bool
        np.testing.assert_array_equal(whole["inputs"], TABLE["inputs"][whole["target"]])
        seen += whole["target"][whole["mask"]].tolist()
    assert seen == list(range(N))


def test_eval_pads_only_the_last_batch_and_can_be_repeated():
    batches = eval_batches(TABLE, 8)
    masks = [batch["mask"].sum() for batch in batches]
    assert masks == [8, 8, 8, 8, 8, 8, 2]  # 50 = 6 * 8 + 2
    assert [batch["mask"].sum() for batch in batches] == masks


def test_a_batch_is_one_gather_per_column():
    # What makes the pipeline fast: no work in Python per example.
    class Column:
        reads = 0

        def __len__(self):
            return N

        def __getitem__(self, rows):
            self.reads += 1
            return TABLE["target"][rows]

    column: Any = Column()
    first(train_batches({"target": column}, 10, seed=0), 7)
    assert column.reads == 7


@pytest.mark.parametrize(
    ("table", "kwargs", "message"),
    [
        (TABLE, {"batch_size": 51}, "larger than the data set of 50"),
        (TABLE, {"batch_size": 0}, "cannot be split"),
        (TABLE, {"batch_size": 9, "process_count": 2}, "cannot be split"),
        (TABLE, {"batch_size": 8, "process_index": 2, "process_count": 2}, "no process 2"),
        (TABLE, {"batch_size": 8, "seed": -1}, "seed"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, {"batch_size": 1}, "one length"),
        ({}, {"batch_size": 1}, "one length"),
    ],
)
def test_what_cannot_work_is_refused(table, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        train_batches(table, **{"seed": 0, **kwargs})


def test_eval_keeps_the_name_of_the_mask_free():
    with pytest.raises(ConfigError, match="mask"):
        eval_batches({"mask": np.zeros(3)}, 2)
