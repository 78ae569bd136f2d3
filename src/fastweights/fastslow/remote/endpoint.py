"""A model behind an OpenAI-compatible server (`/chat/completions`), as `prompt -> text`.

That is the shape of GEPA's `reflection_lm`, and of what our reflective proposer calls.
"""

import json
import os
import random
import ssl
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastweights.errors import ConfigError, FastWeightsError
from fastweights.fastslow.propose import ProposalError
from fastweights.fastslow.remote.backoff import Patience
from fastweights.fastslow.remote.completion import NOTHING_READ, Trouble, read
from fastweights.fastslow.remote.http_post import Lost, post
from fastweights.fastslow.remote.ledger import Ledger, Usage

#: characters of a server's message that are shown
LONGEST_MESSAGE = 300
#: tokens that a server may put around a conversation
TEMPLATE = 256


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A chat model on a server.

    Attributes:
        base_url: of the server, up to and without `/chat/completions`.
        model: its name there.
        api_key_env: name of the environment variable that holds the key; None sends no key. The
            key itself is read for each request and kept nowhere.
        max_tokens: the most that an answer may have.
        temperature: of sampling; None leaves it to the server.
        extra: more fields of the request.
        length_field: name of the field for `max_tokens`; some newer models want
            `max_completion_tokens`.
        patience: time limits and retries.
        ledger: counts every request, and refuses those that could pass its limits.
        sleep: waits for some seconds.
        clock: gives seconds.
        jitter: gives a number from 0 to 1.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    max_tokens: int = 4096
    temperature: float | None = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    length_field: str = "max_tokens"
    patience: Patience = Patience()
    ledger: Ledger | None = None
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def __post_init__(self):
        try:
            parts = urllib.parse.urlsplit(self.base_url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        plain = self.base_url.isascii() and self.base_url.isprintable() and " " not in self.base_url
        if not good or not plain:
            raise ConfigError("base_url is no http or https address", where="base_url")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "base_url has a user, a query or a fragment in it, which may be a secret",
                where="base_url",
                next="the address alone; name the variable that holds the key in api_key_env",
            )
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}", where="max_tokens")
        if own := {"messages", "model", "temperature", "stream", self.length_field} & {*self.extra}:
            raise ConfigError(f"extra sets {sorted(own)}, which are not extra", where="extra")
        self._key()

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.base_url.rstrip("/") + "/chat/completions"

    @property
    def settings(self) -> dict[str, Any]:
        """All of a request but its messages; no key is among it."""
        temperature = {} if self.temperature is None else {"temperature": self.temperature}
        length = {self.length_field: self.max_tokens}
        return {"model": self.model, **length, **temperature, **self.extra}

    def __call__(self, prompt: str | list[dict[str, Any]]) -> str:
        """The model's answer, after as many tries as `patience` allows.

        Args:
            prompt: of the user, or a whole conversation.

        Raises:
            ProposalError: no whole answer could be had.
            BudgetError: the ledger's limits do not allow another request.
            ConfigError: the server will refuse every request: a wrong key or address.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        body = json.dumps({"messages": messages, **self.settings}).encode()
        # every token has a byte at least, so that no prompt has more tokens than this
        longest = len(body) + TEMPLATE
        most = Usage(calls=1, prompt_tokens=longest, completion_tokens=self.max_tokens)
        patience, kinds = self.patience, ("never", "no", "wait", "paid")
        retries = dict(zip(kinds, (0, 0, patience.retries, patience.garbage_retries), strict=True))
        tried = dict.fromkeys(kinds, 0)
        while True:
            if self.ledger:
                self.ledger.check(most)
            try:
                text, used = self._once(body, most)
            except Trouble as trouble:
                text, used, kind, failure = None, trouble.used, trouble.retry, trouble
            if self.ledger:
                self.ledger.add(used)
            if text is not None:
                return text
            if tried[kind] == retries[kind]:
                raise self._gives_up(failure, sum(tried.values()) + 1)
            self.sleep(patience.wait(sum(tried.values()), self.jitter(), failure.at_least))
            tried[kind] += 1

    def _once(self, body: bytes, most: Usage) -> tuple[str, Usage]:
        key, patience = self._key(), self.patience
        headers = {"Content-Type": "application/json", "User-Agent": "fastweights"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            times = {"timeout": patience.timeout, "limit": patience.limit, "clock": self.clock}
            return read(post(self.url, body, headers, **times), most)
        except Trouble as trouble:
            # a server may quote the key it does not like
            trouble.what = _short(trouble.what.replace(key, "[key]") if key else trouble.what)
            raise
        except ssl.SSLCertVerificationError as error:
            cause = "it is not the server it says it is, or this machine lacks its authority"
            raise Trouble(f"the certificate is not valid: {error.reason}", cause, "never") from None
        except OSError as error:
            raise self._no_answer(error, key, NOTHING_READ) from None
        except Lost as lost:
            # what has been served, or is being, is paid for: the most that it can have used
            used = most + Usage(failed=1, unmetered=1)
            raise self._no_answer(lost.__cause__, key, used) from None

    def _no_answer(self, error: BaseException | None, key: str | None, used: Usage) -> Trouble:
        if isinstance(error, TimeoutError):
            times = f"{self.patience.timeout:g} s of silence, or {self.patience.limit:g} s in all"
            cause = "a slow or busy server; thinking takes longer than patience allows"
            return Trouble(f"no answer within {times}", cause, "wait", used)
        said = f"{type(error).__name__}: {error}"
        what = "no connection, or a broken one: " + _short(
            said.replace(key, "[key]") if key else said
        )
        return Trouble(what, "the server is not running, or not there", "wait", used)

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        # http.client would show a key with a line break in it
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"the environment variable {self.api_key_env} holds no key",
                where="api_key_env",
                cause="it has several lines or unusual letters" if key else "it is not set",
                next=f"export {self.api_key_env}=...",
            )
        return key

    def _gives_up(self, trouble: Trouble, tries: int) -> ProposalError | ConfigError:
        kind = ConfigError if trouble.retry == "never" else FastWeightsError
        error = kind(
            f"{self.model} gave no answer after {tries} {'try' if tries == 1 else 'tries'}: "
            f"{trouble.what}",
            where=self.url,
            cause=trouble.cause,
            next={
                "never": "mend the endpoint's address or key, then start the run again",
                "no": "see what it says: the model's name, max_tokens, a prompt too long for it",
                "wait": "see whether the server is up; more patience.retries if it will be",
                "paid": "more max_tokens, or another model",
            }[trouble.retry],
        )
        return error if isinstance(error, ConfigError) else ProposalError(str(error))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "…"
