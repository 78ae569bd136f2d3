"""Bytes of eight books, and TTT-MLP (Sun et al. 2024, arXiv 2407.04620) in place of attention.

    fastweights train configs/books_ttt_mlp.py --data.dir DIR --run-dir runs/books_ttt_mlp

DIR holds the books of `configs/books.py`. The memory of each head is a network of two layers, and
every 16 tokens its weights take one step along the gradient of a loss of their own. No layer
attends, so the state of a text is as large after a million bytes as after one.

300 updates of 4 rows of 1,024 bytes.
"""

from fastweights.models.decoder_config import DecoderConfig
from fastweights.rules import TTTMLP
from fastweights.tasks.language import Language
from fastweights.train import Config, Optim, Train

config = Config(
    task=Language(
        length=1024,
        validation=("pride_and_prejudice.txt",),
        test=("middlemarch.txt", "moby_dick.txt"),
        short="drop",
    ),
    model=DecoderConfig(
        family="qwen3",
        vocab=264,
        hidden=128,
        intermediate=512,
        layers=3,
        heads=4,
        kv_heads=4,
        head_dim=32,
        tie_embeddings=True,
        max_length=1024,
        mixers=(TTTMLP(lr=0.1 / 32),),  # the paper's rate over head_dim
    ),
    optim=Optim(lr=2e-3, schedule="cosine", decay_steps=300, warmup=30, clip=1.0),
    train=Train(steps=300, batch=4, eval_every=100, checkpoint_every=100, log_every=20),
)
