"""The client against a server on this machine that misbehaves in every way we know."""

import ssl
import time

import pytest
from chat_server import reply, serving

from fastweights.errors import ConfigError
from fastweights.fastslow.propose import ProposalError
from fastweights.fastslow.remote.backoff import Patience
from fastweights.fastslow.remote.endpoint import Endpoint
from fastweights.fastslow.remote.ledger import BudgetError, Ledger, Limits, Usage

KEY = "sk-very-secret-4711"
#: for servers that would hold us; one that answers may take longer on a busy machine
HASTY = {"timeout": 0.6, "limit": 1.0}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


def client(server, waits=None, **changes):
    patience = {"timeout": 60.0, "limit": 60.0, "retries": 3, "garbage_retries": 1}
    patience |= changes.pop("patience", {})
    settings = {"base_url": server.url, "model": "m", "api_key_env": "TEST_KEY", "max_tokens": 50}
    sleep = (lambda _: None) if waits is None else waits.append
    settings |= {"sleep": sleep, "jitter": lambda: 1.0, "ledger": Ledger(), **changes}
    return Endpoint(patience=Patience(**patience), **settings)


def test_what_is_sent_and_what_comes_back():
    with serving(reply("bonjour ☺")) as server:
        ask = client(server, temperature=0.5, extra={"seed": 7})
        assert ask("hello ☺") == "bonjour ☺"
        assert ask([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    first, second = server.requests
    assert first == {
        "path": "/v1/chat/completions",
        "model": "m",
        "messages": [{"role": "user", "content": "hello ☺"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "seed": 7,
    }
    assert [m["role"] for m in second["messages"]] == ["system", "user"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert ask.settings == {k: first[k] for k in ("model", "max_tokens", "temperature", "seed")}
    assert ask.ledger.total == Usage(2, 0, 20, 10)


def test_no_key_no_temperature_and_another_name_for_the_length():
    with serving(reply()) as server:
        fields = {"api_key_env": None, "temperature": None}
        client(server, length_field="max_completion_tokens", **fields)("hello")
    assert server.requests[0].keys() == {"path", "model", "messages", "max_completion_tokens"}
    assert "Authorization" not in server.headers[0]


def test_passing_failures_are_retried_with_growing_waits():
    waits = []
    with serving(429, (429, {"Retry-After": "9"}), (503, {"Retry-After": "999"}), reply()) as s:
        ask = client(s, waits, patience={"first_wait": 2.0, "longest_wait": 30.0})
        assert ask("hello") == "fine"
    assert waits == [2, 9, 30]
    assert s.count == ask.ledger.total.calls == 4
    assert ask.ledger.total == Usage(4, 3, 10, 5)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 520, 529])
def test_passing_failures_end_in_an_error_when_patience_does(status):
    with serving(status) as server:
        ask = client(server)
        with pytest.raises(ProposalError, match=f"after 4 tries.*status {status}") as caught:
            ask("hello")
    assert ask.ledger.total == Usage(server.count, 4)
    for word in ("where: ", "likely cause: ", "next: ", server.url):
        assert word in str(caught.value)


@pytest.mark.parametrize("status", [400, 413, 422, 301, 307, 401, 402, 403, 404, 405])
def test_lasting_failures_are_not_retried(status):
    """A wrong key or address is the user's to mend; of refused requests there may be only one."""
    kind = ProposalError if status in (400, 413, 422) else ConfigError
    with serving((status, {"Location": "http://elsewhere/"})) as server:
        ask = client(server)
        with pytest.raises(kind, match="after 1 try"):
            ask("hello")
    assert server.count == 1 and ask.ledger.total == Usage(1, 1)


def test_another_server_than_the_one_meant_is_the_users_to_mend(monkeypatch):
    def refused(*_, **__):
        error = ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.reason = "CERTIFICATE_VERIFY_FAILED"  # as OpenSSL gives it
        raise error

    monkeypatch.setattr("fastweights.fastslow.remote.endpoint.post", refused)
    ask = Endpoint(base_url="https://127.0.0.1:9/v1", model="m", ledger=Ledger())
    with pytest.raises(ConfigError, match="certificate is not valid"):
        ask("hello")
    assert ask.ledger.total == Usage(1, 1)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (b"<html>welcome</html>", "not JSON"),
        (b'{"choices": [{"mess', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ({"error": {"message": "overloaded"}}, "no choices: overloaded"),
        ({"choices": []}, "no choices"),
        (b"[]", "no choices"),
        (reply(""), "no text"),
        (reply(" \n"), "no text"),
        (reply(None), "no text"),
        (reply([1]), "no text"),
        (reply("cut sho", "length"), "not whole"),
        (reply("cut sho", "content_filter"), "not whole"),
    ],
)
def test_an_answer_that_cannot_be_used_is_asked_for_once_more(act, said):
    with serving(act) as server:
        ask = client(server)
        with pytest.raises(ProposalError, match=f"after 2 tries.*{said}"):
            ask("hello")
    assert server.count == ask.ledger.total.calls == ask.ledger.total.failed == 2
    with serving(act, reply()) as server:
        assert client(server)("hello") == "fine"


@pytest.mark.parametrize("act", ["silence", "cut", "hang_up", "dribble_headers", "endless"])
def test_what_may_have_been_served_counts_as_the_most_it_can_have_used(act):
    body = len('{"messages": [{"role": "user", "content": "hello"}], ')
    patience = {"retries": 0} | ({} if act in ("cut", "hang_up", "endless") else HASTY)
    with serving(act) as server:
        ask = client(server, patience=patience)
        with pytest.raises(ProposalError):
            ask("hello")
    total = ask.ledger.total
    assert (total.calls, total.failed, total.unmetered, total.completion_tokens) == (1, 1, 1, 50)
    assert total.prompt_tokens > body
    with serving(act) as server:  # and the limits hold for it
        ledger = Ledger(limits=Limits(tokens=total.tokens))
        ask = client(server, ledger=ledger, patience=patience | {"retries": 1})
        with pytest.raises(BudgetError, match="tokens"):
            ask("hello")
        assert server.count == 1


@pytest.mark.parametrize("act", ["cut", "hang_up"])
def test_a_broken_connection_is_retried(act):
    with serving(act, reply()) as server:
        assert client(server)("hello") == "fine"
    with serving(act) as server:
        with pytest.raises(ProposalError, match="after 4 tries.*broken"):
            client(server)("hello")


@pytest.mark.parametrize("act", ["silence", "dribble_body", "dribble_headers"])
def test_no_server_can_hold_us(act):
    with serving(act, reply()) as server:
        assert client(server, patience=HASTY | {"retries": 30})("hello") == "fine"
    with serving(act) as server:
        start = time.monotonic()
        with pytest.raises(ProposalError, match="after 2 tries.*no answer within"):
            client(server, patience=HASTY | {"retries": 1})("hello")
        assert 1.0 < time.monotonic() - start < 5  # two tries of 0.6 (silence) or 1 s


def test_an_endless_answer_is_cut():
    with serving("endless") as server:
        with pytest.raises(ProposalError, match="longer than"):
            client(server, patience={"retries": 0})("hello")


def test_nobody_there():
    with serving(reply()) as server:
        ask = client(server, patience={"retries": 1})
    with pytest.raises(ProposalError, match="after 2 tries.*Connection"):
        ask("hello")
    assert ask.ledger.total == Usage(2, 2)


def test_usage_that_the_server_does_not_tell_is_bounded_from_above():
    with serving(reply(usage=None)) as server:
        ask = client(server)
        ask("hello")
    total = ask.ledger.total
    assert (total.unmetered, total.completion_tokens) == (1, 50)
    assert total.prompt_tokens > len("hello")


def test_a_budget_ends_before_the_request_that_would_pass_it():
    with serving(429, 429, reply()) as server:
        with pytest.raises(BudgetError, match="calls 2 of 2"):
            client(server, ledger=Ledger(limits=Limits(calls=2)))("hello")
        assert server.count == 2
        with pytest.raises(BudgetError, match="tokens 0 of 200"):
            client(server, ledger=Ledger(limits=Limits(tokens=200)))("long " * 50)
        assert server.count == 2


def test_the_key_is_shown_nowhere():
    with serving(401, 500, 400) as server:
        ask = client(server, patience={"retries": 0})
        shown = [repr(ask), str(ask.settings)]
        for _ in range(3):
            with pytest.raises((ProposalError, ConfigError), match=r"no: Bearer \[key\]") as caught:
                ask("hello")
            error = caught.value
            shown += [repr(error), str(error), repr(error.__cause__), repr(error.__context__)]
        assert all(headers["Authorization"].endswith(KEY) for headers in server.headers)
    assert KEY not in "".join(shown)


@pytest.mark.parametrize("value", [None, "", "  ", f"{KEY}\nX-Evil: 1", f"{KEY}\u00e9"])
def test_a_key_that_is_none(monkeypatch, value):
    monkeypatch.delenv("TEST_KEY") if value is None else monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(ConfigError, match="TEST_KEY holds no key") as caught:
        Endpoint(base_url="http://localhost/v1", model="m", api_key_env="TEST_KEY")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"base_url": "localhost:8000"}, "no http"),
        ({"base_url": "ftp://host/v1"}, "no http"),
        ({"base_url": "http://host/a b"}, "no http"),
        ({"base_url": "http://host:no/v1"}, "no http"),
        ({"base_url": f"http://me:{KEY}@host/v1"}, "may be a secret"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "may be a secret"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra": {"stream": True}}, "not extra"),
    ],
)
def test_settings_that_cannot_work(wrong, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Endpoint(**{"base_url": "http://host/v1", "model": "m", **wrong})
    assert KEY not in str(caught.value)
