"""The config of a run: frozen dataclasses, checked before anything is allocated; their JSON."""

import dataclasses
import enum
import inspect
import math
import types
import typing
from typing import Any, Literal

from fastweights.errors import ConfigError
from fastweights.models.convnet import ConvNetModel
from fastweights.models.decoder_config import DecoderConfig
from fastweights.models.decoder_mesh import problems as mesh_problems
from fastweights.models.glimpse import GlimpseModel
from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.base import Data, Task
from fastweights.tasks.faces import Faces
from fastweights.tasks.glimpses import Glimpses
from fastweights.tasks.hint_corpus import HintCorpus
from fastweights.tasks.language import Language
from fastweights.tasks.needle_text import NeedleText
from fastweights.tasks.retrieval import Retrieval


@dataclasses.dataclass(frozen=True)
class Optim:
    """The slow weights' optimiser, after clipping by global norm.

    Attributes:
        lr: peak learning rate; one for both methods, since Muon's steps have the size of Adam's.
        schedule: "constant", or "cosine" to zero over `decay_steps`.
        decay_steps: updates until the cosine is at zero, the warmup among them. Its own number and
            not `train.steps`, so that a run can be made longer, or stopped early and resumed,
            without changing what it has done.
        warmup: updates over which the learning rate rises linearly from zero.
        clip: largest global norm of the gradient; None to leave it.
        weight_decay: decoupled weight decay.
        method: "adam", or "muon" (Jordan et al. 2024): the momentum of every matrix is made
            orthogonal, and Adam has the rest, embeddings and read-outs too.
        rates: factors of the learning rate, each with a pattern of parameters' paths, such as
            (("*.mlp.conv", 100.0), ("*norm*", 1.0), ("*", 0.0)); `*` stands for any text. The first
            pattern that fits counts, and without one the factor is 1. A parameter of factor 0 is
            not trained: it has no gradient, no moments and no weight decay.
        inner_warmup: updates over which the inner learning rate η of every in-place layer rises
            linearly to its own value; for models with `ttt.lr_learned`. Evaluations have the whole
            η.
    """

    lr: float = 3e-3
    schedule: Literal["constant", "cosine"] = "constant"
    decay_steps: int = 100_000
    warmup: int = 0
    clip: float | None = 5.0
    weight_decay: float = 0.0
    method: Literal["adam", "muon"] = "adam"
    rates: tuple[tuple[str, float], ...] = ()
    inner_warmup: int = 0

    def faults(self) -> list[str]:
        """What cannot work, in words."""
        found = [
            f"{name} is {value!r}; it must be one of {', '.join(known)}"
            for name, value, known in (
                ("schedule", self.schedule, ("constant", "cosine")),
                ("method", self.method, ("adam", "muon")),
            )
            if value not in known
        ]
        names = ("lr", "warmup", "weight_decay", "inner_warmup")
        least = {name: getattr(self, name) for name in names}
        found += [f"{k} is {v}; it must not be negative" for k, v in least.items() if v < 0]
        found += [
            f"{k} is {v}; it must be finite" for k, v in least.items() if not math.isfinite(v)
        ]
        if self.decay_steps < 1:
            found.append(f"decay_steps is {self.decay_steps}; it must be at least 1")
        elif self.schedule == "cosine" and self.warmup >= self.decay_steps:
            found.append(
                f"warmup is {self.warmup}; it must be shorter than decay_steps, {self.decay_steps}"
            )
        if self.clip is not None and not self.clip > 0:
            found.append(f"clip is {self.clip}; it must be positive, or None for no clipping")
        found += [
            f"rates has {factor} for {pattern!r}; it must be 0 or positive, and finite"
            for pattern, factor in self.rates
            if not (factor >= 0 and math.isfinite(factor))
        ]
        return found


@dataclasses.dataclass(frozen=True)
class Train:
    """Length and rhythm of a run, in updates.

    Attributes:
        steps: updates in all.
        batch: examples per update, over all devices.
        eval_every: updates between evaluations on the validation split.
        eval_examples: validation examples of each evaluation, evenly spread over the split; None is
            all.
        checkpoint_every: updates between checkpoints; one is also saved at the end, on SIGTERM and
            where the validation score is the best so far.
        log_every: updates between lines of training metrics.
        keep_last: newest checkpoints kept; the one with the best validation score is kept too.
        tensorboard: also write TensorBoard files (needs the `track` extra).
    """

    steps: int = 10_000
    batch: int = 128
    eval_every: int = 1_000
    eval_examples: int | None = None
    checkpoint_every: int = 1_000
    log_every: int = 100
    keep_last: int = 3
    tensorboard: bool = False


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices, `data` x `fsdp` x `tensor` of them.

    Attributes:
        data: copies of the model, each with its share of a batch.
        fsdp: devices that share the parameters of a copy, and its batch. A matrix is put together
            where it is used.
        tensor: devices that share the work of each layer of a decoder on the same examples: heads,
            the inside of the MLPs and the vocabulary. Must divide `model.heads`, `kv_heads`,
            `intermediate` and `vocab`.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides what a run does.

    Attributes:
        task: what is learned.
        model: what learns it.
        optim: the slow weights' optimiser.
        train: length and rhythm.
        mesh: devices.
        data: where data sets are.
        seed: of the weights and of the order of the data.
        start: directory of a Hugging Face checkpoint that the slow weights of a DecoderConfig start
            from, where the run has none of its own yet; None for random ones. In-place layers that
            the checkpoint does not have start fresh.
    """

    task: Retrieval | Glimpses | Faces | Language | HintCorpus | NeedleText
    model: RetrievalModel | GlimpseModel | ConvNetModel | DecoderConfig
    optim: Optim = Optim()
    train: Train = Train()
    mesh: Mesh = Mesh()
    data: Data = Data()
    seed: int = 0
    start: str | None = None


#: a resumed run may differ in these: they change how long and how often, not what is computed;
#: `start` was used before its first checkpoint
FREE_TO_CHANGE = (
    "data.dir",
    "data.manual_dir",
    "start",
    "train.steps",
    "train.eval_every",
    "train.eval_examples",
    "train.checkpoint_every",
    "train.log_every",
    "train.keep_last",
    "train.tensorboard",
)


def check(config: Config) -> None:
    """Check a config before any device or file is touched.

    Raises:
        ConfigError: with every problem found, not only the first.
    """
    task = typing.cast(Task, config.task)
    if not isinstance(config.model, task.model_config):
        kinds = task.model_config if isinstance(task.model_config, tuple) else (task.model_config,)
        names = " or ".join(f"{kind.__name__}(...)" for kind in kinds)
        raise ConfigError(
            f"task {type(task).__name__} needs model = {names}, not {type(config.model).__name__}",
            where="model",
        )
    found = list(task.problems(config.model))
    positive = {
        **{
            f"train.{name}": getattr(config.train, name)
            for name in (
                "steps",
                "batch",
                "eval_every",
                "checkpoint_every",
                "log_every",
                "keep_last",
            )
        },
        "train.eval_examples": 1 if (rows := config.train.eval_examples) is None else rows,
        "mesh.data": config.mesh.data,
        "mesh.fsdp": config.mesh.fsdp,
        "mesh.tensor": config.mesh.tensor,
    }
    found += [f"{k} is {v}; it must be at least 1" for k, v in positive.items() if v < 1]
    devices = config.mesh.data * config.mesh.fsdp
    if devices > 0 and config.train.batch % devices:
        found.append(
            f"train.batch is {config.train.batch}; it must divide evenly over the mesh's "
            f"{config.mesh.data} x {config.mesh.fsdp} devices"
        )
    if isinstance(config.model, DecoderConfig):
        found += [f"model.{text}" for text in mesh_problems(config.model, config.mesh.tensor)]
    elif config.mesh.tensor > 1:
        found.append(
            f"mesh.tensor is {config.mesh.tensor}; it splits the layers of a language model, "
            "model = DecoderConfig(...), and must be 1 for others"
        )
    if config.start is not None and not isinstance(config.model, DecoderConfig):
        found.append(
            f"start is {config.start!r}; only a language model, model = DecoderConfig(...), starts "
            "from a checkpoint"
        )
    found += [f"optim.{text}" for text in config.optim.faults()]
    ttt = getattr(config.model, "ttt", None)
    if config.optim.inner_warmup > 0 and not (ttt and ttt.lr_learned):
        found.append(
            f"optim.inner_warmup is {config.optim.inner_warmup}; it is for in-place layers that "
            "learn their η: ttt.lr_learned True"
        )
    if config.seed < 0:
        found.append(f"seed is {config.seed}; it must not be negative")
    if found:
        raise ConfigError(
            "this config cannot run:" + "".join(f"\n  - {text}" for text in found),
            next="change the values above; `fastweights train CONFIG --help` lists them all",
        )


def to_json(value: Any) -> Any:
    """A config as JSON data; dataclasses carry their class name under "type".

    Raises:
        ConfigError: a value that JSON cannot hold, such as a function.
    """
    if callable(value) and not dataclasses.is_dataclass(value):
        raise ConfigError(
            f"a config cannot hold the function {getattr(value, '__name__', value)!r}",
            cause="config.json holds the values of a run, and a function has none",
            next="define a rule class with plain fields that makes the function, as TTTLinear does",
        )
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def from_json(data: Any, kind: Any = Config, where: str = "config.json") -> Any:
    """The inverse of `to_json`, for the annotated type `kind`; only known classes are ever made.

    Raises:
        ConfigError: a key, class or value that this version does not know.
    """
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    options: Any = typing.get_args(kind) if is_union else (kind,)
    if data is None and type(None) in options:
        return None
    for option in options:
        make: Any = option
        if inspect.isabstract(option) and isinstance(data, dict):
            option = make = _subclass(option, data.get("type"))
        if dataclasses.is_dataclass(option) and isinstance(data, dict):
            if data.get("type") != make.__name__:
                continue
            hints = typing.get_type_hints(option)
            surplus = set(data) - set(hints) - {"type"}
            if surplus:
                raise ConfigError(
                    f"unknown key {sorted(surplus)[0]!r}",
                    where=where,
                    cause="the run was made by another version of fastweights",
                )
            needed = {f.name for f in dataclasses.fields(option) if _has_no_default(f)}
            if missing := sorted(needed - set(data)):
                raise ConfigError(
                    f"there is no key {missing[0]!r}",
                    where=where,
                    cause="the file was edited, or the run was made by another version",
                )
            return make(
                **{
                    k: from_json(v, hints[k], f"{where}:{k}")
                    for k, v in data.items()
                    if k != "type"
                }
            )
        if isinstance(option, type) and issubclass(option, enum.Enum):
            if data not in [member.value for member in option]:
                continue
            return option(data)
        if typing.get_origin(option) is Literal and data in typing.get_args(option):
            return data
        if option in (int, str, bool) and type(data) is option:
            return data
        if option is float and isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
        if typing.get_origin(option) is tuple and isinstance(data, list):
            kinds = typing.get_args(option)
            if kinds[-1] is Ellipsis:  # tuple[kind, ...]
                kinds = len(data) * kinds[:1]
            if len(kinds) != len(data):
                continue
            each = enumerate(zip(kinds, data, strict=True))
            return tuple(from_json(v, kind, f"{where}[{i}]") for i, (kind, v) in each)
    raise ConfigError(
        f"cannot make {getattr(kind, '__name__', kind)} of {str(data)[:80]!r}",
        where=where,
        cause="the file was edited, or the run was made by another version of fastweights",
    )


def _subclass(base: type, name: Any) -> Any:
    """The loaded subclass of that name, such as a rule of the library or of a config file."""
    found = [base]
    for kind in found:  # grows while it is read
        found += kind.__subclasses__()
    return next((kind for kind in reversed(found) if kind.__name__ == name), None)


def _has_no_default(field: Any) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON objects as one level of dotted keys."""
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        key: value
        for name, child in data.items()
        for key, value in flatten(child, f"{prefix}.{name}" if prefix else name).items()
    }


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two configs' JSON, as (old, new); absent is "-"."""
    old, new = flatten(old), flatten(new)
    return {
        key: (old.get(key, "-"), new.get(key, "-"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "-") != new.get(key, "-")
    }
