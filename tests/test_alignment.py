"""Rewards of tokens and whitening, against loops and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import alignment, losses

B, T = 4, 6
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(0)
    return rng.normal(size=B).astype(np.float32), *(-rng.exponential(size=(2, B, T)).astype(np.float32))


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("at", ["last", "after"])
def test_token_rewards_by_a_loop(answers, kl, at):
    score, log_prob, ref_log_prob = answers
    expected = np.zeros((B, T))
    for b in range(B):
        tokens = np.flatnonzero(MASK[b])
        for t in tokens:
            r = ref_log_prob[b, t] - log_prob[b, t]
            expected[b, t] -= 0.3 * {"k1": -r, "k2": r**2 / 2, "k3": np.exp(r) - 1 - r}[kl]
        if len(tokens):
            expected[b, min(tokens[-1] + (at == "after"), T - 1)] += score[b]
    ours = jax.jit(alignment.token_rewards, static_argnames=("kl", "at"))(
        score, log_prob, ref_log_prob, MASK, 0.3, kl=kl, at=at
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_token_rewards_of_an_answer_add_up_to_its_penalised_score(answers):
    score, log_prob, ref_log_prob = answers
    total = alignment.token_rewards(score, log_prob, ref_log_prob, MASK, 0.3).sum(axis=1)
    ratio = np.where(MASK, log_prob - ref_log_prob, 0.0).sum(axis=1)
    np.testing.assert_allclose(total[:3], (score - 0.3 * ratio)[:3], rtol=1e-5)


def test_what_is_masked_changes_nothing(answers):
    score, log_prob, ref_log_prob = answers
    poisoned = np.where(MASK, log_prob, np.nan)
    ours = alignment.token_rewards(score, poisoned, ref_log_prob, MASK, 0.3)
    np.testing.assert_array_equal(ours, alignment.token_rewards(score, log_prob, ref_log_prob, MASK, 0.3))


@pytest.mark.parametrize("bad", [{"kl": "k4"}, {"at": "eos"}])
def test_unknown_choices_are_refused(answers, bad):
    with pytest.raises(pgjax.InputError, match="is not accepted: expected"):
        alignment.token_rewards(*answers, MASK, 0.3, **bad)


def test_whitening_is_by_the_unbiased_moments_of_what_counts():
    x = np.random.default_rng(1).normal(3.0, 2.0, size=(B, T)).astype(np.float32)
    counted = x[MASK]
    ours = np.asarray(alignment.whiten(jnp.asarray(x), MASK))
    np.testing.assert_allclose(ours[MASK], (counted - counted.mean()) / counted.std(ddof=1), rtol=1e-4, atol=1e-5)
    assert not np.allclose(ours[MASK], (counted - counted.mean()) / counted.std(), rtol=1e-3), "not the biased one"
    scaled = np.asarray(alignment.whiten(jnp.asarray(x), MASK, shift_mean=False))
    np.testing.assert_allclose(scaled[MASK].mean(), counted.mean(), rtol=1e-5)


def test_bradley_terry_is_the_log_likelihood_of_a_preference():
    chosen, rejected = np.array([2.0, -1.0, 50.0, -500.0], np.float32), np.array([1.0, 1.0, -50.0, 500.0], np.float32)
    ours = losses.bradley_terry(jnp.asarray(chosen), jnp.asarray(rejected), 0.5)
    np.testing.assert_allclose(ours, np.logaddexp(0.0, -(chosen - rejected - 0.5).astype(float)), rtol=1e-5, atol=1e-30)
    gradient = jax.grad(lambda c: losses.bradley_terry(c, jnp.float32(0.0)))(jnp.float32(0.3))
    assert gradient == pytest.approx(-1.0 / (1.0 + np.exp(0.3)), rel=1e-5)
