"""Evaluation counts complete episodes, one per environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.environments import probes


@pytest.fixture(scope="module")
def evaluated(tiny_ppo, cartpole, init):
    ppo = tiny_ppo(cartpole)
    state = init(ppo, jax.random.key(0))
    return ppo, state, pgjax.evaluate(ppo, state, jax.random.key(1), num_episodes=32)


def test_statistics_are_those_of_the_returns(evaluated):
    _, _, result = evaluated
    returns = np.asarray(result.returns)
    assert returns.shape == (32,)
    assert np.all(result.ended)
    np.testing.assert_array_equal(returns, result.lengths)  # CartPole pays 1 per step
    for name, statistic in {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}.items():
        np.testing.assert_allclose(getattr(result, name), statistic(returns), rtol=1e-5)
    assert int(result.num_episodes) == 32
    assert repr(result).startswith(f"Evaluation(mean={result.mean}, std=")
    assert repr(result).endswith("num_episodes=32, ...)")


def test_partial_episodes_never_count(evaluated):
    ppo, state, full = evaluated
    with pytest.warns(UserWarning, match=r"of 32 episodes were cut after max_steps = 10 and count nowhere"):
        cut = pgjax.evaluate(ppo, state, jax.random.key(1), num_episodes=32, max_steps=10)
    finished = np.asarray(full.lengths) <= 10
    assert 0 < finished.sum() < 32
    np.testing.assert_array_equal(cut.ended, finished)
    assert int(cut.num_episodes) == finished.sum()
    np.testing.assert_allclose(cut.mean, np.asarray(full.returns)[finished].mean(), rtol=1e-6)

    with pytest.warns(UserWarning, match="32 of 32 episodes"):
        none = pgjax.evaluate(ppo, state, jax.random.key(1), num_episodes=32, max_steps=2)
    assert int(none.num_episodes) == 0
    assert all(np.isnan(getattr(none, name)) for name in ("mean", "std", "min", "max"))


def test_greedy_repeats_itself_and_sampling_explores(tiny_ppo, init):
    """On a probe whose only randomness is the policy: the mode is one action, samples are both."""
    ppo = tiny_ppo(probes.Recall())
    state = init(ppo, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2)
    obs = jnp.array([[1.0, 1.0]] * 64)
    policy = ppo.actor(state).act((), obs, jnp.ones(64, bool))[1].distribution
    assert len(np.unique(policy.mode())) == 1
    assert len(np.unique(policy.sample_and_log_prob(policy.noise(keys[0]))[0])) == 2
    greedy = [pgjax.evaluate(ppo, state, key, num_episodes=64).returns for key in (keys[0], keys[0])]
    np.testing.assert_array_equal(*greedy)


def test_evaluation_vmaps_over_states(tiny_ppo, cartpole):
    ppo = tiny_ppo(cartpole)
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(ppo.init)(keys)
    many = jax.vmap(lambda state, key: pgjax.evaluate(ppo, state, key, 4))(states, keys)
    solo = pgjax.evaluate(ppo, jax.tree.map(lambda x: x[2], states), keys[2], 4)
    np.testing.assert_array_equal(many.returns[2], solo.returns)


def test_the_state_of_several_members_is_refused(evaluated):
    ppo, state, _ = evaluated
    several = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    for what, refused in {
        "evaluate": lambda: pgjax.evaluate(ppo, several, jax.random.key(0)),
        "predict": lambda: ppo.predict(several, jnp.zeros(4)),
    }.items():
        with pytest.raises(
            pgjax.InputError, match=rf"{what}: there are 2 members: expected one, by result.member\(i\)"
        ):
            refused()
    for obs, how, message in (
        (jnp.zeros(4), {"deterministic": False, "key": 0}, "predict: key = 0 is not accepted"),
        ((jnp.zeros(4), {}), {}, "predict: obs = .* is not accepted: expected an array of numbers"),
    ):
        with pytest.raises(pgjax.InputError, match=message):
            ppo.predict(state, obs, **how)


@pytest.mark.parametrize("bad", [{"num_episodes": 0}, {"max_steps": -1}])
def test_bad_sizes_are_refused(evaluated, bad):
    ppo, state, _ = evaluated
    with pytest.raises(pgjax.InputError, match=f"{next(iter(bad))} = {next(iter(bad.values()))} is not accepted"):
        pgjax.evaluate(ppo, state, jax.random.key(0), **bad)
