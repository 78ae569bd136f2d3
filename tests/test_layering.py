"""Dependencies point one way.

ops <- rules <- nn <- models <- tasks <- train <- what a user starts
"""

import ast
import subprocess
import sys

import pytest
from support import ROOT

SOURCE = ROOT / "src" / "fastweights"
LAYERS = ("ops", "rules", "nn", "models", "tasks", "train")
#: beside the column: what stands on `models`, and what each must not import; `train`, which starts
#: from checkpoints and stands above them, may import both
BESIDE = {"hf": ("inference", "tasks", "train"), "inference": ("hf", "tasks", "train")}
#: what a user starts, and what it is made of
TOP = ("cli", "cli_models", "continued", "demo", "export", "fastslow", "pretrained")
#: packages of others that a layer must do without
FORBIDDEN = {
    "ops": {"flax", "optax", "orbax", "grain", "tensorflow_datasets", "numpy"},
    "rules": {"flax", "optax", "orbax", "grain", "tensorflow_datasets", "numpy"},
    "nn": {"optax", "orbax", "grain", "tensorflow_datasets"},
    "models": {"optax", "orbax", "grain", "tensorflow_datasets"},
    "tasks": {"orbax"},
    "train": set(),
}


def imports(file):
    """Full names of the modules a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_is_below(layer):
    above = LAYERS[LAYERS.index(layer) + 1 :]
    beside = () if layer == "train" else (*BESIDE,)
    files = sorted((SOURCE / layer).rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            parts = name.split(".")
            assert parts[0] not in FORBIDDEN[layer], f"{file.name} imports {name}"
            if parts[0] == "fastweights" and len(parts) > 1:
                forbidden = (*above, *beside, *TOP)
                assert parts[1] not in forbidden, f"{file.name} imports {name}"


@pytest.mark.parametrize("package", BESIDE)
def test_what_stands_on_models_imports_nothing_beside_it(package):
    files = sorted((SOURCE / package).rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            parts = name.split(".")
            assert parts[0] not in {"optax", "orbax", "grain"}, f"{file.name} imports {name}"
            if parts[0] == "fastweights" and len(parts) > 1:
                assert parts[1] not in (*BESIDE[package], *TOP), f"{file.name} imports {name}"


def test_rules_need_no_flax():
    """They work where flax is not installed."""
    code = (
        "import sys; sys.modules['flax'] = None\n"
        "import jax, fastweights as fw\n"
        "rule = fw.rules.Hebbian()\n"
        "fw.rules.run(rule, *rule.example(jax.random.key(0), 5), chunk=2)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"JAX_PLATFORMS": "cpu"})


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, fastweights, fastweights.cli\n"
        "assert not {'jax', 'flax', 'tyro'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_has_grown_a_second_idea():
    for file in SOURCE.rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 400, file
