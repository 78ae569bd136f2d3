"""Bytes of eight books, a small transformer with a window of 64 and in-place test-time training.

    fastweights train configs/books.py --data.dir DIR --run-dir runs/books
    fastweights eval --run-dir runs/books

DIR holds the books as UTF-8 .txt files; those named below are held out. Its controls, at the same
data, order and steps: nothing written while reading, and attention to the whole row instead.

    fastweights train configs/books.py --model.ttt None --data.dir DIR --run-dir runs/books_window
    fastweights train configs/books.py --model.ttt None --model.windows --data.dir DIR \\
        --run-dir runs/books_full

3,000 updates of 4 rows of 1,024 bytes, about 30 minutes on two CPU cores. A chunk is 128 bytes: the
first of each row is read with the trained weights, and only after it can the model be the better
for what it has read.
"""

from fastweights.models.decoder_config import DecoderConfig
from fastweights.nn.in_place import InPlaceTTT
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
        windows=(64, 64, 64),
        ttt=InPlaceTTT(layers=(0, 1, 2), chunk=128, lr=0.1, target="input_embed"),
    ),
    optim=Optim(lr=2e-3, schedule="cosine", decay_steps=3_000, warmup=100, clip=1.0),
    train=Train(steps=3_000, batch=4, eval_every=500, checkpoint_every=500, log_every=50),
)
