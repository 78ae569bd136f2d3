"""The logits of transformers in float32 and in float64, from one copy of the weights."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastweights.errors import ConfigError, install_extra


class Read(NamedTuple):
    """Outputs of a model for tokens `[B, T]`."""

    logits: np.ndarray  # [B, T, vocab]
    layers: list[np.ndarray]  # [B, T, D] after every layer, the last after the final norm


def read(folder: Path, tokens: np.ndarray) -> tuple[Read, Read]:
    """Outputs of transformers in float32 and in float64.

    The weights are float32. The float64 pass converts one module at a time and back, so at most one
    module is in memory in float64.

    Args:
        folder: a directory in Hugging Face layout.
        tokens: `[B, T]` int.

    Raises:
        ConfigError: torch or transformers is not installed.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"a comparison with transformers needs {error.name}",
            where="parity",
            next=install_extra("parity"),
        ) from None
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        use_safetensors=True,
    ).eval()

    def once() -> Read:
        with torch.no_grad():
            out = model(torch.tensor(tokens), output_hidden_states=True, use_cache=False)
        return Read(out.logits.numpy(), [x.numpy() for x in out.hidden_states[1:]])

    narrow = once()
    with _widened(model):
        wide = once()
    assert wide.logits.dtype == np.float64
    return narrow, wide


@contextlib.contextmanager
def _widened(model: Any) -> Iterator[None]:
    """In this context the model computes in float64.

    The norms, the softmax and the rotary embedding of transformers cast to float32 by name. The
    mode replaces these casts with casts to float64, except of parameters, which the hooks convert
    one module at a time.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch.overrides import TorchFunctionMode  # pyright: ignore[reportMissingImports]

    class Widening(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            kwargs = kwargs or {}
            if args and isinstance(args[0], torch.nn.Parameter):
                return func(*args, **kwargs)
            wide = lambda x: torch.float64 if x is torch.float32 else x
            func = torch.Tensor.double if func is torch.Tensor.float else func
            return func(*map(wide, args), **{name: wide(x) for name, x in kwargs.items()})

    def widen(module: Any, arguments: Any) -> None:
        module.double()

    def narrow(module: Any, arguments: Any, out: Any) -> None:
        module.float()

    hooks = []
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(narrow))
    try:
        with Widening():
            yield
    finally:
        for hook in hooks:
            hook.remove()
