"""`fastweights demo --task fast-slow`: prompts evolve while RL moves the weights."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

from fastweights.cli_args import FastSlowDemo
from fastweights.errors import ConfigError, install_extra, nearest_folder
from fastweights.fastslow.base_model import base_config
from fastweights.fastslow.config import FastSlow, arm
from fastweights.fastslow.edits import Inductive
from fastweights.fastslow.loop import shown, train_fast_slow
from fastweights.fastslow.prompt_log import best_prompt
from fastweights.fastslow.prompt_log import read as read_prompts
from fastweights.tasks.programs import Programs
from fastweights.train import train

ARMS = {"fast-slow": "fst", "RL only": "rl"}


def agree_to_train(arguments: FastSlowDemo) -> None:
    """Ask before a base model is trained in a directory that the user has named.

    Raises:
        ConfigError: no terminal to ask on, or the answer is not yes.
    """
    base = arguments.base
    if (base / "config.json").exists() or base == FastSlowDemo.base or arguments.train_base:
        return
    missing = f"there is no base model in {base}{nearest_folder(base)}"
    question = f"T{missing[1:]}. Train one there, 11 minutes on two cores? [y/N] "
    if sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes"):
        return
    raise ConfigError(
        missing,
        where="--base",
        next=f"the directory of one, or --train-base to train it in {base}",
    )


def main(arguments: FastSlowDemo) -> None:
    """Run the demo."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the picture needs matplotlib", next=install_extra("plot"))
    agree_to_train(arguments)
    print(
        "A number is rewritten by a hidden rule, which depends on its first digit. A prompt can\n"
        "spell the rule out in a language that the base model knows. `fast-slow` evolves prompts\n"
        "between updates of the weights; `RL only` has the empty prompt for ever.\n"
    )
    if not (arguments.base / "config.json").exists():
        print(f"No base model in {arguments.base}: training it, once.")
    train(base_config(), arguments.base)
    found = {}
    for name, kind in ARMS.items():
        print(f"\n{name}:")
        config = FastSlow(
            task=Programs(),
            base=str(arguments.base),
            optim=dataclasses.replace(FastSlow.optim, lr=arguments.lr),
            train=dataclasses.replace(FastSlow.train, steps=arguments.updates),
            seed=arguments.seed,
        )
        folder = arguments.run_dir / kind
        found[name] = train_fast_slow(arm(config, kind), folder).history
    print("\n" + side_by_side(found, read_prompts(arguments.run_dir / "fst")))
    draw(found, arguments.out)
    print(f"\npicture: {arguments.out}")


def evaluations(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a run that have an evaluation."""
    return [line for line in history if "validation/accuracy_own" in line]


def side_by_side(found: dict[str, list[dict[str, Any]]], events: list[dict[str, Any]]) -> str:
    """Both runs by updates, with the best prompt at each evaluation."""
    fast, slow = (evaluations(found[name]) for name in ARMS)
    lines = [f"{'updates':>7s}  {'fast-slow':^28s}  {'RL only':^28s}  best prompt"]
    lines.append(f"{'':7s}  {'rollouts  accuracy      KL':28s}  {'rollouts  accuracy      KL':28s}")

    def cells(line: dict[str, Any]) -> str:
        used = line["rollouts_slow"] + line["rollouts_fast"]
        accuracy = 100 * line["validation/accuracy_own"]
        return f"{used:8,d}  {accuracy:6.1f} %  {line['validation/kl_sequence_own']:6.2f}  "

    for a, b in zip(fast, slow, strict=True):
        prompt = shown(best_prompt(events, a["step"]) or {})
        lines.append(f"{a['updates']:7d}  {cells(a):28s}  {cells(b):28s}  {prompt}")
    return "\n".join(lines)


def draw(found: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Accuracy against rollouts, and the plane of divergence and accuracy."""
    from fastweights import plot

    curves = {
        name: [
            (
                line["rollouts_slow"] + line["rollouts_fast"],
                line["validation/accuracy_own"],
                line["validation/kl_sequence_own"],
            )
            for line in evaluations(history)
        ]
        for name, history in found.items()
    }
    figure = plot.fast_slow(curves, f"prompts by {Inductive.description}")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
