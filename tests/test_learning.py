"""What is learned where the right answer is known: values in closed form, memory, continuous actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.environments import probes
from pgjax.environments.base import Environment, Space


def trained(algorithm, key=0):
    return jax.jit(pgjax.train)(algorithm, jax.random.key(key))


def learner(env, iterations, **fields):
    settings = {
        "network": pgjax.MLP(hidden=(16,)),
        "num_envs": 16,
        "num_steps": 16,
        "num_minibatches": 2,
        "learning_rate": 1e-2,
        "lr_schedule": "constant",
    } | fields
    return pgjax.PPO(env, total_steps=iterations * settings["num_envs"] * settings["num_steps"], **settings)


def value(algorithm, state, obs):
    obs = jnp.asarray(obs, jnp.float32)[None]
    return float(algorithm.actor(state).act((), obs, jnp.ones(1, bool))[1].value[0])


@pytree
class LimitAsDeath:
    """`ConstantReward`, but a `death` of 1 reports its time limit as termination: the mistake under test."""

    death: Scalar = field("1: the time limit terminates, 0: it truncates", default=0.0, accepts="[0, 1]")

    name = "LimitAsDeath"
    time_limit = 10
    inner = probes.ConstantReward(time_limit=10)
    observation_space = inner.observation_space
    action_space: Space = inner.action_space

    def reset(self, key):
        return self.inner.reset(key)

    def received(self, action):
        return action

    def step(self, key, state, action):
        after = self.inner.step(key, state, action)
        dies = self.death > 0
        return after._replace(terminated=after.truncated & dies, truncated=after.truncated & ~dies)


def test_a_time_limit_is_not_death():
    """Reward 1 for ever, gamma 0.9: V = 1 / (1 - gamma) = 10. Counting the limit as death gives something else."""
    assert isinstance(LimitAsDeath(), Environment)
    train, values = jax.jit(pgjax.train), {}
    for death in (0.0, 1.0):
        ppo = learner(LimitAsDeath(death=death), 80, gamma=0.9, vf_coef=1.0)
        state, _ = train(ppo, jax.random.key(0))
        values[death] = value(ppo, state, [1.0])
    assert values[0.0] == pytest.approx(10.0, abs=0.2)
    assert values[1.0] < 8.0


def test_values_of_a_delayed_reward():
    """V(0) = gamma, V(1) = 1."""
    ppo = learner(probes.DelayedReward(), 60, gamma=0.5)
    state, _ = trained(ppo)
    assert value(ppo, state, [0.0]) == pytest.approx(0.5, abs=0.05)
    assert value(ppo, state, [1.0]) == pytest.approx(1.0, abs=0.05)


def test_a_continuous_policy_finds_the_action_that_pays():
    ppo = learner(probes.Recall(continuous=True), 80, network=pgjax.MLP(hidden=(16,), activation="relu"))
    state, _ = trained(ppo)
    assert float(pgjax.evaluate(ppo, state, jax.random.key(1), num_episodes=64).mean) > 0.95


NETWORKS = [pgjax.GRU(hidden=(8,), memory_size=8), pgjax.MLP(hidden=(16,))]


@pytest.mark.parametrize("network", NETWORKS, ids=["gru", "mlp"])
def test_only_memory_recalls_a_cue(network):
    """With memory every cue is answered; without, half of them, whatever the training."""
    ppo = learner(probes.Recall(delay=3), 40, network=network)
    state, _ = trained(ppo)
    mean = float(pgjax.evaluate(ppo, state, jax.random.key(1), num_episodes=256).mean)
    if isinstance(network, pgjax.GRU):
        assert mean > 0.97
    else:
        assert 0.35 < mean < 0.65


def test_a_kl_target_stops_an_iteration_early():
    """Updates after the first too large step are masked; the target is a traced number of the same program."""
    free = learner(probes.Recall(), 6, learning_rate=0.05)
    stopped = learner(probes.Recall(), 6, learning_rate=0.05, target_kl=0.01)
    train = jax.jit(pgjax.train)
    updates = {ppo.target_kl: train(ppo, jax.random.key(0))[1]["updates"] for ppo in (free, stopped)}
    np.testing.assert_array_equal(updates[np.inf], 8)
    assert np.min(updates[0.01]) < 8
    assert np.min(updates[0.01]) >= 1


def test_the_learning_rate_falls_linearly(tiny, train):
    """From its initial value in the first of six iterations; it would reach 0 in a seventh."""
    _, metrics = train(tiny, jax.random.key(0))
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2 * np.linspace(1.0, 0.0, 7)[:6], rtol=1e-5)
