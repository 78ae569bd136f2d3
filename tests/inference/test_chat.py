"""A conversation with scripted lines: one text, read further with every line."""

import jax
import numpy as np
from small_decoders import CASES, VOCAB, change, forward, randomised

import fastweights as fw
from fastweights.inference.chat import chat


class Letters:
    """Tokens 0 to 60 are the characters from "0" on."""

    def encode(self, text):
        return np.array([(ord(c) - 48) % VOCAB for c in text], np.int32)

    def decode(self, tokens):
        return "".join(chr(48 + int(t)) for t in tokens)


def talk(lines, model, **options):
    """What was shown, and the last state."""
    lines, shown = iter(lines), []

    def ask(_):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    state = chat(
        model, Letters(), max_new_tokens=6, template="{}", ask=ask, show=shown.append, **options
    )
    return "".join(shown), state


def test_a_conversation(tmp_path):
    model, file = randomised(change(CASES["ttt"], layers=2)), tmp_path / "talk"
    lines = ["ABCDEFG", "/drift", "/fork", "HIJ", f"/save {file}", "/reset", "ABCDEFG"]
    shown, state = talk(lines, model)
    assert state.lengths.tolist() == [13]
    first, *_, last = shown.split("\n[13 tokens")
    assert last.splitlines()[0].startswith(", fast weights moved by up to ")
    assert shown.count("[22 tokens") == 1

    # the answer is the naive continuation, and comes again after a reset
    text = [*Letters().encode("ABCDEFG")]
    for _ in range(6):
        text.append(int(np.argmax(forward(model, [text])[0, -1])))
    assert first == Letters().decode(text[7:])
    assert shown.split("[forgotten]\n")[1].startswith(first)
    far = 100 * float(fw.inference.drift(model, state)[0, 0])
    assert f"layer 0: {far:.3g} %" in shown

    shown, again = talk([f"/load {file}", "/fork", "K", "/back"], model)
    assert again.lengths.tolist() == [22]
    jax.tree.map(np.testing.assert_array_equal, again, fw.inference.load(model, file))


def test_mistakes_end_nothing(tmp_path):
    model = randomised(change(CASES["ttt"], layers=2))
    lines = ["/load", f"/load {tmp_path / 'absent'}", "/back", "/what", "A" * 95, "", "AB"]
    shown, state = talk(lines, model, max_length=40)
    for words in ("/load needs a file", "cannot be read", "there are 0 forks", "/reset"):
        assert words in shown
    assert "the state holds 40" in shown
    assert state.lengths.tolist() == [8]
