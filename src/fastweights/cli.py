"""The command line: `fastweights VERB ...`; the verbs of language models are in `cli_models`.

Nothing heavy is imported before the verb is known, so that help is quick. A mistake of the user
ends in a short message on standard error and the exit code of its kind; see `errors`.
"""

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastweights.cli_parse import parse
from fastweights.config_file import load_config
from fastweights.errors import ConfigError, FastWeightsError, NumericalError, nearest

USAGE = """\
usage: fastweights VERB ...

  train CONFIG [--section.field value ...] --run-dir DIR
                            train, or go on with the run in DIR (train CONFIG --help: fields);
                            --arm NAME: a control of fast-slow training instead of the method;
                            --distributed: one of several processes that train together
  eval --run-dir DIR        scores of a run's best checkpoint on the test split
  eval --task needles --model PATH
                            a language model asked for facts hidden in long texts: recall by
                            kind, by length in tokens, by depth
  ckpt ls|verify DIR        the checkpoints of a run; whether every byte is still what was saved
  demo [--task catch|fast-slow]
                            a net with fast weights beside one without, in about a minute;
                            or train a player of Catch and watch it; or watch prompts evolve
                            while reinforcement learning moves the weights
  generate --model PATH [--prompt TEXT | --prompt-file FILE]
                            continue a text, of standard input by default; PATH is a run or a
                            Hugging Face checkpoint of a language model
  chat --model PATH         talk to it; it learns from what it reads if it is an in-place model
  import-hf PATH OUT.py     write the config that continues a checkpoint with test-time training
  export-hf --run-dir DIR OUT
                            the model of a run as a Hugging Face checkpoint
  parity PATH               a Hugging Face checkpoint here and in transformers: are the logits
                            the same up to rounding?
  env [--json]              versions and devices, for a bug report
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 ok, 2 config or usage, 3 data, 4 checkpoint, 5 numerical, 75 preempted and saved.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb in WITHOUT_PARSER and rest[:1] in (["-h"], ["--help"]):
        print(usage_of(verb))
        return 0
    try:
        if verb not in VERBS:
            raise ConfigError(
                f"no such verb: {verb!r}{nearest(verb, VERBS)}", next="fastweights --help"
            )
        VERBS[verb](rest)
        sys.stdout.flush()
    except FastWeightsError as error:
        # what read it may have ended; the code says it too
        with contextlib.suppress(BrokenPipeError):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # what read standard output has ended, as in `| head`; the buffer must not raise at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def usage_of(verb: str) -> str:
    """What `USAGE` says of one verb."""
    lines = USAGE.splitlines()
    first = next(i for i, text in enumerate(lines) if text.startswith(f"  {verb} "))
    more = itertools.takewhile(lambda text: text.startswith("   "), lines[first + 1 :])
    return "\n".join([f"usage: fastweights {lines[first].strip()}", *more])


def train(arguments: list[str]) -> None:
    """`train CONFIG [--section.field value ...] --run-dir DIR`."""
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(
            "which config?", next="fastweights train configs/retrieval.py --run-dir runs/retrieval"
        )
    if "--distributed" in arguments:
        from fastweights.train import processes

        arguments = [word for word in arguments if word != "--distributed"]
        processes.join()
    config = load_config(arguments[0])
    from fastweights.train.sweep import Sweep, SweepArguments, run_sweep
    from fastweights.train.sweep_table import markdown

    if isinstance(config, Sweep):
        prog = f"fastweights train {arguments[0]}"
        record = run_sweep(config, parse(SweepArguments, arguments[1:], prog))
        print(markdown(record))
        return
    from typing import Annotated

    import tyro

    from fastweights.fastslow.config import FastSlow, arm
    from fastweights.train import train as train_network
    from fastweights.train.agent import AgentConfig, train_agent

    kind: Any = type(config)
    start: Any = train_agent if kind is AgentConfig else train_network
    if kind is FastSlow:
        from fastweights.fastslow.loop import train_fast_slow as start

    flag = tyro.conf.arg
    fields = [
        ("config", Annotated[kind, flag(name="")]),
        ("run_dir", Annotated[Path, flag(help="directory of the run; made, or gone on with")]),
        ("quiet", Annotated[bool, flag(help="show no progress")], False),
    ]
    Arguments: Any = dataclasses.make_dataclass("Arguments", fields, frozen=True)
    config, rest = switch_off(config, arguments[1:])
    if kind is FastSlow:
        # the arm is applied first, so that flags can change what it sets
        name, rest = taken_out(rest, "--arm", "fst")
        config = arm(config, name)
    default = Arguments(config, tyro.MISSING)
    given = parse(Arguments, rest, f"fastweights train {arguments[0]}", default)
    result = start(given.config, given.run_dir, quiet=given.quiet)
    from fastweights.train.processes import is_first

    if is_first():
        print(json.dumps({"run_dir": str(result.run_dir), **final_scores(result.history)}))


def taken_out(arguments: list[str], flag: str, default: str) -> tuple[str, list[str]]:
    """The value of a flag, and the arguments without it; `--flag value` or `--flag=value`."""
    rest, value = [], default
    words = iter(arguments)
    for word in words:
        if word == flag:
            value = next(words, "")
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
        else:
            rest.append(word)
    return value, rest


def switch_off(config: Any, arguments: list[str]) -> tuple[Any, list[str]]:
    """Set to None what `--section.part None` names, where a part has fields of its own.

    tyro shows the fields of such a part and has no flag for the part as a whole.
    """
    rest = list(arguments)
    for flag, word in zip(arguments, arguments[1:], strict=False):
        path = flag.removeprefix("--").replace("-", "_").split(".")
        if word == "None" and len(path) == 2:
            section: Any = getattr(config, path[0], None)
            if dataclasses.is_dataclass(getattr(section, path[1], None)):
                where = rest.index(flag)
                del rest[where : where + 2]
                section = dataclasses.replace(section, **{path[1]: None})
                changed: Any = dataclasses.replace(config, **{path[0]: section})
                config = changed
    return config, rest


def final_scores(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The last validation scores of a run."""
    scored = [line for line in history if any(k.startswith("validation/") for k in line)]
    return scored[-1] if scored else {}


@dataclasses.dataclass(frozen=True)
class EvalArguments:
    """Scores of a run's checkpoint, as one JSON object.

    With --task needles a language model is asked for facts hidden in long texts; its own flags:
    fastweights eval --task needles --help

    Attributes:
        run_dir: directory of the run.
        split: train, validation or test.
        which: best (by the validation score of the task) or last.
    """

    run_dir: Path
    split: str = "test"
    which: str = "best"


def evaluate(arguments: list[str]) -> None:
    """`eval --run-dir DIR [--split test] [--which best]`, or `eval --task needles`."""
    name, arguments = taken_out(arguments, "--task", "")
    if name == "needles":
        importlib.import_module("fastweights.cli_models").needles(arguments)
        return
    if name:
        raise ConfigError(
            f"no evaluation is named {name!r}{nearest(name, ['needles'])}",
            next="--task needles; without --task, a run's own scores",
        )
    given = parse(EvalArguments, arguments, "fastweights eval")
    for name, known in (("split", ("train", "validation", "test")), ("which", ("best", "last"))):
        value = getattr(given, name)
        if value not in known:
            raise ConfigError(
                f"--{name} is one of {', '.join(known)}, not {value!r}{nearest(value, known)}"
            )
    from fastweights.fastslow.report import evaluate_fast_slow, is_fast_slow
    from fastweights.train import evaluate_run
    from fastweights.train.agent import evaluate_agent, is_agent

    if is_fast_slow(given.run_dir):
        scores = evaluate_fast_slow(given.run_dir, given.split)
    elif is_agent(given.run_dir):
        scores = evaluate_agent(given.run_dir, given.which)
    else:
        scores = evaluate_run(given.run_dir, given.split, given.which)
    print(json.dumps(scores))


def ckpt(arguments: list[str]) -> None:
    """`ckpt ls DIR` and `ckpt verify DIR`."""
    if len(arguments) != 2 or arguments[0] not in ("ls", "verify"):
        raise ConfigError(
            "ckpt takes ls or verify, and the directory of a run", next="fastweights ckpt ls DIR"
        )
    from fastweights.train.inspect import list_checkpoints, verify_checkpoints

    actions = {"ls": list_checkpoints, "verify": verify_checkpoints}
    actions[arguments[0]](Path(arguments[1]))


def demo(arguments: list[str]) -> None:
    """`demo [--task NAME]`: see `fastweights.demo` and the modules beside it."""
    from fastweights import cli_args

    demos = {
        "retrieval": ("fastweights.demo", cli_args.RetrievalDemo),
        "catch": ("fastweights.demo_catch", cli_args.CatchDemo),
        "fast-slow": ("fastweights.demo_fast_slow", cli_args.FastSlowDemo),
    }
    name, rest = taken_out(arguments, "--task", "retrieval")
    if name not in demos:
        raise ConfigError(
            f"no demo of {name!r}{nearest(name, demos)}",
            next=f"fastweights demo --task {' or '.join(demos)}",
        )
    module, kind = demos[name]
    given = parse(kind, rest, f"fastweights demo --task {name}")
    importlib.import_module(module).main(given)


def parity(arguments: list[str]) -> None:
    """`parity PATH`: see `fastweights.hf.parity`."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ConfigError(
            "parity takes the directory of a checkpoint", next="fastweights parity PATH"
        )
    from fastweights.hf.parity import parity as compare

    report = compare(arguments[0])
    print(report)
    if not report.ok:
        raise NumericalError(
            "the logits differ by more than float32 rounding explains", where=arguments[0]
        )


def env(arguments: list[str]) -> None:
    """`env [--json]`: versions and devices."""
    if arguments not in ([], ["--json"]):
        raise ConfigError("env takes nothing but --json", next="fastweights env")
    from fastweights.train.run_dir import versions

    found = versions()
    if arguments:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name}: {value}" for name, value in found.items()))


def of_models(name: str, kind: str) -> Callable[[list[str]], None]:
    """A verb of `fastweights.cli_models`, with its arguments in `fastweights.cli_args`."""

    def verb(arguments: list[str]) -> None:
        from fastweights import cli_args

        given = parse(getattr(cli_args, kind), arguments, f"fastweights {name}")
        models = importlib.import_module("fastweights.cli_models")
        getattr(models, name.replace("-", "_"))(given)

    return verb


VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "ckpt": ckpt,
    "demo": demo,
    "generate": of_models("generate", "GenerateArguments"),
    "chat": of_models("chat", "ChatArguments"),
    "import-hf": of_models("import-hf", "ImportArguments"),
    "export-hf": of_models("export-hf", "ExportArguments"),
    "parity": parity,
    "env": env,
}
#: verbs that take their arguments apart themselves; `train` leaves those after CONFIG to the parser
WITHOUT_PARSER = ("train", "ckpt", "parity", "env")


if __name__ == "__main__":
    sys.exit(main())
