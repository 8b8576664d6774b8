"""PPO's own arithmetic: what it refuses, and its gradient where it must be A2C's."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import losses, returns
from pgjax.algorithms.ppo import Minibatch
from pgjax.rollout import rollout


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_envs": 0}, r"PPO.num_envs = 0 is not accepted: expected a whole number \(int\) in \[1, inf\)"),
        ({"num_steps": -3}, r"PPO.num_steps = -3"),
        ({"total_steps": 1e6}, r"PPO.total_steps = 1000000.0 is not accepted: expected a whole number"),
        ({"total_steps": 31}, r"PPO.total_steps = 31 is less than one iteration: expected at least .* = 32"),
        ({"num_minibatches": 3}, r"PPO.num_minibatches = 3 does not divide num_envs \* num_steps = 32"),
        ({"learning_rate": float("nan")}, r"PPO.learning_rate = nan is not accepted: expected a number in \[0, inf\)"),
        ({"learning_rate": np.array([1e-3, np.inf])}, r"PPO.learning_rate = .* is not accepted"),
        ({"gamma": 1.5}, r"PPO.gamma = 1.5 is not accepted: expected a number in \[0, 1\]"),
        ({"ent_coef": -0.1}, r"PPO.ent_coef = -0.1"),
        ({"clip_eps": 0}, r"PPO.clip_eps = 0 is not accepted: expected a number in \(0, inf\)"),
        ({"target_kl": float("nan")}, r"PPO.target_kl = nan"),
        ({"gae_lambda": "0.9"}, r"PPO.gae_lambda = '0.9' is not accepted: expected a number"),
        ({"normalize_obs": 1}, r"PPO.normalize_obs = 1 is not accepted: expected True or False"),
        (
            {"lr_schedule": "cosine"},
            r"PPO.lr_schedule = 'cosine' is not accepted: expected one of 'constant', 'linear'",
        ),
        ({"network": "mlp"}, r"PPO.network = 'mlp' is not accepted: expected a network such as"),
        (
            {"env": "CartPole-v1"},
            r"PPO.env = 'CartPole-v1' is not accepted: expected an environment such as `pgjax.make",
        ),
    ],
)
def test_bad_fields_are_refused_at_once(tiny, fields, message):
    with pytest.raises(pgjax.InputError, match=message):
        dataclasses.replace(tiny, **fields)


def test_minibatches_of_sequences_need_whole_environments(tiny):
    with pytest.raises(
        pgjax.InputError, match=r"does not divide num_envs = 4: a network with memory learns from whole"
    ):
        dataclasses.replace(tiny, network=pgjax.GRU(), num_minibatches=8)


def test_what_vmap_and_sweeps_need_is_accepted(tiny):
    assert dataclasses.replace(tiny, learning_rate=jnp.geomspace(1e-4, 1e-2, 3)).learning_rate.shape == (3,)
    assert dataclasses.replace(tiny, max_grad_norm=float("inf")).max_grad_norm == float("inf")
    swept = jax.vmap(lambda x: dataclasses.replace(tiny, gamma=x))(jnp.array([0.9, 0.99]))
    assert swept.gamma.shape == (2,)


@pytest.fixture(scope="module")
def collected(tiny, init):
    """One rollout as a single minibatch, with its advantages."""
    state = init(tiny, jax.random.key(0))
    _, batch, _ = rollout(tiny.env, tiny.actor(state), state.rollout, jax.random.key(1), tiny.num_steps)
    advantage = returns.gae(
        batch.reward, batch.value, batch.next_value, batch.terminated, batch.truncated, tiny.gamma, tiny.gae_lambda
    )
    minibatch = Minibatch(
        batch.obs, batch.reset, batch.action, batch.log_prob, batch.value, advantage, advantage + batch.value
    )
    return state, minibatch


def test_gradient_at_ratio_one_is_that_of_a2c(tiny, collected):
    state, minibatch = collected
    ppo = dataclasses.replace(tiny, normalize_advantage="none", vf_coef=0.7, ent_coef=0.01)

    def a2c_loss(params):
        _, output = ppo.network.unroll(params, (), minibatch.obs, minibatch.reset)
        log_prob = output.distribution.log_prob(minibatch.action)
        return (
            jnp.mean(losses.policy_gradient(log_prob, minibatch.advantage))
            + 0.7 * jnp.mean(losses.value_loss(output.value, minibatch.value_target))
            - 0.01 * jnp.mean(output.distribution.entropy())
        )

    ours, metrics = jax.grad(ppo.loss, has_aux=True)(state.params, (), minibatch)
    chex.assert_trees_all_close(ours, jax.grad(a2c_loss)(state.params), atol=1e-6)
    assert float(metrics["approx_kl"]) == pytest.approx(0.0, abs=1e-6)


def test_advantages_are_normalised_within_the_minibatch(tiny, collected):
    """Shifting and scaling all advantages leaves the policy loss as it is, unless normalisation is off."""
    state, minibatch = collected
    moved = minibatch._replace(advantage=3.0 * minibatch.advantage + 5.0)
    for mode, same in (("minibatch", True), ("none", False)):
        ppo = dataclasses.replace(tiny, normalize_advantage=mode, num_epochs=2, num_minibatches=1)
        learn = jax.jit(lambda m, ppo=ppo: ppo._learn(state, m, jax.random.key(0))[2]["policy_loss"])
        values = [float(learn(m)) for m in (minibatch, moved)]
        assert (values[0] == pytest.approx(values[1], abs=1e-5)) == same
