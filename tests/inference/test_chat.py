"""A conversation with scripted lines: one text, read further with every line."""

import jax
import numpy as np
from small_decoders import CASES, VOCAB, change, forward, randomised

import fastweights as fw
from fastweights.inference.chat import COMMANDS, HELP, banner, chat
from fastweights.inference.templates import Lines
from fastweights.models.decoder_config import InPlaceTTT


class Letters:
    """Tokens 0 to 60 are the characters from "0" on; a text begins with the letter B."""

    opening = (18,)

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
        model,
        Letters(),
        max_new_tokens=6,
        template=Lines("{}", "{}"),
        ask=ask,
        show=shown.append,
        **options,
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


def test_a_file_is_read_without_an_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("fastweights.inference.chat.PIECE", 7)
    model, file = randomised(change(CASES["ttt"], layers=2)), tmp_path / "a text.txt"
    file.write_text("ABCDEFGHIJKLMNOPQRSTU")
    shown, state = talk([f"/read {file}", "VW"], model)
    assert shown.startswith("[22 tokens, fast weights moved by up to ")
    text = [18, *Letters().encode("ABCDEFGHIJKLMNOPQRSTUVW")]
    for _ in range(6):
        text.append(int(np.argmax(forward(model, [text])[0, -1])))
    assert shown.splitlines()[1] == Letters().decode(text[24:])
    assert state.lengths.tolist() == [30]
    # the opening is read once, and a line that fails changes nothing
    lines = ["A", "/read", f"/read {tmp_path / 'none'}", f"/read {file}"]
    shown, state = talk(lines, model, max_length=29)
    assert state.lengths.tolist() == [28]
    assert "/read needs a file" in shown and "cannot be read as UTF-8 text" in shown
    shown, state = talk(lines, model, max_length=28)
    assert state.lengths.tolist() == [7]
    assert "has 7 tokens and the file 21, the state holds 28" in shown


def test_an_answer_that_was_cut_is_closed():
    """By the end of a turn, once: not where a stop token was drawn."""
    model = randomised(change(CASES["ttt"], layers=2))
    end = int(Letters().encode("Z")[0])
    _, state = talk(["ABCDEFG", "HIJ"], model, end=end)
    text = [*Letters().encode("ABCDEFG")]
    for line in ("HIJ", ""):
        for _ in range(6):
            text.append(int(np.argmax(forward(model, [text])[0, -1])))
        text += [end, *Letters().encode(line)]
    same = fw.inference.prefill(model, np.array([text]))
    assert state.lengths.tolist() == [len(text)] == [24]
    np.testing.assert_allclose(state.logits, same.logits, rtol=1e-4, atol=1e-5)
    _, stopped = talk(["ABCDEFG"], model, end=end, stop_tokens=range(VOCAB))
    assert stopped.lengths.tolist() == [8]


def test_a_line_is_kept_with_its_answer_or_not_at_all():
    """Ctrl-C in the middle of an answer, and a line too long for the room there is."""
    model = randomised(change(CASES["ttt"], layers=2))
    before = talk(["ABCDEFG"], model, max_length=20)
    answers = []

    def show(text):
        answers.append(text)
        if len(answers) == 10:  # the second line's third token; the first had six and a length
            raise KeyboardInterrupt

    lines = iter(["ABCDEFG", "HI", "J" * 8])
    state = chat(
        model,
        Letters(),
        max_new_tokens=6,
        max_length=20,
        template=Lines("{}", "{}"),
        ask=lambda _: next(lines, None) or "/quit",
        show=show,
    )
    shown = "".join(answers)
    assert "taken back" in shown and "comes to 21 tokens, the state holds 20" in shown
    assert "/reset forgets" in shown and "prefill" not in shown
    jax.tree.map(np.testing.assert_array_equal, state, before[1])

    # what is left of the room is used: 13 tokens and 3 leave 4, of which one is the end
    shown, state = talk(["ABCDEFG", "HIJ"], model, max_length=20, end=None)
    assert state.lengths.tolist() == [20]
    shown, state = talk(["ABCDEFG", "HIJ"], model, max_length=20, end=1)
    assert state.lengths.tolist() == [20]


def test_mistakes_end_nothing(tmp_path):
    model = randomised(change(CASES["ttt"], layers=2))
    lines = ["/load", f"/load {tmp_path / 'absent'}", "/back", "/what", "A" * 95, "", "AB"]
    shown, state = talk(lines, model, max_length=40)
    for words in ("/load needs a file", "cannot be read", "there are 0 forks", "/reset"):
        assert words in shown
    assert "the state holds 40" in shown
    assert state.lengths.tolist() == [8]


def test_a_command_that_is_not_there_is_named():
    model = randomised(change(CASES["llama"], layers=1))
    shown, _ = talk(["/froK", "/zzz", "/help"], model)
    assert "no such command: /froK, did you mean '/fork'?" in shown
    assert "no such command: /zzz\n" in shown
    assert shown.count("commands:") == 1  # only /help lists them
    for name in COMMANDS:
        assert f"  {name} " in HELP


def test_ctrl_c_at_an_idle_prompt_ends_nothing():
    model = randomised(change(CASES["ttt"], layers=2))
    lines, shown = iter(["ABCDEFG", KeyboardInterrupt, "HI", EOFError]), []

    def ask(_):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    how = {"max_new_tokens": 6, "template": Lines("{}", "{}"), "ask": ask, "show": shown.append}
    state = chat(model, Letters(), **how)
    assert state.lengths.tolist() == [7 + 6 + 2 + 6]
    assert "".join(shown).count("/quit or ctrl-D ends") == 1


def test_it_says_when_the_first_write_comes_and_when_a_text_is_too_long():
    model = randomised(change(CASES["ttt"], layers=2, max_length=16))
    shown, _ = talk(["ABCDEFG"], model, max_length=40)
    assert "[13 tokens, fast weights moved" in shown
    slow = randomised(change(CASES["ttt"], layers=2, ttt=InPlaceTTT(layers=(0,), chunk=14)))
    shown, _ = talk(["ABCDEFG", "H"], slow, max_length=40)
    assert "[13 tokens, first write after 14]" in shown and "[20 tokens, fast weights" in shown
    shown, _ = talk(["ABCDEFG", "HIJ", "K"], model, max_length=40)
    warning = "[the model is made for 16 tokens: answers beyond them may be poor]"
    assert shown.count(warning) == 2 and shown.index("[22 tokens") < shown.index(warning)
    plain = randomised(change(CASES["llama"], layers=1))
    assert "does not learn from the text" in banner(plain, "x")
    text = banner(slow, "runs/a")
    assert text.startswith(f"runs/a: {sum(x.size for x in jax.tree.leaves(slow)):,} parameters")
    assert "Layers 0 learn from the text, every 14 tokens." in text


def test_drift_of_a_model_without_in_place_layers():
    model = randomised(change(CASES["llama"], layers=1))
    assert talk(["/drift"], model)[0] == "[no layer of this model learns in place]\n"
