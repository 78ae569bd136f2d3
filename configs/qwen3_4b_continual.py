"""Qwen3-4B-Base, trained on at 32,768 tokens with in-place test-time training in every sixth layer.

    fastweights train configs/qwen3_4b_continual.py --data.dir DIR --run-dir runs/qwen3_4b
    fastweights train configs/qwen3_4b_continual.py --model.ttt None --data.dir DIR \\
        --run-dir runs/qwen3_4b_plain

The second is its control: the same base, data and schedule, and nothing written while reading.
DIR holds UTF-8 .txt files, a document each, of which those shorter than a row are left out;
validation.txt and test.txt are held out. Qwen3-4B-Base is the directory of the published
checkpoint, here or given by --start and --task.tokenizer.

Hardware, on several hosts with `--distributed` (docs/training.md): planned for 64 GPUs or TPU chips
of 80 GB, a row each (`mesh.fsdp`); weights, gradients and Adam's moments take 1 GB of each. Every
host keeps its data in memory, 8 bytes a token.

It does not fit yet at 32,768 tokens. Compiled for 64 TPU v5p chips, a row each, it ends with
RESOURCE_EXHAUSTED: 212.6 GiB of temporaries a chip against 95.7 of memory. Rows of 8,192 tokens
take 21.5 GiB and rows of 2,048 take 6.3. The cause is attention, which has all scores [B, N, T, T]
of a layer in memory.

What to expect: never run here; built abstractly and shape-checked in the tests. The paper (arXiv
2604.06169) has RULER at 32k of 89.3 against the control's 88.7 (Table 1), and of 77.0 against 74.8
at 128k after a second stage that is not here.

From the paper: AdamW at 5e-6, weight decay 0.1, clipping at 1.0, rows of 32,768 tokens, 20 billion
tokens, every sixth layer, chunks of 1,024 (best in its ablation). It is silent on the rest, which
is as released: η = 3, though there with chunks of 4,096, and a write is a sum over its chunk; 64
rows an update; warm-up over 2 % and a cosine, here to zero at the last update. The target is the
layer's own input, as released for continued training; the paper writes of token embeddings.
Released runs are reported to drift: watch `drift_i`, and lower --model.ttt.lr.
"""

from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT, Rope
from fastweights.tasks.language import Language
from fastweights.train import Config, Mesh, Optim, Train

STEPS = 9_537  # of 64 x 32,768 tokens: 20.0 billion

config = Config(
    task=Language(
        length=32_768,
        tokenizer="Qwen3-4B-Base",
        separator="<|endoftext|>",
        short="drop",
        validation=("validation.txt",),
        test=("test.txt",),
    ),
    model=DecoderConfig(
        family="qwen3",
        vocab=151_936,
        hidden=2560,
        intermediate=9728,
        layers=36,
        heads=32,
        kv_heads=8,
        head_dim=128,
        rope=Rope(theta=1e6),
        norm_eps=1e-6,
        tie_embeddings=True,
        max_length=32_768,
        ttt=InPlaceTTT(layers=(0, 6, 12, 18, 24, 30), chunk=1024, lr=3.0, target="hidden_states"),
        dtype="bfloat16",
        param_dtype="float32",
        remat="block",
    ),
    optim=Optim(
        lr=5e-6,
        schedule="cosine",
        decay_steps=STEPS,
        warmup=191,
        clip=1.0,
        weight_decay=0.1,
    ),
    train=Train(steps=STEPS, batch=64, eval_every=500, checkpoint_every=500, log_every=10),
    mesh=Mesh(fsdp=64),
    start="Qwen3-4B-Base",
)
