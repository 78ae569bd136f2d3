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
# # Fast and slow
#
# A language model can be made better at a task in two ways. One changes its **weights**, by
# reinforcement learning (RL). The other changes its **prompt**, and leaves the weights alone. The
# first is slow and lasts; the second is fast, and a new task asks for a new prompt.
#
# Fast-Slow Training ([arXiv:2605.12484](https://arxiv.org/abs/2605.12484)) does both in one loop.
# Prompts are fast weights, parameters are slow weights, and one reward moves both.
#
# Here you will
#
# 1. meet a task whose rule is hidden, and a language of hints that can state it;
# 2. train a small language model that knows the language and not the rule;
# 3. let prompts evolve while RL moves the weights, beside RL only;
# 4. ask which of the two channels knows what;
# 5. change the rule in the middle of a run, and tell nobody.
#
# It takes about five minutes on a laptop's CPU, most of them for the base model.

# %%
# %matplotlib inline
import dataclasses
import os
import re
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

import fastweights as fw
from fastweights.fastslow import prompt_log, report
from fastweights.fastslow.config import FastSlow, arm
from fastweights.fastslow.edits import Inductive
from fastweights.fastslow.evolution import Evolution
from fastweights.fastslow.loop import shown, train_fast_slow
from fastweights.fastslow.population import from_json
from fastweights.models.decoder_config import DecoderConfig
from fastweights.tasks.continual import Continual
from fastweights.tasks.conventions import MEANINGS, Conventions
from fastweights.tasks.hint_corpus import KINDS, HintCorpus
from fastweights.train import Config, Optim, Train, train

FAST = os.environ.get("FASTWEIGHTS_FAST") == "1"  # short training, to test the notebook
print("fast setting" if FAST else "full setting")

# %% [markdown]
# ## 1. A hidden rule
#
# A problem is a chain of digits, joined by `@`, `#` and `&`, and evaluated from the left. The
# answer is the running value, a digit for each step. What the three signs mean is hidden: here `@`
# subtracts, `#` takes the smaller and `&` adds (both modulo 10).
#
# A prompt has a place for the meaning of each sign. The model reads the prompt as three letters
# before a `|`, with dots where nothing is said.

# %%
task = Conventions(meanings="-<+", steps=2)

for problem in task.problems("train", 3):
    empty, full = (task.text(prompt, problem) for prompt in (task.seed_prompt, task.oracle))
    print(f"empty prompt {empty}   full prompt {full}   answer {problem.answer}")
print(f"a sign may mean any of {' '.join(MEANINGS)}: {len(MEANINGS) ** 3} rules")

# %% [markdown]
# The reward of an answer is the share of its steps that are right; accuracy counts answers that
# are right as a whole. A verifier computes both, so there is nothing to argue about.
#
# ## 2. A model that knows the language
#
# The base model learns from made-up documents: a hint, and some chains with their values. Every
# document has a rule of its own. Signs may be left out of its hint: then the model can only guess
# among the six meanings, until an earlier chain of the document tells. So it learns what hints
# mean. It has no reason to prefer our rule to another.

# %%
BASE_UPDATES = 20 if FAST else 2000
folder = tempfile.TemporaryDirectory()
base = Path(folder.name) / "base"

base_config = Config(
    task=HintCorpus(
        weights=tuple(int(kind == "conventions") for kind in KINDS),
        examples=2_000 if FAST else 100_000,
        held_out=500,
        length=64,
    ),
    model=DecoderConfig(
        family="qwen3",
        vocab=264,
        hidden=64,
        intermediate=128,
        layers=3,
        heads=2,
        kv_heads=2,
        head_dim=32,
        tie_embeddings=True,
        max_length=256,
        initializer_range=0.1,
    ),
    optim=Optim(
        method="muon",
        lr=5e-3,
        schedule="cosine",
        decay_steps=BASE_UPDATES,
        warmup=10 if FAST else 50,
        clip=1.0,
    ),
    train=Train(
        steps=BASE_UPDATES,
        batch=32,
        eval_every=BASE_UPDATES // 4,
        checkpoint_every=BASE_UPDATES,
    ),
)
for line in train(base_config, base, quiet=True).history:
    if "validation/loss" in line:
        print(f"{line['step']:5} updates: loss {line['validation/loss']:.2f} nats a token")

# %% [markdown]
# The loss cannot reach zero: the answers about signs that the hint leaves out have to be guessed.
#
# ## 3. Two loops, one reward
#
# Every six updates of the weights there is an **evolution** of the prompts. The prompts at hand are
# scored on 16 problems. Six times a new prompt is proposed, an edit of one of the best ones, and
# kept for now if it earns more reward than its parent on a few other problems. The best four stay.
#
# Then come six **updates** of the weights. Each has 16 problems and 8 answers to each, spread over
# the prompts. An answer is pushed up or down by how much better its reward is than that of the
# other answers to the same problem.
#
# Who proposes? Here it is a stand-in for a strong language model: it knows what hints mean, sees
# solved problems, and prefers edits that explain their answers. It does not know the rule.
# (`docs/fast_slow_measured.md` compares it with proposers that know less.)
#
# The control is RL only: the same updates, with the empty prompt for ever. Each has the learning
# rate that served it best in `docs/fast_slow_measured.md`.

# %%
UPDATES, EVERY = (2, 2) if FAST else (24, 6)

fast_slow = FastSlow(
    task=task,
    base=str(base),
    evolution=Evolution(every=EVERY, proposals=1 if FAST else 6),
    train=Train(
        steps=UPDATES, eval_every=EVERY, checkpoint_every=UPDATES, log_every=EVERY, keep_last=1
    ),
    evaluation=16 if FAST else 64,
)
NAMES = {"fst": "fast-slow", "rl": "RL only"}
RATES = {"fst": 3e-4, "rl": 1e-3}  # of the weights


def arms(config):
    return {
        name: dataclasses.replace(arm(config, name), optim=Optim(lr=RATES[name], clip=1.0))
        for name in NAMES
    }


histories = {}
for name, config in arms(fast_slow).items():
    result = train_fast_slow(config, Path(folder.name) / name, quiet=True)
    histories[name] = [line for line in result.history if "validation/accuracy_own" in line]

# %% [markdown]
# What happened in the first evolution is in the run's `prompts.jsonl`, a line for each thing done.
# "Scored" shows the mean reward of each prompt by its number; the population starts with number 0,
# the empty one.

# %%
events = prompt_log.read(Path(folder.name) / "fst")
for event in events:
    if event["cycle"] == 0:
        print(f"{event['kind']:10} {event['text']}")

# %% [markdown]
# And the two runs. The prompt is the best one at that time, and accuracy is on problems that
# neither loop has seen. Rollouts are all answers that either loop asked the model for. KL is how
# far the model has gone from the base model, in nats an answer, both under the run's own prompt.


# %%
def rollouts(line):
    return line["rollouts_slow"] + line["rollouts_fast"]


def values(history, name):
    return np.array([line[f"validation/{name}"] for line in history])


def cells(line):
    accuracy, apart = line["validation/accuracy_own"], line["validation/kl_sequence_own"]
    return f"{rollouts(line):8,} {100 * accuracy:7.1f} % {apart:6.2f}"


print(f"{'':7} {'fast-slow':^25}   {'RL only':^25}")
print(f"updates {'rollouts accuracy     KL':25}   {'rollouts accuracy     KL':25}   best prompt")
for fst_line, rl_line in zip(histories["fst"], histories["rl"], strict=True):
    prompt = shown(prompt_log.best_prompt(events, fst_line["step"]) or {})
    print(f"{fst_line['updates']:7} {cells(fst_line):25}   {cells(rl_line):25}   {prompt}")

# %%
curves = {
    NAMES[name]: [
        (rollouts(line), line["validation/accuracy_own"], line["validation/kl_sequence_own"])
        for line in history
    ]
    for name, history in histories.items()
}
display(fw.plot.fast_slow(curves, f"prompts by {Inductive.description}"))

# %% [markdown]
# One evolution writes down the rule, and accuracy jumps to its end: this base model follows hints
# so well that nothing is left for its weights to learn. RL only has to find the rule in rewards,
# one small push at a time: after all its updates it is not where fast-slow training was after the
# first six.
#
# The right panel is the other half of the story. RL only pays for every point of accuracy with
# distance from the base model. Fast-slow training stays near it, under its own prompt: the prompt
# has done the work, and a model that follows its prompt need not change.
#
# This is one seed, one small world, and a helpful proposer. RL has not come to its end either.
#
# ## 4. Which channel knows what
#
# Now there are two sets of weights, of the base model and the trained ones, and two prompts, the
# empty one and the evolved one. That makes four combinations, tried on test problems.

# %%
tables = {}
for name in NAMES:
    run, last = report.load(Path(folder.name) / name)
    tables[name] = report.two_by_two(run, run.task(last.updates))

for name, table in tables.items():
    print(f"{NAMES[name]:16} empty prompt   evolved prompt")
    for weights in ("base", "trained"):
        empty, evolved = (100 * table[f"{weights}_{prompt}"] for prompt in ("seed", "evolved"))
        print(f"{weights + ' weights':16} {empty:10.1f} % {evolved:14.1f} %")
    print()
seed_kl = {name: values(history, "kl_sequence_seed")[-1] for name, history in histories.items()}
own_kl = {name: values(history, "kl_sequence_own")[-1] for name, history in histories.items()}
for name in NAMES:
    print(f"{NAMES[name]:10} KL: own prompt {own_kl[name]:.2f}, empty prompt {seed_kl[name]:.2f}")

# %% [markdown]
# Read the first table by its corners. The base model with the evolved prompt is what the **fast**
# channel knows: all that there is to know. The trained weights with the empty prompt are what the
# **slow** channel knows. Where a model reads its hints less well the weights have a part of their
# own, and both together are best (`docs/fast_slow_measured.md`).
#
# With RL only the two columns are the same, since there is no other prompt. All that it knows is in
# its weights.
#
# The last lines say how far the weights have gone. Those of fast-slow training have hardly moved:
# under the right prompt all answers to a problem are right, and a group of answers that are worth
# the same teaches nothing.
#
# ## 5. The rule changes
#
# `Continual` puts tasks one after the other in one run. After half of the updates every sign has
# another meaning: `@` is now the larger, `#` the sum and `&` the difference. Nobody is told. The
# prompts and the weights are what they were.

# %%
EACH = 2 if FAST else 24
new_rule = dataclasses.replace(task, meanings=">+-")
switch = dataclasses.replace(
    fast_slow,
    task=Continual((task, new_rule), updates=EACH),
    train=dataclasses.replace(
        fast_slow.train, steps=2 * EACH, eval_every=min(3, EACH), checkpoint_every=2 * EACH
    ),
)
switched = {}
for name, config in arms(switch).items():
    result = train_fast_slow(config, Path(folder.name) / f"{name}_switch", quiet=True)
    switched[name] = [line for line in result.history if "validation/accuracy_own" in line]

figure, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
for (name, history), (colour, dash) in zip(switched.items(), fw.plot.LINES, strict=False):
    updates = [line["updates"] for line in history]
    accuracy = 100 * values(history, "accuracy_own")
    ax.plot(updates, accuracy, dash, color=colour, marker=".", label=NAMES[name])
ax.axvline(EACH, color="0.4", linewidth=0.8, linestyle=":")
ax.set(xlabel="updates of the weights", ylabel="accuracy (%)", xlim=(0, None), ylim=(0, 100))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)

# %% [markdown]
# The dotted line is the switch; the point on it is still of the old rule. Let us look at the one
# evolution that comes right after it. The weights do not move in it.

# %%
switch_events = prompt_log.read(Path(folder.name) / "fst_switch")
cycle = EACH // EVERY
after_switch = [event for event in switch_events if event["cycle"] == cycle]
for event in after_switch:
    print(f"{event['kind']:10} {event['text']}")

old_best = max(map(float, re.findall(r": ([\d.]+)", after_switch[0]["text"])))
population = from_json(after_switch[-1]["population"])
new_best = population.means.max()
before = prompt_log.best_prompt(switch_events, after_switch[0]["tick"])
print(f"\nbefore: {shown(before)}, best reward {old_best:.2f}")
print(f"after:  {shown(population.best().components)}, best reward {new_best:.2f}")

# %%
print(f"{'':7}  {'fast-slow':^17}  {'RL only':^17}")
print(f"updates  {'accuracy       KL':17}  {'accuracy       KL':17}  best prompt")
for fst_line, rl_line in zip(switched["fst"], switched["rl"], strict=True):
    row = [cells(line)[len("rollouts") :] for line in (fst_line, rl_line)]
    prompt = shown(prompt_log.best_prompt(switch_events, fst_line["step"]) or {})
    mark = "  <- the rule changes" if fst_line["updates"] == EACH else ""
    print(f"{fst_line['updates']:7} {row[0]:17} {row[1]:17}   {prompt}{mark}")

# %% [markdown]
# And the weights? Here are the trained weights of both runs under the empty prompt: what have they
# themselves come to believe, of either rule?

# %%
believed = {}
for name in NAMES:
    run, _ = report.load(Path(folder.name) / f"{name}_switch")
    stages = [switch.task.stage(number) for number in (0, 1)]
    believed[name] = [report.two_by_two(run, stage)["trained_seed"] for stage in stages]
    old, new = (100 * x for x in believed[name])
    print(f"{NAMES[name]:10} empty prompt: old rule {old:5.1f} %, new rule {new:5.1f} %")

# %% [markdown]
# The prompts follow the rule. Number 3, which states the old rule in full, is now worth little.
# The first evolution finds the meaning of two signs, a later one that of the third. The weights
# hardly move in that time.
#
# The weights do not follow. Those of RL only still answer by the old rule when they are right at
# all, and after as many updates have nothing of the new one. Those of fast-slow training know
# nothing of the old rule, which was in the prompt, and do not stand in the way of the new one. That
# is the reason for two speeds. What changes should be where it is easily changed.
#
# ## What this notebook claims
#
# A notebook can go stale. This one is run in the library's tests, and these are its claims.

# %%
# the budget is counted; RL only has no evolutions, and its own prompt is the empty one
assert histories["rl"][-1]["rollouts_fast"] == 0 < histories["fst"][-1]["rollouts_fast"]
assert histories["rl"][-1]["rollouts_slow"] == histories["fst"][-1]["rollouts_slow"]
assert own_kl["rl"] == seed_kl["rl"]
assert tables["rl"]["base_seed"] == tables["rl"]["base_evolved"]
assert tables["fst"]["base_seed"] == tables["rl"]["base_seed"]  # one base, one set of problems
assert values(histories["fst"], "kl_sequence_own")[0] < 1e-3  # a run starts from the base model

if not FAST:  # what only a trained model can show
    fst, rl = (values(histories[name], "accuracy_own") for name in NAMES)
    assert (fst[1:] > rl[1:]).all() and fst[1] > rl.max() + 0.1
    assert own_kl["fst"] < 0.1 * own_kl["rl"]
    # fewer rollouts, both loops counted, to what RL only has at its best
    reached = rollouts(histories["fst"][int((fst >= rl.max()).argmax())])
    assert reached < 0.5 * rollouts(histories["rl"][int(rl.argmax())])
    # what each channel knows
    two, one = tables["fst"], tables["rl"]
    assert two["base_seed"] < 0.15 and two["base_evolved"] > 0.9
    assert two["trained_seed"] < two["base_evolved"] - 0.2
    assert one["trained_seed"] > max(one["base_seed"], two["trained_seed"]) + 0.1
    assert seed_kl["fst"] < 0.1 * seed_kl["rl"]
    # the switch: prompts follow, weights do not
    assert new_best > old_best + 0.1
    fst, rl = (values(switched[name], "accuracy_own") for name in NAMES)
    after = np.array([line["updates"] > EACH for line in switched["fst"]])
    assert fst[after].max() > 0.9 > 0.1 > rl[after].max() and (fst[after] > rl[after]).all()
    assert fst[~after][-1] > 0.9 and believed["rl"][0] > believed["rl"][1]

folder.cleanup()
print("all claims hold")

# %% [markdown]
# ## Go on
#
# - Another proposer: `proposer="blind"` edits at random. How much of the lead is left?
# - Prompts only: `arm(fast_slow, "evolution")` never moves the weights. Where does it end?
# - Come back: `Continual((task, new_rule, task), updates=EACH)`. What is left of the first time?
# - Three tasks of different kinds, with a larger base model: `configs/fst_continual.py`.
# - What is measured with several seeds: `docs/fast_slow_measured.md`.
