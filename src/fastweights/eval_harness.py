"""A decoder as a model of EleutherAI's lm-evaluation-harness (the `eval` extra).

    import lm_eval
    from fastweights.eval_harness import DecoderLM
    lm_eval.simple_evaluate(model=DecoderLM("PATH"), tasks=["lambada_openai"])

or, with all the flags of the harness's own command,

    python -m fastweights.eval_harness --model fastweights --model_args pretrained=PATH --tasks ...

PATH is a Hugging Face checkpoint or a run directory. Each request is read from an empty state, so
in-place layers learn from the request's own context only.
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fastweights import inference
from fastweights.errors import ConfigError, install_extra
from fastweights.fastslow import report as report  # makes the policies of its runs loadable
from fastweights.hf.chat_template import ChatTemplate
from fastweights.hf.chat_template import read as read_template
from fastweights.models.decoder import Decoder
from fastweights.nn.cross_entropy import NO_TARGET
from fastweights.pretrained import Pretrained, load

try:
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import (  # pyright: ignore[reportMissingImports]
        register_model,
    )
    from lm_eval.models.utils import (  # pyright: ignore[reportMissingImports]
        normalize_gen_kwargs,
    )
    from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
        get_rolling_token_windows,
        make_disjoint_window,
    )
except ImportError as error:
    raise ConfigError(
        "the evaluation harness is not installed", next=install_extra("eval")
    ) from error

#: tokens of each row whose logits exist at once
BLOCK = 128
#: new tokens between two looks at whether every answer has ended
PIECE = 32
#: lengths of batches of contexts, and the room for an answer, are multiples of it, or of a quarter
#: of it below it: few programs are compiled
WIDTH = 256


@jax.jit
def score(model: Decoder, inputs: Array, targets: Array) -> tuple[Array, Array]:
    """Log-probability of the targets of each row, and whether a greedy reader would write them.

    Args:
        model: the decoder.
        inputs: `[B, T]` int, T a multiple of BLOCK or less than it; right-padded with anything.
        targets: `[B, T]` int, `NO_TARGET` where nothing is asked.

    Returns:
        `[B]` float32 and `[B]` bool.
    """
    features = model.features(inputs)
    rows, length = targets.shape
    count = max(1, length // BLOCK)
    cut = lambda x: jnp.moveaxis(x.reshape(rows, count, -1, *x.shape[2:]), 1, 0)

    def one(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        x, target = piece
        logits = model.logits(x)
        there = target != NO_TARGET
        right = jnp.take_along_axis(logits, jnp.where(there, target, 0)[..., None], -1)[..., 0]
        log_probs = jnp.where(there, right - jax.nn.logsumexp(logits, -1), 0)
        return log_probs.sum(1), jnp.all((jnp.argmax(logits, -1) == target) | ~there, 1)

    log_probs, greedy = jax.lax.map(one, (cut(features), cut(targets)))
    return log_probs.sum(0), jnp.all(greedy, 0)


@register_model("fastweights")
class DecoderLM(TemplateLM):
    """What the harness asks of a model: log-likelihoods and text up to a stop string.

    Args:
        pretrained: a path for `fastweights.pretrained.load`, or what it gives.
        max_length: tokens of a request, the last of which are kept; the model's by default.
        batch_size: requests at a time.
        max_gen_toks: the most tokens written where a task does not say.
        dtype: of a Hugging Face checkpoint.
        ttt: False switches test-time training off.
        piece: tokens of each context that are read at a time before an answer is written.
        device: a device of PyTorch, which the harness's command always names; not used.

    Raises:
        ConfigError, CheckpointError, DataError: as `load`; or the tokenizer has no token that could
            stand before a text; or `batch_size` is no number, such as the harness's "auto".
    """

    def __init__(
        self,
        pretrained: str | Path | Pretrained,
        max_length: int | None = None,
        batch_size: int = 8,
        max_gen_toks: int = 256,
        dtype: Any = "float32",
        ttt: bool = True,
        piece: int = 512,
        device: str | None = None,
    ):
        super().__init__()
        if not isinstance(pretrained, Pretrained):
            pretrained = load(pretrained, dtype, ttt)
        self.model, self.text, self.stop_tokens = pretrained
        self.max_length = max_length or self.model.config.max_length
        if not str(batch_size).isdigit() or not int(batch_size):
            raise ConfigError(
                f"batch_size is {batch_size!r}; it must be a number, at least 1",
                where="batch_size",
                cause="what fits into memory is not looked for",
                next="batch_size=8",
            )
        self.batch_size, self.piece = int(batch_size), int(piece)
        self.max_gen_toks = int(max_gen_toks)
        first = (*self.text.opening, *self.stop_tokens)
        if not first:
            raise ConfigError(
                "this tokenizer has no token to put before a text",
                where="pretrained",
                cause="it opens no text with one, and no file of it names an eos_token_id",
                next='set "eos_token_id" in config.json',
            )
        self._first = first[0]

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return (self.stop_tokens or (self._first,))[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        return self._first

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids, with what the tokenizer opens a text with unless that is switched off.

        A chat template may have put it there already.
        """
        opening = [] if add_special_tokens is False else [*self.text.opening]
        tokens = self.text.encode(string).tolist()
        return tokens if tokens[: len(opening)] == opening else opening + tokens

    @functools.cached_property
    def _chat(self) -> ChatTemplate:
        """The checkpoint's own chat template."""
        folder = self.text.folder
        found = read_template(folder, self.text.added) if folder else None
        if found is None:
            raise ConfigError(
                "this model has no chat template",
                where=folder or "pretrained",
                cause="a base model, or a checkpoint without its chat_template.jinja",
                next="leave the harness's --apply_chat_template out",
            )
        return found

    @property
    def tokenizer_name(self) -> str:
        """Names the harness's caches of requests with a chat template."""
        return self.text.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of the checkpoint, for the harness's record; None without one in use."""
        return self._chat.source if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the checkpoint's chat template writes it.

        Args:
            chat_history: turns, each with a "role" and a "content".
            add_generation_prompt: the text ends with the opening of an answer. Otherwise it ends
                inside the last turn, which the model continues.

        Raises:
            ConfigError: the model has no template, or jinja2 is not installed.
            DataError: the template fails.
        """
        return self._chat.render(chat_history, go_on=not add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        rows = [self._row(context, continuation) for _, context, continuation in requests]
        found: dict[int, tuple[float, bool]] = {}
        for batch in self._batches([len(inputs) for inputs, _ in rows]):
            width = max(len(rows[i][0]) for i in batch)
            width = width if width <= BLOCK else -(-width // BLOCK) * BLOCK
            inputs = np.zeros((self.batch_size, width), np.int32)
            targets = np.full((self.batch_size, width), NO_TARGET, np.int32)
            for row, i in enumerate(batch):
                read, asked = rows[i]
                inputs[row, : len(read)] = read
                targets[row, len(read) - len(asked) : len(read)] = asked
            log_probs, greedy = jax.device_get(score(self.model, inputs, targets))
            found |= {i: (float(log_probs[r]), bool(greedy[r])) for r, i in enumerate(batch)}
        return [found[i] for i in range(len(rows))]

    def _row(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[Any, Any]:
        """What is read, and what is asked of its last tokens.

        A context may come to no token: white space before a continuation is made part of it.
        """
        if len(continuation) > self.max_length:
            raise ConfigError(
                f"a continuation has {len(continuation)} tokens, max_length is {self.max_length}",
                where="max_length",
                cause="an answer of the task is longer than what the model reads at once",
                next=f"max_length={len(continuation)} or more",
            )
        both = [*(context or [self._first]), *continuation][-(self.max_length + 1) :]
        return both[:-1], continuation

    def _batches(self, lengths: Sequence[int]) -> Iterable[list[int]]:
        """Requests in batches of about one length, the longest first: what is too much shows."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        return (order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size))

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of `max_length` tokens.

        Each token is asked for once. The last window is as long as the others, so it reads again
        what comes before its own tokens.
        """
        windows, owner = [], []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in get_rolling_token_windows(tokens, self._first, self.max_length, 1):
                windows.append((None, *make_disjoint_window(pair)))
                owner.append(index)
        totals = np.zeros(len(requests))
        for index, (log_prob, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += log_prob
        return totals.tolist()

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Text written after each context, up to the first of its stop strings."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        found: dict[int, str] = {}
        numbers = itertools.count()  # of the batches: each draws with a key of its own
        for indices in groups.values():
            settings = normalize_gen_kwargs(requests[indices[0]].args[1], self.max_gen_toks)
            contexts = [self.tok_encode(requests[i].args[0]) or [self._first] for i in indices]
            for batch in self._batches([len(context) for context in contexts]):
                key = jax.random.fold_in(jax.random.key(0), next(numbers))
                texts = self._write([contexts[i] for i in batch], settings, key)
                found |= {indices[i]: text for i, text in zip(batch, texts, strict=True)}
        return [found[i] for i in range(len(requests))]

    def _write(self, contexts: list[list[int]], settings: Any, key: Array) -> list[str]:
        """The answers of one batch; the settings are as the harness normalizes them."""
        until, most = settings["until"], settings["max_gen_toks"]
        keep = self.max_length - most
        if keep < 1:
            raise ConfigError(
                f"{most} new tokens leave no room for a context: max_length is {self.max_length}",
                where="max_gen_toks",
                cause="the task asks for as many, or says nothing and max_gen_toks is too large",
                next=f"max_gen_toks below {self.max_length}, or a larger max_length",
            )
        top_k = int(settings.get("top_k") or 0)
        sampling = {
            "temperature": float(settings.get("temperature", 0.0)),
            "top_k": top_k if top_k > 0 else None,  # 0 and -1 are all tokens elsewhere
            "top_p": settings.get("top_p"),
            "key": key,
        }
        contexts = [context[-keep:] for context in contexts]
        # a batch that is not full is filled up with its last context
        read = contexts + [contexts[-1]] * (self.batch_size - len(contexts))
        lengths = np.array([len(context) for context in read], np.int32)
        width = rounded(int(max(lengths)))
        tokens = np.zeros((len(read), width), np.int32)
        for row, context in zip(tokens, read, strict=True):
            row[: len(context)] = context
        room = width + rounded(-(-most // PIECE) * PIECE)
        state = inference.prefill(self.model, tokens, lengths, max_length=room, piece=self.piece)
        written: list[list[int]] = [[] for _ in contexts]
        texts, ended = [""] * len(contexts), [False] * len(contexts)
        for _ in range(-(-most // PIECE)):
            out, state = inference.decode(self.model, state, max_new_tokens=PIECE, **sampling)
            for row, new in enumerate(np.asarray(out.tokens[: len(contexts)]).tolist()):
                if not ended[row]:
                    written[row] += new
                    texts[row], ended[row] = self._cut(written[row][:most], until)
            if all(ended):
                break
        return texts

    def _cut(self, tokens: list[int], until: Sequence[str]) -> tuple[str, bool]:
        """The text before the first stop token or string, and whether there was one."""
        # special tokens leave no text, so a stop string that is one is looked for as a token
        stops = {*self.stop_tokens, *(self.text.added[s] for s in until if s in self.text.added)}
        ends = [i for i, token in enumerate(tokens) if token in stops]
        text = self.text.decode(np.asarray(tokens[: ends[0]] if ends else tokens, np.int32))
        places = [place for stop in until if stop and (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text, bool(ends or places)


def rounded(size: int) -> int:
    """A size rounded up to a multiple of WIDTH, or of its quarter if it is smaller."""
    step = WIDTH if size > WIDTH else WIDTH // 4
    return -(-size // step) * step


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()
