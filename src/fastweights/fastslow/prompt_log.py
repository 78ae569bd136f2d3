"""The record of a run's evolutions, for people: `prompts.jsonl`."""

import json
from pathlib import Path

from fastweights.fastslow import population as prompts
from fastweights.fastslow.evolution import Event
from fastweights.fastslow.population import Population
from fastweights.train.run_dir import write_text


class PromptLog:
    """Appends to `RUN/prompts.jsonl` a line for each event, and the population when one is kept.

    Args:
        run_dir: the run's directory.
        ticks: where the run starts from; later lines are dropped, they are done again.
    """

    def __init__(self, run_dir: Path, ticks: int):
        path = run_dir / "prompts.jsonl"
        kept = [line for line in read(run_dir) if line["tick"] <= ticks]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, tick: int, cycle: int, event: Event, population: Population) -> None:
        """One event; `tick` is the number of ticks done with it."""
        line = {"tick": tick, "cycle": cycle, **event._asdict()}
        if event.kind == "kept":
            line["population"] = prompts.to_json(population)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def best_prompt(events: list[dict], ticks: int) -> dict[str, str] | None:
    """The best prompt of the last population kept in so many ticks, None before any was."""
    kept = [x for x in events if x["kind"] == "kept" and x["tick"] <= ticks]
    if not kept:
        return None
    return dict(prompts.from_json(kept[-1]["population"]).best().components)


def read(run_dir: Path) -> list[dict]:
    """The lines of a run so far; a last line cut off by a kill is left out."""
    path, lines = run_dir / "prompts.jsonl", []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
