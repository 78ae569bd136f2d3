"""The README's Python runs as it stands there."""

import functools
import re

import pytest
from support import ROOT

import fastweights as fw

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_in_the_readme(number, monkeypatch, capsys):
    """Each block by itself; the contract is checked with one length instead of many."""
    small = functools.partial(fw.testing.check_rule, lengths=(5,), chunks=(2,))
    monkeypatch.setattr(fw.testing, "check_rule", small)
    exec(compile(BLOCKS[number], "README.md", "exec"), {"__name__": "readme"})
    assert "gradients_are_right" in capsys.readouterr().out


def test_there_is_python_in_the_readme():
    assert len(BLOCKS) == 2
