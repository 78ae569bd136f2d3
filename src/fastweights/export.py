"""The model of a run as a directory in Hugging Face layout, with its tokenizer and prompts."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np

from fastweights import hf
from fastweights.errors import CheckpointError
from fastweights.fastslow import report
from fastweights.hf.config import read_json
from fastweights.hf.files import directory, refuse_link_out
from fastweights.hf.saving import copy_tokenizer, refuse_to_overwrite
from fastweights.pretrained import is_run, load_run, stop_tokens
from fastweights.tasks import bytes_file
from fastweights.tasks.hint_corpus import HintCorpus
from fastweights.tasks.language import Language
from fastweights.tasks.needle_text import NeedleText
from fastweights.tasks.text_tokens import load_tokenizer
from fastweights.train.config import Config
from fastweights.train.run_dir import load_config, load_json, write_text


def export_run(run_dir: str | Path, path: str | Path, which: str = "best") -> int:
    """Write the model of a run.

    Other keys of config.json are those of the checkpoint that the run started from, if it did. A
    policy of fast-slow training comes with `prompts.json`, its prompts, the best one first.

    Args:
        run_dir: the run.
        path: a directory that does not exist yet, or is empty.
        which: "best" by the validation score, or "last", which a policy always is.

    Returns:
        The step that was written.

    Raises:
        ConfigError: there is no run of a language model with a checkpoint, or a package is missing.
        CheckpointError: the run's checkpoint or the one it started from cannot be read, `path`
            holds something, or cannot be written.
        DataError: the run's tokenizer is not there.
    """
    run_dir, path = Path(run_dir).expanduser(), Path(path).expanduser()
    refuse_to_overwrite(path)
    if report.is_fast_slow(run_dir):
        return export_policy(run_dir, path)
    config, task, model, step = load_run(run_dir, which)
    with tempfile.TemporaryDirectory() as folder:
        lend(config, task, Path(folder))
        hf.save(model, path, like=folder)
    return step


def export_policy(run_dir: Path, path: Path) -> int:
    """`export_run` of fast-slow training; the step is the number of updates."""
    run, at = report.load(run_dir)
    origin = Path(run.config.base).expanduser()
    with tempfile.TemporaryDirectory() as folder:
        if is_run(origin):
            # a policy may itself have started from a policy
            while report.is_fast_slow(origin):
                origin = Path(load_json(origin / "config.json")["base"]).expanduser()
            config = load_config(origin)
            lend(config, cast(Any, config.task), Path(folder))
            origin = Path(folder)
        hf.save(run.policy.model, path, like=origin)
    means, scored = run.population.means, run.population.scores is not None
    members = [
        {
            "prompt": dict(run.population.members[i].components),
            "score": float(means[i]) if scored and np.isfinite(means[i]) else None,
        }
        for i in run.population.order
    ]
    try:
        write_text(path / "prompts.json", json.dumps(members, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"the model is written, its prompts are not: {error.strerror}",
            where=path / "prompts.json",
            cause="the disk is full",
            next="make room, remove the directory, and export again",
        ) from error
    return at.updates + (at.cycle is None)


def lend(config: Config, task: Language | HintCorpus | NeedleText, folder: Path) -> None:
    """Put into a folder what `hf.save` takes from one: other config keys, and tokenizer files."""
    raw, settings = {}, folder / "generation_config.json"
    if isinstance(task, HintCorpus) or task.tokenizer == "bytes":
        bytes_file.write(folder)
    else:
        load_tokenizer(task.tokenizer, task.separator)  # refuses a file that is no tokenizer
        tokenizer = Path(task.tokenizer).expanduser()
        home = tokenizer if tokenizer.is_dir() else tokenizer.parent
        if tokenizer.is_dir() or tokenizer.name == "tokenizer.json":
            copy_tokenizer(home, folder)
        else:
            shutil.copyfile(tokenizer, folder / "tokenizer.json")
    if config.start is not None:
        start = directory(config.start)
        raw = read_json(start / "config.json")
        if (start / settings.name).exists():
            refuse_link_out(start, start / settings.name)
            shutil.copyfile(start / settings.name, settings)
    files = {folder / "config.json": raw}
    if settings.exists():
        files[settings] = read_json(settings)
    stops = stop_tokens(config)
    named = {"eos_token_id": stops[0] if len(stops) == 1 else list(stops)} if stops else {}
    # transformers ends a text by generation_config.json where there is one
    for file, content in files.items():
        file.write_text(json.dumps(content | named, indent=2) + "\n", encoding="utf-8")
