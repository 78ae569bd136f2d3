"""llama.cpp, by way of llama-cpp-python, as a contender of `decode_checkpoint.py`."""

from typing import Any

import harness
import numpy as np


class Llama:
    """Greedy decoding of a batch with llama.cpp, one thread a core.

    Args:
        path: a GGUF file, made by llama.cpp's convert_hf_to_gguf.py.
        kind: of its weights, "f32" or "bf16"; keys and values are kept alike.
        prompt: `[B, T]` int.
        new: tokens a row to write.
    """

    def __init__(self, path: str, kind: str, prompt: np.ndarray, new: int):
        import llama_cpp

        self.api: Any = llama_cpp
        api, (rows, length) = self.api, prompt.shape
        api.llama_backend_init()
        self.silent = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self.silent, None)
        settings = api.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(path.encode(), settings)
        if not self.model:
            raise FileNotFoundError(f"llama.cpp cannot read {path}")
        context = api.llama_context_default_params()
        context.n_ctx = rows * (length + new)
        context.n_batch = context.n_ubatch = max(rows, length)
        context.n_seq_max = rows
        context.n_threads = context.n_threads_batch = harness.cores()
        context.type_k = context.type_v = {"f32": 0, "bf16": 30}[kind]  # of enum ggml_type
        context.no_perf = True
        self.context = api.llama_init_from_model(self.model, context)
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.prompt, self.new = prompt, new
        self.first: np.ndarray | None = None  # tokens after the prompts, once they are read

    def read(self, tokens: list[tuple[int, int, int]], asked: list[int]) -> np.ndarray:
        """Read tokens, (row, position, token) each: logits `[n, vocab]` after those asked for."""
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        for i, (row, position, token) in enumerate(tokens):
            batch.token[i], batch.pos[i] = int(token), position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = i in asked
        batch.n_tokens = len(tokens)
        failed = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode returned {failed}")
        get = self.api.llama_get_logits_ith
        return np.stack([np.ctypeslib.as_array(get(self.context, i), (self.vocab,)) for i in asked])

    def write(self) -> np.ndarray:
        """New tokens `[B, new]`, all of them read, after a prompt that stays read."""
        rows, length = self.prompt.shape
        if self.first is None:
            prompts = [[(b, t, self.prompt[b, t]) for t in range(length)] for b in range(rows)]
            self.first = np.array([self.read(row, [length - 1])[0].argmax() for row in prompts])
        else:
            memory = self.api.llama_get_memory(self.context)
            for row in range(rows):
                self.api.llama_memory_seq_rm(memory, row, length, -1)
        out, each = [self.first], range(rows)
        for step in range(self.new):
            tokens = [(b, length + step, out[-1][b]) for b in each]
            out.append(self.read(tokens, [*each]).argmax(1))
        return np.stack(out[:-1], 1)
