"""Losses: closed forms, where their gradients vanish, and the estimators of the KL divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.learning import losses

EPS = 0.2


def array(*numbers):
    return jnp.array(numbers, jnp.float32)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_closed_forms():
    np.testing.assert_allclose(losses.policy_gradient(array(-1.0, -2.0), array(3.0, -0.5)), [3.0, -1.0])
    np.testing.assert_allclose(losses.value_loss(array(1.0, -1.0), array(4.0, -1.0)), [4.5, 0.0])
    penalised = losses.kl_penalty(array(2.0, 0.5), array(3.0, -1.0), array(0.1, 0.4), 10.0)
    np.testing.assert_allclose(penalised, [-6.0 + 1.0, 0.5 + 4.0], rtol=1e-6)
    log_ratio = array(0.0, np.log(2.0), -np.log(2.0))
    np.testing.assert_allclose(losses.kl_k1(log_ratio), [0.0, -np.log(2), np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(losses.kl_k2(log_ratio), [0.0, np.log(2) ** 2 / 2, np.log(2) ** 2 / 2], rtol=1e-6)
    np.testing.assert_allclose(losses.kl_k3(log_ratio), [0.0, 1 - np.log(2), -0.5 + np.log(2)], rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.1, 2.0, -2.2), (1.5, 1.0, -1.2), (0.5, 1.0, -0.5), (1.5, -1.0, 1.5), (0.5, -1.0, 0.8), (1.0, 0.0, 0.0)],
)
def test_ppo_clip_closed_form(ratio, advantage, expected):
    assert losses.ppo_clip(jnp.float32(ratio), jnp.float32(advantage), EPS) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.3, 2.0, 0.0),  # already likelier than allowed, and it pays to go on
        (0.7, -2.0, 0.0),  # already less likely than allowed, and it pays to go on
        (1.3, -2.0, 2.0),  # went the wrong way: must come back
        (0.7, 2.0, -2.0),
        (1.1, 2.0, -2.0),  # inside
        (0.9, -2.0, 2.0),
    ],
)
def test_ppo_clip_gradient_vanishes_only_beyond_the_range_on_the_profitable_side(ratio, advantage, slope):
    assert jax.grad(losses.ppo_clip)(jnp.float32(ratio), jnp.float32(advantage), EPS) == slope


def test_ppo_clip_gradient_at_ratio_one_is_the_policy_gradient():
    """Both are -(onehot(a) - p) A for a softmax policy, so the first PPO step of an iteration is an A2C step."""
    logits, advantage = normal(6, 4), normal(6, seed=1)
    action = jnp.array([0, 1, 2, 3, 0, 2])

    def log_prob(logits):
        return jax.nn.log_softmax(logits)[jnp.arange(6), action]

    def ppo(logits):
        ratio = jnp.exp(log_prob(logits) - jax.lax.stop_gradient(log_prob(logits)))
        return jnp.sum(losses.ppo_clip(ratio, advantage, EPS))

    def a2c(logits):
        return jnp.sum(losses.policy_gradient(log_prob(logits), advantage))

    by_hand = -(np.eye(4)[np.array(action)] - np.array(jax.nn.softmax(logits))) * np.array(advantage)[:, None]
    np.testing.assert_allclose(jax.jit(jax.grad(a2c))(logits), by_hand, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(ppo))(logits), by_hand, rtol=1e-5, atol=1e-6)


def test_clipped_value_loss_is_pessimistic_and_equal_inside_the_range():
    value, old_value, target = normal(200), normal(200, seed=1), normal(200, seed=2)
    plain = losses.value_loss(value, target)
    clipped = losses.clipped_value_loss(value, old_value, target, EPS)
    inside = np.abs(value - old_value) < EPS
    assert np.all(clipped >= plain)
    assert np.any(clipped > plain + 0.1)
    assert inside.sum() > 5
    np.testing.assert_allclose(clipped[inside], plain[inside], rtol=1e-5, atol=1e-7)


def test_clipped_value_loss_closed_form_and_gradient():
    """From 0 towards a target of 2 no gradient is left beyond the range; away from the target it stays."""
    loss = jax.value_and_grad(losses.clipped_value_loss)
    zero, two = jnp.float32(0.0), jnp.float32(2.0)
    assert loss(jnp.float32(1.0), zero, two, EPS) == (pytest.approx(0.5 * 1.8**2), 0.0)
    assert loss(jnp.float32(-1.0), zero, two, EPS) == (pytest.approx(0.5 * 3.0**2), pytest.approx(-3.0))


def test_the_adapted_kl_coefficient_halves_doubles_or_stays():
    """Below 2/3 of the target, above 3/2 of it, and between; without a target it stays, whatever it is."""
    adapted = [losses.adapted_kl_coef(jnp.float32(3.0), kl, 0.02) for kl in (0.013, 0.014, 0.02, 0.029, 0.031)]
    np.testing.assert_allclose(adapted, [1.5, 3.0, 3.0, 3.0, 6.0])
    assert [losses.adapted_kl_coef(beta, 0.5, jnp.inf) for beta in (0.0, 3.0, 1e6)] == [0.0, 3.0, 1e6]


@pytest.mark.parametrize(("kl", "bound"), [(0.0, 1e-3), (1.0, 1e3)])
def test_the_adapted_kl_coefficient_comes_back_from_its_bounds(kl, bound):
    """After two hundred iterations on one side of the target, three on the other change it by a factor of eight."""
    adapt = jax.jit(losses.adapted_kl_coef)
    beta = jnp.float32(1.0)
    for _ in range(200):
        beta = adapt(beta, kl, 0.01)
    assert beta == jnp.float32(bound)
    for _ in range(3):
        beta = adapt(beta, 1.0 - kl, 0.01)
    assert beta == pytest.approx(bound * (8.0 if kl == 0.0 else 1 / 8))
    assert losses.adapted_kl_coef(jnp.float32(1.0), 0.0, 0.01, low=0.75) == 0.75


def two_categoricals():
    rng = np.random.default_rng(3)
    old, new = rng.dirichlet(np.ones(5), size=2)
    action = rng.choice(5, size=200_000, p=old)
    log_ratio = jnp.asarray(np.log(new / old)[action], jnp.float32)
    return log_ratio, np.sum(old * np.log(old / new))


@pytest.mark.parametrize("estimator", [losses.kl_k1, losses.kl_k3])
def test_k1_and_k3_are_unbiased(estimator):
    log_ratio, exact = two_categoricals()
    estimate = np.asarray(estimator(log_ratio), np.float64)
    standard_error = estimate.std() / np.sqrt(estimate.size)
    assert abs(estimate.mean() - exact) < 4 * standard_error
    assert 20 * standard_error < exact


def test_k3_is_never_negative_and_varies_less_than_k1():
    log_ratio = jnp.concatenate([jnp.linspace(-5.0, 5.0, 1001), array(1e-4, -1e-4, 1e-8, -1e-8, 0.0)])
    assert np.all(losses.kl_k3(log_ratio) >= 0)
    close = 0.1 * normal(10_000)
    assert np.std(losses.kl_k3(close)) < 0.2 * np.std(losses.kl_k1(close))


def test_expected_k2_has_gradient_and_curvature_of_the_kl_at_ratio_one():
    """At pi = pi_old every single sample has zero gradient; the mean Hessian is the Fisher matrix diag(p) - p p'."""
    logits = array(0.3, -1.0, 0.8)
    p = jax.nn.softmax(logits)

    def expected_k2(new_logits):
        return jnp.sum(p * losses.kl_k2(jax.nn.log_softmax(new_logits) - jax.nn.log_softmax(logits)))

    assert jax.grad(losses.kl_k2)(jnp.float32(0.0)) == 0.0
    assert jax.grad(losses.kl_k2)(jnp.float32(0.7)) == pytest.approx(0.7)
    np.testing.assert_allclose(jax.jit(jax.grad(expected_k2))(logits), np.zeros(3), atol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.hessian(expected_k2))(logits), np.diag(p) - np.outer(p, p), atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "in_loss", "in_reward"),
    [
        (losses.kl_k1, (0, 0), (1, 0)),
        (losses.kl_k2, (1, 0), None),  # of no divergence
        (losses.kl_k3, (0, 1), (1, -1)),
    ],
)
def test_gradients_of_the_kl_estimators_sampled_from_the_policy_that_learns(estimator, in_loss, in_reward):
    """As multiples of the gradients of KL(p || p_ref) and KL(p_ref || p), far from ratio one."""
    ref, logits = array(0.3, -1.0, 0.8), array(-0.5, 0.4, 1.0)

    def kl(a, b):
        return jnp.sum(jax.nn.softmax(a) * (jax.nn.log_softmax(a) - jax.nn.log_softmax(b)))

    def penalty(logits, placed):
        log_p, log_ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref)
        estimate = estimator(log_ref - log_p)
        term = estimate if placed == "loss" else losses.policy_gradient(log_p, -jax.lax.stop_gradient(estimate))
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_p)) * term)

    reverse, forward = jax.grad(kl)(logits, ref), jax.grad(kl, argnums=1)(ref, logits)
    assert min(np.max(np.abs(reverse)), np.max(np.abs(forward)), np.max(np.abs(reverse - forward))) > 0.1
    for placed, expected in [("loss", in_loss), ("reward", in_reward)]:
        if expected is not None:
            gradient = expected[0] * reverse + expected[1] * forward
            np.testing.assert_allclose(jax.grad(penalty)(logits, placed), gradient, rtol=1e-5, atol=1e-6)


def test_normalized_advantage_has_mean_zero_and_std_one_over_all_samples():
    advantage = jnp.asarray(5.0 + 3.0 * np.asarray(normal(16, 8)) + np.arange(8), jnp.float32)
    normalized = np.asarray(losses.normalized_advantage(advantage))
    assert normalized.mean() == pytest.approx(0.0, abs=1e-5)
    assert normalized.std() == pytest.approx(1.0, rel=1e-5)
    assert np.corrcoef(normalized.ravel(), np.ravel(advantage))[0, 1] == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_array_equal(losses.normalized_advantage(jnp.full(8, 0.5)), np.zeros(8))


def test_explained_variance_of_perfect_constant_and_misleading_predictions():
    target = normal(64)
    assert losses.explained_variance(target, target) == 1.0
    assert losses.explained_variance(target + 7.0, target) == pytest.approx(1.0, abs=1e-5)
    assert losses.explained_variance(jnp.full(64, 3.0), target) == pytest.approx(0.0, abs=1e-5)
    assert losses.explained_variance(-target, target) == pytest.approx(-3.0, rel=1e-5)
    assert losses.explained_variance(0.5 * target, target) == pytest.approx(0.75, rel=1e-5)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -3.3, 1000.1])
def test_explained_variance_of_a_constant_target_is_zero(constant):
    """Also where the float32 mean of equal numbers is not that number, and their variance not exactly zero."""
    for size in (7, 64):
        target = jnp.asarray(np.full(size, constant, np.float32))
        assert losses.explained_variance(normal(size), target) == 0.0
