"""Distributions against scipy, numerical integration and Monte Carlo."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from pgjax.networks.distributions import Categorical, Deterministic, DiagGaussian, TanhGaussian

SAMPLES = 50_000
NAN, INF = float("nan"), float("inf")


def array(*numbers):
    return jnp.array(numbers, jnp.float32)


def normal(*shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def examples(seed=0, batch=(2, 3)):
    """One distribution of each class with random parameters, of which there are three per batch element."""
    mean, log_std = normal(*batch, 3, seed=seed), normal(*batch, 3, seed=seed + 1, scale=0.5)
    return {
        "Categorical": Categorical(normal(*batch, 3, seed=seed, scale=2.0)),
        "DiagGaussian": DiagGaussian(mean, log_std),
        "TanhGaussian": TanhGaussian(mean, log_std),
        "Deterministic": Deterministic(mean),
    }


NAMES = tuple(examples(batch=()))
DENSITIES = ("DiagGaussian", "TanhGaussian")


@jax.jit
def evaluate(p, q, action):
    return {
        "log_prob": p.log_prob(action),
        "entropy": p.entropy(),
        "kl": p.kl(q),
        "mode": p.mode(),
        "env_action": p.env_action(action),
        "p": p,
    }


def repeated(distribution, times):
    return jax.tree.map(lambda x: jnp.asarray(np.broadcast_to(x, (times, *x.shape))), distribution)


@functools.cache
def sampled(name):
    """(p, q, many actions drawn from p and their log-probabilities under both), half of them with each of two keys."""
    p, q = examples(seed=5, batch=())[name], examples(seed=8, batch=())[name]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def draw(p, q, key):
        action, log_prob = p.sample_and_log_prob(p.noise(key))
        return {"action": action, "log_prob": log_prob, "p": p.log_prob(action), "q": q.log_prob(action)}

    half = SAMPLES // 2
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    drawn = draw(repeated(p, half), repeated(q, half), keys)
    return p, q, {k: np.asarray(v).reshape(SAMPLES, *v.shape[2:]) for k, v in drawn.items()}


def assert_mean(samples, expected, standard_errors=4.5):
    """The mean over the leading axis is within so many standard errors of what is expected."""
    samples = np.asarray(samples, np.float64)
    bound = standard_errors * samples.std(axis=0) / np.sqrt(len(samples)) + 1e-6
    assert np.all(np.abs(samples.mean(axis=0) - expected) < bound)


def some_action(name):
    return jnp.ones((2, 3), jnp.int32) if name == "Categorical" else jnp.full((2, 3, 3), 0.25)


# Every distribution


@pytest.mark.parametrize("name", NAMES)
def test_every_distribution_is_a_pytree_that_passes_through_jit_and_vmap(name):
    p, q, action = examples()[name], examples(seed=7)[name], some_action(name)
    batched = evaluate(p, q, action)
    mapped = jax.vmap(jax.vmap(evaluate))(p, q, action)
    assert type(batched["p"]) is type(mapped["p"]) is type(p)
    chex.assert_trees_all_close(mapped, batched, rtol=1e-5, atol=1e-5)
    assert batched["log_prob"].shape == batched["entropy"].shape == batched["kl"].shape == (2, 3)
    sample = sampled(name)[2]["action"]
    assert batched["mode"].shape == batched["env_action"].shape == action.shape
    assert sample.shape == (SAMPLES, *action.shape[2:])
    assert batched["mode"].dtype == batched["env_action"].dtype == sample.dtype == action.dtype


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_is_given_the_action_itself_or_its_tanh(name):
    action = some_action(name)
    expected = np.tanh(action) if name == "TanhGaussian" else action
    np.testing.assert_allclose(examples()[name].env_action(action), expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_kl_to_itself_is_zero_and_to_another_positive(name):
    p, q, action = examples()[name], examples(seed=7)[name], some_action(name)
    np.testing.assert_allclose(evaluate(p, p, action)["kl"], np.zeros((2, 3)), atol=1e-6)
    assert np.all(evaluate(p, q, action)["kl"] > 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_nan_parameters_give_nan_and_leave_the_rest_of_the_batch_alone(name):
    """One NaN in one parameter of batch element (1, 2): log_prob, entropy and KL are NaN there and nowhere else."""
    p, other, action = examples()[name], examples(seed=7)[name], some_action(name)
    broken = np.zeros((2, 3), bool)
    broken[1, 2] = True
    for parameter in p._fields:
        values = np.array(getattr(p, parameter))
        values[1, 2, 0] = NAN
        nan = p._replace(**{parameter: jnp.asarray(values)})
        there, back = evaluate(nan, other, action), evaluate(other, nan, action)
        results = {k: there[k] for k in ("log_prob", "kl", "entropy")} | {"kl from another": back["kl"]}
        for result, x in results.items():
            np.testing.assert_array_equal(np.isnan(x), broken, err_msg=f"{result} with NaN {parameter}")


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_of_many_times_gives_one_action_each(name):
    """Drawn at once from nothing but the shapes of the policy; independent between times."""
    p = repeated(examples(batch=())[name], 200)
    noise = jax.eval_shape(lambda: p).noise(jax.random.key(0), (3,))
    actions = jax.vmap(p.sample_and_log_prob)(noise)[0]
    assert actions.shape == (3, *p.mode().shape)
    assert name == "Deterministic" or not np.array_equal(actions[0], actions[1])


def test_inverse_transform_takes_the_first_action_whose_cumulative_probability_exceeds_the_noise():
    p = repeated(Categorical(jnp.log(array(0.0, 0.25, 0.0, 0.75, 0.0))), 5)
    largest = 1.0 - 2.0**-24
    action, log_prob = p.sample_and_log_prob(array(0.0, 0.2499, 0.2501, 0.9999, largest))
    np.testing.assert_array_equal(action, [1, 1, 3, 3, 3])
    np.testing.assert_allclose(log_prob, np.log([0.25, 0.25, 0.75, 0.75, 0.75]), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_returned_with_the_sample_is_log_prob_of_the_sample(name):
    drawn = sampled(name)[2]
    np.testing.assert_allclose(drawn["log_prob"], drawn["p"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", [DiagGaussian, TanhGaussian])
@pytest.mark.parametrize(("mean", "std"), [(8.0, 0.5), (-30.0, 2.0), (0.0, 7.39)])
def test_the_ratio_of_an_unchanged_policy_is_one_also_where_tanh_rounds_to_one(cls, mean, std):
    p = repeated(cls(array(mean), array(np.log(std))), 10_000)
    action, log_prob = p.sample_and_log_prob(p.noise(jax.random.key(0)))
    np.testing.assert_allclose(np.exp(p.log_prob(action) - log_prob), np.ones(10_000), atol=1e-3)


@pytest.mark.parametrize("name", ["Categorical", *DENSITIES])
def test_entropy_and_kl_match_monte_carlo(name):
    p, q, drawn = sampled(name)
    assert_mean(-drawn["log_prob"], p.entropy())
    assert_mean(drawn["p"] - drawn["q"], p.kl(q))


# Categorical


def test_categorical_log_prob_entropy_and_kl_match_scipy():
    p, q = examples()["Categorical"], examples(seed=7)["Categorical"]
    P, Q = (scipy.special.softmax(np.asarray(d.logits, np.float64), axis=-1) for d in (p, q))
    for action in range(3):
        results = evaluate(p, q, jnp.asarray(np.full((2, 3), action, np.int32)))
        np.testing.assert_allclose(results["log_prob"], np.log(P[..., action]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results["entropy"], scipy.stats.entropy(P, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(results["kl"], scipy.stats.entropy(P, Q, axis=-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(results["mode"], P.argmax(axis=-1))


def test_categorical_samples_each_action_as_often_as_its_probability_says():
    p, _, drawn = sampled("Categorical")
    expected = SAMPLES * scipy.special.softmax(np.asarray(p.logits, np.float64))
    assert scipy.stats.chisquare(np.bincount(drawn["action"], minlength=3), expected).pvalue > 1e-3


def test_categorical_score_has_mean_zero():
    p, _, drawn = sampled("Categorical")
    score = jax.jit(jax.vmap(jax.grad(lambda logits, a: Categorical(logits).log_prob(a)), (None, 0)))
    scores = score(p.logits, jnp.asarray(drawn["action"]))
    assert np.min(np.std(scores, axis=0)) > 0.05
    assert_mean(scores, np.zeros(3))


def test_masked_actions_have_no_probability_and_no_gradient():
    """A logit of -inf removes the action: the other two share what is left as if it was not there."""
    masked, two = Categorical(array(0.5, -INF, -1.0)), Categorical(array(0.5, -1.0))
    other, uniform = Categorical(array(1.0, -INF, 1.0)), Categorical(array(1.0, 1.0))
    full = Categorical(array(0.5, 0.0, -1.0))

    @jax.jit
    def results_and_gradients(p, q, action):
        entropy, by_entropy = jax.value_and_grad(lambda p: p.entropy())(p)
        kl, by_kl = jax.value_and_grad(lambda pq: pq[0].kl(pq[1]))((p, q))
        log_prob, by_log_prob = jax.value_and_grad(lambda p: p.log_prob(action))(p)
        return (entropy, kl, log_prob), [d.logits for d in (by_entropy, *by_kl, by_log_prob)]

    results, gradients = results_and_gradients(masked, other, jnp.int32(2))
    expected, without = results_and_gradients(two, uniform, jnp.int32(1))
    np.testing.assert_allclose(results, expected, rtol=1e-5)
    for gradient, shorter in zip(gradients, without, strict=True):
        np.testing.assert_allclose(gradient, [shorter[0], 0.0, shorter[1]], rtol=1e-5, atol=1e-7)

    assert results_and_gradients(masked, other, jnp.int32(1))[0][2] == -INF
    assert results_and_gradients(full, masked, jnp.int32(0))[0][1] == INF
    many = repeated(masked, 1000)
    action, _ = many.sample_and_log_prob(many.noise(jax.random.key(0)))
    assert set(np.unique(action)) == {0, 2}


def test_categorical_with_huge_logits_stays_finite():
    certain = Categorical(array(1e4, -1e4, 0.0))
    assert certain.log_prob(jnp.int32(1)) == -2e4
    entropy, gradient = jax.jit(jax.value_and_grad(lambda p: p.entropy()))(certain)
    assert entropy == 0.0
    assert np.all(np.isfinite(gradient.logits))


# Gaussian


def test_gaussian_log_prob_entropy_and_kl_match_scipy():
    p, q = examples()["DiagGaussian"], examples(seed=7)["DiagGaussian"]
    x = normal(2, 3, 3, seed=9, scale=2.0)
    results = evaluate(p, q, x)
    frozen, other = (
        scipy.stats.norm(np.asarray(d.mean, np.float64), np.exp(np.asarray(d.log_std, np.float64))) for d in (p, q)
    )
    np.testing.assert_allclose(results["log_prob"], frozen.logpdf(x).sum(axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results["entropy"], frozen.entropy().sum(axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(results["mode"], p.mean)

    grid = np.linspace(-30.0, 30.0, 6_001)[:, None, None, None]
    integrand = frozen.pdf(grid) * (frozen.logpdf(grid) - other.logpdf(grid))
    kl = scipy.integrate.trapezoid(integrand, dx=1e-2, axis=0).sum(axis=-1)
    np.testing.assert_allclose(results["kl"], kl, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_have_the_right_distribution_and_independent_dimensions(name):
    p, _, drawn = sampled(name)
    u = np.asarray(drawn["action"], np.float64)
    for d in range(3):
        cdf = scipy.stats.norm(float(p.mean[d]), np.exp(float(p.log_std[d]))).cdf
        assert scipy.stats.kstest(u[:, d], cdf).pvalue > 1e-3
    correlation = np.corrcoef(u, rowvar=False)[np.triu_indices(3, 1)]
    assert np.all(np.abs(correlation) < 4.5 / np.sqrt(SAMPLES))


@pytest.mark.parametrize("cls", [DiagGaussian, TanhGaussian])
def test_what_densities_give_the_environment_is_differentiable_in_the_parameters(cls):
    """d a / d mean is 1 for a Gaussian and 1 - a^2 for its tanh; d a / d log_std is that times (u - mean)."""
    mean, log_std = array(0.2, -0.4), array(-0.5, 0.1)

    def given(mean, log_std):
        policy = cls(mean, log_std)
        u, _ = policy.sample_and_log_prob(policy.noise(jax.random.key(3)))
        return policy.env_action(u), u

    (by_mean, by_log_std), u = jax.jit(jax.jacobian(given, (0, 1), has_aux=True))(mean, log_std)
    slope = 1 - np.tanh(u) ** 2 if cls is TanhGaussian else np.ones(2)
    np.testing.assert_allclose(by_mean, np.diag(slope), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_log_std, np.diag(slope * (u - np.asarray(mean))), rtol=1e-3, atol=1e-5)


# tanh of a Gaussian

SHAPES = [(0.0, -1.0), (0.3, -0.5), (1.5, 0.0), (-3.0, 0.5), (0.0, 1.0), (0.5, 2.0)]
"""(mean, log_std) from a narrow peak to nearly all probability at the two bounds."""


tanh_log_prob = jax.jit(lambda mean, log_std, u: TanhGaussian(mean, log_std).log_prob(u))


tanh_entropy = jax.jit(
    jax.value_and_grad(lambda mean, log_std: TanhGaussian(mean, log_std).entropy(), argnums=(0, 1)),
)


def tanh_density(mean, log_std, a):
    """Density of tanh(u) at the points `a`, one per batch element."""
    u = jnp.asarray(np.arctanh(a), jnp.float32)[:, None]
    parameters = (jnp.asarray(np.full(u.shape, x, np.float32)) for x in (mean, log_std))
    return np.exp(np.asarray(tanh_log_prob(*parameters, u), np.float64))


@pytest.mark.parametrize(("mean", "log_std"), SHAPES)
def test_tanh_gaussian_density_is_the_slope_of_its_cdf(mean, log_std):
    a, h = np.linspace(-0.95, 0.95, 39), 1e-6
    cdf = scipy.stats.norm(mean, np.exp(log_std)).cdf
    slope = (cdf(np.arctanh(a + h)) - cdf(np.arctanh(a - h))) / (2 * h)
    np.testing.assert_allclose(tanh_density(mean, log_std, a), slope, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), SHAPES[:3])
def test_tanh_gaussian_density_says_how_often_the_environment_is_given_what(mean, log_std):
    """It integrates to one over (-1, 1), and its integral over each twentieth is the share of the samples there."""
    cells, bins = 100_000, 20
    middle = (np.arange(cells) + 0.5) * (2.0 / cells) - 1.0
    integral = tanh_density(mean, log_std, middle).reshape(bins, -1).sum(axis=1) * 2.0 / cells
    assert integral.sum() == pytest.approx(1.0, abs=1e-3)
    p = repeated(TanhGaussian(array(mean), array(log_std)), SAMPLES)
    given = p.env_action(p.sample_and_log_prob(p.noise(jax.random.key(4)))[0])
    inside = np.histogram(given, bins, (-1.0, 1.0))[0]
    assert inside.sum() == SAMPLES
    np.testing.assert_allclose(inside / SAMPLES, integral, atol=4.5 * np.sqrt(0.25 / SAMPLES))


@pytest.mark.parametrize("std", [1e-3, 0.05, 0.3, 1.0, 2.0, 4.0, 7.39])
@pytest.mark.parametrize("mean", [0.0, 0.4, -1.5, 4.0, -10.0])
def test_tanh_gaussian_entropy_matches_adaptive_integration_and_its_slopes_are_finite(mean, std):
    """Entropy of the normal less E[2 log cosh(u)], in float64, split at the kink that log cosh has from afar."""
    frozen = scipy.stats.norm(mean, std)

    def integrand(u):
        return frozen.pdf(u) * 2 * (np.abs(u) + np.log1p(np.exp(-2 * np.abs(u))) - np.log(2))

    ends = sorted({mean - 10 * std, np.clip(0.0, mean - 10 * std, mean + 10 * std), mean, mean + 10 * std})
    pieces = [scipy.integrate.quad(integrand, *piece, epsabs=1e-10)[0] for piece in itertools.pairwise(ends)]
    entropy, slopes = tanh_entropy(array(mean), array(np.log(std)))
    assert entropy == pytest.approx(frozen.entropy() - sum(pieces), abs=2e-5)
    assert np.all(np.isfinite(slopes))


def test_tanh_gaussian_entropy_has_the_slopes_of_the_narrow_and_of_the_wide():
    """Narrow: -2 tanh(mean), and 1 per log_std. Wide, at mean 0: 1 - 2 std sqrt(2 / pi) per log_std."""
    by_mean, by_log_std = tanh_entropy(array(1.5), array(-20.0))[1]
    np.testing.assert_allclose([*by_mean, *by_log_std], [-2 * np.tanh(1.5), 1.0], rtol=1e-5)
    by_mean, by_log_std = tanh_entropy(array(0.0), array(6.0))[1]
    np.testing.assert_allclose([*by_mean, *by_log_std], [0.0, 1 - 2 * np.exp(6) * np.sqrt(2 / np.pi)], rtol=1e-4)


def test_tanh_gaussian_log_prob_is_exact_however_far_out_the_action_is():
    """log N(u) - log(1 - tanh(u)^2), the latter as 2 log cosh(u), in float64."""
    u = np.linspace(-40.0, 40.0, 33, dtype=np.float32)
    wide = u.astype(np.float64)
    expected = scipy.stats.norm(7.0, 2.0).logpdf(wide) + 2 * np.log(np.cosh(wide))
    parameters = (jnp.full((33, 1), x, jnp.float32) for x in (7.0, np.log(2.0)))
    np.testing.assert_allclose(tanh_log_prob(*parameters, jnp.asarray(u)[:, None]), expected, rtol=1e-5, atol=1e-5)


def test_tanh_gaussian_stays_finite_where_tanh_rounds_to_one():
    mean = jnp.asarray(np.repeat([[1e4], [-1e4], [50.0], [-50.0], [0.0]], 3, axis=1), jnp.float32)
    log_std = repeated(array(-5.0, 0.0, 2.0), 5)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def gradients_and_results(mean, log_std):
        p = TanhGaussian(mean, log_std)
        action, log_prob = p.sample_and_log_prob(p.noise(jax.random.key(0)))
        results = (p.env_action(action), log_prob, p.log_prob(mean), p.log_prob(-mean), p.entropy(), p.mode())
        return sum(jnp.sum(r) for r in results), results

    gradients, results = gradients_and_results(mean, log_std)
    for x in (*results, *gradients):
        assert np.all(np.isfinite(x))
    assert np.all(np.abs(results[0]) <= 1.0)
    np.testing.assert_array_equal(results[-1], mean)
    gaussian_entropy = np.sum(0.5 * np.log(2 * np.pi * np.e) + np.array([-5.0, 0.0, 2.0]))
    log_slope = 3 * (2 * np.log(2) - 2e4)  # 1 - tanh(u)^2 = 4 exp(-2u) out there
    np.testing.assert_allclose(results[-2][:2], np.full(2, gaussian_entropy + log_slope), rtol=1e-6)


# Deterministic


def test_deterministic_is_a_point_mass():
    p = Deterministic(array(0.5, -2.0))
    action, log_prob = p.sample_and_log_prob(p.noise(jax.random.key(0)))
    np.testing.assert_array_equal(action, p.action)
    np.testing.assert_array_equal(p.mode(), p.action)
    assert log_prob == 0.0
    assert p.log_prob(array(0.5, -2.0)) == 0.0
    assert p.log_prob(array(0.5, -1.0)) == -INF
    assert p.entropy() == 0.0
    assert p.kl(p) == 0.0
    assert p.kl(Deterministic(array(0.5, -1.0))) == INF
