"""SmolLM2-135M-Instruct with a memory: sliding windows of 512 tokens, and five layers that learn.

    python benchmarks/real_checkpoint.py fetch --window 512 --out runs/smollm2/window
    fastweights train configs/smollm2_in_place.py --data.dir DIR --run-dir runs/smollm2_in_place
    fastweights chat --model runs/smollm2_in_place
    fastweights export-hf --run-dir runs/smollm2_in_place OUT

DIR holds books as UTF-8 .txt files; the three named below are held out. Only the convolutions of
the targets are trained, 14,400 numbers: before its first write the model is SmolLM2 with a window.

40 updates of a row of 2,048 tokens, about 20 minutes on one CPU core. A write is not projected, and
tokens read at most 2 % of ‖W0‖ on top of W0 (`cap`): the released form, η = 3 without a cap, fails
on this checkpoint after the length of a training row (docs/in_place_ttt.md, *On a pretrained
model*).
"""

from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT, Rope
from fastweights.tasks.language import Language
from fastweights.train import Config, Optim, Train

SMOLLM2 = "runs/smollm2/window"

config = Config(
    task=Language(
        length=2048,
        tokenizer=SMOLLM2,
        validation=("pride_and_prejudice.txt",),
        test=("middlemarch.txt", "moby_dick.txt"),
        short="drop",
    ),
    model=DecoderConfig(
        family="llama",
        vocab=49_152,
        hidden=576,
        intermediate=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        rope=Rope(theta=1e5),
        norm_eps=1e-5,
        tie_embeddings=True,
        max_length=32_768,
        windows=(512,) * 30,
        ttt=InPlaceTTT(layers=(2, 8, 14, 20, 26), chunk=256, lr=0.1, proj=False, cap=0.02),
        remat="block",
    ),
    optim=Optim(
        lr=1e-3,
        schedule="cosine",
        decay_steps=40,
        warmup=4,
        clip=1.0,
        rates=(("*.mlp.conv", 1.0), ("*", 0.0)),
    ),
    train=Train(
        steps=40, batch=1, eval_every=40, eval_examples=2, checkpoint_every=10, log_every=5
    ),
    start=SMOLLM2,
)
