"""Dependencies point one way, read from the whole import graph; rules are known in one place."""

import ast
import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from support import ROOT

from fastweights.models.decoder import build
from fastweights.models.decoder_config import DecoderConfig
from fastweights.nn import InPlaceTTT
from fastweights.tasks.language import Language

SOURCE = ROOT / "src" / "fastweights"
#: folders and modules of the package from the bottom up; a line imports from the lines above it
FLOORS = (
    ("errors", "cli_args"),
    ("ops",),
    ("rules",),
    ("nn", "testing"),
    ("models",),
    ("inference", "hf", "tasks", "plot"),
    ("train",),
    ("pretrained",),
    ("fastslow",),
    ("export", "continued", "eval_harness", "needle_eval", "demo", "demo_catch", "demo_fast_slow"),
    ("cli_parse", "config_file"),
    ("cli_models",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
#: packages of others that a folder must do without
FORBIDDEN = {
    "rules": {"flax", "optax", "orbax", "grain", "tensorflow_datasets", "numpy"},
    "ops": {"flax", "optax", "orbax", "grain", "tensorflow_datasets", "numpy"},
    "nn": {"optax", "orbax", "grain", "tensorflow_datasets"},
    "models": {"optax", "orbax", "grain", "tensorflow_datasets"},
    "inference": {"optax", "orbax", "grain"},
    "hf": {"optax", "orbax", "grain"},
    "tasks": {"orbax"},
}


def modules(root=SOURCE):
    """Files by full module name."""
    found = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def for_types_only(tree):
    """Nodes under `if TYPE_CHECKING:`, which no run reaches."""
    guarded = (
        n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
    )
    return {id(inner) for node in guarded for inner in ast.walk(node)}


def imports(file, known):
    """Full names of the modules a file imports, inside functions and by `import_module` too."""
    tree = ast.parse(file.read_text())
    skipped = for_types_only(tree)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            if isinstance(node.args[0], ast.Constant):
                yield node.args[0].value


@functools.cache
def graph():
    """The modules of the package that each module imports, and the packages of others."""
    known = modules()
    return {name: frozenset(imports(file, known)) - {name} for name, file in known.items()}


def circles(edges):
    """Sets of modules that reach each other."""
    reached = {}
    for name in edges:
        found, waiting = set(), [name]
        while waiting:
            new = {x for x in edges[waiting.pop()] if x in edges} - found
            found |= new
            waiting += new
        reached[name] = found
    return {
        frozenset(x for x in reached[name] if name in reached[x]) | {name}
        for name in edges
        if name in reached[name]
    }


def room(module):
    """The folder or top module of a module's name."""
    return module.split(".")[1]


def test_no_module_reaches_itself():
    assert circles(graph()) == set()


def test_a_circle_inside_a_function_would_be_found(tmp_path):
    (tmp_path / "one.py").write_text("import pkg.two\n")
    (tmp_path / "two.py").write_text("def f():\n    from pkg.one import g\n")
    files = {"pkg.one": tmp_path / "one.py", "pkg.two": tmp_path / "two.py"}
    edges = {name: frozenset(imports(file, files)) for name, file in files.items()}
    assert circles(edges) == {frozenset(files)}


def test_folders_import_from_the_floors_below():
    for module, imported in graph().items():
        if module == "fastweights":
            continue
        for name in imported:
            package, _, rest = name.partition(".")
            assert package not in FORBIDDEN.get(room(module), ()), f"{module} imports {name}"
            if package != "fastweights" or not rest or room(name) == room(module):
                continue
            assert FLOOR[room(name)] < FLOOR[room(module)], f"{module} imports {name}"


def test_every_folder_has_a_floor():
    assert {room(module) for module in graph() if module != "fastweights"} <= {*FLOOR}


def names_of_rules():
    """Class names of every rule of the library."""
    from fastweights import rules

    return [rule.__name__ for rule in rules.RULES]


def test_only_a_rules_own_layers_name_it():
    """Outside `rules/`, `hf/` and a rule's own layers no code asks which rule it is."""
    own = {
        "nn/in_place.py", "nn/in_place_state.py", "nn/__init__.py",
        "plot.py", "demo.py", "demo_catch.py",
        # nets of the 2016 paper: their configs have its rule as a default, two look inside of it
        "models/retrieval.py", "models/catch.py", "models/glimpse.py", "models/watch.py",
        # the decoder makes the layer that a config asks for
        "models/decoder.py", "models/decoder_config.py",
    }  # fmt: skip
    words = re.compile(rf"\b({'|'.join(names_of_rules())}|InPlaceMLP)\b")
    for file in sorted(SOURCE.rglob("*.py")):
        place = file.relative_to(SOURCE)
        if str(place) in own or place.parts[0] in ("rules", "hf"):
            continue
        tree = ast.parse(file.read_text())
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        used |= {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        assert not {name for name in used if words.fullmatch(name)}, file


def test_no_ladder_over_kinds_of_layers():
    """No code of the decoder or of inference asks a layer or a state for its class."""
    for folder in ("inference", "models", "rules"):
        for file in sorted((SOURCE / folder).glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                    kind = ast.unparse(node.args[1])
                    assert not re.search("MLP|Attention|MemoryLayer|InPlace", kind), (file, kind)


def test_rules_know_no_device_and_no_mesh():
    for file in sorted((SOURCE / "rules").glob("*.py")):
        tree = ast.parse(file.read_text())
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        used |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        used |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        forbidden = {"default_backend", "devices", "psum", "axis_name", "shard_map", "Mesh"}
        assert not used & forbidden, (file, used & forbidden)


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


@pytest.mark.parametrize("ttt, most", [(None, 8), (InPlaceTTT(layers=(0,), chunk=4), 14)])
def test_a_token_goes_through_few_files(ttt, most):
    """Files of ours whose code runs while a training step of a decoder is traced."""
    sizes = {"hidden": 8, "intermediate": 16, "heads": 2, "kv_heads": 1, "head_dim": 4}
    config = DecoderConfig(family="qwen3", vocab=264, layers=2, max_length=16, ttt=ttt, **sizes)
    graph, state = nnx.split(build(config, 0))
    tokens = jnp.zeros((1, 16), jnp.int32)
    batch, task = {"inputs": tokens, "target": tokens}, Language(length=16)
    loss = lambda state: jnp.mean(task.losses(nnx.merge(graph, state), batch))
    files = set()

    def called(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(str(SOURCE)):
            files.add(frame.f_code.co_filename)

    sys.setprofile(called)
    try:
        jax.make_jaxpr(jax.grad(loss))(state)
    finally:
        sys.setprofile(None)
    assert 3 < len(files) <= most, sorted(files)
