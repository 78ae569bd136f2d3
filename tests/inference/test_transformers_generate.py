"""Greedy generation against transformers, from the same checkpoint."""

import numpy as np
import pytest
from small_decoders import CASES, change, random_tokens, randomised

import fastweights as fw

REASON = "the parity extra is not installed"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)


@pytest.mark.parametrize("case", ["qwen3", "llama"])
def test_greedy_is_that_of_transformers(case, tmp_path):
    model = randomised(change(CASES[case], layers=2))
    fw.hf.save(model, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").float()
    tokens, lengths = random_tokens((3, 11)), np.array([11, 4, 7])
    out = fw.inference.generate(model, tokens, lengths, max_new_tokens=20)
    for row, length in enumerate(lengths):
        prompt = torch.tensor(tokens[row : row + 1, :length])
        expected = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out.tokens[row].tolist() == expected[0, length:].tolist()
