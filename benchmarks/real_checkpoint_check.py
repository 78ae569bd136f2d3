"""A checkpoint here and in transformers, in float32: losses, greedy texts, chat turns, logits."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastweights import inference, pretrained
from fastweights.errors import DataError
from fastweights.hf import chat_template
from fastweights.hf.parity import parity
from fastweights.train.state import parameter_count

SENTENCE = "The capital of France is Paris."
TEXT = """\
The lighthouse keeper wrote down the weather every evening, as his mother had done before him. On
most days it was a single line: wind from the west, rain, two ships. But in the winter of the great
storm the line became a page, and the page became a notebook. He wrote about the waves that broke
over the gallery, about the birds that fell exhausted on the steps, and about the fishing boat that
he had seen at dusk and never again. When the storm was over he read what he had written, and found
that he remembered none of it. The notebook remembered for him. From then on he wrote a page every
evening, storm or not, and when he was old he could look up any day of his life.
"""
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at a lower temperature on a mountain because",
)
CONVERSATION = ("What is the capital of France?", "And of Italy?", "What do bees make?")


class Theirs:
    """The checkpoint in transformers, in float32."""

    def __init__(self, folder: Path):
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=torch.float32, local_files_only=True).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def losses(self, tokens: np.ndarray) -> np.ndarray:
        """Loss in nats of every token of `[n]` but the first."""
        import torch

        with torch.inference_mode():
            logits = self.model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0, :-1]
        return losses(logits.numpy(), tokens)

    def greedy(self, tokens: np.ndarray, new: int) -> list[int]:
        """The likeliest continuation of `[n]`, which no stop token ends."""
        import torch

        prompt = torch.from_numpy(tokens[None].astype(np.int64))
        with torch.inference_mode():
            out = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return out[0, len(tokens) :].tolist()


def losses(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Loss in nats of tokens 1 to n - 1, from logits `[n - 1, vocab]`; float64."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    log_z = np.log(np.exp(x).sum(-1))
    return log_z - x[np.arange(len(x)), tokens[1:]]


def conversation(found: pretrained.Pretrained, theirs: Theirs) -> dict[str, Any]:
    """Whether the text read for every line of a chat is that of transformers, token by token."""
    tokenizer = found.tokenizer
    assert tokenizer.folder is not None
    template = chat_template.read(tokenizer.folder, tokenizer.added)
    if template is None:
        raise DataError("the checkpoint has no chat template", where=tokenizer.folder)
    tokens, messages = [], []
    for line in CONVERSATION:
        text = template.turn(line, first=not tokens)
        tokens += tokenizer.encode(text).tolist()
        messages.append({"role": "user", "content": line})
        expected = theirs.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        if tokens != list(expected):
            return {"lines": len(messages), "same": False}
        answer = "An answer."
        tokens += tokenizer.encode(answer + template.stops[0]).tolist()
        messages.append({"role": "assistant", "content": answer})
    return {"lines": len(messages) // 2, "same": True}


def losses_and_texts(found: pretrained.Pretrained, theirs: Theirs, text: str, new: int):
    """Loss of texts, greedy continuations and the turns of a chat, as the JSON has them."""
    forward = jax.jit(lambda model, tokens: model(tokens))

    def loss(text: str) -> dict[str, Any]:
        tokens = found.tokenizer.encode(text)[: found.model.config.max_length]
        assert tokens.tolist() == theirs.tokenizer.encode(text)[: len(tokens)]
        here = losses(np.asarray(forward(found.model, tokens[None]))[0, :-1], tokens)
        there = theirs.losses(tokens)
        return {
            "tokens": len(tokens),
            "here": round(float(here.mean()), 6),
            "transformers": round(float(there.mean()), 6),
            "largest_difference": float(f"{np.abs(here - there).max():.3g}"),
        }

    def greedy(prompt: str) -> dict[str, Any]:
        tokens = found.tokenizer.encode(prompt)
        out = inference.generate(found.model, tokens[None], max_new_tokens=new)
        here, there = np.asarray(out.tokens)[0], np.array(theirs.greedy(tokens, new))
        same = int(np.cumprod(here == there).sum())
        return {"prompt": prompt, "new": new, "same": same, "text": found.tokenizer.decode(here)}

    return {
        "parameters": parameter_count(found.model),
        "loss": {"sentence": loss(SENTENCE), "text": loss(text)},
        "greedy": [greedy(prompt) for prompt in PROMPTS],
        "chat": conversation(found, theirs),
    }


def measure(folder: Path, text: str, new: int) -> dict[str, Any]:
    """Everything that is compared, as the JSON has it.

    Args:
        folder: the checkpoint.
        text: for the loss.
        new: tokens written after each prompt.
    """
    measured = losses_and_texts(pretrained.load(folder), Theirs(folder), text, new)
    report = parity(folder)
    digits = lambda pair: {name: float(f"{x:.3g}") for name, x in pair._asdict().items()}
    return measured | {
        "parity": {
            "same": report.ok,
            "tokens": report.tokens,
            "distance_here": digits(report.ours),
            "distance_transformers": digits(report.theirs),
            "ratio": digits(report.ratio),
            "kl": float(f"{report.kl:.3g}"),
            "largest_difference_of_a_logit": float(f"{report.logits:.3g}"),
            "top_1_agreement": report.agreement,
        }
    }


def agrees(measured: dict[str, Any]) -> bool:
    """Whether everything is that of transformers."""
    return (
        measured["parity"]["same"]
        and measured["chat"]["same"]
        and all(part["same"] == part["new"] for part in measured["greedy"])
        and all(part["largest_difference"] < 1e-3 for part in measured["loss"].values())
    )


def tables(record: dict[str, Any]) -> str:
    """A comparison a row, and its circumstances."""
    text, sentence = record["loss"]["text"], record["loss"]["sentence"]
    parity, greedy = record["parity"], record["greedy"]
    same, new = (sum(part[key] for part in greedy) for key in ("same", "new"))
    lines = ["| SmolLM2-135M-Instruct, float32 | here | transformers |", "|---|---|---|"]
    lines += [
        f"| loss of {part['tokens']} tokens, nats a token | {part['here']:.6f} | "
        f"{part['transformers']:.6f} |"
        for part in (text, sentence)
    ]
    lines += [
        f"| distance from the float64 logits, {name} token of {parity['tokens']} | "
        f"{parity['distance_here'][name]:.1e} | {parity['distance_transformers'][name]:.1e} |"
        for name in ("median", "worst")
    ]
    machine, versions = record["machine"], record["versions"]
    lines += [
        "",
        f"{same} of {new} greedy tokens after {len(greedy)} prompts are the same, and so are all "
        f"tokens of a chat of {record['chat']['lines']} lines; KL divergence {parity['kl']:.1e} "
        f"nats a token.\n{machine['cpu']}; jax {versions['jax']}, transformers "
        f"{versions['transformers']}; {record['date'][:10]}.",
    ]
    return "\n".join(lines)
