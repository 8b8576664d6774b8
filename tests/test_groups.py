"""Answers beside others to the same prompt: advantages, losses and gradients, against slow loops."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import losses, returns
from pgjax.alignment.grpo import Answers
from pgjax.alignment.models import Prompt
from pgjax.alignment.sampling import distribution

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def grpo(tiny_token_algorithm):
    return tiny_token_algorithm("grpo", eos_penalty=0.5)


def credited(grpo, state, reward=None):
    """A rollout and its credit, the reward replaced by another."""

    @jax.jit
    def both(state):
        rollout = grpo.rollout(state, grpo.prompts(state), jax.random.key(3))
        rollout = rollout if reward is None else rollout._replace(reward=reward)
        return rollout, *grpo.credit(rollout)

    return both(state)


@pytest.mark.parametrize("ddof", [0, 1])
def test_group_advantages_are_those_of_a_loop(ddof):
    reward = RNG.normal(size=12)
    expected = np.zeros(12)
    for i in range(12):
        group = reward[i // 4 * 4 : i // 4 * 4 + 4]
        expected[i] = (reward[i] - group.mean()) / (group.std(ddof=ddof) + 1e-4)
    found = returns.group_advantage(jnp.array(reward), 4, ddof=ddof)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(returns.group_advantage(jnp.full(4, 0.3), 4), np.zeros(4))


def test_leave_one_out_is_that_of_a_loop_and_the_group_advantage_up_to_a_factor():
    reward = RNG.normal(size=(12, 3))
    expected = np.zeros((12, 3))
    for i in range(12):
        others = [j for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        expected[i] = reward[i] - reward[others].mean(axis=0)
    found = returns.leave_one_out(jnp.array(reward), 4)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(returns.group_advantage(jnp.array(reward), 4, "none"), 0.75 * found, rtol=1e-5)


@pytest.mark.parametrize("estimate", [returns.group_advantage, returns.leave_one_out])
@pytest.mark.parametrize("size", [1, 5])
def test_groups_that_are_none_are_refused(estimate, size):
    with pytest.raises(pgjax.InputError, match=f"group_size = {size} .* divisor of the 12"):
        estimate(jnp.zeros(12), size)


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_aggregates_are_those_of_a_loop(how):
    loss, mask = RNG.normal(size=(4, 5)), np.arange(5) < np.array([[5], [2], [1], [0]])
    answers = [row[real] for row, real in zip(loss, mask, strict=True) if real.any()]
    expected = {
        "token": np.concatenate(answers).mean(),
        "sequence": np.mean([row.mean() for row in answers]),
        "constant": np.mean([row.sum() / 7 for row in answers]),
    }
    assert float(losses.aggregate(loss, mask, how, 7)) == pytest.approx(expected[how], rel=1e-5)
    assert float(losses.aggregate(loss, 0 * mask, how)) == 0.0


def test_bad_words_are_refused():
    with pytest.raises(pgjax.InputError, match=r"how = 'mean' .* token, sequence, constant"):
        losses.aggregate(jnp.zeros((1, 1)), jnp.ones((1, 1)), "mean")
    with pytest.raises(pgjax.InputError, match=r"scale = 'batch' .* 'std' or 'none'"):
        returns.group_advantage(jnp.zeros(4), 2, "batch")


def test_clipping_higher_leaves_the_gradient_of_what_grows():
    def slope(ratio, *eps):
        return float(jax.grad(lambda r: losses.ppo_clip(r, 1.0, *eps))(ratio))

    assert (slope(1.25, 0.2), slope(1.25, 0.2, 0.3), slope(1.35, 0.2, 0.3)) == (0.0, -1.0, 0.0)


@pytest.mark.parametrize("per_token", [False, True], ids=["per answer", "per token"])
def test_credit_is_that_of_a_slow_loop(grpo, init, step, per_token):
    state, _ = step(grpo, init(grpo, jax.random.key(0)))
    reward = jnp.array(RNG.normal(size=(8, 5) if per_token else 8), jnp.float32)
    rollout, answers, credit = credited(grpo, state, reward)
    mask, eos = np.asarray(rollout.completion.mask), grpo.model.tokenizer.eos
    assert 0 < mask.sum() < mask.size
    missing = np.array(
        [-0.5 * (eos not in row[real]) for row, real in zip(rollout.completion.tokens, mask, strict=True)]
    )
    log_ratio = np.asarray(rollout.reading.log_prob - rollout.reading.ref_log_prob).T
    reward = np.asarray(reward)

    def earned(b, t):
        if not per_token:
            return reward[b] + missing[b]
        return missing[b] + sum(reward[b, s] for s in range(t, 5) if mask[b, s])

    def kl_to_go(b, t):
        return sum(log_ratio[b, s] for s in range(t, 5) if mask[b, s])

    for b in range(8):
        group = [b // 4 * 4 + i for i in range(4)]
        spread = np.std([earned(i, 0) for i in group], ddof=1)
        for t in range(5):
            advantage = (earned(b, t) - np.mean([earned(i, t) for i in group])) / (spread + 1e-4)
            kl = kl_to_go(b, t) - np.mean([kl_to_go(i, t) for i in group])
            if mask[b, t]:
                assert float(answers.advantage[b, t]) == pytest.approx(advantage, rel=1e-4, abs=1e-4)
                assert float(answers.kl_advantage[b, t]) == pytest.approx(kl, rel=1e-4, abs=1e-5)
    assert float(credit["reward"]) == pytest.approx(np.mean([earned(b, 0) for b in range(8)]), rel=1e-5)
    assert float(credit["equal_groups"]) == 0.0


@pytest.mark.slow
def test_groups_that_score_alike_are_counted_and_left_out(grpo, init):
    skip = dataclasses.replace(grpo, skip_equal=True)
    reward = jnp.array([0.1] * 4 + [1.0, 0.0, 0.0, 2.0])
    grpo, skip = (dataclasses.replace(x, eos_penalty=0.0) for x in (grpo, skip))
    state = init(grpo, jax.random.key(0))
    _, all_of_them, credit = credited(grpo, state, reward)
    _, some, _ = credited(skip, state, reward)
    assert float(credit["equal_groups"]) == 0.5
    np.testing.assert_allclose(all_of_them.advantage[:4], 0.0, atol=1e-3)
    assert not np.any(some.mask[:4])
    np.testing.assert_array_equal(some.mask[4:], all_of_them.mask[4:])

    def mean_loss(rows):
        loss, (_, weight) = grpo.sums(state.params, rows)
        return loss / weight

    others = jax.tree.map(lambda x: x[4:], all_of_them)
    assert float(mean_loss(some)) == pytest.approx(float(mean_loss(others)), rel=1e-5)


def test_the_gradient_is_that_of_the_objective_by_enumeration(grpo):
    """Of E[r] - beta KL(pi || pi_ref) over all completions of two tokens."""
    rule = dataclasses.replace(grpo, aggregate="constant", beta=0.7, max_tokens=2)
    vocab, network = rule.model.tokenizer.vocab, rule.model.network
    tokens = jnp.stack(jnp.meshgrid(jnp.arange(vocab), jnp.arange(vocab), indexing="ij"), -1).reshape(-1, 2)
    prompt = Prompt(jnp.full((len(tokens), 1), 3), jnp.ones((len(tokens), 1), bool))
    params = network.init_text(jax.random.key(7))
    reward = jax.random.normal(jax.random.key(8), (len(tokens),))

    def log_probs(params):
        return distribution(network, params, prompt, tokens, 1.0).log_prob(tokens.T).T

    @jax.jit
    def gradients(params):
        log_prob, ref_log_prob = log_probs(params), log_probs(rule.model.params)

        def objective(params):
            answer = log_probs(params).sum(axis=1)
            return jnp.sum(jnp.exp(answer) * (reward - 0.7 * (answer - ref_log_prob.sum(axis=1))))

        weight = jnp.exp(log_prob.sum(axis=1, keepdims=True))
        log_ratio = log_prob - ref_log_prob
        to_go = jnp.stack([log_ratio.sum(axis=1), log_ratio[:, 1]], axis=1)
        advantage = jnp.broadcast_to(weight * reward[:, None], tokens.shape)
        mask = jnp.ones(tokens.shape, bool)
        rows = Answers(prompt, tokens, mask, log_prob, ref_log_prob, advantage, weight * to_go)
        return jax.grad(objective)(params), jax.grad(lambda p: -2.0 * rule.sums(p, rows)[0])(params)

    chex.assert_trees_all_close(*gradients(params), atol=1e-5)


def test_a_ratio_of_sequences_is_the_geometric_mean_of_its_tokens(grpo, init):
    rule = dataclasses.replace(grpo, ratio="sequence", aggregate="sequence", beta=0.0, clip_eps=0.05, clip_eps_high=0.1)
    state = init(grpo, jax.random.key(0))
    _, rows, _ = credited(grpo, state, jnp.arange(8.0))
    shifted = rows._replace(log_prob=rows.log_prob - jnp.array(RNG.normal(size=rows.mask.shape) / 5, jnp.float32))
    loss, (metrics, weight) = rule.sums(state.params, shifted)
    expected, outside = [], []
    for b in range(8):
        real = np.asarray(rows.mask[b])
        ratio = np.exp(np.mean((rows.log_prob[b] - shifted.log_prob[b])[real]))
        advantage = float(rows.advantage[b, 0])
        expected.append(-min(ratio * advantage, np.clip(ratio, 0.95, 1.1) * advantage))
        outside += [not 0.95 <= ratio <= 1.1] * int(real.sum())
    assert float(loss / weight) == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-5)
    assert float(metrics["clipped"] / metrics["counted"]) == pytest.approx(np.mean(outside))
    assert 0 < np.mean(outside) < 1


@pytest.mark.parametrize(("kl", "gradient"), [("k1", "0 on average"), ("k3", "KL.pi_ref")])
def test_estimators_whose_gradient_is_another_are_warned_of(grpo, kl, gradient):
    with pytest.warns(UserWarning, match=f"GRPO.kl = '{kl}': the gradient of this penalty is .*{gradient}"):
        dataclasses.replace(grpo, kl=kl)


def test_bad_sizes_are_refused(grpo):
    for fields, message in [
        ({"batch_size": 6}, "GRPO.batch_size = 6 is not accepted: expected a multiple of 4"),
        ({"group_size": 1}, r"group_size = 1 is not accepted: .*\[2, 2\^31\)"),
        ({"num_minibatches": 3}, "num_minibatches = 3 does not divide batch_size = 8"),
        ({"micro_batches": 3}, "micro_batches = 3 does not divide the 4"),
        ({"max_tokens": 20}, "GRPO.max_tokens = 20 is not accepted: the context of the model is 20"),
    ]:
        with pytest.raises(pgjax.InputError, match=message):
            dataclasses.replace(grpo, **fields)
