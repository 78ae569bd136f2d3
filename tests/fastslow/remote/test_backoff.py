"""Waits between retries, by arithmetic."""

import pytest

from fastweights.errors import ConfigError
from fastweights.fastslow.remote.backoff import Patience, retry_after


def test_waits_double_up_to_the_longest():
    patience = Patience(first_wait=1.0, longest_wait=10.0)
    assert [patience.wait(n, 1.0) for n in (0, 1, 2, 3, 4, 9999)] == [1, 2, 4, 8, 10, 10]
    assert patience.wait(2, 0.25) == 1.0
    assert patience.wait(2, 0.0) == 0.0


def test_the_server_may_ask_for_more_but_not_for_more_than_the_longest():
    patience = Patience(first_wait=1.0, longest_wait=10.0)
    assert patience.wait(0, 0.5, at_least=7) == 7
    assert patience.wait(3, 1.0, at_least=7) == 8
    assert patience.wait(0, 0.5, at_least=3600) == 10


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),  # 120 s after the epoch, and now is 100
        ("Thu, 01 Jan 1970 00:01:00 GMT", 0.0),
    ],
)
def test_retry_after(header, seconds):
    assert retry_after(header, now=100.0) == seconds


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"limit": float("nan")}, {"retries": -1}, {"longest_wait": -1.0}]
)
def test_impatience_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Patience(**wrong)
