"""Sums by arithmetic, limits, and state."""

import json

import pytest

from fastweights.errors import CheckpointError, ConfigError, FastWeightsError
from fastweights.fastslow.remote.ledger import BudgetError, Ledger, Limits, Prices, Usage


def test_cost_is_of_whole_tokens():
    ledger = Ledger(Prices(input=0.5, output=2.0))
    for _ in range(1000):
        ledger.add(Usage(1, 0, 300, 100))
    assert ledger.total == Usage(1000, 0, 300_000, 100_000)
    assert ledger.total.tokens == 400_000
    assert ledger.cost == 0.3 * 0.5 + 0.1 * 2.0


@pytest.mark.parametrize(
    ("limits", "name"),
    [(Limits(calls=3), "calls"), (Limits(tokens=330), "tokens"), (Limits(cost=3.3e-4), "cost")],
)
def test_a_limit_may_be_reached_and_not_passed(limits, name):
    ledger, call = Ledger(Prices(1.0, 1.0), limits), Usage(1, 0, 100, 10)
    for _ in range(3):
        ledger.check(call)
        ledger.add(call)
    with pytest.raises(BudgetError, match=name) as caught:
        ledger.check(call)
    assert isinstance(caught.value, FastWeightsError)
    assert "not made" in str(caught.value)
    assert ledger.total.calls == 3


def test_state_goes_through_json_and_on_as_if_never_stopped():
    ledger = Ledger(Prices(0.1, 0.3), Limits(calls=9))
    ledger.add(Usage(2, 1, 33, 7, 1))
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())), ledger.prices, ledger.limits)
    for each in (ledger, again):
        each.add(Usage(1, 0, 5, 6))
    assert again.total == ledger.total == Usage(3, 1, 38, 13, 1)
    assert again.cost == ledger.cost
    assert repr(again) == repr(ledger)


def test_usages_subtract():
    assert Usage(5, 4, 3, 2, 1) - Usage(1, 1, 1, 1, 1) == Usage(4, 3, 2, 1, 0)


@pytest.mark.parametrize("data", [{"calls": "3"}, {"calls": 1.0}, {"money": 3}, {"calls": True}])
def test_other_data_is_no_state(data):
    with pytest.raises(CheckpointError, match="no state of a ledger"):
        Ledger.from_json(data)


def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="never be reached"):
        Ledger(limits=Limits(cost=1.0))
    with pytest.raises(ConfigError, match="prices"):
        Prices(float("nan"), 1.0)
    with pytest.raises(ConfigError, match="limit of tokens"):
        Limits(tokens=-1)
