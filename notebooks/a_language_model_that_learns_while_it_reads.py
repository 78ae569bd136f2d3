# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A language model that learns while it reads
#
# A trained transformer no longer learns. What it knows of the text before it is what its attention
# can still see. If attention has a window, everything further back is gone.
#
# Feng et al. (2026, [arXiv:2604.06169](https://arxiv.org/abs/2604.06169)) give it a second memory,
# and do not add a single matrix for it to be kept in: the **down projection of the MLPs** goes on
# learning while the model reads. That is *in-place test-time training*.
#
# Here you will
#
# 1. make a text whose facts nobody can know before reading it;
# 2. train a small model on such texts, a byte at a time, with a window of 16 bytes;
# 3. see what it gains from what it has read, far beyond its window;
# 4. ask it for a fact, and make it forget;
# 5. hold what it has learned in your hand: a state that can be forked, measured and reset.
#
# It takes two or three minutes on a laptop's CPU.

# %%
# %matplotlib inline
import functools
import math
import os
import re
import tempfile
import textwrap
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import fastweights as fw
from fastweights.models.decoder_config import DecoderConfig
from fastweights.nn.in_place import InPlaceTTT
from fastweights.pretrained import without_ttt
from fastweights.tasks import context_loss
from fastweights.tasks.haystack import Draw, made_up
from fastweights.tasks.language import Language
from fastweights.tasks.text_tokens import Bytes
from fastweights.train import Config, Data, Optim, Train, train

FAST = os.environ.get("FASTWEIGHTS_FAST") == "1"  # short training, to test the notebook
BOOKS = os.environ.get("FASTWEIGHTS_BOOKS")  # a folder of .txt files to read instead
print("fast setting" if FAST else "full setting")

# %% [markdown]
# ## 1. Facts that have to be read
#
# Each document has four people and four towns of its own, with names made up for it. It tells again
# and again who lives where, in any order, with a sentence about nothing here and there. The same
# fact never comes back before two others were told.

# %%
LENGTH = 512  # bytes of a document in training


def people(draw):
    words = draw.words(8)
    return list(zip(words[:4], words[4:], strict=True))


def tell(name, town):
    return f"{name} lives in {town}."


def document(index, length=LENGTH):
    draw = Draw(0, index)
    facts = [tell(*pair) for pair in people(draw)]
    told, lines = [], []
    while sum(map(len, lines)) + len(lines) <= length:
        if draw.below(5) == 0:
            lines += made_up(draw, 70)
        else:
            told.append(draw.choice([fact for fact in facts if fact not in told[-2:]]))
            lines.append(told[-1])
    return " ".join(lines)[:length]


print(textwrap.fill(document(1), 96))

# %% [markdown]
# A town's name has three syllables, each one of 14 × 5. When it is told for the first time, no
# reader can guess it: it costs $3 \ln 70$ nats on average, not less. Later it costs nothing, for
# one who remembers. So the loss at a name tells what a model has kept.

# %%
UNKNOWN = 3 * math.log(14 * 5)
print(f"a name nobody can know: {UNKNOWN:.2f} nats")

# %% [markdown]
# ## 2. The model
#
# A small decoder of the Qwen3 kind reads bytes. Both of its layers see 16 bytes, the present one
# included; through two layers that makes 30 bytes back. Two tellings of a fact are further apart
# than that. Its attention alone can therefore never copy a town's name.
#
# Both MLPs learn in place. A text is read in chunks of 64 bytes. With $z$ what the MLP computes for
# a byte inside, and $v$ a trained mixture of the embeddings of the bytes around it, the next one
# included,
#
# $$\text{read}\quad y = W z \qquad\qquad \text{write, after the chunk}\quad
# W \leftarrow W + \eta \sum_t v_t z_t^\top$$
#
# A later byte with a similar $z$ reads a bit of that $v$: what came next, the last time.
#
# The paper also multiplies $v$ by a trained matrix. We leave it out (`proj=False`), and start from
# larger weights than usual: in our trials both made the model find this use of its memory sooner.

# %%
WINDOW, LAYERS, CHUNK = 16, 2, 64
REACH = LAYERS * (WINDOW - 1)

model_config = DecoderConfig(
    family="qwen3",
    vocab=Bytes.vocab,
    hidden=64,
    intermediate=256,
    layers=LAYERS,
    heads=2,
    kv_heads=2,
    head_dim=32,
    tie_embeddings=True,
    max_length=LENGTH,
    windows=(WINDOW,) * LAYERS,
    initializer_range=0.1,
    ttt=InPlaceTTT(layers=(0, 1), chunk=CHUNK, lr=1.0, target="input_embed", proj=False),
)

gaps = []
for i in range(50):
    places = {}
    for found in re.finditer(r"(\w{6}) lives in (\w{6})", document(i)):
        gaps += [found.end() - 1 - places[found[1]]] if found[1] in places else []
        places[found[1]] = found.end() - 1
print(f"attention reaches back {REACH} bytes")
print(f"a fact comes back after {min(gaps)} bytes or more, {np.mean(gaps):.0f} on average")

# %% [markdown]
# Training is the library's own loop, in a folder that is deleted at the end. The loss is the
# ordinary one, of the next byte. Its gradient goes through every write, so the slow weights learn
# what is worth writing. Every document starts with the slow weights again.
#
# (If `FASTWEIGHTS_BOOKS` names a folder of books, the model is trained on them and the last one is
# held out. The rest of the notebook is the same, but books are hard: do not expect much of so
# short a training.)

# %%
UPDATES, BATCH, HELD_OUT = (6, 2, 4) if FAST else (240, 4, 24)
folder = tempfile.TemporaryDirectory()
texts = Path(folder.name) / "texts"
texts.mkdir()
if BOOKS:
    *books, last = sorted(Path(BOOKS).glob("*.txt"))
    for book in books:
        (texts / book.name).write_bytes(book.read_bytes())
    (texts / last.name).write_text(last.read_text(encoding="utf-8")[:50_000], encoding="utf-8")
    held_out = (last.name,)
else:  # every document is read once
    for i in range(UPDATES * BATCH + HELD_OUT):
        (texts / f"{i:05}.txt").write_text(document(i))
    held_out = tuple(f"{UPDATES * BATCH + i:05}.txt" for i in range(HELD_OUT))

config = Config(
    task=Language(length=LENGTH, validation=held_out, short="drop", drift=False),
    model=model_config,
    optim=Optim(lr=1e-2, schedule="cosine", decay_steps=UPDATES, warmup=UPDATES // 20, clip=1.0),
    train=Train(steps=UPDATES, batch=BATCH, eval_every=UPDATES // 3, checkpoint_every=UPDATES),
    data=Data(dir=str(texts)),
)
run = train(config, Path(folder.name) / "run", quiet=True)
for line in run.history:
    if "validation/loss" in line:
        print(f"after {line['step']:4} updates: {line['validation/loss']:.3f} nats a byte held out")

model = run.state.model
plain = without_ttt(model)

# %% [markdown]
# ## 3. What reading is worth
#
# `without_ttt` gives the same model with the same slow weights, which writes nothing. We let both
# read new documents, four times as long as those of the training, and look at the loss against the
# position.

# %%
LONG, FEW = (2, 2) if FAST else (4, 12)  # how much longer than in training, how many
LONG *= LENGTH
tokenizer = Bytes()


def tokens_of(text):
    return np.append(tokenizer.separator, tokenizer.encode(text))


def table_of(documents):
    """Rows of bytes and of the bytes that follow them."""
    return {name: x[:FEW] for name, x in context_loss.windows(documents, LONG)[0].items()}


compiled = jax.jit(config.task.losses)


def losses(model, table):
    """Loss of every byte, `[documents, bytes]`."""
    return context_loss.table_losses(functools.partial(compiled, model), table, batch=2)


def mark(ax, x, text):
    """A dotted line that says what it is."""
    ax.axvline(x, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    ax.text(x, 0.02, f" {text}", transform=ax.get_xaxis_transform(), fontsize=8, color="0.3")


pages = [document(10**6 + i, LONG) for i in range(FEW)]
table = table_of([tokens_of(page) for page in pages])
if BOOKS:
    table = table_of([text.tokens for text in config.task.documents("validation", config.data)])
on, off = losses(model, table), losses(plain, table)
curves = {
    "test-time training on": context_loss.by_position(on, bins=16),
    "off": context_loss.by_position(off, bins=16),
}

figure, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
fw.plot.context_curves(ax, curves, ylabel="loss (nats a byte)")
ax.set(xlabel="position in the document (bytes)", ylim=(0, None))
mark(ax, LENGTH, "length in training")

# %%
first = (off - on)[:, :CHUNK]
gain = (off - on).reshape(FEW, -1, LENGTH).mean(-1)
print(f"largest difference in the first chunk: {np.abs(first).max():.1e} nats")
for quarter, (mean, error) in enumerate(
    zip(gain.mean(0), gain.std(0, ddof=1) / math.sqrt(FEW), strict=True)
):
    start = quarter * LENGTH
    print(f"bytes {start:4} to {start + LENGTH:4}: gain {mean:6.3f} ± {error:.3f} nats a byte")

# %% [markdown]
# Nothing is written before the first chunk ends: the two are one model there. After it the plain
# model stays where it was, and the other one comes down.
#
# Left of the dotted line lies what the model was trained for. To its right it reads with more in
# its memory than it ever had to. In our run the gain is still there at four times the length. The
# rule does not promise that: a write only adds, nothing fades and nothing is taken back.
#
# "Off" is a model that was trained to have a memory. One trained without might be a little better
# than that. For the names, though, there is a floor that needs no second training:
#
# ## 4. Told twice
#
# Which bytes gain? Here is the loss of a town's name, all six letters together, by how often the
# fact was told before, in the first 512 bytes of these documents. (After a training on books, too:
# from here on it is documents about people and towns that are read.)


# %%
def name_losses(by_byte):
    """Loss of every town's name, by how often its fact was told before."""
    found = {}
    for page, row in zip(pages, by_byte[:, :LENGTH], strict=True):
        told = {}
        for fact in re.finditer(r"(\w{6}) lives in (\w{6})\.", page[:LENGTH]):
            before = told.get(fact[1], 0)
            found.setdefault(min(before, 3), []).append(row[fact.start(2) : fact.end(2)].sum())
            told[fact[1]] = before + 1
    return {before: np.array(values) for before, values in sorted(found.items())}


if BOOKS:
    table = table_of([tokens_of(page) for page in pages])
    on, off = losses(model, table), losses(plain, table)
names_on, names_off = name_losses(on), name_losses(off)
print("told before   names      on     off   (nats a name)")
for before, values in names_on.items():
    label = f"{before}" if before < 3 else "3 or more"
    print(f"{label:11} {len(values):7} {values.mean():7.2f} {names_off[before].mean():7.2f}")
print(f"no model that sees only {REACH} bytes back can do better than {UNKNOWN:.2f}")

# %% [markdown]
# The first time nobody knows the name, and the model that writes does a little worse than the one
# that does not: it is surer than it can be. From then on it knows more with every telling. The
# plain model stays where it was. Its view ends after the person's name; it has to guess, and the
# last line is what a guess costs.
#
# ### From how far?
#
# In the documents a fact may have been told several times. Now the test is harder: one fact is
# told once, at the very start. Then comes text of a number of bytes about other people, and then
# the question. We ask
#
# - the model,
# - the plain model,
# - the model, after `reset(keep_cache=True)` just before the question. That puts the slow weights
#   back and leaves everything else: attention still sees what it saw.

# %%
DISTANCES, NEEDLES = ((64,), 4) if FAST else ((64, 192, 320, 448, 896), 16)


PIECE = 64  # bytes read at a time, whatever there is to read: so few programs are compiled


def padded(rows):
    """Ragged rows to one array and their lengths, as `prefill` and `extend` want them."""
    lengths = np.array([len(row) for row in rows])
    array = np.zeros((len(rows), -(-lengths.max() // PIECE) * PIECE), np.int32)
    for row, tokens in zip(array, rows, strict=True):
        row[: len(tokens)] = tokens
    return array, lengths


def read(model, rows):
    """Read from the start, piece by piece: no large matrix of attention is needed."""
    state = fw.inference.empty(model, len(rows), LONG)
    tokens, lengths = padded(rows)
    for start in range(0, tokens.shape[1], PIECE):
        piece, counts = tokens[:, start : start + PIECE], np.clip(lengths - start, 0, PIECE)
        state = fw.inference.extend(model, state, piece, counts)
    return state


def ask(model, state, names):
    """Read `NAME lives in ` in every row."""
    texts = [tokenizer.encode(f"{name} lives in ") for name in names]
    return fw.inference.extend(model, state, *padded(texts))


def loss_of(model, state, towns):
    """Loss of the towns as what comes next, nats a name, `[B]`."""
    total, letters = 0.0, np.stack([tokenizer.encode(town) for town in towns])
    for letter in letters.T:
        log_p = np.asarray(jax.nn.log_softmax(state.logits))
        total -= log_p[np.arange(len(letter)), letter]
        state = fw.inference.extend(model, state, letter[:, None])
    return total


def say(model, state):
    """The likeliest six letters, one after the other."""
    letters = []
    for _ in range(6):
        letters.append(np.asarray(state.logits).argmax(-1))
        state = fw.inference.extend(model, state, letters[-1][:, None])
    return [tokenizer.decode(row) for row in np.stack(letters, 1)]


needles, prompts = [], []
for distance in DISTANCES:
    for i in range(NEEDLES):
        name, town = Draw(1, distance, i).words(2)
        between = document(3 * 10**6 + i, distance + 24)
        between = between[: between.rindex(". ", 0, distance) + 2]  # whole sentences
        needles.append((name, town))
        prompts.append(tokens_of(f"{tell(name, town)} {between}"))
names, towns = zip(*needles, strict=True)


def interrogate(model, forget=False):
    state = read(model, prompts)
    if forget:
        state = fw.inference.reset(model, state, keep_cache=True)
    state = ask(model, state, names)
    said = say(model, state)
    right = np.array([said == town for said, town in zip(said, towns, strict=True)])
    return loss_of(model, state, towns).reshape(len(DISTANCES), -1), said, right


asked = {
    "test-time training on": interrogate(model),
    "off": interrogate(plain),
    "on, reset before the question": interrogate(model, forget=True),
}

read_between = np.reshape([len(x) for x in prompts], (len(DISTANCES), -1)).mean(1) - 25
figure, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
by_distance = {
    arm: context_loss.Curve(
        read_between, loss.mean(1), loss.std(1, ddof=1) / math.sqrt(NEEDLES), NEEDLES
    )
    for arm, (loss, _, _) in asked.items()
}
fw.plot.context_curves(ax, by_distance, ylabel="loss of the town (nats)")
ax.set(xlabel="bytes read between the fact and the question", ylim=(0, None))
ax.set_xlim(0, 1.05 * max(*DISTANCES, LENGTH))
mark(ax, LENGTH - 47, "length in training")  # the fact and the question are 47 bytes

# %%
print("bytes between         ", "".join(f"{x:11.0f}" for x in read_between))
for arm, (loss, _, right) in asked.items():
    right = 100 * right.reshape(len(DISTANCES), -1).mean(1)
    print(f"\n{arm}")
    print("  nats a name         ", "".join(f"{x:11.2f}" for x in loss.mean(1)))
    print("  names exactly right ", "".join(f"{x:9.0f} %" for x in right))

print("\nin words, the first question of each distance")
for i in range(0, len(needles), NEEDLES):
    said = ", ".join(repr(answers[i]) for _, answers, _ in asked.values())
    print(f"{names[i]} lives in {towns[i]}: they say {said}")

# %% [markdown]
# The band is one standard error over the questions. The two flat lines lie on each other: what the
# model knows of the town is in the fast weights and nowhere else. Put them back, and it knows as
# little as the plain model.
#
# It is not a safe place, though. The more is read in between, the less is left of a fact that was
# told once. At the last distance, in a text longer than those of the training, this model even does
# worse than one that guesses: it is sure, and wrong. (The facts of the documents were told again
# and again.)
#
# ## 5. What it has learned, as a thing
#
# `prefill` returns a **state**: keys and values, fast weights, and the chunk that is not complete
# yet. It is a value. No function changes it; `extend` and `decode` return another one.
#
# A model reads six chunks of a page. Then there are three of it: one goes on reading that page, one
# reads another page, one reads nothing.

# %%
page, other = document(4 * 10**6, 768), document(4 * 10**6 + 1, 768)
state = fw.inference.prefill(model, tokens_of(page)[None, : 6 * CHUNK], max_length=LONG)
branches = fw.inference.fork(state, 3)

more = [tokens_of(page)[6 * CHUNK : 10 * CHUNK], tokens_of(other)[1 : 4 * CHUNK + 1], []]
after = fw.inference.extend(model, branches, *padded(more))

# %% [markdown]
# `drift` says how far fast weights are from where they started, $\|W - W_0\| / \|W_0\|$, a row for
# each layer and a column for each branch. And the three are asked for every fact that the first
# page, or the other one, has told by then.

# %%
drift = lambda state: np.asarray(fw.inference.drift(model, state))
matrices = lambda state: state.layers[0]["mlp"].weights.shape[1]
print(f"{'drift':8}{'before':>10}{'went on':>12}{'read other':>12}{'read nothing':>14}")
for layer, (before, row) in enumerate(zip(drift(branches)[:, 0], drift(after), strict=True)):
    print(f"layer {layer} {before:10.2f}{row[0]:12.2f}{row[1]:12.2f}{row[2]:14.2f}")
print(
    f"matrices of a layer: {matrices(branches)} for the three at first, {matrices(after)} after\n"
)


def told_in(text):
    return sorted(set(re.findall(r"(\w{6}) lives in (\w{6})\.", text)))


first_page, other_page = told_in(page[: 6 * CHUNK]), told_in(other[: 4 * CHUNK])
facts = first_page + other_page


def known(state):
    """Loss of a town, mean over the facts of the first page and of the other, in each branch."""
    every = ask(model, fw.inference.fork(state, len(facts)), [name for name, _ in facts] * 3)
    found = loss_of(model, every, [town for _, town in facts] * 3).reshape(3, -1)
    return found[:, : len(first_page)].mean(1), found[:, len(first_page) :].mean(1)


forgot = fw.inference.reset(model, after, keep_cache=True)
answers = {"": known(after), ", after a reset": known(forgot)}
print(f"{'nats a name':30}{'went on':>10}{'read other':>12}{'read nothing':>14}")
for when, (of_first, of_other) in answers.items():
    for whose, row in {"the first page": of_first, "the other page": of_other}.items():
        print(f"{whose + when:30}{row[0]:10.2f}{row[1]:12.2f}{row[2]:14.2f}")
print("drift after the reset:", drift(forgot).max())

# %% [markdown]
# All three know the first page. Only the branch that has read the other page knows anything of its
# people. The two that have not read it do worse than a guess: they do not know that they do not
# know. A reset brings all of them back to guessing, on either page.
#
# ## 6. One write
#
# A write is one addition to each matrix, when the last byte of a chunk is read. Let us watch a new
# document, a chunk at a time.

# %%
long_page = tokens_of(pages[0])[:LONG]
state = read(model, [long_page[: CHUNK - 1]])
print(f"drift after {CHUNK - 1} bytes: {drift(state)[:, 0]}")
state = fw.inference.extend(model, state, *padded([long_page[CHUNK - 1 : CHUNK]]))
print(f"drift after {CHUNK} bytes: {np.round(drift(state)[:, 0], 3)}")

steps = [drift(state)[:, 0]]
for start in range(CHUNK, len(long_page), CHUNK):
    state = fw.inference.extend(model, state, long_page[None, start : start + CHUNK])
    steps.append(drift(state)[:, 0])
steps = np.concatenate([np.zeros((1, LAYERS)), steps])

figure, ax = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
for layer, (colour, dash) in zip(range(LAYERS), fw.plot.LINES, strict=False):
    places = CHUNK * np.arange(len(steps))
    ax.step(places, steps[:, layer], dash, where="post", color=colour, label=f"layer {layer}")
ax.set(xlabel="bytes read", ylabel="drift", xlim=(0, None), ylim=(0, None))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
mark(ax, LENGTH, "length in training")

# %% [markdown]
# The steps are the writes. In this model they add up: the fast weights go further and further from
# where they started, beyond all that the training has seen. The rule has no decay.
# `InPlaceTTT(clip=...)` limits a single write, and a new document should start with a `reset`.
#
# ## What this notebook claims
#
# A notebook can go stale. This one is run in the library's tests, and these are its claims.

# %%
# attention ends where it should: bytes further back change nothing in the plain model ...
half = LONG // 2
one, two = table["inputs"][:2]
changed = {
    "inputs": np.stack([one, np.append(two[:half], one[half:])]),
    "target": table["target"][[0, 0]],
}
seen = lambda model: losses(model, changed)[:, half + REACH :]  # of bytes that see only one half
np.testing.assert_allclose(*seen(plain), atol=1e-3)
# ... and do in the one that learns
assert np.abs(np.subtract(*seen(model))).max() > 1e-2

# nothing is written before a chunk is complete; a reset undoes it all; a fork shares until it reads
assert np.abs(first).max() < 1e-3 and min(gaps) > REACH
assert (steps[0] == 0).all() and (steps[1] > 0).all()
assert (drift(forgot) == 0).all() and (drift(after)[:, 2] == drift(branches)[:, 2]).all()
assert (drift(after)[:, 0] != drift(after)[:, 1]).all()
assert (matrices(branches), matrices(after)) == (1, 3)

if not (FAST or BOOKS):  # what only a trained model can show
    assert (gain.mean(0) > 0.2).all()
    news, *known_names = (values.mean() for values in names_on.values())
    assert UNKNOWN < news < 1.2 * UNKNOWN
    assert known_names[0] < 0.6 * UNKNOWN and known_names[1] > known_names[2] < 0.3 * UNKNOWN
    for values in names_off.values():
        assert abs(values.mean() - UNKNOWN) < 1
    kept, without, forgotten = (loss.mean(1) for loss, _, _ in asked.values())
    assert np.abs(np.array([without, forgotten]) - UNKNOWN).max() < 1
    assert kept[0] < 0.4 * UNKNOWN and (np.diff(kept) > 0).all() and kept[-1] > UNKNOWN + 1
    (of_first, of_other), reset = answers[""], np.array(answers[", after a reset"])
    assert of_first.max() < 0.3 * UNKNOWN and np.abs(reset - UNKNOWN).max() < 1.5
    assert of_other[1] < 0.7 * UNKNOWN and min(of_other[0], of_other[2]) > UNKNOWN + 3
    assert (np.diff(steps, axis=0) > 0).mean() > 0.9

folder.cleanup()
print("all claims hold")

# %% [markdown]
# ## Go on
#
# - Another window or chunk: change `WINDOW` and `CHUNK`. A fact in a chunk that is not complete
#   yet is known to nobody who cannot see it.
# - The control: train a second model with `ttt=None`. Is it better than `plain`?
# - Books: `configs/books.py`, half an hour on two cores, and `docs/in_place_ttt.md`.
# - The rule itself: `fastweights/rules/in_place.py` is short and begins with the equations.
# - Keep a state: `fw.inference.save(model, state, path)` and `load`.
