"""`fastweights demo`: one net with fast weights beside the same net without, on retrieval.

K = 4 pairs as in Ba et al. 2016. H = 100 units, starting weights of unit variance, λ = 1 and
η = 0.1 are ours: they learn within a minute with every seed tried, where the paper's λ = 0.9 and
η = 0.5 can stay on a plateau at 40 % error. The paper's setting is `configs/retrieval.py`.
"""

import importlib
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from fastweights.cli_args import RetrievalDemo
from fastweights.errors import ConfigError, install_extra
from fastweights.models.retrieval import RetrievalModel
from fastweights.rules import Hebbian
from fastweights.tasks.retrieval import Retrieval
from fastweights.tasks.retrieval_strings import decode, encode
from fastweights.train import Config, Data, Optim, Result, Train, evaluate_run, train
from fastweights.train.run_dir import open_run

ARMS = {"fast weights": 0.1, "without (η = 0)": 0.0}
EXAMPLES = ("c9k8j3f1??c", "j0a5s5z2??a", "q7x2m4b6??b")
SYMBOLS_DRAWN = "c9k8j3f1??k"


def arm_config(arguments: RetrievalDemo, lr: float) -> Config:
    """The config of one net; the two differ in the fast learning rate η and nothing else."""
    every = max(1, arguments.updates // 15)
    horizon = max(arguments.updates, 101)  # longer than the warmup, however short the demo
    return Config(
        task=Retrieval(pairs=4),
        model=RetrievalModel(hidden=100, start="unit", rule=Hebbian(decay=1.0, lr=lr)),
        optim=Optim(lr=2e-3, schedule="cosine", decay_steps=horizon, warmup=100),
        train=Train(
            steps=arguments.updates,
            eval_every=every,
            checkpoint_every=max(every, arguments.updates // 5),
            log_every=every,
        ),
        data=Data(dir=str(arguments.out / "data")),
        seed=arguments.seed,
    )


def main(arguments: RetrievalDemo) -> None:
    """Run the demo."""
    require_matplotlib()
    say = Console(highlight=False).print
    task, begun = Retrieval(pairs=4), time.monotonic()
    say(
        "Associative retrieval: read four letter-digit pairs, then name the digit of one letter.\n"
        f'  "{EXAMPLES[0]}" -> 9\n'
        f"A net that knows only which digits were there is wrong {task.chance:.2%} of the time.\n"
        f"Two nets of 100 units, {arguments.updates} updates each; one may write fast weights.",
        soft_wrap=True,
    )
    folders = {lr: arguments.out / ("with" if lr else "without") for lr in ARMS.values()}
    for lr, folder in folders.items():
        check_folder(folder, arm_config(arguments, lr))
    results, errors = {}, {}
    for number, (name, lr) in enumerate(ARMS.items(), 1):
        say(f"\n[bold]{number}. {name}[/bold]")
        results[name] = train(arm_config(arguments, lr), folders[lr])
        errors[name] = evaluate_run(folders[lr], which="last")["error"]
    say()
    say(summary(results, errors, task.chance))
    picture = arguments.out / "fast_weights.png"
    draw(results, task.chance, picture)
    say(f"picture: {picture}   ({time.monotonic() - begun:.0f} s in all)", soft_wrap=True)


def summary(results: dict[str, Result], errors: dict[str, float], chance: float) -> Table:
    """What each net answers to a few strings, and its error on the 20,000 test strings."""
    table = Table("net", *EXAMPLES, "test error")
    tokens = jnp.asarray(np.stack([encode(text) for text in EXAMPLES]), jnp.int32)
    for name, result in results.items():
        digits = np.argmax(np.asarray(result.state.model(tokens)), -1)
        table.add_row(name, *(str(d) for d in digits), f"{errors[name]:.2%}")
    right = [text[text.index(text[-1]) + 1] for text in EXAMPLES]
    table.add_row("chance: digits known, places not", *["?"] * len(EXAMPLES), f"{chance:.2%}")
    table.add_row("right answer", *right, "")
    return table


def draw(results: dict[str, Result], chance: float, file: Path) -> None:
    """Learning curves above, below the fast-weight matrix of one string, token by token."""
    from matplotlib.figure import Figure

    from fastweights import plot

    figure = Figure(figsize=(13, 7), layout="constrained")
    top, bottom = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=(1.5, 1))))
    plot.learning_curves(top.add_subplot(), curves(results), chance)
    trained = next(iter(results.values())).state.model
    tokens = jnp.asarray(encode(SYMBOLS_DRAWN), jnp.int32)
    symbols = list(decode(np.asarray(tokens)))
    plot.fast_weights(trained.cell.rule, trained.activities(tokens), symbols, figure=bottom)
    figure.savefig(file, dpi=120)


def curves(results: dict[str, Result]) -> dict[str, list[tuple[int, Any]]]:
    """Validation error of each run at each evaluation."""
    key = "validation/error"
    return {
        name: [(line["step"], line[key]) for line in result.history if key in line]
        for name, result in results.items()
    }


def check_folder(folder: Path, config: Config) -> None:
    """Say so before training, in the words of the demo, if a folder holds another demo.

    Raises:
        ConfigError: it does.
        CheckpointError: it cannot be made.
    """
    try:
        open_run(folder, config)
    except ConfigError as error:
        error.next = "another --out, or the --updates and --seed of the demo that is there"
        raise


def require_matplotlib() -> None:
    """Say so before training, not after it, if the picture cannot be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ConfigError(
            "the demo draws a picture and matplotlib is not installed",
            next=install_extra("plot"),
        ) from error
