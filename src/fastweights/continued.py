"""A training config that continues a Hugging Face checkpoint with in-place test-time training.

Settings are those of In-Place TTT's continual training (Feng et al. 2026, arXiv 2604.06169), as far
as the paper and its released configs say them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from fastweights import hf
from fastweights.hf.config import read_json
from fastweights.hf.files import directory
from fastweights.nn.in_place_options import InPlaceTTT
from fastweights.pretrained import checkpoint_tokenizer
from fastweights.tasks.language import Language
from fastweights.tasks.text_tokens import load_tokenizer
from fastweights.train.config import Config, Optim, Train, check

#: tokens that stand at the borders of documents, the first that a tokenizer has. Llama's is the one
#: before a text: it is there in all that those models have read.
SEPARATORS = ("<|endoftext|>", "<|begin_of_text|>", "<s>", "<|separator|>")
LENGTH, CHUNK, EVERY = 8192, 1024, 6
WIDTH = 100


def continued(path: str | Path, tokenizer: str | None = None) -> Config:
    """The config, after checking every tensor of the checkpoint by name and shape.

    In-place layers that the checkpoint has are continued as they are.

    Args:
        path: of the checkpoint.
        tokenizer: "bytes", or a `tokenizer.json` or its folder; None is the checkpoint's own.

    Raises:
        ConfigError: a model that we do not build, or a tokenizer with more tokens than it has.
        CheckpointError: no checkpoint, or tensors are missing or do not fit.
        DataError: no tokenizer.
    """
    folder = directory(path).absolute()
    model = hf.inspect(folder)
    if tokenizer is None:
        checkpoint_tokenizer(folder)
        tokenizer = str(folder)
    elif tokenizer != "bytes":
        tokenizer = str(Path(tokenizer).expanduser().absolute())
    known = {} if tokenizer == "bytes" else load_tokenizer(tokenizer).added
    length = min(LENGTH, model.max_length)
    # a row shorter than two chunks would never read what it wrote
    ttt = InPlaceTTT(
        layers=tuple(range(0, model.layers, EVERY)), chunk=max(1, min(CHUNK, length // 4))
    )
    raw = read_json(folder / "config.json")
    halves = raw.get("torch_dtype", raw.get("dtype")) in ("bfloat16", "float16")
    config = Config(
        task=Language(
            length=length,
            tokenizer=tokenizer,
            separator=next((text for text in SEPARATORS if text in known), None),
        ),
        model=dataclasses.replace(
            model,
            ttt=model.ttt or ttt,
            # an update of 5e-6 is lost in bfloat16: only the computation is in it
            dtype="bfloat16" if halves else "float32",
            remat="block",
        ),
        optim=Optim(
            lr=5e-6, schedule="cosine", decay_steps=5_000, warmup=100, clip=1.0, weight_decay=0.1
        ),
        train=Train(steps=5_000, batch=8, eval_every=500, checkpoint_every=500, log_every=10),
        start=str(folder),
    )
    check(config)
    return config


def source(config: Config, file: Path) -> str:
    """The Python file that defines a config of `continued`."""
    assert config.start is not None
    title = Path(config.start).name.replace("\\", "/").replace('"', "'")
    name = file.name.replace("\\", "/").replace('"', "'")
    run = f"runs/{Path(name).stem}"
    header = f'''"""{title}, continued with in-place test-time training.

    fastweights train {name} --data.dir DIR --run-dir {run}
    fastweights export-hf --run-dir {run} NEW_MODEL

DIR holds UTF-8 .txt files, a document each; the last tenth of every file is held out. Optimiser,
layers and chunk are those of the paper (Feng et al. 2026, arXiv 2604.06169); it trained on rows of
up to 65,536 tokens, 64 of them an update. Batch, mesh and length are yours to fit to the machine.
"""
'''
    modules: dict[str, set[str]] = {}
    text = expression(config, modules, indent=0, used=len("config = "))
    imports = [
        f"from {module} import {', '.join(sorted(names))}"
        for module, names in sorted(modules.items())
    ]
    return "\n".join([header, *imports, "", f"config = {text}", ""])


def expression(value: Any, modules: dict[str, set[str]], indent: int, used: int) -> str:
    """Python that makes a value: of dataclasses, the fields that are not as by default.

    Args:
        value: a dataclass or anything with a faithful `repr`.
        modules: gets the classes to import.
        indent: columns that the line it stands in is indented by.
        used: columns before it in that line.
    """
    if not dataclasses.is_dataclass(value):
        # strings as the house writes them, in double quotes
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    modules.setdefault(type(value).__module__, set()).add(type(value).__name__)
    inner = indent + 4
    parts = [
        f"{f.name}={expression(getattr(value, f.name), modules, inner, inner + len(f.name) + 1)}"
        for f in dataclasses.fields(value)
        if f.default is dataclasses.MISSING or getattr(value, f.name) != f.default
    ]
    name = type(value).__name__
    line = f"{name}({', '.join(parts)})"
    if used + len(line) < WIDTH and "\n" not in line:
        return line
    lines = "".join(f"{' ' * inner}{part},\n" for part in parts)
    return f"{name}(\n{lines}{' ' * indent})"
