"""Sampling under mixed prompts against one at a time, and the update against its definition."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import distributions, model

from fastweights.fastslow.evaluation import divergence, score, sequences
from fastweights.fastslow.judge import Direct
from fastweights.fastslow.loop import tell_unscored
from fastweights.fastslow.objective import PolicyGradient
from fastweights.fastslow.rollouts import Rollouts, Sampler, power_of_two
from fastweights.fastslow.slow import answer_log_probs, batch_of, explore, make_update
from fastweights.tasks.programs import Programs
from fastweights.tasks.prompted import Failed, Score
from fastweights.tasks.text_tokens import Bytes
from fastweights.train.config import Optim
from fastweights.train.optim import optimizer
from fastweights.train.state import TrainState

TASK = Programs()
TEXTS = ["......|12345=", "irt...|5=", "irtnwi|36157=", "x"]
#: newline and a few bytes that a random model writes, so that answers end early now and then
STOPS = (ord("\n"), *range(60, 100))


def sampler(temperature=1.0, most=6):
    return Sampler(Bytes(), STOPS, most, temperature)


def whole_texts(rollouts):
    """Tokens of each input with its answer, and the sizes of the two."""
    sizes = zip(rollouts.input_lengths, rollouts.answer_lengths, strict=True)
    for row, (size, count) in enumerate(sizes):
        text = [*rollouts.inputs[row, :size], *rollouts.answers[row, :count]]
        yield text, int(size), int(count)


def reference_log_probs(policy, rollouts, temperature):
    """The whole text through the plain forward pass, a row at a time, in float64."""
    found = np.zeros(rollouts.answers.shape)
    for row, (text, size, count) in enumerate(whole_texts(rollouts)):
        log_p = distributions(policy, text, temperature)
        for i in range(count):
            found[row, i] = log_p[size - 1 + i, text[size + i]]
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_behaviour_log_probs_are_the_forward_passes(temperature):
    rollouts = sampler(temperature)(model(), TEXTS, 3, seed=1)
    expected = reference_log_probs(model(), rollouts, temperature)
    np.testing.assert_allclose(rollouts.log_probs, expected, atol=2e-5)
    batch = {
        k: jnp.asarray(v)
        for k, v in zip(("tokens", "at", "mask"), sequences(rollouts), strict=True)
    }
    batch["answers"] = jnp.where(batch["mask"], jnp.asarray(rollouts.answers), -1)
    again = jax.jit(answer_log_probs, static_argnums=2)(model(), batch, temperature)
    np.testing.assert_allclose(again, expected, atol=2e-5)
    assert set(rollouts.answer_lengths) != {6}  # some have ended early, or nothing is tested


def test_a_mixed_batch_answers_as_each_prompt_alone():
    greedy = sampler(1e-4)
    together = greedy(model(), TEXTS, 2, seed=0)
    for i, text in enumerate(TEXTS):
        alone = greedy(model(), [text], 1, seed=0)
        assert together.texts[2 * i] == together.texts[2 * i + 1] == alone.texts[0]
        size = alone.answer_lengths[0]
        np.testing.assert_allclose(
            together.log_probs[2 * i, :size], alone.log_probs[0, :size], atol=1e-3
        )


def test_answers_are_of_the_distribution():
    """Frequencies of the first token under two prompts of one batch, against the probabilities."""
    times = 2_000
    rollouts = sampler(most=1)(model(), TEXTS[:2], times, seed=3)
    for i, text in enumerate(TEXTS[:2]):
        p = np.exp(distributions(model(), list(text.encode()))[-1])
        drawn = np.bincount(rollouts.answers[i * times : (i + 1) * times, 0], minlength=264)
        spread = np.sqrt(times * p * (1 - p)) + 1
        assert np.max(np.abs(drawn - times * p) / spread) < 5
    assert power_of_two(1) == 1 and power_of_two(5) == 8 and power_of_two(8) == 8


def test_the_text_of_an_answer_leaves_the_stop_token_out():
    assert sampler().text(np.array([49, 50, 10])) == "12"
    assert sampler().text(np.array([49, 50, 51])) == "123"
    assert sampler().text(np.array([], np.int32)) == ""


def experience(config, verify=TASK.verify, seed=0):
    prompts = [{"odd": "irt", "even": ""}, {"odd": "", "even": "nw"}]
    problems = TASK.problems("train", 4, seed)
    how = sampler(config.temperature)
    return explore(config, TASK, prompts, problems, model(), how, Direct(verify), seed)


def graded(problem, answer):
    """A reward with many values, so that every group has some variance."""
    return Score((sum(answer.encode()) % 17) / 16, False, "")


def test_groups_are_of_a_problem_or_of_a_prompt():
    config = PolicyGradient(problems=4, rollouts=6)
    seen = experience(config, graded)
    rewards = seen.rewards.reshape(4, 6)
    centred = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(
        seen.advantages.reshape(4, 6), centred / (rewards.std(1, keepdims=True) + 1e-6)
    )
    per_prompt = experience(PolicyGradient(problems=4, rollouts=6, baseline="prompt"), graded)
    rewards = per_prompt.rewards.reshape(8, 3)
    centred = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(
        per_prompt.advantages.reshape(8, 3), centred / (rewards.std(1, keepdims=True) + 1e-6)
    )


@pytest.mark.parametrize("baseline", ["problem", "prompt"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_every_prompt_has_as_equal_a_share_as_can_be(count, baseline):
    """Told apart by what was read; the advantages again, from who was asked what."""
    prompts = [{"odd": "irtnwi"[:i], "even": ""} for i in range(count)]
    problems = TASK.problems("train", 3, 0)
    config = PolicyGradient(problems=3, rollouts=8, baseline=baseline)
    how = sampler()
    seen = explore(config, TASK, prompts, problems, model(), how, Direct(graded), 0)
    shares = {1: [8], 2: [4, 4], 3: [3, 3, 2], 5: [2, 2, 2, 1, 1], 9: [1] * 8}[count]
    expected, start = np.zeros(24), 0
    texts = [
        TASK.text(prompt, problem)
        for problem in problems
        for prompt, share in zip(prompts, shares, strict=False)
        for _ in range(share)
    ]
    read = [
        bytes(row[:size].astype(np.uint8)).decode()
        for row, size in zip(seen.rollouts.inputs, seen.rollouts.input_lengths, strict=True)
    ]
    assert read == texts
    for size in [8] * 3 if baseline == "problem" else shares * 3:
        mine = seen.rewards[start : start + size]
        expected[start : start + size] = (mine - mine.mean()) / (mine.std() + 1e-6)
        start += size
    np.testing.assert_allclose(seen.advantages, expected, atol=1e-6)


def test_what_is_not_scored_is_not_learned_from():
    def broken(problem, answer):
        return Failed("no verdict") if len(answer) % 2 else graded(problem, answer)

    seen = experience(PolicyGradient(problems=4, rollouts=6), broken)
    odd = np.array([len(text) % 2 == 1 for text in seen.rollouts.texts])
    assert odd.any() and not odd.all()
    assert np.isnan(seen.rewards[odd]).all() and not seen.used[odd].any()
    assert not np.asarray(batch_of(seen)["used"])[odd].any()


def test_where_nothing_is_scored_nothing_is_known(capsys):
    died = lambda problem, answer: Failed("died")
    seen = experience(PolicyGradient(problems=4, rollouts=6), died)
    assert np.isnan(seen.correct) and not seen.used.any()
    tell_unscored(seen.outcomes, "update 7")
    said = "warning: update 7: none of 24 answers could be scored, the first: Failed(error='died')"
    assert said in capsys.readouterr().err
    problems = TASK.problems("train", 4, 0)
    got = score(model(), TASK, TASK.seed_prompt, problems, sampler(), Direct(died), 1, 0)
    assert np.isnan(got.accuracy) and np.isnan(got.reward) and got.unscored == 1
    half = lambda problem, answer: graded(problem, answer) if problem == problems[0] else died(0, 0)
    got = score(model(), TASK, TASK.seed_prompt, problems, sampler(), Direct(half), 1, 0)
    assert got.reward == graded(problems[0], got.rollouts.texts[0]).value and got.unscored == 0.75


def start(optim):
    """A state of its own memory, which the update takes."""
    own = jax.tree.map(jnp.copy, model())
    return TrainState(jnp.zeros((), jnp.int32), own, optimizer(optim).init(own), jax.random.key(0))


@pytest.mark.parametrize(
    "config",
    [
        PolicyGradient(),
        PolicyGradient(loss="reinforce", temperature=0.7, entropy=0.1, kl=0.2),
    ],
    ids=["as it is", "all options"],
)
def test_the_update_is_one_adam_step_on_the_definition(config):
    """The gradient again, from full logits of the whole text instead of chunked features."""
    optim, other = Optim(lr=1e-2, clip=None), model(1)
    seen = experience(config, graded)
    batch = batch_of(seen)
    tokens, at, mask = sequences(seen.rollouts)
    used = mask & seen.used[:, None]

    def chosen(policy):
        log_p = jax.nn.log_softmax(policy(jnp.asarray(tokens)) / config.temperature)
        rows = np.arange(len(at))[:, None]
        where = np.minimum(at, tokens.shape[1] - 1)
        return log_p[rows, where, jnp.asarray(seen.rollouts.answers)]

    def loss(policy):
        log_p = chosen(policy)
        weight = seen.advantages[:, None] * used
        total = -jnp.sum(weight * log_p) / used.sum()  # the ratio is 1: on policy
        if config.entropy:
            total += config.entropy * jnp.sum(0.5 * (log_p * mask) ** 2) / mask.sum()
        if config.kl:
            apart = (log_p - jax.lax.stop_gradient(chosen(other))) * mask
            total += config.kl * jnp.sum(0.5 * apart**2) / mask.sum()
        return total

    with jax.numpy_rank_promotion("allow"):
        grads = jax.jit(jax.grad(loss))(model())
    state, scores = make_update(config, optim)(start(optim), other if config.kl else None, batch)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    assert float(scores["grad_norm"]) == pytest.approx(norm, rel=1e-3)
    # the first step of Adam is -lr g / (|g| + eps): its sign where the gradient is not tiny
    for before, after, g in zip(
        jax.tree.leaves(model()), jax.tree.leaves(state.model), jax.tree.leaves(grads), strict=True
    ):
        big = np.abs(np.asarray(g)) > 1e-3 * norm
        step = np.asarray(after - before)[big]
        np.testing.assert_allclose(step, -1e-2 * np.sign(np.asarray(g)[big]), rtol=1e-2)
    assert float(scores["off_policy"]) < 1e-4


@pytest.mark.parametrize("config", [PolicyGradient(), PolicyGradient(passes=2, entropy=1e-3)])
def test_an_update_that_is_not_finite_changes_nothing(config):
    optim = Optim(lr=1e-2 if config.passes == 1 else 1e30, clip=None)
    batch = batch_of(experience(config, graded))
    if config.passes == 1:  # else it is the first pass that spoils the second
        batch["advantage"] = batch["advantage"] * np.inf
    state, scores = make_update(config, optim)(start(optim), None, batch)
    assert float(scores["not_finite"]) == 1
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), state, start(optim))
    assert all(jax.tree.leaves(same))


def test_passes_are_updates_on_the_same_rollouts_and_the_old_states_memory_is_taken():
    optim, config = Optim(lr=1e-2), PolicyGradient(kl=0.1)
    batch = batch_of(experience(config, graded))
    once = make_update(config, optim)
    state, other = start(optim), model(1)
    for _ in range(3):
        old, (state, scores) = state, once(state, other, batch)
        assert all(x.is_deleted() for x in jax.tree.leaves((old.model, old.optimizer)))
    assert not any(x.is_deleted() for x in jax.tree.leaves((model(), other)))
    thrice = make_update(dataclasses.replace(config, passes=3), optim)
    again, last = thrice(start(optim), other, batch)
    assert int(again.step) == 3 == int(state.step)
    chex.assert_trees_all_close(again.model, state.model, atol=1e-6)
    chex.assert_trees_all_close(last, scores, rtol=1e-4)


def test_the_divergence_is_that_of_whole_distributions():
    one, other = model(0), model(1)
    rollouts = sampler()(one, TEXTS, 2, seed=5)
    total, count = 0.0, 0
    for text, size, n in whole_texts(rollouts):
        p, q = (distributions(m, text) for m in (one, other))
        total += (np.exp(p) * (p - q)).sum(-1)[size - 1 : size - 1 + n].sum()
        count += n
    found = divergence(one, other, rollouts)
    assert found.token == pytest.approx(total / count, rel=1e-4)
    assert found.sequence == pytest.approx(total / len(rollouts.texts), rel=1e-4)
    assert divergence(one, one, rollouts) == (0.0, 0.0)


def test_sequences_put_each_answer_after_its_input():
    rollouts = Rollouts(
        np.array([[1, 2, 0], [3, 4, 5]], np.int32),
        np.array([2, 3], np.int32),
        np.array([[7, 8], [9, 0]], np.int32),
        np.array([2, 1], np.int32),
        np.zeros((2, 2), np.float32),
        ["", ""],
    )
    tokens, at, mask = sequences(rollouts)
    assert tokens.tolist() == [[1, 2, 7, 8, 0], [3, 4, 5, 9, 0]]
    assert at.tolist() == [[1, 2], [2, 3]] and mask.tolist() == [[True, True], [True, False]]
