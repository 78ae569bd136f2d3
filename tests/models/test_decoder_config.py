"""What a decoder's config says of its layers, and every problem it can have."""

import dataclasses

import pytest
from flax import nnx

from fastweights.errors import ConfigError
from fastweights.models.decoder import Decoder, build
from fastweights.models.decoder_config import DecoderConfig, InPlaceTTT, Rope, problems

SMALL = DecoderConfig(
    family="qwen3",
    vocab=61,
    hidden=32,
    intermediate=48,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=8,
    windows=(5, None, 5, None),
)
TTT = InPlaceTTT(layers=(0, 2, 99), chunk=8, lr=0.5)


def test_a_period_is_the_smallest_that_repeats():
    def period(layers, **options):
        return dataclasses.replace(SMALL, **{"layers": layers, "windows": (), **options}).period

    assert period(36) == 1
    assert period(36, ttt=InPlaceTTT()) == 6
    assert period(36, ttt=InPlaceTTT(layers=(0, 6, 12, 18, 24, 30, 36))) == 6
    assert period(32, ttt=InPlaceTTT()) == 32  # the last in-place layer has but one after it
    assert period(4, windows=(3, None) * 2) == 2
    assert period(4, windows=(3, None, 3, 4)) == 4
    assert period(6, windows=(None, 3) * 3, ttt=InPlaceTTT(layers=(0, 3))) == 6


def test_every_problem_of_a_config_is_told():
    bad = DecoderConfig(
        family="llama",
        vocab=0,
        hidden=32,
        intermediate=48,
        layers=3,
        heads=4,
        kv_heads=3,
        head_dim=7,
        rope=Rope(scaling="yarn", factor=0.5),
        norm_eps=-1.0,
        windows=(0, None),
        ttt=InPlaceTTT(layers=(3,), chunk=0, clip=0.0, decay="0.9", cap=0.0),
        initializer_range=-1.0,
    )
    names = (
        "vocab is 0",
        "kv_heads is 3",
        "head_dim is 7",
        "rope.factor",
        "rope.original_length",
        "norm_eps",
        "initializer_range",
        "windows has 2 values for 3 layers",
        "windows[0] is 0",
        "ttt.chunk is 0",
        "ttt.layers is (3,)",
        "ttt.clip is 0.0",
        "ttt.decay is '0.9'",
        "ttt.cap is 0.0",
    )
    found = problems(bad)
    assert len(found) == len(names)
    assert all(any(text.startswith(name) for text in found) for name in names)
    for make in (lambda: Decoder(bad, rngs=nnx.Rngs(0)), lambda: build(bad, 0)):
        with pytest.raises(ConfigError) as raised:
            make()
        assert all(text in str(raised.value) for text in found)
    assert not problems(SMALL) and not problems(dataclasses.replace(SMALL, ttt=TTT))
    llama3 = Rope(theta=5e5, scaling="llama3", factor=8.0, original_length=8192)
    assert not problems(dataclasses.replace(SMALL, rope=llama3))
    learned = InPlaceTTT(layers=(0,), decay=1.0, decay_learned=True)
    assert "start between 0 and 1" in problems(dataclasses.replace(SMALL, ttt=learned))[0]
    negative = dataclasses.replace(SMALL, ttt=InPlaceTTT(layers=(-1, 0)))
    assert problems(negative)[0].startswith("ttt.layers is (-1, 0)")


def test_a_word_that_is_none_of_its_choices_is_told():
    bad = dataclasses.replace(
        SMALL,
        family="Qwen3",
        rope=Rope(scaling="linear"),
        dtype="float16",
        param_dtype="bf16",
        remat="blocks",
        attention="flash",
        windows=[5, None, 5, None],
        ttt=InPlaceTTT(layers=[0], target="input_embeds", window="causal"),
    )
    told = (
        "family is 'Qwen3'; it must be one of 'qwen3', 'llama'",
        "dtype is 'float16'; it must be one of 'float32', 'bfloat16'",
        "param_dtype is 'bf16'; it must be one of 'float32', 'bfloat16'",
        "remat is 'blocks'; it must be one of 'none', 'block', 'dots'",
        "attention is 'flash'; it must be one of 'auto', 'xla', 'cudnn'",
        "rope.scaling is 'linear'; it must be one of 'none', 'llama3', 'yarn'",
        "windows is a list; it must be a tuple",
        "ttt.target is 'input_embeds'; it must be one of 'hidden_states', 'input_embed'",
        "ttt.window is 'causal'; it must be one of 'centred', 'forward', 'reconstruction'",
        "ttt.layers is a list; it must be a tuple",
    )
    assert sorted(problems(bad)) == sorted(told)
    with pytest.raises(ConfigError, match="cannot be built"):
        Decoder(bad, rngs=nnx.Rngs(0))
