"""The small world's language model: half a million weights over bytes, see `HintCorpus`."""

from fastweights.models.decoder_config import DecoderConfig
from fastweights.tasks.hint_corpus import HintCorpus
from fastweights.train import Config, Optim, Train


def base_config() -> Config:
    """What `configs/fst_base.py` and the demo train once."""
    return Config(
        task=HintCorpus(),
        model=DecoderConfig(
            family="qwen3",
            vocab=264,
            hidden=96,
            intermediate=256,
            layers=4,
            heads=3,
            kv_heads=3,
            head_dim=32,
            tie_embeddings=True,
            max_length=256,
            initializer_range=0.1,
        ),
        optim=Optim(
            lr=5e-3, schedule="cosine", decay_steps=3_300, warmup=100, clip=1.0, method="muon"
        ),
        train=Train(steps=3_300, batch=16, eval_every=500, checkpoint_every=500, log_every=50),
    )
