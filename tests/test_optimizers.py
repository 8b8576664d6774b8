"""Adam and its clipping, schedules, minibatches, and the pieces of natural gradients against dense linear algebra."""

import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from pgjax.learning import natural_gradient, optimizers
from pgjax.networks.distributions import Categorical, DiagGaussian


def array(*numbers):
    return jnp.array(numbers, jnp.float32)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# Adam and schedules


@jax.jit
def adam_step(learning_rate, max_grad_norm, params, state, gradient):
    updates, state = optimizers.adam(learning_rate, max_grad_norm).update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def adam_by_hand(gradients, learning_rate, max_grad_norm):
    """Parameters after each step from zero, the gradient being rescaled as a whole (Kingma & Ba, 2015, algorithm 1)."""
    x, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
    for t, g in enumerate(gradients, start=1):
        g = np.asarray(g, np.float64) * min(1.0, max_grad_norm / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - learning_rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-5)
        yield x


def test_adam_clips_the_global_norm_over_the_whole_tree():
    """One huge and one small element, in different leaves: both shrink by the same factor; a small gradient is kept."""
    gradients = [(3e4, 1.0), (0.0, -2e-5), (-0.1, 0.1)]
    params = {"huge": array(0.0), "small": array(0.0)}
    state = optimizers.adam(0.01, 0.5).init(params)
    for gradient, expected in zip(gradients, adam_by_hand(gradients, 0.01, 0.5), strict=True):
        tree = {"huge": array(gradient[0]), "small": array(gradient[1])}
        params, state = adam_step(0.01, 0.5, params, state, tree)
        np.testing.assert_allclose([params["huge"][0], params["small"][0]], expected, rtol=1e-4)


def test_adam_on_many_parameters_takes_the_steps_of_one_vector(monkeypatch):
    params = {"kernel": normal(3, 2), "bias": normal(2, seed=1)}
    gradients = [jax.tree.map(lambda x, i=i: 10.0**i * x[::-1], params) for i in (-3, 1, 0)]

    def trained():
        state, at = optimizers.adam(0.01, 0.5).init(params), params
        for gradient in gradients:
            at, state = adam_step(0.01, 0.5, at, state, gradient)
        return at, optax.tree_utils.tree_get(state, "mu")

    few, vector = trained()
    monkeypatch.setattr(optimizers, "FEW", 7)
    many, by_array = trained()
    assert vector.shape == (8,)
    assert jax.tree.map(jnp.shape, by_array) == jax.tree.map(jnp.shape, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), many, few)


def test_clipped_gradient_keeps_its_direction():
    """Adam's first moment after one step is a tenth of the clipped gradient."""
    params, gradient = {"a": array(0.0), "b": array(0.0)}, {"a": array(4000.0), "b": array(3.0)}
    _, state = adam_step(0.01, 0.5, params, optimizers.adam(0.01, 0.5).init(params), gradient)
    a, b = optax.tree_utils.tree_get(state, "mu")  # one flat vector
    assert a / b == pytest.approx(4000 / 3, rel=1e-5)
    assert np.hypot(a, b) == pytest.approx(0.05, rel=1e-5)


def test_adam_state_does_not_depend_on_the_hyperparameters():
    """State from one optimiser is taken up by another, with hyperparameters that are floats, arrays or tracers."""
    params = {"w": jnp.ones((2, 2))}

    def init(learning_rate, max_grad_norm):
        return optimizers.adam(learning_rate, max_grad_norm).init(params)

    state = init(3e-4, 0.5)
    for other in (init(jnp.float32(1.0), jnp.float32(9.0)), jax.eval_shape(init, jnp.float32(0.1), jnp.float32(1.0))):
        assert jax.tree.structure(other) == jax.tree.structure(state)
        assert jax.tree.map(jnp.shape, other) == jax.tree.map(jnp.shape, state)

    slow, after_slow = adam_step(jnp.float32(0.0), jnp.float32(0.5), params, state, params)
    fast, after_fast = adam_step(jnp.float32(0.1), jnp.float32(5.0), params, after_slow, params)
    np.testing.assert_array_equal(slow["w"], params["w"])
    assert np.all(fast["w"] < 0.95)
    assert jax.tree.structure(after_fast) == jax.tree.structure(state)


def test_scheduled_values():
    def scheduled(name, initial=0.4, iterations=5, offset=1.0):
        at = jax.vmap(optimizers.scheduled, in_axes=(None, None, 0, None, None))
        return at(name, initial, jnp.arange(iterations), 4, offset)

    np.testing.assert_allclose(scheduled("constant"), np.full(5, 0.4), rtol=1e-6)
    np.testing.assert_allclose(scheduled("linear"), [0.4, 0.3, 0.2, 0.1, 0.0], rtol=1e-6)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(scheduled("cosine"), 0.2 * np.array([2, 1 + half, 1, 1 - half, 0]), atol=1e-7)
    np.testing.assert_allclose(scheduled("robbins_monro"), 0.4 / np.arange(1, 6), rtol=1e-6)
    np.testing.assert_allclose(scheduled("robbins_monro", offset=100.0)[0], 0.4)
    np.testing.assert_allclose(scheduled("robbins_monro", iterations=101, offset=100.0)[100], 0.2, rtol=1e-6)
    for name in get_args(optimizers.Schedule):
        value = optimizers.scheduled(name, 0.4, jnp.int32(9), 4, 10.0)
        assert value.dtype == jnp.float32
        if name in ("linear", "cosine"):
            assert value == 0.0


def test_polyak_moves_the_target_a_fraction_of_the_way():
    target, online = {"w": array(0.0, 4.0), "b": array(-1.0)}, {"w": array(10.0, 0.0), "b": array(1.0)}
    moved = optimizers.polyak(target, online, 0.25)
    np.testing.assert_allclose(moved["w"], [2.5, 3.0])
    np.testing.assert_allclose(moved["b"], [-0.5])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, optimizers.polyak(target, online, 0.0), target))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, optimizers.polyak(target, online, 1.0), online))


# Shuffling


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 8192, 2**16, 70_000])
def test_shuffled_is_a_permutation_that_differs_between_keys(n):
    shuffle = jax.jit(lambda key: optimizers.shuffled(key, n))
    first, second = shuffle(jax.random.key(0)), shuffle(jax.random.key(1))
    for order in (first, second):
        assert order.dtype == jnp.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(n))
    if n >= 64:
        assert np.mean(np.asarray(first) == np.asarray(second)) < 0.1
        assert np.mean(np.asarray(first) == np.arange(n)) < 0.1
        assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("n", [64, 1000, 8192, 2**16, 70_000])
def test_neighbours_in_a_shuffled_order_ascend_half_of_the_time(n):
    """Ties that fall back to index order would ascend; their number in a random order has variance (n + 1) / 12."""
    order = np.asarray(jax.jit(lambda key: optimizers.shuffled(key, n))(jax.random.key(0)))
    ascents = np.sum(order[1:] > order[:-1])
    assert abs(ascents - (n - 1) / 2) < 4.5 * np.sqrt((n + 1) / 12)


@pytest.mark.parametrize("n", [3, 4])
def test_every_permutation_is_equally_likely(n):
    """Chi-square over all n! orders; the position of each element is then uniform too."""
    keys = jax.random.split(jax.random.key(0), 6000)
    orders = np.asarray(jax.jit(jax.vmap(lambda key: optimizers.shuffled(key, n)))(keys))
    codes = orders @ n ** np.arange(n)
    expected = sorted(np.array(p) @ n ** np.arange(n) for p in itertools.permutations(range(n)))
    seen, counts = np.unique(codes, return_counts=True)
    np.testing.assert_array_equal(seen, expected)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_position_of_every_element_is_uniform():
    """Chi-square of element against position; rows and columns have fixed sums, which leaves (n-1)^2 of freedom."""
    n, draws = 11, 4400
    keys = jax.random.split(jax.random.key(0), draws)
    orders = np.asarray(jax.jit(jax.vmap(lambda key: optimizers.shuffled(key, n)))(keys))
    table = np.stack([np.bincount(orders[:, position], minlength=n) for position in range(n)])
    statistic = (n - 1) / n * np.sum((table - draws / n) ** 2) / (draws / n)
    assert 1e-3 < scipy.stats.chi2((n - 1) ** 2).cdf(statistic) < 1 - 1e-3


@pytest.mark.parametrize("n", [1500, 2048])
def test_large_shuffles_have_no_pattern(n):
    """Of the order and its inverse: a place takes every part of the range equally, places side by side are unrelated.

    Over all places, chi-square statistics have the mean of their distribution, and z-scores of correlations are normal.
    """
    draws, bins = 800, 16
    keys = jax.random.split(jax.random.key(0), draws)
    orders = np.asarray(jax.jit(jax.vmap(lambda key: optimizers.shuffled(key, n)))(keys))
    for each in (orders, np.argsort(orders, axis=1)):
        part = each * bins // n
        sizes = np.bincount(np.arange(n) * bins // n)[:, None] * draws / n
        counts = np.stack([np.sum(part == i, axis=0) for i in range(bins)])
        chi_square = np.sum((counts - sizes) ** 2 / sizes, axis=0)
        assert abs(chi_square.mean() - (bins - 1)) < 4.5 * np.sqrt(2 * (bins - 1) / n)
        x = (each - (n - 1) / 2) / np.sqrt((n**2 - 1) / 12)
        for lag in (1, 2, n // 2):
            z = np.mean(x[:, lag:] * x[:, :-lag], axis=0) * np.sqrt(draws)
            assert abs(z.std() - 1.0) < 4.5 / np.sqrt(2 * len(z))


def test_minibatch_epochs_visits_every_index_once_per_epoch_in_a_new_order():
    def update(count, indices, at_start):
        return count + 1, (count, indices, at_start)

    run = jax.jit(lambda key: optimizers.minibatch_epochs(update, jnp.int32(0), key, 24, 3, 4, lambda count: count))
    count, (counts, indices, at_start) = run(jax.random.key(0))
    assert count == 12
    np.testing.assert_array_equal(counts, np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(at_start, [[0] * 4, [4] * 4, [8] * 4])
    assert indices.shape == (3, 4, 6)
    orders = np.asarray(indices).reshape(3, 24)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(24), (3, 1)))
    _, (_, others, _) = run(jax.random.key(1))
    everything = [tuple(order) for order in (*orders, *np.asarray(others).reshape(3, 24), np.arange(24))]
    assert len(set(everything)) == 7


# Natural gradients

OBSERVATIONS = normal(5, 3)


def softmax_policy(params):
    return Categorical(OBSERVATIONS @ params["w"] + params["b"])


def gaussian_policy(params):
    mean = OBSERVATIONS @ params["w"]
    return DiagGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))


def score_outer_product(policy, params, actions, weights):
    """E[score score'] over the batch, from the score of every action `[K, N, ...]` with its probability `[K, N]`."""
    flat, unravel = ravel_pytree(params)
    score = jax.vmap(jax.jacobian(lambda flat, a: policy(unravel(flat)).log_prob(a)), (None, 0))(flat, actions)
    return jnp.einsum("kn,kni,knj->ij", weights, score, score) / weights.shape[1]


def softmax_fisher(params):
    actions = jnp.broadcast_to(jnp.arange(4)[:, None], (4, 5))
    return score_outer_product(softmax_policy, params, actions, jax.nn.softmax(softmax_policy(params).logits).T)


def gaussian_fisher(params):
    """Gauss-Hermite nodes as actions: exact, the integrand being a polynomial of degree four."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    grid = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 1, 2).astype(np.float32)
    weight = np.outer(weights, weights).reshape(-1, 1) / (2 * np.pi)
    p = gaussian_policy(params)
    actions = p.mean + jnp.exp(p.log_std) * grid
    return score_outer_product(gaussian_policy, params, actions, jnp.asarray(np.tile(weight, 5), jnp.float32))


@pytest.mark.parametrize(
    ("policy", "fisher", "params"),
    [
        (softmax_policy, softmax_fisher, {"w": normal(3, 4, seed=1), "b": normal(4, seed=2)}),
        (gaussian_policy, gaussian_fisher, {"w": normal(3, 2, seed=1), "log_std": array(0.3, -0.8)}),
    ],
)
def test_fisher_vector_product_is_the_dense_fisher_matrix(policy, fisher, params):
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def dense_and_products(params, damping):
        product = natural_gradient.fisher_vector_product(policy, params, damping)
        columns = jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(jnp.eye(flat.size))
        return fisher(params), columns.T

    dense, products = dense_and_products(params, 0.0)
    assert np.max(np.abs(dense)) > 0.1
    np.testing.assert_allclose(products, dense, rtol=1e-4, atol=1e-5)
    _, damped = dense_and_products(params, 0.5)
    np.testing.assert_allclose(damped, products + 0.5 * np.eye(flat.size), rtol=1e-5, atol=1e-6)


def test_conjugate_gradient_solves_a_dense_system():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    matrix, x = root @ root.T + np.eye(6), rng.normal(size=6)
    device_matrix = jnp.asarray(matrix, jnp.float32)

    def product(v):
        flat, unravel = ravel_pytree(v)
        return unravel(device_matrix @ flat)

    _, unravel = ravel_pytree({"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)})
    right = unravel(jnp.asarray(matrix @ x, jnp.float32))
    solve = jax.jit(lambda right, iterations: natural_gradient.conjugate_gradient(product, right, iterations))
    np.testing.assert_allclose(ravel_pytree(solve(right, 20))[0], x, rtol=1e-3, atol=1e-3)
    one_step = ravel_pytree(solve(right, 1))[0]
    b = matrix @ x
    np.testing.assert_allclose(one_step, b * (b @ b) / (b @ matrix @ b), rtol=1e-4)  # steepest descent from zero


def test_natural_gradient_under_an_identity_fisher_is_the_gradient():
    gradient = {"w": normal(3, 2), "b": normal(2, seed=1)}
    natural = natural_gradient.conjugate_gradient(lambda v: v, gradient, 10)
    jax.tree.map(lambda n, g: np.testing.assert_allclose(n, g, rtol=1e-6), natural, gradient)
    halved = natural_gradient.conjugate_gradient(lambda v: jax.tree.map(lambda x: 2.0 * x, v), gradient, 10)
    jax.tree.map(lambda n, g: np.testing.assert_allclose(n, g / 2, rtol=1e-6), halved, gradient)


def searched(limit, max_backtracks, step=4.0, shrink=0.5):
    """Line search from 1 that accepts whatever has moved no further than `limit`."""
    params = {"x": array(1.0), "y": array(-1.0)}
    steps = {"x": array(step), "y": array(-step)}

    def accept(new):
        return jnp.abs(new["x"][0] - 1.0) <= limit

    new, fraction = natural_gradient.line_search(accept, params, steps, max_backtracks, shrink)
    assert new["y"][0] == -new["x"][0]
    return float(new["x"][0]), float(fraction)


def test_line_search_takes_the_full_step_if_accepted():
    assert searched(limit=4.0, max_backtracks=10) == (5.0, 1.0)
    assert searched(limit=4.0, max_backtracks=0) == (5.0, 1.0)


def test_line_search_backs_off_to_the_first_accepted_step():
    assert searched(limit=1.5, max_backtracks=10) == (2.0, 0.25)
    assert searched(limit=0.25, max_backtracks=10) == (1.25, 0.0625)
    assert searched(limit=0.3, max_backtracks=10, shrink=0.1) == (pytest.approx(1.04), pytest.approx(0.01))


def test_line_search_tries_max_backtracks_and_no_more():
    assert searched(limit=0.5, max_backtracks=3) == (1.5, 0.125)
    assert searched(limit=0.5, max_backtracks=2) == (1.0, 0.0)


def test_line_search_leaves_the_parameters_when_nothing_is_accepted():
    assert searched(limit=-1.0, max_backtracks=5) == (1.0, 0.0)
    assert searched(limit=10.0, max_backtracks=5, step=float("nan")) == (1.0, 0.0)


def test_a_step_within_a_kl_has_that_kl_to_second_order():
    """F = diag(1, 4): d^T F d / 2 = max_kl for the scaled direction; a direction of zero stays zero."""
    scale = array(1.0, 4.0)
    step = natural_gradient.within_kl(lambda v: scale * v, array(3.0, -1.0), 0.02)
    assert float(0.5 * jnp.sum(step * scale * step)) == pytest.approx(0.02, rel=1e-5)
    assert float(step[0] / step[1]) == pytest.approx(-3.0)
    np.testing.assert_array_equal(natural_gradient.within_kl(lambda v: scale * v, array(0.0, 0.0), 0.02), 0.0)
