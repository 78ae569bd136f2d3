"""Mistakes in a config file: the line, the field, and the nearest one that there is."""

import dataclasses

import numpy as np
import pytest
from support import ROOT

from fastweights.config_file import load_config, wrong_types
from fastweights.errors import ConfigError
from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Config, Train, train

FILE = """\
import fastweights as fw
from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Config, Optim, Train

config = Config(
    task=Retrieval(pairs=4),
    model=RetrievalModel(hidden=20, rule=fw.rules.Hebbian(decay=0.9)),
    optim=Optim(lr=1e-3),
)
"""


@pytest.mark.parametrize(
    "old,new,line,words",
    [
        ("lr=1e-3", "lrr=1e-3", 9, "Optim has no field 'lrr', did you mean 'lr'?"),
        ("decay=0.9", "deca=0.9", 8, "Hebbian has no field 'deca', did you mean 'decay'?"),
        ("optim=", "optm=", 6, "Config has no field 'optm', did you mean 'optim'?"),
        ("lr=1e-3", "lr='fast'", 9, "optim.lr is 'fast'; it must be float"),
        ("lr=1e-3", "warmup=1.5", 9, "optim.warmup is 1.5; it must be int"),
        ("lr=1e-3", "clip=True, lr='a'", 9, "optim.lr is 'a'; it must be float"),
        (
            "lr=1e-3",
            "schedule='cosin'",
            9,
            "optim.schedule is 'cosin'; it must be one of 'constant', 'cosine'",
        ),
        ("lr=1e-3", "rates=(('*', 'a'),)", 9, "optim.rates is (('*', 'a'),); it must be tuple"),
        ("Optim(lr=1e-3)", "3", 9, "optim is 3; it must be Optim"),
        ("Optim(lr=1e-3)", "Optim", None, "it must be Optim"),
        ("decay=0.9", "decay=None", 8, "model.rule.decay is None; it must be float"),
        ("Optim(lr=1e-3)", "Optim(]", 9, "this config file is no Python: "),
        ("Retrieval(pairs=4)", "Retrieval(pairs=1 / 0)", 7, "ZeroDivisionError: division by zero"),
        ("config =", "settings =", None, "defines no `config`"),
        ("config = Config(", "config = dict(", None, "`config` of this file is of type dict"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, monkeypatch, old, new, line, words):
    assert FILE.count(old) == 1
    (tmp_path / "mine.py").write_text(FILE.replace(old, new))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_config("mine.py")
    assert words in str(error.value)
    where = "mine.py" if line is None else f"mine.py, line {line}"
    assert error.value.where == where


def test_a_mistake_in_a_module_that_is_imported_is_not_put_on_the_config(tmp_path, monkeypatch):
    """The line is that of the import; the message names the module."""
    (tmp_path / "my_helper.py").write_text("x = 1\ny = (\n")
    (tmp_path / "mine.py").write_text(f"a = 1\nimport my_helper\n{FILE}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"fails: SyntaxError: .*my_helper.py") as error:
        load_config(str(tmp_path / "mine.py"))
    assert error.value.where == f"{tmp_path / 'mine.py'}, line 2"


def test_a_wrong_type_is_told_in_any_encoding(tmp_path):
    text = "# -*- coding: latin-1 -*-\n# é\n" + FILE.replace("lr=1e-3", "lr='fast'")
    (tmp_path / "mine.py").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="optim.lr is 'fast'") as error:
        load_config(str(tmp_path / "mine.py"))
    assert error.value.where == f"{tmp_path / 'mine.py'}, line 11"


def test_the_file_itself_is_right(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    assert load_config(str(tmp_path / "mine.py")).optim.lr == 1e-3


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda x: x.stem)
def test_every_config_of_ours_has_the_types_it_says(file):
    assert wrong_types(load_config(str(file))) == []


@dataclasses.dataclass(frozen=True)
class Own(Retrieval):
    """A task of a user's, whose scores lack the one that is trained on."""

    def load(self, split, data):
        return {"inputs": np.zeros((4, 7), np.int32), "target": np.zeros(4, np.int32)}

    def measure(self, model, batch):
        return {"error": super().measure(model, batch)["error"]}


def test_a_task_without_a_loss_is_told_so(tmp_path):
    config = Config(Own(pairs=2), RetrievalModel(hidden=5), train=Train(steps=1, batch=2))
    with pytest.raises(ConfigError, match='Own.measure gives no "loss", only error'):
        train(config, tmp_path, quiet=True)
