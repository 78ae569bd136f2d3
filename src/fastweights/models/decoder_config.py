"""What a decoder language model is: sizes, rotary embedding, windows, in-place layers, numerics."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax

from fastweights.errors import ConfigError
from fastweights.nn.choices import not_a_choice
from fastweights.nn.in_place_options import InPlaceTTT
from fastweights.nn.memory import MemoryConfig
from fastweights.nn.rope import Rope
from fastweights.rules import Rule

__all__ = [
    "DecoderConfig",
    "InPlaceTTT",
    "Kind",
    "MemoryConfig",
    "Mixer",
    "Rope",
    "check",
    "problems",
]

Dtype = Literal["float32", "bfloat16"]
#: the mixer of a layer: attention, or a memory written and read by an update rule
Mixer = Literal["attention"] | Rule


class Kind(NamedTuple):
    """The differences between layers."""

    mixer: Mixer
    window: int | None  # of attention
    in_place: bool  # whether the MLP learns in place


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A Qwen3 or Llama 3 decoder.

    Attributes:
        family: "qwen3" norms queries and keys, "llama" does not.
        vocab: tokens there are.
        hidden: D, size of the residual stream.
        intermediate: F, size inside the MLPs.
        layers: how many blocks.
        heads: query heads.
        kv_heads: heads of keys and values; divides `heads`.
        head_dim: size of a head; even.
        rope: rotary embedding.
        norm_eps: added to the mean square in every norm.
        tie_embeddings: the head is the embedding used backwards.
        max_length: tokens the model is meant for. No weight depends on it; a state that text is
            read into has room for as many, unless it is told otherwise.
        windows: of each layer, how many tokens a query sees, itself included, None for all; () is
            all for every layer.
        mixers: of the layers, "attention" or an update rule, cycled: with three rules and
            "attention" every fourth layer attends.
        memory: sizes of the layers with an update rule.
        ttt: in-place test-time training, or None for MLPs that do not learn while they read.
        initializer_range: standard deviation of every weight's start.
        dtype: of the computation. Norms, softmax, rotation and logits are float32.
        param_dtype: of the weights.
        remat: what the backward pass computes again: "none"; "block", all but the input of each
            block; "dots", all but products with weights.
        attention: "auto" is cuDNN where it can be, XLA elsewhere.
    """

    family: Literal["qwen3", "llama"]
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope = Rope()
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    max_length: int = 4096
    windows: tuple[int | None, ...] = ()
    mixers: tuple[Mixer, ...] = ("attention",)
    memory: MemoryConfig = MemoryConfig()
    ttt: InPlaceTTT | None = None
    initializer_range: float = 0.02
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: Literal["none", "block", "dots"] = "none"
    attention: Literal["auto", "xla", "cudnn"] = "auto"

    @property
    def ttt_layers(self) -> tuple[int, ...]:
        """Layers that learn in place, in order; those named beyond the last layer do not exist."""
        named = () if self.ttt is None else self.ttt.layers
        return tuple(sorted({i for i in named if i < self.layers}))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of every layer."""
        windows, mixers = self.windows or (None,) * self.layers, self.mixers

        def kind(i: int) -> Kind:
            mixer = mixers[i % len(mixers)]
            # a memory has no window: layers that differ in it alone are of one kind
            return Kind(mixer, windows[i] if mixer == "attention" else None, i in self.ttt_layers)

        return tuple(kind(i) for i in range(self.layers))

    @property
    def period(self) -> int:
        """The smallest p that divides `layers` and after which the kinds of layers repeat.

        One pass of the scan over layers is p blocks.
        """
        kinds = self.kinds
        fits = (p for p in range(1, self.layers) if self.layers % p == 0)
        return next((p for p in fits if kinds == kinds[:p] * (self.layers // p)), self.layers)


def problems(config: DecoderConfig) -> list[str]:
    """Everything that makes a config impossible, a sentence each; [] if it can be built."""
    names = ("vocab", "hidden", "intermediate", "layers", "heads", "kv_heads", "max_length")
    sizes = {name: getattr(config, name) for name in names}
    found = [f"{k} is {v}; it must be at least 1" for k, v in sizes.items() if v < 1]
    if config.heads > 0 and config.kv_heads > 0 and config.heads % config.kv_heads:
        found.append(
            f"kv_heads is {config.kv_heads}; it must divide heads, {config.heads}, so that each "
            "serves as many queries"
        )
    found += not_a_choice(config) + config.rope.problems(config.head_dim)
    if not config.norm_eps >= 0:
        found.append(f"norm_eps is {config.norm_eps}; it must not be negative")
    if not config.initializer_range >= 0:
        found.append(f"initializer_range is {config.initializer_range}; it must not be negative")
    found += _window_problems(config) + _mixer_problems(config)
    return found + ([] if config.ttt is None else _ttt_problems(config, config.ttt))


def _not_a_tuple(name: str, value: object) -> list[str]:
    """A config is the static argument of a jit, so it is hashed, which a list cannot be."""
    kind = type(value).__name__
    return [] if isinstance(value, tuple) else [f"{name} is a {kind}; it must be a tuple"]


def _window_problems(config: DecoderConfig) -> list[str]:
    found = _not_a_tuple("windows", config.windows)
    if found:
        return found
    if config.windows and len(config.windows) != config.layers:
        found.append(
            f"windows has {len(config.windows)} values for {config.layers} layers; give one each, "
            "or () for full attention"
        )
    short = [(i, w) for i, w in enumerate(config.windows) if w is not None and w < 1]
    return found + [
        f"windows[{i}] is {w}; a query sees at least itself, so it must be at least 1, or None"
        for i, w in short
    ]


def _mixer_problems(config: DecoderConfig) -> list[str]:
    found = _not_a_tuple("mixers", config.mixers)
    if found:
        return found
    if not config.mixers:
        return ['mixers is (); name at least one, such as "attention"']
    for i, mixer in enumerate(config.mixers):
        name = f"mixers[{i}] is {mixer!r}"
        if mixer != "attention" and not isinstance(mixer, Rule):
            found.append(f'{name}; it must be "attention" or an update rule')
        elif isinstance(mixer, Rule) and not mixer.slots:
            found.append(f"{name}; the rule declares no slots, so no layer can feed it")
        elif isinstance(mixer, Rule):
            wrong = mixer.problems()
            found += [f"mixers[{i}].{text}" for text in wrong]
            found += [] if wrong else _state_problems(name, mixer, config)
    sizes = dataclasses.asdict(config.memory)
    for name in ("heads", "key_dim", "value_dim", "conv", "chunk"):
        if sizes[name] is not None and sizes[name] < 1:
            found.append(f"memory.{name} is {sizes[name]}; it must be at least 1")
    return found


def _state_problems(name: str, rule: Rule, config: DecoderConfig) -> list[str]:
    """Why a rule has no state of the layer's sizes, or none for a text of unknown length."""
    sizes = (config.memory.key_dim or config.head_dim, config.memory.value_dim or config.head_dim)

    def state() -> Any:
        makers = rule.parameters(*sizes)
        slow: Any = {name: make(jax.random.key(0)) for name, make in makers.items()}
        return rule.init(*sizes, **slow)

    try:
        jax.eval_shape(state)
    except ValueError as error:
        return [f"{name}, with K = {sizes[0]} and V = {sizes[1]}: {error}"]
    return []


def _ttt_problems(config: DecoderConfig, ttt: InPlaceTTT) -> list[str]:
    found = not_a_choice(ttt, "ttt.")
    if ttt.chunk < 1:
        found.append(f"ttt.chunk is {ttt.chunk}; it must be at least 1")
    kind = _not_a_tuple("ttt.layers", ttt.layers)
    if kind:
        found += kind
    elif any(i < 0 for i in ttt.layers):
        found.append(f"ttt.layers is {ttt.layers}; layers are counted from 0")
    elif not config.ttt_layers:
        found.append(
            f"ttt.layers is {ttt.layers}, none of them among the {config.layers} layers there are; "
            "name one, or ttt = None"
        )
    if ttt.clip is not None and not ttt.clip > 0:
        found.append(f"ttt.clip is {ttt.clip}; it must be positive, or None for no clipping")
    is_number = lambda x: isinstance(x, float | int) and not isinstance(x, bool)
    if not (is_number(ttt.decay) and 0 <= ttt.decay <= 1):
        found.append(f"ttt.decay is {ttt.decay!r}; it must be from 0 to 1, and 1 forgets nothing")
    elif ttt.decay_learned and ttt.decay in (0, 1):
        found.append(f"ttt.decay is {ttt.decay}; learned, it must start between 0 and 1")
    if ttt.cap is not None and not (is_number(ttt.cap) and ttt.cap > 0):
        found.append(f"ttt.cap is {ttt.cap!r}; it must be positive, or None for no cap")
    return found


def check(config: DecoderConfig) -> None:
    """Check a config before any weight is made.

    Raises:
        ConfigError: with every problem found, not only the first.
    """
    found = problems(config)
    if found:
        raise ConfigError(
            "this decoder cannot be built:" + "".join(f"\n  - {text}" for text in found),
            where="model",
            next="change the values above",
        )
