"""What a rollout records, and that time limits are bootstrapped from the true successor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXACTLY

import pgjax
from pgjax.core.metrics import numbers
from pgjax.environments.base import Discrete
from pgjax.learning.acting import Actor
from pgjax.learning.rollout import initial_rollout, transitions

T, B = 12, 3


def collect(env, network, seed=0, T=T):
    params = network.init(jax.random.key(1), env.observation_space, env.action_space)
    params = jax.tree.map(lambda x: x + 0.05, params)
    actor = Actor(network.initial_memory, lambda m, obs, reset: network.step(params, m, obs, reset))
    start = initial_rollout(env, actor, jax.random.key(2), B)

    @jax.jit
    def roll(state, key):
        state, batch, metrics = transitions(env, actor, state, key, T)
        return state, batch, numbers(metrics)

    return params, start, roll, *roll(start, jax.random.key(seed))


@pytest.fixture(scope="module", params=["mlp", "gru"])
def collected(request):
    """CartPole with a time limit of 5: every episode is truncated, and a few rollout steps follow."""
    network = pgjax.MLP(hidden=(8,)) if request.param == "mlp" else pgjax.GRU(hidden=(8,), memory_size=6)
    env = pgjax.make("CartPole-v1", max_steps_in_episode=5)
    return env, network, *collect(env, network)


def test_next_value_is_that_of_the_true_successor(collected):
    """Replays the rollout step by step, in Python, and values the observation before the reset; also with memory."""
    env, network, params, start, _, _, batch, _ = collected
    assert np.array(batch.truncated).sum() == 2 * B
    assert not np.any(batch.terminated)
    env_key, start_key = jax.random.split(jax.random.key(0), 3)[1:]
    keys, start_keys = jax.random.split(env_key, (T, B)), jax.random.split(start_key, (T, B))
    memory, env_state, obs, reset = start.memory, start.env_state, start.obs, start.reset
    for t in range(T):
        memory, output = network.step(params, memory, obs, reset)
        np.testing.assert_allclose(output.value, batch.value[t], rtol=1e-5)
        np.testing.assert_allclose(obs, batch.obs[t], atol=1e-6)
        after = jax.vmap(env.step)(keys[t], env_state, batch.action[t])
        fresh, fresh_obs = jax.vmap(env.reset)(start_keys[t])
        _, successor = network.step(params, memory, after.obs, jnp.zeros(B, bool))
        np.testing.assert_allclose(successor.value, batch.next_value[t], rtol=1e-5)
        _, wrong = network.step(params, memory, fresh_obs, jnp.zeros(B, bool))
        if np.all(batch.truncated[t]):
            assert not np.allclose(wrong.value, batch.next_value[t], rtol=1e-5), "valuing the reset would be wrong"
        reset = after.terminated | after.truncated
        env_state = jax.tree.map(lambda new, old, ended=reset: jnp.where(ended, new, old), fresh, after.state)
        obs = jnp.where(reset[:, None], fresh_obs, after.obs)
        np.testing.assert_array_equal(reset, batch.reset[t + 1] if t + 1 < T else reset)


@pytest.mark.parametrize("bulk", [0, 128])
def test_every_episode_starts_anew_and_differently(bulk, monkeypatch):
    """Drawn at once or step by step: the observation after an end is within CartPole's range of starts, as no other."""
    monkeypatch.setattr("pgjax.learning.rollout.BULK_BYTES", bulk)
    *_, batch, _ = collect(pgjax.make("CartPole-v1", max_steps_in_episode=5), pgjax.MLP(hidden=(8,)))
    after_an_end = np.array(batch.obs)[1:][np.array(batch.truncated)[:-1]]
    assert len(after_an_end) == 2 * B
    assert np.all(np.abs(after_an_end) <= 0.05)
    assert len(np.unique(after_an_end)) == after_an_end.size


def test_log_prob_belongs_to_the_recorded_action(collected):
    _, network, params, start, _, _, batch, _ = collected
    _, output = network.unroll(params, start.memory, batch.obs, batch.reset)
    np.testing.assert_allclose(output.distribution.log_prob(batch.action), batch.log_prob, rtol=1e-5)
    np.testing.assert_allclose(output.value, batch.value, rtol=1e-5)


def test_episode_statistics_count_whole_episodes_across_rollouts():
    env = pgjax.make("CartPole-v1")
    _, _, roll, state, batch, _ = collect(env, pgjax.MLP(hidden=(8,)), T=20)
    all_rewards, all_done, found = [batch.reward], [batch.terminated | batch.truncated], []
    for seed in range(1, 4):
        state, batch, metrics = roll(state, jax.random.key(seed))
        all_rewards.append(batch.reward)
        all_done.append(batch.terminated | batch.truncated)
        found.append(metrics)
    rewards, done = np.concatenate(all_rewards), np.concatenate(all_done)
    running, ended = np.zeros(B), []
    for t in range(len(rewards)):
        running += rewards[t]
        ended += [(t // 20, r) for r, d in zip(running, done[t], strict=True) if d]
        running[done[t]] = 0
    for i, metrics in enumerate(found, start=1):
        returns = [r for rollout_number, r in ended if rollout_number == i]
        assert int(metrics["episodes"]) == len(returns) > 0
        for name, statistic in {"mean": np.mean, "min": np.min, "max": np.max}.items():
            np.testing.assert_allclose(metrics[f"return_{name}"], statistic(returns), rtol=1e-6)
            np.testing.assert_allclose(metrics[f"length_{name}"], statistic(returns), rtol=1e-6)
    np.testing.assert_allclose(state.episode_return, running)


def test_no_finished_episode_is_nan_not_zero():
    *_, metrics = collect(pgjax.make("CartPole-v1"), pgjax.MLP(hidden=(8,)), T=2)
    assert int(metrics["episodes"]) == 0
    assert all(np.isnan(metrics[f"{x}_{y}"]) for x in ("return", "length") for y in ("mean", "min", "max"))


def test_a_squashed_policy_that_saturates_keeps_its_ratio():
    """At mean 8 and standard deviation 0.5 tanh rounds to 1: what is recorded is the action before it."""
    network = pgjax.MLP(hidden=(8,), squash=True)
    env = pgjax.make("Pendulum-v1")
    params = network.init(jax.random.key(1), env.observation_space, env.action_space)
    params["policy"] |= {"bias": jnp.array([8.0]), "log_std": jnp.log(jnp.array([0.5]))}
    actor = Actor(network.initial_memory, lambda m, obs, reset: network.step(params, m, obs, reset))
    start = initial_rollout(env, actor, jax.random.key(2), 64)
    _, batch, _ = jax.jit(lambda: transitions(env, actor, start, jax.random.key(0), 64))()
    policy = network.unroll(params, (), batch.obs, batch.reset)[1].distribution
    taken = jax.jit(lambda p, action: p.env_action(action), compiler_options=EXACTLY)(policy, batch.action)
    assert np.mean(taken == 1.0) > 0.2
    np.testing.assert_allclose(jnp.exp(policy.log_prob(batch.action) - batch.log_prob), 1.0, atol=1e-4)


def test_continuous_actions_are_recorded_as_the_policy_made_them():
    env = pgjax.make("Pendulum-v1")
    assert not isinstance(env.action_space, Discrete)
    *_, batch, _ = collect(env, pgjax.MLP(hidden=(8,)), T=20)
    assert batch.action.shape == (20, B, 1)
    assert np.abs(batch.action).max() > 1.0, "unclipped: the log-probability belongs to this number"
