"""What was recorded comes back, to the word and to the cent, with nobody asked."""

import json

import pytest
from chat_server import reply, serving

from fastweights.errors import ConfigError, DataError
from fastweights.fastslow.propose import ProposalError
from fastweights.fastslow.remote.backoff import Patience
from fastweights.fastslow.remote.endpoint import Endpoint
from fastweights.fastslow.remote.ledger import BudgetError, Ledger, Limits, Usage
from fastweights.fastslow.remote.transcript import Transcript, sha256

SETTINGS = {"model": "m", "temperature": 1.0}


class Model:
    """Answers by counting, fails at every third request, and charges for each."""

    def __init__(self, ledger, start=0):
        self.ledger, self.count = ledger, start

    def __call__(self, prompt):
        self.count += 1
        failed = self.count % 3 == 0
        self.ledger.add(Usage(1, int(failed), len(prompt), self.count))
        if failed:
            raise ProposalError(f"failure {self.count}")
        return f"answer {self.count} ☺\n```x```\ud800"


def said(ask, prompt):
    try:
        return ask(prompt)
    except ProposalError as error:
        return error.args


def session(path, prompts, start=0, **settings):
    """The transcript, what was said, how often the model was asked, and the ledger's total."""
    ledger = settings.pop("ledger", None) or Ledger()
    model = Model(ledger, start)
    settings.setdefault("report", pytest.fail)
    transcript = Transcript(path, model, settings=SETTINGS, ledger=ledger, **settings)
    return transcript, [said(transcript, p) for p in prompts], model.count - start, ledger.total


PROMPTS = ["a", "bb", "ccc", "dddd", "bb"]


def test_a_replay_is_the_recording(tmp_path):
    path = tmp_path / "t.jsonl"
    transcript, answers, asked, total = session(path, PROMPTS)
    assert (transcript.position, asked, len(path.read_bytes().splitlines())) == (5, 5, 5)
    assert answers[2] == ("failure 3",)
    before = path.read_bytes()
    again, same, asked, total_again = session(path, PROMPTS, mode="replay")
    assert (again.position, same, asked, total_again) == (5, answers, 0, total)
    assert path.read_bytes() == before


def test_a_line_says_all_of_the_request(tmp_path):
    session(tmp_path / "t.jsonl", ["hello"])
    line = json.loads((tmp_path / "t.jsonl").read_text())
    request = {"messages": [{"role": "user", "content": "hello"}], "settings": SETTINGS}
    assert line["request"] == request
    assert line["sha256"] == sha256(request) == sha256(dict(reversed(request.items())))
    # the canonical form by hand, hashed by sha256sum
    assert sha256({"b": [1, "é"], "a": None}) == (
        "a44633ba036df25280e4fd9ef09da6f54dfe6d3611c755e31f993ab16f108f34"
    )
    assert line["usage"] == {
        "calls": 1,
        "failed": 0,
        "prompt_tokens": 5,
        "completion_tokens": 1,
        "unmetered": 0,
    }


@pytest.mark.parametrize("position", range(6))
def test_a_run_resumed_anywhere_is_the_run_that_never_stopped(tmp_path, position):
    path, longer = tmp_path / "t.jsonl", [*PROMPTS, "f", "gg"]
    _, whole, _, whole_total = session(tmp_path / "whole.jsonl", longer)
    _, answers, _, _ = session(path, PROMPTS)
    ledger = Ledger()
    for line in path.read_text().splitlines()[:position]:
        ledger.add(Usage(**json.loads(line)["usage"]))
    # killed after 5 answers, resumed from a checkpoint that had used fewer
    _, rest, asked, total = session(
        path, longer[position:], start=5, position=position, ledger=ledger
    )
    assert answers[:position] + rest == whole
    assert asked == 2
    assert total == whole_total
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_line_is_on_the_disk_before_its_answer_is_used(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda fd: synced.append(len(path.read_bytes())))
    path = tmp_path / "t.jsonl"
    session(path, ["a"])
    assert synced[0] == len(path.read_bytes()) > 0


def test_another_request_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "t.jsonl"
    session(path, PROMPTS)
    transcript, _, _, _ = session(path, ["a"], mode="replay")
    with pytest.raises(DataError, match=r"another request(.|\n)*line 2(.|\n)*messages differ"):
        transcript("other")
    assert transcript("bb").startswith("answer 2")
    warmer = Transcript(path, None, settings={"model": "m", "temperature": 2.0}, mode="replay")
    with pytest.raises(DataError, match=r"line 1(.|\n)*settings differ"):
        warmer("a")


def test_a_replay_ends_with_the_file(tmp_path):
    path = tmp_path / "t.jsonl"
    transcript, _, _, _ = session(path, PROMPTS)
    replay, _, _, _ = session(path, PROMPTS, mode="replay")
    with pytest.raises(DataError, match=r"ends before(.|\n)*line 6"):
        replay("more")


def test_a_recording_goes_on_where_it_differs_and_keeps_what_was_paid_for(tmp_path):
    path, told = tmp_path / "t.jsonl", []
    session(path, PROMPTS)
    before = path.read_bytes().splitlines(keepends=True)
    _, answers, asked, _ = session(path, ["a", "bb", "new"], start=9, report=told.append)
    assert (asked, answers[2][:9]) == (1, "answer 10")
    assert "line 3" in told[0]
    after = path.read_bytes().splitlines(keepends=True)
    assert after[:2] == before[:2]
    assert len(after) == 3
    assert (tmp_path / "t.jsonl.unused").read_bytes() == b"".join(before[2:])
    _, same, asked, _ = session(path, ["a", "bb", "new"], mode="replay")
    assert (same, asked) == (answers, 0)


@pytest.mark.parametrize("mode", ["record", "replay"])
@pytest.mark.parametrize("cut", [1, 2, 50])
def test_a_torn_last_line_is_dropped_loudly(tmp_path, mode, cut):
    path, told = tmp_path / "t.jsonl", []
    session(path, PROMPTS)
    whole = path.read_bytes()
    torn = whole[:-cut]
    path.write_bytes(torn)
    _, answers, asked, _ = session(path, PROMPTS[:4], start=4, mode=mode, report=told.append)
    assert len(answers) == 4 and asked == 0
    assert "dropped line 5" in told[0]
    assert path.read_bytes() == (torn if mode == "replay" else whole[: whole[:-1].rfind(b"\n") + 1])
    if mode == "record":
        session(path, PROMPTS, start=4)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace("hello", "jello"),  # no longer what its hash says
        lambda line: line.replace('"answer"', '"text"'),
        lambda line: line.replace('"calls": 1', '"calls": "1"'),
        lambda line: line[:40],
        lambda line: "null",
        lambda line: "",
    ],
)
def test_damage_is_an_error_that_names_the_line(tmp_path, change):
    path = tmp_path / "t.jsonl"
    session(path, ["x", "hello", "y"])
    lines = path.read_text().split("\n")
    lines[1] = change(lines[1])
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"damaged(.|\n)*line 2"):
        session(path, [])


def test_a_file_shorter_than_the_position(tmp_path):
    session(tmp_path / "t.jsonl", ["a"])
    with pytest.raises(DataError, match="2 answers have been used, and the transcript has 1"):
        session(tmp_path / "t.jsonl", [], position=2)


def test_settings_that_cannot_work(tmp_path):
    with pytest.raises(ConfigError, match="ask = None"):
        Transcript(tmp_path / "t.jsonl", None, settings={})
    with pytest.raises(ConfigError, match="'rewrite'"):
        Transcript(tmp_path / "t.jsonl", len, settings={}, mode="rewrite")  # type: ignore[arg-type]


def endpoint(url, ledger):
    patience = Patience(timeout=60.0, limit=60.0, retries=1, garbage_retries=1)
    quick = {"patience": patience, "sleep": lambda _: None, "ledger": ledger}
    return Endpoint(base_url=url, model="m", api_key_env="TEST_KEY", max_tokens=9, **quick)


def test_a_server_is_needed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-very-secret-4711")
    path, prompts = tmp_path / "t.jsonl", ["a", "b", "c"]
    with serving(reply("A"), 400, 500, reply("C")) as server:
        ledger = Ledger()
        ask = endpoint(server.url, ledger)
        transcript = Transcript(path, ask, settings=ask.settings, ledger=ledger)
        answers = [said(transcript, p) for p in prompts]
    assert (answers[0], answers[2]) == ("A", "C")
    assert "400" in answers[1][0]
    assert ledger.total == Usage(server.count, 2, 20, 10)
    # the server is gone, and its address and the key are no part of a request
    monkeypatch.setenv("TEST_KEY", "another")
    ledger_again = Ledger()
    ask = endpoint("http://localhost:9/v1", ledger_again)
    again = Transcript(path, ask, settings=ask.settings, ledger=ledger_again)
    assert [said(again, p) for p in prompts] == answers
    assert ledger_again.total == ledger.total
    assert "sk-very-secret-4711" not in path.read_text()


def test_a_spent_budget_is_not_recorded(tmp_path):
    path = tmp_path / "t.jsonl"
    ledger = Ledger(limits=Limits(calls=0))

    def refuse(prompt):
        ledger.check(Usage(calls=1))

    transcript = Transcript(path, refuse, settings={}, ledger=ledger)
    with pytest.raises(BudgetError):
        transcript("a")
    assert not path.exists()
    assert transcript.position == 0


def test_a_wrong_key_is_not_recorded_and_what_it_used_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "wrong")
    path, ledger = tmp_path / "t.jsonl", Ledger()
    with serving(503, 401, reply("A")) as server:
        ask = endpoint(server.url, ledger)
        transcript = Transcript(path, ask, settings=ask.settings, ledger=ledger)
        with pytest.raises(ConfigError, match="key is missing, wrong"):
            transcript("a")
        assert not path.exists() and transcript.position == 0
        assert transcript.unrecorded == ledger.total == Usage(2, 2)
        assert transcript("a") == "A"
