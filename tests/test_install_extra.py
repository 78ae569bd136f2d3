"""Commands that install an extra name an extra that exists, and run in a checkout."""

import ast
import re
import tomllib

from support import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TEXTS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.py")]
SOURCES = [
    file for folder in ("src", "configs", "benchmarks") for file in (ROOT / folder).rglob("*.py")
]


def test_errors_name_extras_of_pyproject():
    calls = [
        node
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "install_extra"
    ]
    names = {arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)}
    assert {"plot", "hf", "fst", "eval", "parity", "track"} <= names <= EXTRAS.keys()


def test_commands_in_texts_run_in_a_checkout():
    """No package index has fastweights: `pip install 'fastweights[plot]'` fails for everybody."""
    commands = 0
    for file in TEXTS + SOURCES:
        text = file.read_text()
        assert not re.search(r"fastweights\[", text), file
        for found in re.findall(r"pip install (?:-e )?'\.\[([\w,]+)\]'", text):
            assert set(found.split(",")) <= EXTRAS.keys(), (file, found)
            commands += 1
    assert commands
