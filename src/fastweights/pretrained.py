"""A language model and its tokenizer, from a Hugging Face checkpoint or from a run of ours."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx

from fastweights import hf
from fastweights.errors import CheckpointError, ConfigError, DataError, nearest_folder
from fastweights.hf.config import read_json
from fastweights.hf.files import directory
from fastweights.models.decoder import Decoder
from fastweights.models.decoder_mesh import check_mesh, path_name
from fastweights.tasks.hint_corpus import END, HintCorpus
from fastweights.tasks.language import Language
from fastweights.tasks.needle_text import NeedleText
from fastweights.tasks.text_tokens import Tokenizer, TokenizerFile
from fastweights.train import Config, Mesh
from fastweights.train import run_dir as runs
from fastweights.train.loop import restore_run
from fastweights.train.mesh import make_mesh


class Pretrained(NamedTuple):
    """A model ready to be used."""

    model: Decoder
    tokenizer: Tokenizer
    stop_tokens: tuple[int, ...]  # a text ends with one of these


class Run(NamedTuple):
    """A run of a language model, and the model it has come to."""

    config: Config
    task: Language | HintCorpus | NeedleText
    model: Decoder
    step: int


#: loaders of runs with a config of another class than `Config`, by its name; the module that trains
#: such runs adds its loader: `fastslow.report`
LOADERS: dict[str, Callable[[Path, jax.sharding.Mesh], Pretrained]] = {}


def load(
    path: str | Path,
    dtype: Literal["float32", "bfloat16"] = "float32",
    ttt: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Pretrained:
    """The model at a path.

    Args:
        path: a directory in Hugging Face layout with a tokenizer.json, or a run directory, of which
            the best checkpoint is taken, or the last where none was scored, as of a run of
            fast-slow training, whose weights are the policy's.
        dtype: of a Hugging Face checkpoint; a run has its own.
        ttt: False switches test-time training off.
        mesh: where the weights go, split over `fsdp` and `tensor`; None is one device.

    Raises:
        ConfigError: it is neither, a run of another kind of model, one that the mesh cannot split,
            or a package is missing.
        CheckpointError: there is no such directory, or weights are missing or damaged.
        DataError: the tokenizer is missing or damaged.
    """
    folder = Path(path).expanduser()
    if is_run(folder):
        if loader := LOADERS.get(kind_of(folder)):
            found = loader(folder, mesh or make_mesh(Mesh()))
            return found if ttt else found._replace(model=without_ttt(found.model))
        run = load_run(folder, mesh=mesh)
        model = run.model if ttt else without_ttt(run.model)
        return Pretrained(model, run.task.tokens, stop_tokens(run.config))
    tokenizer = checkpoint_tokenizer(folder)
    stops = ends(folder)
    return Pretrained(hf.load(folder, dtype, mesh, None if ttt else False), tokenizer, stops)


def kind_of(folder: Path) -> str:
    """The class of a run's config, as its config.json names it; "" if it names none."""
    file = folder / "config.json"
    try:
        return str(json.loads(file.read_text()).get("type", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def is_run(folder: Path) -> bool:
    """Whether a directory is a run of ours, and not a Hugging Face checkpoint.

    Raises:
        ConfigError: it is neither.
        CheckpointError: there is no such directory.
    """
    if not folder.exists():
        raise CheckpointError(
            f"there is no run and no checkpoint at {folder}{nearest_folder(folder)}",
            where=folder.absolute(),
            cause="the path is mistyped, or the name of a model that is not on this machine",
            next=f"a run directory; for a model of the hub, first: hf download {folder} "
            "--local-dir DIR",
        )
    directory(folder)
    file = folder / "config.json"
    raw = read_json(file) if file.exists() else {}
    if "model_type" in raw or "type" in raw:
        return "model_type" not in raw
    raise ConfigError(
        "this directory is neither a Hugging Face checkpoint nor a run of fastweights",
        where=folder,
        cause="its config.json has no model_type"
        if file.exists()
        else "there is no config.json in it",
        next="give the folder that holds config.json and *.safetensors, or a --run-dir",
    )


def load_run(path: str | Path, which: str = "best", mesh: jax.sharding.Mesh | None = None) -> Run:
    """The model of a run, whatever mesh it was trained on.

    Args:
        path: the run's directory.
        which: "best" by the validation score, or "last".
        mesh: where the weights go; None is one device.

    Raises:
        ConfigError: there is no run, it is not one of a language model, or has no checkpoint yet.
        CheckpointError: the checkpoint is damaged.
    """
    folder = Path(path).expanduser()
    file = folder / "config.json"
    raw = runs.load_json(file) if file.exists() else {"type": "Config"}
    config = runs.load_config(folder) if raw.get("type") == "Config" else None
    if config is None or not isinstance(config.task, Language | HintCorpus | NeedleText):
        raise ConfigError(
            "this is no run of a language model",
            where=folder,
            cause=f"it was made by a {type(config.task).__name__ if config else raw.get('type')}",
            next="give the directory of a run whose task is Language, HintCorpus or NeedleText; a "
            "run of fast-slow training also needs, in Python, `import fastweights.fastslow.report`",
        )
    if mesh is not None:
        model: Any = config.model
        check_mesh(model, mesh.shape.get("tensor", 1))
    restored = restore_run(folder, config, mesh or make_mesh(Mesh()), which)
    return Run(config, config.task, restored.state.model, restored.step)


def checkpoint_tokenizer(folder: Path) -> TokenizerFile:
    """The tokenizer.json of a Hugging Face checkpoint.

    Raises:
        ConfigError: the package that reads it is missing.
        DataError: there is none, or it is damaged.
    """
    if not (folder / "tokenizer.json").exists():
        raise DataError(
            "this checkpoint has no tokenizer.json",
            where=folder,
            cause="only the weights were downloaded, or the tokenizer is of an older kind",
            next='download it, or make it: python -c "from transformers import AutoTokenizer as T; '
            "T.from_pretrained('DIR').save_pretrained('DIR')\"",
        )
    return TokenizerFile(folder)


def ends(folder: Path) -> tuple[int, ...]:
    """The tokens that end a text, as a checkpoint's config.json and generation_config.json name
    them: a chat model's end of a turn is often in the second alone.
    """
    found: dict[int, None] = {}
    for file in (folder / "config.json", folder / "generation_config.json"):
        named = read_json(file).get("eos_token_id") if file.exists() else None
        named = named if isinstance(named, list) else [named]
        found |= dict.fromkeys(token for token in named if type(token) is int)
    return tuple(found)


def stop_tokens(config: Config) -> tuple[int, ...]:
    """The tokens that end a text in a run: its separator, and those of where it started."""
    task = cast(Language | HintCorpus | NeedleText, config.task)
    if isinstance(task, HintCorpus):
        return (ord(END),)
    inherited = () if config.start is None else ends(Path(config.start).expanduser())
    own = () if task.tokens.separator is None else (task.tokens.separator,)
    return tuple(sorted({*own, *inherited}))


def without_ttt(model: Decoder) -> Decoder:
    """The plain transformer that a model is before it has read anything."""
    config = dataclasses.replace(model.config, ttt=None)
    shapes = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    leaves = lambda tree: {
        path_name(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    outer = leaves(model)
    layers = [leaves(model.layer(i)) for i in range(config.layers)]

    def array(path: str) -> jax.Array:
        if not path.startswith("blocks."):
            return outer[path]
        _, place, inner = path.split(".", 2)
        return jnp.stack([layer[inner] for layer in layers[int(place) :: config.period]])

    made = [array(path) for path in leaves(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), made)
