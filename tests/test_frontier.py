"""Where RLHF and each KL term should end is known exactly, and they end there."""

import exact_frontier
import jax
import numpy as np
import pytest
from kl_bandit import PLACEMENTS, bandit, total_variation


@pytest.fixture(scope="module")
def ended():
    return bandit(20_000)


def test_the_transformer_is_the_chain():
    model, tokens = exact_frontier.reference(), np.random.default_rng(0).integers(7, size=(4, 6))
    log_prob = jax.nn.log_softmax(jax.jit(model.network.logits)(model.params, tokens))
    np.testing.assert_allclose(log_prob[..., :6], np.log(exact_frontier.CHAIN)[tokens], atol=1e-5)
    assert np.all(log_prob[..., 6:] < -29.0)


def test_the_frontier_is_what_the_tilted_policies_earn_and_no_policy_earns_more():
    for beta in (5.0, 0.7, 0.2):
        reward, kl = exact_frontier.optimum(beta)
        assert exact_frontier.frontier(kl) == pytest.approx(reward, abs=1e-9)
        assert reward - beta * kl == pytest.approx(beta * exact_frontier.log_z(beta), abs=1e-9)
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 5.0):
        weight = exact_frontier.REF_LOG_PROB + exact_frontier.REWARD + scale * rng.normal(size=6**6)
        reward, kl = exact_frontier.reward_and_kl(weight - np.logaddexp.reduce(weight))
        assert reward < exact_frontier.frontier(kl)


@pytest.mark.parametrize("placement", [("k1", "reward"), ("k2", "loss")])
def test_k1_in_the_reward_and_k2_in_the_loss_lead_to_the_tilted_policy(placement, ended):
    assert total_variation(ended.ref, ended.tilted) > 0.1
    assert total_variation(ended.policies[placement][-1], ended.tilted) < 1e-5


def test_k3_in_the_loss_leads_to_the_optimum_under_the_other_divergence(ended):
    assert total_variation(ended.forward, ended.tilted) > 0.1
    assert ended.forward.sum() == pytest.approx(1.0, abs=1e-9)
    assert total_variation(ended.policies["k3", "loss"][-1], ended.forward) < 1e-5


def test_k1_in_the_loss_does_nothing(ended):
    assert np.max(total_variation(ended.policies["k1", "loss"], ended.unregularised)) < 1e-3
    assert ended.policies["k1", "loss"][-1][ended.reward.argmax()] > 0.999


def test_k2_and_k3_in_the_reward_lead_to_another_arm_than_the_best(ended):
    assert ended.policies.keys() == PLACEMENTS.keys()
    for name in ("k2", "k3"):
        last = ended.policies[name, "reward"][-1]
        assert last.max() > 0.999
        assert last.argmax() != ended.reward.argmax()


@pytest.mark.slow
def test_rlhf_comes_to_the_frontier_at_the_optimum_for_its_beta():
    betas = (1.0, 0.3)
    algorithm = exact_frontier.rlhf(iterations=40)
    start = jax.tree.map(lambda x: x[None], algorithm.model.params)
    log_prob = exact_frontier.log_probs(algorithm.model.network, start)[0]
    np.testing.assert_allclose(log_prob, exact_frontier.REF_LOG_PROB, atol=2e-5)
    policies = exact_frontier.train(algorithm, betas, jax.random.split(jax.random.key(0), 2))
    found = exact_frontier.evaluated(algorithm.model.network, policies, betas)
    assert np.all(found.above_frontier <= 1e-9)
    assert np.all(found.of_frontier >= 0.95)
    assert np.all(found.of_objective >= 0.95)
    assert exact_frontier.monotone(found) == 2
    assert np.all(np.abs(found.elsewhere) < 1e-5)
