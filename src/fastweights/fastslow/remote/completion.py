"""Reading what a chat-completions server answered: a whole text, or what is wrong with it."""

import json
from typing import Any, Literal

from fastweights.fastslow.remote.backoff import retry_after
from fastweights.fastslow.remote.http_post import Reply
from fastweights.fastslow.remote.ledger import Usage

#: statuses below 500 that may be different in a moment; those from 500 on all may
PASSING = (408, 409, 429)
#: statuses that no request with this key and address will not get
REFUSED = (401, 402, 403, 404, 405)
#: reasons that servers give for an end which is not the end of the answer
BROKEN_OFF = (
    "length max_tokens model_length content_filter tool_calls function_call abort error".split()
)
#: a request that the server did not serve; whether it costs anything is not known
NOTHING_READ = Usage(calls=1, failed=1)
_CAUSES = {
    400: "the server does not take the model or a setting, or the prompt is too long for it",
    401: "the key is missing, wrong or withdrawn",
    402: "the account has no credit",
    403: "the key may not use this model",
    404: "the server has no such model, or base_url is wrong: it often ends in /v1",
    405: "base_url is wrong: it often ends in /v1",
    429: "too many requests, or the quota of the account is spent",
}


class Trouble(Exception):
    """A request that gave no usable answer.

    Args:
        what: in words.
        cause: the likely one.
        retry: whether asking again may help: never, with whatever request; no, not with this one;
            after a wait; or yes, but it costs as much again.
        used: what it used all the same.
        at_least: seconds that the server asks to wait.
    """

    def __init__(
        self,
        what: str,
        cause: str,
        retry: Literal["never", "no", "wait", "paid"],
        used: Usage = NOTHING_READ,
        at_least: float | None = None,
    ):
        super().__init__(what)
        self.what, self.cause, self.retry = what, cause, retry
        self.used, self.at_least = used, at_least


def read(reply: Reply, most: Usage) -> tuple[str, Usage]:
    """The text of an answer and what it used.

    Args:
        reply: of the server.
        most: the most that the request can have used, counted where the server does not say.

    Raises:
        Trouble: there is no whole text in it.
    """
    try:
        data = json.loads(reply.body)
    except (ValueError, RecursionError):
        data = None
    status = reply.status
    if status != 200:
        said = _said(data) or reply.body.decode(errors="replace").strip()
        what = f"the server answered with status {status}" + (f": {said}" if said else "")
        cause = _CAUSES.get(status, "see its message; its log may say more")
        retry = "wait" if status in PASSING or status >= 500 else "no"
        if status in REFUSED:
            retry = "never"
        elif 300 <= status < 400:
            what = f"the server sends us elsewhere, to {reply.headers.get('Location')}"
            cause, retry = "base_url is another", "never"
        at_least = retry_after(reply.headers.get("Retry-After"))
        raise Trouble(what, cause, retry, at_least=at_least)

    used = _used(data, most)
    failed = used + Usage(failed=1)
    choice = _get(_get(data, "choices"), 0)
    text, reason = _get(_get(choice, "message"), "content"), _get(choice, "finish_reason")
    if data is None:
        what, cause = "the answer is not JSON", "base_url is no API, or something stands between"
    elif choice is None:
        said = _said(data)
        what = "the answer has no choices" + (f": {said}" if said else "")
        cause = "base_url is no chat-completions API, or the server failed in the middle"
    elif reason in BROKEN_OFF:
        what = f"the answer is not whole: it ended because of {reason!r}"
        cause = f"the model wrote more than the {most.completion_tokens} tokens of max_tokens"
        if reason not in ("length", "max_tokens", "model_length"):
            cause = "the server's filter, or a tool that the model wanted to call"
    elif not isinstance(text, str) or not text.strip():
        what = "the answer has no text in it"
        cause = "the model spent all of max_tokens on thinking, or its chat template is wrong"
    else:
        return text, used
    raise Trouble(what, cause, "paid", failed)


def _get(data: Any, key: str | int) -> Any:
    try:
        return data[key]
    except (TypeError, KeyError, IndexError):
        return None


def _said(data: Any) -> str:
    """The message of an error, of which there are several forms."""
    error = _get(data, "error")
    said = _get(error, "message") or error or _get(data, "message") or _get(data, "detail")
    return said if isinstance(said, str) else json.dumps(said) if said else ""


def _used(data: Any, most: Usage) -> Usage:
    usage = _get(data, "usage")
    prompt, completion = _get(usage, "prompt_tokens"), _get(usage, "completion_tokens")
    if type(prompt) is int and type(completion) is int and prompt >= 0 and completion >= 0:
        return Usage(1, 0, prompt, completion)
    return Usage(1, 0, most.prompt_tokens, most.completion_tokens, unmetered=1)
