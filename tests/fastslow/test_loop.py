"""Runs of the two-speed loop: the order of things, exact resume anywhere, what the log says."""

import dataclasses
import json
import multiprocessing
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from _verifiers import Stuck
from small import base, graded, stopping

from fastweights import cli, pretrained
from fastweights.errors import CheckpointError, ConfigError, NumericalError, Preempted
from fastweights.fastslow import loop, report
from fastweights.fastslow import population as prompts
from fastweights.fastslow.config import ARMS, FastSlow, Tick, arm, check, timeline
from fastweights.fastslow.evaluation import held_out
from fastweights.fastslow.evolution import Evolution
from fastweights.fastslow.objective import PolicyGradient
from fastweights.fastslow.prompt_log import read as read_prompts
from fastweights.fastslow.rollouts import Sampler
from fastweights.fastslow.seeds import seed_of
from fastweights.tasks.continual import Continual
from fastweights.tasks.conventions import Conventions
from fastweights.tasks.programs import Programs
from fastweights.tasks.prompted import Failed
from fastweights.tasks.reasoning_gym import ReasoningGym
from fastweights.train.config import Mesh, Optim, Train, from_json, to_json

CONFIG = FastSlow(
    task=Programs(odd="i", even="n", digits=2),
    base=str(Path(__file__).parent),  # "begin" looks whether it is there; `prepare` loads
    rl=PolicyGradient(problems=2, rollouts=4),
    evolution=Evolution(
        keep=2, every=2, proposals=2, minibatch=2, instances=4, samples=1, crossover=0.5
    ),
    optim=Optim(lr=3e-3, clip=1.0),
    train=Train(steps=4, eval_every=2, checkpoint_every=1, log_every=1, keep_last=50),
    evaluation=4,
)


def prepare(patch):
    patch.setattr(pretrained, "load", lambda path, **_: base())
    patch.setattr(Programs, "verify", graded)


@pytest.fixture(autouse=True)
def small_base(monkeypatch):
    prepare(monkeypatch)


def kinds(config):
    """The timeline as a word: e for each evolution, u for each update."""
    return "".join("u" if t.cycle is None else "e" * (t.part == 0) for t in timeline(config))


def test_what_happens_when():
    change = lambda order: dataclasses.replace(CONFIG, order=order, lead=3)
    assert kinds(CONFIG) == "euueuu"
    assert kinds(change("slow")) == "uuuu"
    assert kinds(change("fast")) == "ee"
    assert kinds(change("fast then slow")) == "eeeuuuu"
    assert kinds(change("slow then fast")) == "uuuueee"
    ticks = timeline(CONFIG)
    assert len(ticks) == 4 + 2 * CONFIG.evolution.ticks
    assert [t.updates for t in ticks if t.cycle is None] == [0, 1, 2, 3]
    # a longer run begins as the shorter one
    longer = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=8))
    assert timeline(longer)[: len(ticks)] == ticks


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_config_that_can_run_and_is_stored(name):
    config = arm(CONFIG, name)
    if name != "rl-easy":  # this task has no easier problems
        check(config)
    assert from_json(json.loads(json.dumps(to_json(config))), FastSlow) == config
    assert (config == CONFIG) == (name == "fst")


def test_no_such_arm():
    with pytest.raises(ConfigError, match="rl-entropy"):
        arm(CONFIG, "none")


def test_every_problem_of_a_config_is_told():
    bad = dataclasses.replace(
        CONFIG,
        rl=PolicyGradient(rollouts=6, easy=2.0, kl=-1.0),
        evolution=dataclasses.replace(CONFIG.evolution, keep=4, samples=0),
        task=Programs(odd="?"),
        lead=0,
    )
    with pytest.raises(ConfigError) as error:
        check(bad)
    for word in ("rl.rollouts", "rl.easy", "rl.kl", "evolution.samples", "task.odd", "lead"):
        assert word in str(error.value)


def finished(run_dir, config=CONFIG):
    result = loop.train_fast_slow(config, run_dir, quiet=True)
    leaves = [np.asarray(x) for x in jax.tree.leaves((result.state.model, result.state.optimizer))]
    return leaves, result.history, read_prompts(run_dir)


def without_time(lines):
    return [{k: v for k, v in line.items() if k != "wall_time"} for line in lines]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture(scope="module")
def uninterrupted(whole_run):
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        return finished(whole_run)


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 7])
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not(
    tmp_path, monkeypatch, uninterrupted, stop
):
    """Ticks 1 to 3 are within the first evolution, 5 within the cycle, 7 in the next evolution."""
    with monkeypatch.context() as patch:
        stopping(patch, loop, stop)
        with pytest.raises(Preempted):
            loop.train_fast_slow(CONFIG, tmp_path / "run", quiet=True)
    leaves, history, events = finished(tmp_path / "run")
    whole, its_history, its_events = uninterrupted
    assert all(np.array_equal(a, b) for a, b in zip(leaves, whole, strict=True))
    start = [np.asarray(x) for x in jax.tree.leaves(base().model)]
    assert not any(np.array_equal(a, b) for a, b in zip(start, whole, strict=False))
    assert without_time(history) == without_time(its_history)
    assert events == its_events


def test_a_run_on_a_mesh_is_the_run_of_one_device(uninterrupted, tmp_path):
    """Eight devices, stopped in the middle: the same answers and scores, weights within 1e-5."""
    config = dataclasses.replace(CONFIG, mesh=Mesh(data=2, fsdp=4))
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, loop, 5)
        with pytest.raises(Preempted):
            loop.train_fast_slow(config, tmp_path, quiet=True)
    leaves, history, events = finished(tmp_path, config)
    expected, before, told = uninterrupted
    assert events == told
    for one, other in zip(without_time(history), without_time(before), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    for one, other in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    run, _ = report.load(tmp_path)
    # 264 x 16: each device of a copy has a quarter, the moments too
    for tree in (run.state.model, run.base.model, run.state.optimizer):
        whole = [x for x in jax.tree.leaves(tree) if x.shape == (264, 16)]
        assert whole and all(x.addressable_shards[0].data.size == 66 * 16 for x in whole)


@pytest.mark.parametrize("mesh, said", [(Mesh(data=9), "9 devices"), (Mesh(fsdp=0), "mesh.fsdp")])
def test_a_mesh_that_cannot_be_is_told(tmp_path, mesh, said):
    with pytest.raises(ConfigError, match=said):
        loop.train_fast_slow(dataclasses.replace(CONFIG, mesh=mesh), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_log_counts_rollouts_of_both_loops(uninterrupted):
    _, history, events = uninterrupted
    last = history[-1]
    assert last["updates"] == 4 and last["rollouts_slow"] == 4 * 2 * 4
    assert last["rollouts_fast"] == sum(event["rollouts"] for event in events)
    assert [e["kind"] for e in events if e["kind"] in ("scored", "kept")] == ["scored", "kept"] * 2
    kept = [e["population"] for e in events if e["kind"] == "kept"]
    assert all(1 <= len(p["members"]) <= 2 for p in kept)
    start = history[0]
    assert start["updates"] == 0 and start["validation/kl_token_own"] == 0
    assert last["validation/kl_token_own"] > 0


def test_the_base_must_be_the_same(tmp_path, monkeypatch):
    config = dataclasses.replace(
        arm(CONFIG, "rl"), train=dataclasses.replace(CONFIG.train, steps=1)
    )
    loop.train_fast_slow(config, tmp_path / "run", quiet=True)
    monkeypatch.setattr(pretrained, "load", lambda path, **_: base(1))
    with pytest.raises(CheckpointError, match="base model"):
        loop.train_fast_slow(config, tmp_path / "run", quiet=True)


def test_a_population_goes_from_task_to_task(tmp_path, monkeypatch):
    task = Continual((Conventions(steps=1), Programs(odd="i", even="n", digits=2)), updates=2)
    config = dataclasses.replace(CONFIG, task=task)
    measured, judged, judge = [], [], loop.Run.judge
    monkeypatch.setattr(
        loop, "held_out", lambda task, *rest: (measured.append(task), held_out(task, *rest))[1]
    )
    monkeypatch.setattr(
        loop.Run, "judge", lambda self, task: (judged.append(task), judge(self, task))[1]
    )
    _, _, events = finished(tmp_path / "run", config)
    components = events[-1]["population"]["members"][0]["components"]
    assert set(components) == {"@", "#", "&", "odd", "even"}
    # at the start, and where a task ends and the next is about to begin: by its own verifier
    assert measured == [task.stage(0), task.stage(0), task.stage(1)]
    last = len(judged) - 1
    assert judged[0] == task.stage(0) and judged[last] == task.stage(1)
    switch = judged.index(task.stage(1))
    assert judged == [task.stage(0)] * switch + [task.stage(1)] * (last + 1 - switch)


def test_evolutions_after_the_updates_cannot_be_put_off(tmp_path):
    config = dataclasses.replace(arm(CONFIG, "rl-evolution"), lead=1)
    short = dataclasses.replace(config, train=dataclasses.replace(CONFIG.train, steps=1))
    loop.train_fast_slow(short, tmp_path / "run", quiet=True)
    before = runs_files(tmp_path / "run")
    with pytest.raises(ConfigError, match="longer or shorter"):
        loop.train_fast_slow(config, tmp_path / "run", quiet=True)
    assert runs_files(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["fst", "rl", "evolution", "evolution-rl"])
def test_a_finished_run_that_is_asked_for_less_has_nothing_to_do(tmp_path, name, capsys):
    quick = dataclasses.replace(CONFIG, lead=1, train=dataclasses.replace(CONFIG.train, steps=3))
    config = arm(quick, name)
    whole = finished(tmp_path / "run", config)
    before = runs_files(tmp_path / "run")
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=1))
    result = loop.train_fast_slow(short, tmp_path / "run")
    assert "nothing to do" in capsys.readouterr().err
    assert runs_files(tmp_path / "run") == before and result.history == whole[1]
    # what has been done is what the checkpoint says, and not the config as it is now
    _, at = report.load(tmp_path / "run")
    assert at == timeline(config)[-1]
    again = finished(tmp_path / "run", config)
    assert again[1:] == whole[1:]
    assert all(np.array_equal(a, b) for a, b in zip(again[0], whole[0], strict=True))


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("bad", [0, 3])
def test_a_run_that_diverged_is_saved_as_it_was_before(tmp_path, monkeypatch, bad, passes):
    rl = dataclasses.replace(CONFIG.rl, passes=passes)
    config = dataclasses.replace(CONFIG, rl=rl)
    whole = finished(tmp_path / "whole", config)
    batches = []

    def spoiled(seen):
        batches.append(loop_batch(seen))
        if len(batches) == bad + 1:
            batches[-1]["advantage"] *= np.nan
        return batches[-1]

    loop_batch = loop.batch_of
    with monkeypatch.context() as patch:
        patch.setattr(loop, "batch_of", spoiled)
        with pytest.raises(NumericalError, match=f"update {bad + 1}"):
            loop.train_fast_slow(config, tmp_path / "run", quiet=True)
    run, at = report.load(tmp_path / "run")
    ticks = timeline(config)
    assert at == ticks[ticks.index(Tick(bad)) - 1]
    assert int(run.state.step) == bad * passes and run.counts["slow"] == bad * 2 * 4
    again = finished(tmp_path / "run", config)
    assert all(np.array_equal(a, b) for a, b in zip(again[0], whole[0], strict=True))
    assert without_time(again[1]) == without_time(whole[1]) and again[2] == whole[2]


def runs_files(folder):
    """Names and sizes of all that a run has written, but its config."""
    files = (x for x in folder.rglob("*") if x.is_file() and x.name not in NOTES)
    return {str(x): x.stat().st_size for x in files}


#: these say how a run was started, each time
NOTES = ("config.json", "starts.jsonl")


def test_without_a_base_model_it_says_how_to_get_one(tmp_path):
    config = dataclasses.replace(CONFIG, base=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="fst_base.py"):
        loop.train_fast_slow(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_verdicts_have_a_limit_of_time_and_the_judging_process_ends(tmp_path):
    rl = PolicyGradient(problems=2, rollouts=2)
    (stuck, _) = Programs(digits=2).problems("train", 2, seed_of(0, "problems", 0))
    config = dataclasses.replace(
        CONFIG,
        task=Stuck(digits=2, at=stuck.id),
        order="slow",
        rl=rl,
        train=dataclasses.replace(CONFIG.train, steps=1),
        verdict_limit=0.5,
    )
    before = {*multiprocessing.active_children()}
    begun = time.monotonic()
    result = loop.train_fast_slow(config, tmp_path / "run", quiet=True)
    assert time.monotonic() - begun < 300
    assert {*multiprocessing.active_children()} == before
    first, trained, last = result.history
    assert trained["train/unscored"] == 0.5 and trained["train/reward"] == 0.5
    assert first["validation/unscored_own"] == 0 == last["validation/unscored_own"]
    # what is not stuck is judged as it would be in this process
    run = loop.begin(dataclasses.replace(config, verdict_limit=None))
    mine = loop.evaluate(run, run.task(0))
    assert {f"validation/{k}": v for k, v in mine.items()}.items() <= first.items()
    with pytest.raises(ConfigError, match="verdict_limit is 0"):
        check(dataclasses.replace(config, verdict_limit=0.0))


def test_where_no_answer_can_be_scored_nothing_is_said_to_be_known(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Programs, "verify", lambda *_: Failed("died"))
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=1))
    _, history, _ = finished(tmp_path / "run", config)
    last = history[-2] | history[-1]
    names = ("train/reward", "train/accuracy", "validation/accuracy_own", "validation/reward_seed")
    assert [last[name] for name in names] == [None] * 4 and last["train/unscored"] == 1
    said = capsys.readouterr().err
    assert "update 1: none of 8 answers could be scored" in said and "error='died'" in said
    assert "part 0 of evolution 0: none of 4 answers" in said
    assert cli.main(["eval", "--run-dir", str(tmp_path / "run")]) == 0
    strict = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert strict["accuracy_own"] is None and strict["trained_population"] is None


def test_code_of_others_does_not_judge_in_the_run(tmp_path):
    config = dataclasses.replace(CONFIG, task=ReasoningGym(), order="slow")
    with pytest.raises(ConfigError, match="verdict_limit is None"):
        check(config)
    check(dataclasses.replace(config, verdict_limit=5.0))


def test_a_finished_run_is_measured_in_both_of_its_memories(uninterrupted, whole_run, capsys):
    leaves, history, events = uninterrupted
    run, at = report.load(whole_run)
    assert at == timeline(CONFIG)[-1] and run.counts["slow"] == history[-1]["rollouts_slow"]
    restored = jax.tree.leaves((run.state.model, run.state.optimizer))
    assert all(np.array_equal(a, b) for a, b in zip(restored, leaves, strict=True))

    found = report.two_by_two(run, run.task(at.updates))
    problems = [p for p in CONFIG.task.problems("test", CONFIG.evaluation) for _ in range(2)]
    best = events[-1]["population"]
    assert best == prompts.to_json(run.population)
    for weights, model in {"base": base().model, "trained": run.state.model}.items():
        for name, prompt in {
            "seed": {"odd": "", "even": ""},
            "evolved": run.population.best().components,
        }.items():
            texts = [CONFIG.task.text(prompt, p) for p in problems[::2]]
            sampler = Sampler(base().tokenizer, base().stop_tokens, CONFIG.task.answer_length, 1.0)
            answers = sampler(model, texts, 2, 0).texts
            right = [graded(None, p, a).correct for p, a in zip(problems, answers, strict=True)]
            assert found[f"{weights}_{name}"] == np.mean(right)
    assert 0 < found["base_seed"] < 1 and found["base_seed"] != found["trained_seed"]

    assert report.is_fast_slow(whole_run) and not report.is_fast_slow(whole_run.parent)
    assert cli.main(["eval", "--run-dir", str(whole_run)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["updates"] == 4 and said["split"] == "test"
    assert {k: said[k] for k in found} == found
    assert said["accuracy_own"] == found["trained_evolved"]


def test_the_command_line_runs_an_arm(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "load_config", lambda path: CONFIG)
    command = ["train", "some.py", "--run-dir", str(tmp_path / "run"), "--quiet"]
    assert cli.main([*command, "--arm", "frl"]) == 2
    assert "'frl'" in (said := capsys.readouterr().err) and "rl-oracle" in said
    # a flag changes what the arm has set
    assert cli.main([*command, "--arm=rl-oracle", "--train.steps", "1", "--prompt", "seed"]) == 0
    assert json.loads(capsys.readouterr().out)["updates"] == 1
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["order"] == "slow" and kept["prompt"] == "seed"
    assert cli.main([*command, "--base", str(tmp_path / "none")]) == 2
    assert "fst_base.py" in capsys.readouterr().err
