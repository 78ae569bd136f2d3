"""The remote model that writes a run's prompts: its settings, and what a run keeps of it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastweights.errors import ConfigError
from fastweights.fastslow.reflective import Reflective
from fastweights.fastslow.remote.backoff import Patience
from fastweights.fastslow.remote.endpoint import Endpoint
from fastweights.fastslow.remote.ledger import Ledger, Limits, Prices
from fastweights.fastslow.remote.transcript import Transcript
from fastweights.tasks.prompted import PromptedTask
from fastweights.train.progress import warn

#: every request of a run and its answer, in the run's directory
FILE = "reflection.jsonl"


@dataclasses.dataclass(frozen=True)
class RemoteModel:
    """A chat model on a server that writes prompts, for `proposer="remote"`.

    A run may be gone on with other limits, prices, patience, server and key, and as a replay.

    Attributes:
        base_url: of an OpenAI-compatible server, up to and without `/chat/completions`.
        model: its name there.
        api_key_env: name of the environment variable that holds the key, None for no key.
        max_tokens: the most that an answer may have.
        temperature: of its sampling; None leaves it to the server.
        background: what it is told of the task, such as the language of the prompts.
        show_answers: whether it sees the reference answers; if not, they are cut out of the
            verifier's words too.
        longest: characters that a new text may have.
        repairs: how often it is told what is wrong with a text, and asked again.
        patience: time limits and retries.
        prices: of a million tokens.
        limits: the most that may be used; the run stops, saved, before it would pass one.
        replay: ask nothing, and take every answer from this file, the `reflection.jsonl` of a run
            with the same config: so that others can repeat it without the model, the key or its
            price.
    """

    base_url: str = ""
    model: str = ""
    api_key_env: str | None = None
    max_tokens: int = 4096
    temperature: float | None = 1.0
    background: str = ""
    show_answers: bool = False
    longest: int = 8000
    repairs: int = 1
    patience: Patience = Patience()
    prices: Prices = Prices()
    limits: Limits = Limits()
    replay: str | None = None


def changeable(name: str) -> bool:
    """Whether a field, by its path in a run's config, may be another when the run goes on."""
    first, _, rest = name.partition(".")
    also = ("base_url", "api_key_env", "replay", "patience", "prices", "limits")
    return first == "remote" and rest.split(".")[0] in also


def endpoint(config: RemoteModel, used: Mapping[str, Any]) -> Endpoint:
    """The server that a config names, with a ledger that goes on from `used`; nothing is asked.

    Raises:
        ConfigError: settings that cannot work.
    """
    for name in ("base_url", "model"):
        if not getattr(config, name):
            raise ConfigError(
                f'proposer "remote" needs remote.{name}',
                where=f"remote.{name}",
                next=f"--remote.{name.replace('_', '-')} ...",
            )
    if config.replay is not None and not Path(config.replay).is_file():
        raise ConfigError("there is no transcript to replay", where=config.replay)
    return Endpoint(
        base_url=config.base_url,
        model=config.model,
        api_key_env=None if config.replay else config.api_key_env,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        patience=config.patience,
        ledger=Ledger.from_json(used, config.prices, config.limits),
    )


class Reflection:
    """The remote model of a run, with its ledger and its transcript.

    Args:
        config: which model.
        directory: of the run.
        state: what `to_json` gave, None at the start.

    Raises:
        ConfigError: settings that cannot work.
        DataError: the transcript is damaged, or of another run.
    """

    def __init__(
        self, config: RemoteModel, directory: Path, state: Mapping[str, Any] | None = None
    ):
        state = state or {"position": 0, "used": {}}
        self.config = config
        server = endpoint(config, state["used"])
        assert server.ledger is not None
        self.ledger = server.ledger
        self.transcript = Transcript(
            Path(config.replay) if config.replay else directory / FILE,
            None if config.replay else server,
            settings=server.settings,
            position=state["position"],
            mode="replay" if config.replay else "record",
            ledger=self.ledger,
            report=warn,
        )

    def proposer(self, task: PromptedTask) -> Reflective:
        """What proposes prompts of a task."""
        return Reflective(
            self.transcript,
            model=self.config.model,
            show_answers=self.config.show_answers,
            longest=self.config.longest,
            repairs=self.config.repairs,
            problems=task.prompt_problems,
            background=self.config.background,
        )

    def to_json(self) -> dict[str, Any]:
        """The state, as JSON data: answers used, and what they cost."""
        return {"position": self.transcript.position, "used": self.ledger.to_json()}

    def broken_off(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """A state from before a request that has no line, with what that request has used."""
        state = state or {"position": 0, "used": {}}
        used = Ledger.from_json(state["used"]).total + self.transcript.unrecorded
        return {"position": state["position"], "used": dataclasses.asdict(used)}

    def measures(self) -> dict[str, float]:
        """What has been used, for the metrics."""
        used = self.ledger.total
        return {
            "reflection_calls": used.calls,
            "reflection_failed": used.failed,
            "reflection_tokens": used.tokens,
            "reflection_cost": self.ledger.cost,
        }
