"""A number hidden in a text, asked for far beyond attention's window: in-place test-time training.

    fastweights train configs/needles.py --run-dir runs/needles
    fastweights eval --run-dir runs/needles
    fastweights eval --task needles --model runs/needles --kinds single --lengths 256 512 1024

The texts are made up, a byte is a token, and no file or package is needed. Both layers see 16
bytes, so that attention reaches 30 bytes back; a key and its number stand anywhere in a text of
256. Its controls, at the same data, order and updates: nothing written while reading, and attention
to the whole text instead.

    fastweights train configs/needles.py --model.ttt None --run-dir runs/window
    fastweights train configs/needles.py --model.ttt None --model.windows --run-dir runs/full

1,500 updates of 8 texts, some five minutes on two CPU cores. The loss is that of the whole text
(`task.asked`): from random weights the few bytes of the answers alone teach no net of ours to read.
A pretrained model is trained on the answers, `--task.asked answer`, and may have a book for a
haystack: `--task.files`.
"""

from fastweights.models.decoder_config import DecoderConfig
from fastweights.nn.in_place import InPlaceTTT
from fastweights.tasks.needle_text import NeedleText
from fastweights.train import Config, Optim, Train

config = Config(
    task=NeedleText(kinds=("single",), length=256, examples=12_000, asked="text"),
    model=DecoderConfig(
        family="qwen3",
        vocab=264,
        hidden=64,
        intermediate=256,
        layers=2,
        heads=2,
        kv_heads=2,
        head_dim=32,
        tie_embeddings=True,
        max_length=256,
        windows=(16, 16),
        initializer_range=0.1,
        ttt=InPlaceTTT(layers=(0, 1), chunk=32, lr=1.0, target="input_embed", proj=False),
    ),
    optim=Optim(lr=3e-3, schedule="cosine", decay_steps=1_500, warmup=75, clip=1.0),
    train=Train(steps=1_500, batch=8, eval_every=250, checkpoint_every=250, log_every=50),
)
