"""Running moments against NumPy over all data at once, and the reward scale against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.learning.normalize import (
    Moments,
    initial_moments,
    initial_reward_scale,
    normalize,
    scale_reward,
    update_moments,
    update_reward_scale,
)

update = jax.jit(update_moments)


def device(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_moments_over_several_batches_are_those_of_all_data(shape, offset):
    """Batches of different sizes and distributions, with one or two leading dimensions of samples."""
    rng = np.random.default_rng(0)
    sizes, locations, widths = [(7,), (4, 5), (1,), (30, 2)], [1.0, -2.0, 0.0, 5.0], [1.0, 0.1, 1.0, 4.0]
    batches = [
        (offset + location + width * rng.normal(size=(*size, *shape))).astype(np.float32)
        for size, location, width in zip(sizes, locations, widths, strict=True)
    ]
    moments = initial_moments(shape)
    seen = np.zeros((0, *shape))
    for batch in batches:
        moments = update(moments, device(batch))
        seen = np.concatenate([seen, batch.reshape(-1, *shape)])
        np.testing.assert_allclose(moments.mean, seen.mean(axis=0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(moments.var, seen.var(axis=0), rtol=1e-3, atol=1e-5)
        assert moments.samples == len(seen)
    assert moments.mean.shape == moments.var.shape == shape


def test_first_update_forgets_the_initial_mean_and_variance():
    initial = initial_moments((2,))
    np.testing.assert_array_equal(initial.mean, [0.0, 0.0])
    np.testing.assert_array_equal(initial.var, [1.0, 1.0])
    moments = update(initial, device([[100.0, 5.0], [104.0, 5.0]]))
    np.testing.assert_allclose(moments.mean, [102.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(moments.var, [4.0, 0.0], rtol=1e-6)
    assert moments.samples == 2


def test_counts_beyond_two_to_the_24_do_not_corrupt_the_moments():
    """One sample more no longer moves a float32 count, yet a batch of 4096 still has its weight of one in 16385."""
    old = Moments(device(3.0), device(4.0), jnp.float32(2.0**26))
    assert old.samples + 1 == old.samples

    rng = np.random.default_rng(0)
    singles = device(rng.normal(3.0, 2.0, size=(2000, 1)))
    unmoved = jax.jit(lambda m, x: jax.lax.scan(lambda m, x: (update_moments(m, x), None), m, x)[0])(old, singles)
    assert unmoved.mean == pytest.approx(3.0, rel=1e-4)
    assert unmoved.var == pytest.approx(4.0, rel=1e-4)
    assert unmoved.samples >= old.samples

    batch = rng.normal(1003.0, 2.0, size=4096).astype(np.float32)
    moved = update(old, device(batch))
    share = 4096 / (2.0**26 + 4096)
    mean = (1 - share) * 3.0 + share * batch.mean(dtype=np.float64)
    var = (1 - share) * 4.0 + share * batch.var(dtype=np.float64) + share * (1 - share) * (batch.mean() - 3.0) ** 2
    assert var > 60
    assert moved.mean == pytest.approx(mean, rel=1e-5)
    assert moved.var == pytest.approx(var, rel=1e-4)


def test_normalize_without_moments_is_the_identity():
    x = device([1.0, -50.0])
    assert normalize(None, x) is x


def test_normalize_centres_divides_and_clips():
    moments = Moments(device([1.0, -2.0]), device([4.0, 0.25]), jnp.float32(10.0))
    x = device([[1.0, -2.0], [3.0, -3.0], [1000.0, -1000.0]])
    np.testing.assert_allclose(normalize(moments, x), [[0.0, 0.0], [1.0, -2.0], [10.0, -10.0]], rtol=1e-5)
    np.testing.assert_allclose(normalize(moments, x, clip=1.5)[1:], [[1.0, -1.5], [1.5, -1.5]], rtol=1e-5)


def test_normalize_changes_nothing_before_the_first_update():
    """Not even beyond the clip, which is in standard deviations that nobody knows yet."""
    x = device([[0.5, -3.0], [1e4, -np.inf]])
    np.testing.assert_array_equal(jax.jit(normalize)(initial_moments((2,)), x), x)
    np.testing.assert_array_equal(jax.jit(scale_reward)(initial_reward_scale(2), x), x)


def test_a_feature_that_was_constant_is_clipped_when_it_moves():
    moments = update(initial_moments((1,)), device(np.full((8, 1), 0.5)))
    np.testing.assert_array_equal(normalize(moments, device([[0.5], [0.6], [-7.0]])), [[0.0], [10.0], [-10.0]])


def test_reward_scale_follows_a_plain_loop_over_two_rollouts():
    """An episode under way at the end of a rollout goes on in the next; after `done` the sum starts anew."""
    T, B, gamma = 9, 3, 0.9
    rng = np.random.default_rng(0)
    scale = initial_reward_scale(B)
    running, returns = np.zeros(B), []
    one_more = jax.jit(update_reward_scale)
    for _ in range(2):
        reward, done = rng.normal(2.0, 1.0, size=(T, B)).astype(np.float32), rng.random((T, B)) < 0.3
        done[-1] = [True, False, False]
        scale = one_more(scale, device(reward), jnp.asarray(done), gamma)
        for t in range(T):
            for b in range(B):
                running[b] = gamma * running[b] + reward[t, b]
                returns.append(running[b])
                if done[t, b]:
                    running[b] = 0.0
        np.testing.assert_allclose(scale.discounted_return, running, rtol=1e-5)
        np.testing.assert_allclose(scale.moments.mean, np.mean(returns), rtol=1e-5)
        np.testing.assert_allclose(scale.moments.var, np.var(returns), rtol=1e-4)
        assert scale.moments.samples == len(returns)


def test_rewards_are_divided_by_the_standard_deviation_of_the_return_and_not_centred():
    scale = initial_reward_scale(2)
    reward = device([[8.0, -4.0], [0.0, 400.0]])
    assert scale_reward(None, reward) is reward
    np.testing.assert_allclose(scale_reward(scale, reward), reward, rtol=1e-6)
    scale = scale._replace(moments=Moments(device(50.0), device(16.0), jnp.float32(10.0)))
    np.testing.assert_allclose(scale_reward(scale, reward), [[2.0, -1.0], [0.0, 100.0]], rtol=1e-5)
