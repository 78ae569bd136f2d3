"""Runs whose prompts a model on a server writes: nothing is lost, or paid for, twice."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from chat_server import reply, serving
from fastslow.small import base, graded, stopping

from fastweights import cli, pretrained
from fastweights.errors import ConfigError, DataError, Preempted
from fastweights.fastslow import loop
from fastweights.fastslow.config import FastSlow, arm, check
from fastweights.fastslow.evolution import Evolution
from fastweights.fastslow.objective import PolicyGradient
from fastweights.fastslow.prompt_log import read as read_prompts
from fastweights.fastslow.remote.backoff import Patience
from fastweights.fastslow.remote.ledger import BudgetError, Limits
from fastweights.fastslow.remote.reflection import FILE, RemoteModel
from fastweights.tasks.maths import Maths
from fastweights.tasks.programs import Programs
from fastweights.train.config import Optim, Train, from_json, to_json

CONFIG = FastSlow(
    task=Programs(odd="i", even="n", digits=2),
    base=str(Path(__file__).parent),
    rl=PolicyGradient(problems=2, rollouts=4),
    evolution=Evolution(
        keep=2, every=1, proposals=3, minibatch=2, instances=4, samples=1, crossover=0.0
    ),
    proposer="remote",
    optim=Optim(lr=3e-3, clip=1.0),
    train=Train(steps=2, eval_every=2, checkpoint_every=1, log_every=1, keep_last=50),
    evaluation=4,
)


def fence(text):
    return reply(f"I think\n```\n{text}\n```")


#: the second needs a repair; the fifth is none at all, twice
ACTS = (fence("i"), fence("zzzz"), fence("n"), fence("w"), b"{", b"{", *map(fence, "rtinwrtinw"))


@pytest.fixture(autouse=True)
def small_base(monkeypatch):
    monkeypatch.setattr(pretrained, "load", lambda path, **_: base())
    monkeypatch.setattr(Programs, "verify", graded)


def remote(server, **change):
    quick = dataclasses.replace(RemoteModel().patience, first_wait=0.0, longest_wait=0.0)
    change.setdefault("base_url", server and server.url)
    model = RemoteModel(model="m", patience=quick, **change)
    return dataclasses.replace(CONFIG, remote=model)


def finished(config, run_dir):
    result = loop.train_fast_slow(config, run_dir, quiet=True)
    lines = [{k: v for k, v in x.items() if k != "wall_time"} for x in result.history]
    return jax.tree.leaves(result.state.model), read_prompts(run_dir), lines


def without_port(data):
    """As text; what a server that failed is quoted with has its port, another in each test."""
    return re.sub(
        r"127\.0\.0\.1:\d+", "server", data if isinstance(data, str) else json.dumps(data)
    )


def assert_same(a, b):
    assert without_port(a[1:]) == without_port(b[1:])
    assert all(np.array_equal(x, y) for x, y in zip(a[0], b[0], strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its end, its transcript, and how often the server was asked."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch, serving(*ACTS) as server:
        patch.setattr(pretrained, "load", lambda path, **_: base())
        patch.setattr(Programs, "verify", graded)
        end = finished(remote(server), run_dir)
        return end, run_dir / FILE, server.count


def test_prompts_come_from_the_server_and_all_of_it_is_counted(whole):
    (_, events, lines), transcript, count = whole
    proposals = [e for e in events if e["kind"] not in ("scored", "kept")]
    assert len(proposals) == 6 and sum(e["kind"] == "failed" for e in proposals) == 1
    answered = [json.loads(x) for x in transcript.read_text().splitlines()]
    last = lines[-1]
    assert sum(x["usage"]["calls"] for x in answered) == last["reflection_calls"] == count
    assert last["reflection_failed"] == 2 and last["reflection_tokens"] > 15 * (count - 2)
    said = json.dumps(events[-1]["population"])
    assert any(f'"{letter}"' in said for letter in "inwrt")


@pytest.mark.parametrize("stop", [2, 3, 6])
def test_a_run_stopped_among_proposals_asks_for_nothing_twice(tmp_path, monkeypatch, whole, stop):
    with serving(*ACTS) as server:
        with monkeypatch.context() as patch:
            stopping(patch, loop, stop, ["evolve"])
            with pytest.raises(Preempted):
                loop.train_fast_slow(remote(server), tmp_path / "run", quiet=True)
        end = finished(remote(server), tmp_path / "run")
        assert server.count == whole[2]
    assert_same(end, whole[0])
    assert without_port((tmp_path / "run" / FILE).read_text()) == without_port(whole[1].read_text())


@pytest.mark.parametrize("calls", [0, 1, 2, 5])
def test_a_spent_budget_stops_the_run_which_goes_on_with_a_higher_one(tmp_path, whole, calls):
    """Two calls are spent between a text and its repair, five between an answer and its retry."""
    with serving(*ACTS) as server:
        config = remote(server, limits=Limits(calls=calls))
        for _ in range(2):  # the second time, too, and nothing is asked
            with pytest.raises(BudgetError, match=f"of {calls}"):
                loop.train_fast_slow(config, tmp_path / "run", quiet=True)
            assert server.count == calls
        end = finished(remote(server), tmp_path / "run")
    # a retry that was refused is a request of its own later, to which nobody answers that it is bad
    assert server.count == end[2][-1]["reflection_calls"]
    if calls != 5:
        assert_same(end, whole[0])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_run_with_a_wrong_key_is_stopped_and_saved(tmp_path, whole, status):
    """It would go on without new prompts otherwise, and look as if it had done what was asked."""
    with serving(*ACTS[:2], status, *ACTS[2:]) as server:
        with pytest.raises(ConfigError, match=f"status {status}"):
            loop.train_fast_slow(remote(server), tmp_path / "run", quiet=True)
        lines = (tmp_path / "run" / FILE).read_text().splitlines()
        assert len(lines) == 2 and server.count == 3
        (leaves, events, history), (its_leaves, its_events, its_history) = (
            finished(remote(server), tmp_path / "run"), whole[0]
        )  # fmt: skip
    assert all(np.array_equal(a, b) for a, b in zip(leaves, its_leaves, strict=True))
    assert without_port(events) == without_port(its_events)
    # the refused call is counted, once
    assert history[-1]["reflection_calls"] == its_history[-1]["reflection_calls"] + 1


def test_a_failed_proposal_is_told(tmp_path, capsys):
    config = remote(None, base_url="http://127.0.0.1:9/v1")
    model = dataclasses.replace(config.remote, patience=Patience(retries=0))
    config = dataclasses.replace(config, remote=model)
    _, events, _ = finished(config, tmp_path / "run")
    failed = [e for e in events if e["kind"] == "failed"]
    said = capsys.readouterr().err
    assert len(failed) == 6 == said.count("warning: no new prompt: m gave no answer")


def test_others_repeat_a_run_without_the_model(tmp_path, whole, monkeypatch):
    with serving(503) as server:
        config = remote(server, replay=str(whole[1]), api_key_env="NO_SUCH_KEY")
        assert_same(finished(config, tmp_path / "run"), whole[0])
        other = dataclasses.replace(config, seed=1)
        with pytest.raises(DataError, match="answers another request here"):
            loop.train_fast_slow(other, tmp_path / "other", quiet=True)
        assert not server.count


def test_what_cannot_work_is_told_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(pretrained, "load", None)
    good = RemoteModel(base_url="http://127.0.0.1:9/v1", model="m")
    change = lambda **fields: dataclasses.replace(
        CONFIG, remote=dataclasses.replace(good, **fields)
    )
    check(change())
    for fields, said in (
        ({"base_url": ""}, "--remote.base-url"),
        ({"model": ""}, "--remote.model"),
        ({"api_key_env": "NO_SUCH_KEY"}, "export NO_SUCH_KEY"),
        ({"replay": "/no/such/file"}, "no transcript"),
        ({"limits": Limits(cost=1.0)}, "prices"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(change(**fields))
    assert from_json(json.loads(json.dumps(to_json(change()))), FastSlow) == change()
    # RL only asks nobody
    check(arm(change(base_url=""), "rl"))


def test_the_command_line_names_the_server(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "load_config", lambda path: CONFIG)
    command = ["train", "some.py", "--run-dir", str(tmp_path / "run"), "--quiet"]
    assert cli.main(command) == 2 and "--remote.base-url" in capsys.readouterr().err
    with serving(*ACTS) as server:
        flags = ["--remote.base-url", server.url, "--remote.model", "m"]
        assert cli.main([*command, *flags, "--remote.limits.calls", "1"]) == 2
        assert "budget" in capsys.readouterr().err
        assert cli.main([*command, *flags, "--train.steps", "1"]) == 0
        assert json.loads(capsys.readouterr().out)["reflection_calls"] == server.count


def test_instructions_for_word_problems_are_written_from_a_file_of_them(tmp_path):
    path = tmp_path / "maths.jsonl"
    line = {"question": "1 + 2?", "answer": "1 + 2 is\n#### 3"}
    path.write_text("".join(json.dumps(line) + "\n" for _ in range(12)))
    maths = Maths(
        str(path), str(path), validation=4, answer_length=6, instructions="Add.",
        template="{instructions} {question}=",
    )  # fmt: skip
    with serving(fence("Add up.")) as server:
        config = dataclasses.replace(remote(server, show_answers=True), task=maths)
        config = dataclasses.replace(config, train=dataclasses.replace(CONFIG.train, steps=1))
        _, events, lines = finished(config, tmp_path / "run")
        asked = server.requests[0]["messages"][0]["content"]
    # the little model solves none, so that no child is better
    assert {e["kind"] for e in events} == {"scored", "rejected", "kept"}
    assert "Add up." in json.dumps(events) and "1 + 2?" in asked and "1 + 2 is" in asked
    assert lines[-1]["updates"] == 1
    for wrong, said in (
        ({"proposer": "inductive"}, "free text"),
        ({"prompt": "oracle"}, "oracle"),
        ({"rl": PolicyGradient(problems=2, rollouts=4, easy=0.5)}, "no easier"),
        ({"task": Maths()}, "layout of GSM8K"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(dataclasses.replace(config, **wrong))
    assert from_json(json.loads(json.dumps(to_json(config))), FastSlow) == config
