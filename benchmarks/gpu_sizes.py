"""The sizes that `gpu.py` measures, and the arithmetic of what they cost."""

import dataclasses

from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT, Rope

#: dense bfloat16 FLOP/s by NVIDIA's data sheets, for the one word of `device_kind` that tells
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}

QWEN3_4B = DecoderConfig(
    "qwen3",
    vocab=151_936,
    hidden=2560,
    intermediate=9728,
    layers=36,
    heads=32,
    kv_heads=8,
    head_dim=128,
    rope=Rope(theta=1e6),
    tie_embeddings=True,
    max_length=40_960,
    dtype="bfloat16",
    param_dtype="bfloat16",
    ttt=InPlaceTTT(layers=(0, 6, 12, 18, 24, 30), chunk=1024, lr=1e-4),
)


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is measured.

    Attributes:
        copied: numbers in the array of the copy.
        gemms: n of the n x n x n products.
        layer: T, d, f of the in-place layer.
        chunks: its chunks C.
        model: the decoder, with its in-place layers.
        length: tokens of prefill and of a training row.
        depths: layers of the model trained, the first that fits.
        batches: sequences decoded at once.
        prompt: tokens of their common prompt.
        new: tokens decoded.
        decode_chunk: C of the in-place layers then; it divides `prompt`, and `new` stays below it,
            so that rows can share what they learned.
        rounds: of what is interleaved.
    """

    copied: int
    gemms: tuple[int, ...]
    layer: tuple[int, int, int]
    chunks: tuple[int, ...]
    model: DecoderConfig
    length: int
    depths: tuple[int, ...]
    batches: tuple[int, ...]
    prompt: int
    new: int
    decode_chunk: int
    rounds: int


REAL = Scale(
    copied=2**30,
    gemms=(4096, 8192),
    layer=(32_768, 2560, 9728),
    chunks=(512, 1024, 4096),
    model=QWEN3_4B,
    length=8192,
    depths=(36, 30, 24, 18, 12, 6),
    batches=(1, 16, 64, 128),
    prompt=1024,
    new=64,
    decode_chunk=512,
    rounds=7,
)
#: every layer learns in place, so that one block is compiled
TOY = Scale(
    copied=2**16,
    gemms=(64,),
    layer=(64, 16, 24),
    chunks=(24,),
    model=dataclasses.replace(
        QWEN3_4B,
        vocab=97,
        hidden=16,
        intermediate=24,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ttt=InPlaceTTT(layers=(0, 1), chunk=16, lr=1e-2),
    ),
    length=64,
    depths=(2,),
    batches=(2,),
    prompt=16,
    new=4,
    decode_chunk=8,
    rounds=2,
)


def weights(config: DecoderConfig) -> int:
    """Numbers in the matrices of all layers; not the embedding, nor what is only in-place."""
    heads = config.hidden * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    return config.layers * (heads + 3 * config.hidden * config.intermediate)


def forward_flops(config: DecoderConfig, length: int, logits: int, causal: bool = True) -> float:
    """FLOPs of one row through a plain model of these sizes, a product being 2 a number.

    Args:
        config: of the model; what its in-place layers add is not counted.
        length: T.
        logits: tokens whose logits are wanted.
        causal: attention counts the half of the scores that it needs, otherwise all T².
    """
    heads = config.heads * config.head_dim
    scores = length * length * (0.5 if causal else 1.0)
    return (
        2.0 * weights(config) * length
        + 4.0 * config.layers * heads * scores
        + 2.0 * config.vocab * config.hidden * logits
    )


def in_place_flops(config: DecoderConfig, length: int) -> float:
    """FLOPs that the in-place layers add to a row: every chunk's write but the last, and V."""
    if config.ttt is None:
        return 0.0
    written = max(0, -(-length // config.ttt.chunk) - 1) * config.ttt.chunk
    each = written * config.hidden * config.intermediate + length * config.hidden**2
    return 2.0 * len(config.ttt_layers) * each


def peak(kind: str) -> float | None:
    """Data-sheet FLOP/s of a device, None if it is not in the table."""
    return next((flops for name, flops in PEAKS.items() if name in kind), None)
