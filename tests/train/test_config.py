"""Configs as JSON, and what counts as a difference between two runs."""

import dataclasses
import importlib.util

import jax
import pytest
from support import ROOT

from fastweights.errors import ConfigError
from fastweights.fastslow.config import FastSlow
from fastweights.fastslow.config import check as check_fast_slow
from fastweights.models.retrieval import RetrievalModel
from fastweights.rules import Form, InPlace
from fastweights.tasks.retrieval import Retrieval
from fastweights.train.agent import AgentConfig, check_agent
from fastweights.train.config import Config, check, differences, from_json, to_json
from fastweights.train.optim import learning_rate
from fastweights.train.sweep import Sweep, cell_configs

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_runs_back_and_forth_through_json(path):
    module = load(path)
    kind, configs = type(module.config), [module.config]
    if kind is Sweep:
        kind, sweeps = Config, (module.config, module.config.quick)
        configs = [
            config
            for sweep in sweeps
            for name in sweep.arms
            for units in sweep.units
            for config in cell_configs(sweep, name, units)
        ]
    for config in configs:
        {AgentConfig: check_agent, FastSlow: check_fast_slow}.get(kind, check)(config)
        assert from_json(to_json(config), kind) == config
    assert f"fastweights train configs/{path.name}" in (module.__doc__ or "")


def test_json_keeps_what_is_not_the_default():
    config = load(ROOT / "configs" / "retrieval.py").config
    rule = dataclasses.replace(config.model.rule, form=Form.MATRIX, lr=0)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, rule=rule),
        optim=dataclasses.replace(config.optim, clip=None),
    )
    back = from_json(to_json(config))
    assert back == config and back.model.rule.form is Form.MATRIX and back.optim.clip is None


def test_differences_name_the_key_and_both_values():
    config = load(ROOT / "configs" / "retrieval.py").config
    other = dataclasses.replace(config, seed=7)
    assert differences(to_json(config), to_json(other)) == {"seed": (0, 7)}
    assert differences(to_json(config), to_json(config)) == {}


@pytest.mark.parametrize(
    "change", [{"type": "Evil"}, {"seed": "3"}, {"surprise": 1}, {"seed": True}, {"optim": None}]
)
def test_json_of_unknown_things_is_refused(change):
    data = to_json(load(ROOT / "configs" / "retrieval.py").config) | change
    with pytest.raises(ConfigError):
        from_json(data, Config)


def test_learning_rate_follows_its_own_clock():
    """Warmup is linear, cosine ends at decay_steps whatever train.steps says."""
    from fastweights.train.config import Optim

    schedule = learning_rate(Optim(lr=0.1, schedule="cosine", decay_steps=110, warmup=10))
    assert float(schedule(5)) == pytest.approx(0.05)
    assert float(schedule(10)) == pytest.approx(0.1)
    assert float(schedule(60)) == pytest.approx(0.05)  # half way between 10 and 110
    assert float(schedule(110)) == pytest.approx(0.0, abs=1e-9)
    constant = learning_rate(Optim(lr=0.1, warmup=4))
    assert [float(constant(i)) for i in (0, 2, 4, 400)] == pytest.approx([0, 0.05, 0.1, 0.1])


@pytest.mark.parametrize(
    "change",
    [
        {"method": "Muon"},
        {"schedule": "linear"},
        {"lr": -1.0},
        {"clip": 0.0},
        {"decay_steps": 0},
        {"schedule": "cosine", "decay_steps": 10, "warmup": 10},
    ],
)
def test_an_optimiser_that_cannot_work_is_told_by_every_kind_of_run(change):
    """Of a language model, an agent, and fast-slow training; none trains with another instead."""
    word = list(change)[-1]
    kinds = {"retrieval": check, "catch_16": check_agent, "fst_programs": check_fast_slow}
    for name, check_kind in kinds.items():
        config = load(ROOT / "configs" / f"{name}.py").config
        check_kind(config)
        broken = dataclasses.replace(config, optim=dataclasses.replace(config.optim, **change))
        with pytest.raises(ConfigError, match=f"optim.{word} is"):
            check_kind(broken)


def test_tests_have_eight_devices():
    assert jax.device_count() == 8


def test_tuples_come_back_from_json_as_tuples():
    config = load(ROOT / "configs" / "books.py").config
    back = from_json(to_json(config))
    assert back == config and back.model.windows == (64, 64, 64)
    data = to_json(config)
    data["model"]["windows"] = [64, "wide", 64]
    with pytest.raises(ConfigError, match="wide"):
        from_json(data)


def test_a_rule_without_slots_is_refused_in_a_cell():
    model = RetrievalModel(rule=InPlace())
    with pytest.raises(ConfigError, match="model.rule is InPlace, which declares no slots"):
        check(Config(task=Retrieval(), model=model))
