"""A Hugging Face checkpoint from the command line: in, trained on, written with, out again."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from hf.tiny import LLAMA, assert_same, logits, model
from test_cli import run

from fastweights import cli, hf
from fastweights.config_file import load_config
from fastweights.models.decoder_config import InPlaceTTT
from fastweights.models.retrieval import RetrievalModel
from fastweights.pretrained import load, load_run, without_ttt
from fastweights.tasks import bytes_file
from fastweights.tasks.language import Language
from fastweights.tasks.retrieval import Retrieval
from fastweights.train import Config, Optim
from fastweights.train.config import check, to_json

tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers, the [hf] extra")
BASE = dataclasses.replace(LLAMA, vocab=264, hidden=16, intermediate=24, layers=1, max_length=160)
#: all printable characters equally often, or the model would learn to write spaces only
TEXT = "".join(map(chr, np.random.default_rng(0).permutation(np.arange(33, 127)))) * 20
PROMPT = TEXT[:31]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Base -> mine.py -> run, three updates -> out, by the commands a user gives."""
    folder = tmp_path_factory.mktemp("models")
    hf.save(model(BASE, seed=4), folder / "base")
    bytes_file.write(folder / "base")
    raw = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps(raw | {"pad_token_id": 7}))
    (folder / "text").mkdir()
    for name in "ab":
        (folder / "text" / f"{name}.txt").write_text(TEXT)
    assert cli.main(["import-hf", str(folder / "base"), str(folder / "mine.py")]) == 0
    settings = [
        *("--data.dir", folder / "text", "--train.steps", 3, "--train.batch", 2),
        *("--model.ttt.chunk", 16, "--model.ttt.lr", 2.0, "--model.remat", "none"),
        *("--task.short", "drop", "--task.no-drift"),
        *("--task.length", 64, "--optim.lr", 0.01, "--optim.warmup", 0, "--quiet"),
    ]
    train = ["train", folder / "mine.py", "--run-dir", folder / "run", *settings]
    assert cli.main([str(word) for word in train]) == 0
    export = ["export-hf", "--run-dir", str(folder / "run"), str(folder / "out")]
    assert cli.main(export) == 0
    return folder


@pytest.fixture
def say(monkeypatch):
    """Put a text on standard input."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def text_of(tokens):
    """The text of bytes; what is none is left out."""
    return bytes(token for token in tokens if token < 256).decode(errors="replace")


@jax.jit
def forward(decoder, tokens):
    """The logits of training, compiled once for all tests."""
    return decoder(tokens)


def greedy(decoder, text, count):
    """The likeliest tokens one by one, the whole text read again for each."""
    tokens = list(text.encode() if isinstance(text, str) else text)
    for _ in range(count):
        padded = np.zeros((1, 128), np.int64)
        padded[0, : len(tokens)] = tokens
        last = np.asarray(forward(decoder, padded))[0, len(tokens) - 1]
        best = np.sort(last)[-2:]
        assert best[1] - best[0] > 1e-4, "too close to call in float32: use another seed"
        tokens.append(int(np.argmax(last)))
    return tokens[-count:]


def test_the_config_written_continues_the_checkpoint_as_the_paper_does(folder):
    config = load_config(str(folder / "mine.py"))
    check(config)
    assert config.start == config.task.tokenizer == str(folder / "base")
    assert config.task == Language(length=160, tokenizer=config.start, separator="<|separator|>")
    assert config.model == dataclasses.replace(
        BASE, ttt=InPlaceTTT(layers=(0,), chunk=40), remat="block"
    )
    assert config.optim == Optim(
        lr=5e-6, schedule="cosine", decay_steps=5000, warmup=100, clip=1.0, weight_decay=0.1
    )
    header = (folder / "mine.py").read_text().split('"""')[1]
    assert "fastweights train mine.py --data.dir DIR --run-dir runs/mine" in header


def test_a_large_checkpoint_gets_every_sixth_layer_and_chunks_of_1024(folder, tmp_path):
    """And computes in bfloat16 if it is stored so; weights are float32."""
    from fastweights.continued import continued, source

    big = dataclasses.replace(BASE, layers=14, max_length=40960, windows=(64, None) * 7)
    hf.save(model(dataclasses.replace(big, param_dtype="bfloat16")), tmp_path / 'a "b"')
    config = continued(tmp_path / 'a "b"', "bytes")
    assert config.model.ttt == InPlaceTTT(
        layers=(0, 6, 12), chunk=1024, lr=0.3, target="hidden_states"
    )
    assert (config.model.dtype, config.model.param_dtype) == ("bfloat16", "float32")
    assert (config.task.length, config.task.separator) == (8192, None)
    assert config.model.windows == big.windows
    (tmp_path / "file.py").write_text(source(config, tmp_path / "file.py"))
    assert load_config(str(tmp_path / "file.py")) == config

    # one that has learned in place goes on as it is
    again = continued(folder / "out")
    assert again.model.ttt == InPlaceTTT(layers=(0,), chunk=16, lr=2.0)


def test_what_is_exported_is_what_was_trained(folder):
    trained = load_run(folder / "run")
    back = hf.load(folder / "out")
    assert back.config.ttt == trained.config.model.ttt == InPlaceTTT(layers=(0,), chunk=16, lr=2.0)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 60))
    np.testing.assert_array_equal(logits(back, tokens), logits(trained.model, tokens))
    base = logits(hf.load(folder / "base"), tokens)
    assert np.abs(logits(back, tokens) - base).max() > 0.1
    assert trained.step == 3 and np.any(back.layer(0).mlp.conv[...])

    raw = json.loads((folder / "out" / "config.json").read_text())
    assert raw["pad_token_id"] == 7 and raw["eos_token_id"] == 256 and raw["ttt_mode"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / "out" / name).read_bytes() == (folder / "base" / name).read_bytes()


def test_a_run_of_bytes_without_a_start(folder, tmp_path, capsys):
    """The tokenizer is written out."""
    config = load_run(folder / "run").config
    bare = dataclasses.replace(config, start=None, task=Language(length=64))
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_json(bare)))
    code, out, _ = run(capsys, "export-hf", "--run-dir", tmp_path / "run", tmp_path / "out")
    assert code == 0 and "the model at step 3" in out
    exported, same = load(tmp_path / "out"), load(tmp_path / "run")
    assert exported.stop_tokens == same.stop_tokens == (256,)
    text = "naïve\0 \U0001f9e0"
    np.testing.assert_array_equal(exported.tokenizer.encode(text), same.tokenizer.encode(text))
    assert "pad_token_id" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_the_tokens_that_end_a_text_are_those_of_both_files(folder, tmp_path, capsys):
    """A checkpoint's, and those of a run that starts from it, its separator among them."""
    shutil.copytree(folder / "base", tmp_path / "base")
    raw = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(raw | {"eos_token_id": 9}))
    settings = {"eos_token_id": [7, 9], "temperature": 0.6}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(settings))
    assert load(tmp_path / "base").stop_tokens == (9, 7)

    shutil.copytree(folder / "run", tmp_path / "run")
    config = dataclasses.replace(load_run(folder / "run").config, start=str(tmp_path / "base"))
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_json(config)))
    assert load(tmp_path / "run").stop_tokens == (7, 9, 256)
    assert run(capsys, "export-hf", "--run-dir", tmp_path / "run", tmp_path / "out")[0] == 0
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [7, 9, 256]
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["temperature"] == 0.6 and load(tmp_path / "out").stop_tokens == (7, 9, 256)


@pytest.mark.parametrize("name", ["run", "out"])
@pytest.mark.parametrize("ttt", ["on", "off"])
def test_the_text_generated_is_the_likeliest(folder, name, ttt, capsys):
    """Of the run and of what was exported, with two chunks completed while it is written."""
    arguments = ["--model", folder / name, "--prompt", PROMPT, "--max-new-tokens", 24]
    code, out, err = run(capsys, "generate", *arguments, "--ttt", ttt)
    plain = hf.load(folder / "out", ttt=False)
    expected = greedy(hf.load(folder / "out") if ttt == "on" else plain, PROMPT, 24)
    assert code == 0 and out == text_of(expected)
    assert "[31 tokens read, 24 written" in err
    assert ("fast weights moved by up to" in err) == (ttt == "on")
    if ttt == "on":
        assert expected != greedy(plain, PROMPT, 24)


def test_without_ttt_the_layers_are_stacked_anew(tmp_path):
    """A period of 2 becomes one of 1."""
    trained = model(dataclasses.replace(BASE, layers=4, ttt=InPlaceTTT(layers=(0, 2), chunk=8)))
    hf.save(trained, tmp_path / "out")
    plain = without_ttt(trained)
    assert len(trained.blocks) == 2 and len(plain.blocks) == 1
    assert_same(plain, hf.load(tmp_path / "out", ttt=False))


def test_a_prompt_from_standard_input_or_a_file(folder, tmp_path, capsys, say):
    text = "cats – are unlike others, "
    common = ["generate", "--model", folder / "out", "--max-new-tokens", 24]
    given = run(capsys, *common, "--prompt", text)[1]
    say(text)
    assert run(capsys, *common)[1] == given != ""
    (tmp_path / "prompt.txt").write_text(text)
    assert run(capsys, *common, "--prompt-file", tmp_path / "prompt.txt")[1] == given


def test_drawing_follows_the_seed(folder, capsys):
    common = ["generate", "--model", folder / "out", "--prompt", PROMPT, "--max-new-tokens", 24]
    draw = lambda seed: run(capsys, *common, "--temperature", 2, "--top-k", 9, "--seed", seed)[1]
    assert draw(0) == draw(0) != draw(1)


def test_a_text_ends_where_the_model_says_or_the_user(folder, tmp_path, capsys):
    shutil.copytree(folder / "out", tmp_path / "out")
    tokens = greedy(hf.load(folder / "out"), PROMPT, 24)
    last = next(i for i in range(1, 24) if tokens[i] not in tokens[:i])
    end, expected = tokens[last], text_of(tokens[:last])
    common = ["generate", "--model", tmp_path / "out", "--prompt", PROMPT, "--max-new-tokens", 24]
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(raw | {"eos_token_id": end}))
    code, out, err = run(capsys, *common)
    assert code == 0 and f"{last + 1} written" in err and out == expected

    # the same token as a special one with a name
    (tmp_path / "out" / "config.json").write_text(json.dumps(raw))
    content = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    content["model"]["vocab"] = {
        key if i != end else "<|stop|>": i for key, i in content["model"]["vocab"].items()
    }
    token = content["added_tokens"][0] | {"id": end, "content": "<|stop|>"}
    content["added_tokens"] = [token, *content["added_tokens"]]
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(content))
    code, out, err = run(capsys, *common, "--stop", "<|stop|>", "<|separator|>")
    assert code == 0 and f"{last + 1} written" in err and out == expected


def test_a_conversation(folder, capsys, say):
    """The plain template: a line and its end, then what the model goes on with."""
    say("hello\n/drift\nmore\n")
    code, out, err = run(capsys, "chat", "--model", folder / "out", "--max-new-tokens", 20)
    assert code == 0 and "layer 0: " in out
    assert err.startswith(f"{folder / 'out'}: ") and "/help lists the commands" in err
    answer = text_of(greedy(hf.load(folder / "out"), "hello\n", 20))
    assert out.startswith(f"> {answer}\n[26 tokens, fast weights moved by up to ")
    assert "\n[51 tokens" in out
    say("hello\n")
    common = ["chat", "--model", folder / "run", "--max-new-tokens", 20]
    assert run(capsys, *common, "--template", "{}\n")[1].startswith(f"> {answer}\n[26 tokens")
    say("hello\n")
    assert "\n[10 tokens" in run(capsys, *common, "--max-length", 10)[1]
    say("hello\n")
    assert "the state holds 6" in run(capsys, *common, "--max-length", 6)[1]


def with_chatml_tokens(source, target):
    """A copy of a checkpoint with two special tokens more; what its tokenizer.json holds."""
    shutil.copytree(source, target)
    content = json.loads((target / "tokenizer.json").read_text())
    token = content["added_tokens"][0]
    for i, text in ((257, "<|im_start|>"), (258, "<|im_end|>")):
        content["added_tokens"].append(token | {"id": i, "content": text})
    (target / "tokenizer.json").write_text(json.dumps(content))
    return content


def test_the_chat_template_of_the_checkpoint_is_put_to_use(folder, tmp_path, capsys, say):
    """Before that of its special tokens; of a run too, whose tokenizer comes from there."""
    pytest.importorskip("jinja2", reason="needs jinja2, the [hf] extra")
    out = tmp_path / "out"
    with_chatml_tokens(folder / "out", out)
    (out / "chat_template.jinja").write_text(
        "{% if messages[0].role != 'system' %}Hi.{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}=>"
    )
    shutil.copytree(folder / "run", tmp_path / "run")
    config = load_run(folder / "run").config
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, tokenizer=str(out)))
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_json(config)))
    read = [*b"Hi.", 257, ord("A"), 258, *b"=>"]
    answer = text_of(greedy(hf.load(out), read, 3))
    for name in ("out", "run"):
        common = ["chat", "--model", tmp_path / name, "--max-new-tokens", 3]
        say("A\nC\n")
        code, shown, _ = run(capsys, *common)
        # Hi. <im_start> A <im_end> =>, an answer of 3 and <im_end>; <im_start> C <im_end> =>
        assert code == 0 and shown.startswith(f"> {answer}\n[12 tokens")
        assert "\n[21 tokens" in shown
        say("A\nC\n")  # the user's own comes before it
        assert "\n[5 tokens" in run(capsys, *common, "--template", "{}\n")[1]
    (out / "chat_template.jinja").write_text("{{ messages.__class__ }}")
    code, _, err = run(capsys, *common)
    assert code == 3 and "chat_template.jinja" in err and "--template" in err


def test_a_tokenizer_with_chatml_tokens_is_put_to_use(folder, tmp_path, capsys, say):
    content = with_chatml_tokens(folder / "out", tmp_path / "out")
    say("A\nC\n")
    code, out, _ = run(capsys, "chat", "--model", tmp_path / "out", "--max-new-tokens", 1)
    # <im_start> u s e r \n A <im_end> \n <im_start> a s s i s t a n t \n is 20, with \n before 21;
    # an answer of 1 that has not come to its end, and the <im_end> that closes it
    assert code == 0 and "\n[22 tokens" in out and "\n[45 tokens" in out

    # a token that it puts before every text, as Llama's does
    opening = {"SpecialToken": {"id": "<|separator|>", "type_id": 0}}
    rest = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [opening, rest[0]],
        "pair": [opening, *rest],
        "special_tokens": {
            "<|separator|>": {"id": "<|separator|>", "ids": [256], "tokens": ["<|separator|>"]}
        },
    }
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(content))
    common = ["generate", "--model", tmp_path / "out", "--max-new-tokens", 24]
    code, out, err = run(capsys, *common, "--prompt", PROMPT[1:])
    assert code == 0 and "[31 tokens read" in err
    assert out == text_of(greedy(hf.load(tmp_path / "out"), [256, *PROMPT[1:].encode()], 24))


@pytest.mark.parametrize(
    "arguments,code,words",
    [
        (["--prompt", "a", "--prompt-file", "b"], 2, "two prompts"),
        (["--prompt", ""], 2, "no text to continue"),
        (["--prompt-file", "{tmp}/absent"], 3, "cannot be read"),
        (["--prompt-file", "{tmp}/latin"], 3, "not UTF-8"),
        (["--prompt", "a", "--stop", "<|seperator|>"], 2, "did you mean '<|separator|>'"),
        (["--prompt", "a", "--temperature", "-1"], 2, "temperature is -1"),
        (["--prompt", "a", "--top-p", "2"], 2, "top_p is 2"),
        (["--prompt", "a", "--max-new-tokens", "0"], 2, "max_new_tokens is 0"),
        (["--prompt", "a", "--ttt", "maybe"], 2, "maybe"),
        (["--promt", "a"], 2, "--prompt"),
    ],
)
def test_mistakes_of_generate(folder, tmp_path, capsys, arguments, code, words):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    arguments = [word.format(tmp=tmp_path) for word in arguments]
    found, out, err = run(capsys, "generate", "--model", folder / "out", *arguments)
    assert found == code and words in out + err


def test_models_that_are_none(folder, tmp_path, capsys, monkeypatch):
    def refused(name, code, words, verb="generate"):
        more = ["--prompt", "a"] if verb == "generate" else []
        found, out, err = run(capsys, verb, "--model", tmp_path / name, *more)
        assert found == code and words in err and out == "", (name, err)

    refused("absent", 4, "hf download")
    (tmp_path / "a_run").mkdir()
    refused("a_rum", 4, "there is no run and no checkpoint at")
    refused("a_rum", 4, "did you mean 'a_run'?", verb="chat")
    (tmp_path / "empty").mkdir()
    refused("empty", 2, "neither a Hugging Face checkpoint nor a run", verb="chat")
    (tmp_path / "empty" / "config.json").write_text("{}")
    refused("empty", 2, "no model_type")

    shutil.copytree(folder / "out", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    refused("bare", 3, "no tokenizer.json")
    (tmp_path / "bare" / "tokenizer.json").write_text("{}")
    refused("bare", 3, "cannot be read")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        refused("bare", 2, "pip install -e '.[hf]'")
    shutil.copy(folder / "out" / "tokenizer.json", tmp_path / "bare")
    weights = tmp_path / "bare" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    refused("bare", 4, "model.safetensors")

    (tmp_path / "run").mkdir()
    other = Config(task=Retrieval(), model=RetrievalModel())
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_json(other)))
    refused("run", 2, "made by a Retrieval")
    (tmp_path / "run" / "config.json").write_text('{"type": "AgentConfig"}')
    refused("run", 2, "made by a AgentConfig")
    shutil.copy(folder / "run" / "config.json", tmp_path / "run")
    refused("run", 2, "no checkpoint yet")
    (tmp_path / "run" / "config.json").write_text('{"type": "Config')
    refused("run", 2, "config.json")


def test_mistakes_of_import_and_of_training_what_was_imported(folder, tmp_path, capsys):
    def refused(code, words, *arguments):
        found, _, err = run(capsys, "import-hf", *arguments)
        assert found == code and words in err, err

    out, base = tmp_path / "new.py", folder / "base"
    before = (folder / "mine.py").read_text()
    refused(2, "never overwritten", base, folder / "mine.py")
    assert (folder / "mine.py").read_text() == before
    refused(2, "no name of a config file", base, tmp_path / "new")
    refused(2, "cannot be written", base, tmp_path / "absent" / "new.py")
    refused(4, "is not a directory", tmp_path / "absent", out)
    refused(3, "cannot be read", base, out, "--tokenizer", tmp_path / "absent.json")
    hf.save(model(dataclasses.replace(BASE, vocab=61)), tmp_path / "small")
    refused(3, "no tokenizer.json", tmp_path / "small", out)
    refused(2, "model.vocab is 61", tmp_path / "small", out, "--tokenizer", "bytes")
    raw = json.loads((base / "config.json").read_text())
    shutil.copytree(base, tmp_path / "wrong")
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(raw | {"hidden_size": 32}))
    refused(4, "has shape", tmp_path / "wrong", out)
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(raw | {"model_type": "gpt2"}))
    refused(2, "model_type is 'gpt2'", tmp_path / "wrong", out)
    assert not out.exists()

    train = ["train", folder / "mine.py", "--run-dir", tmp_path / "run"]
    code, _, err = run(capsys, *train, "--model.hidden", 32)
    assert code == 2 and "model.hidden: the checkpoint has 16, the config 32" in err
    code, _, err = run(capsys, *train, "--start", tmp_path / "absent")
    assert code == 4 and "is not a directory" in err and not (tmp_path / "run").exists()


def test_mistakes_of_export(folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    code, _, err = run(capsys, "export-hf", "--run-dir", folder / "run", tmp_path / "full")
    assert code == 4 and "never overwritten" in err
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    code, _, err = run(capsys, "export-hf", "--run-dir", tmp_path / "absent", tmp_path / "new")
    assert code == 2 and "no run in this directory" in err and not (tmp_path / "new").exists()
    code, out, err = run(capsys, "export-hf", tmp_path / "new")
    assert code == 2 and "--run-dir" in out + err


def test_whatever_reads_the_text_may_end():
    """`| head`: no traceback."""
    command = [sys.executable, "-m", "fastweights.cli", "env"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    process.stdout.close()
    with process.stderr:
        errors = process.stderr.read()
    assert process.wait() == 141 and errors == ""
