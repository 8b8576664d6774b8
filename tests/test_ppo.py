"""PPO's own arithmetic: what it refuses, and its gradient where it must be A2C's."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.algorithms.on_policy import collect
from pgjax.algorithms.ppo import optimize
from pgjax.core.metrics import number
from pgjax.learning.optimizers import mean_gradient


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_envs": 0}, r"PPO.num_envs = 0 is not accepted: expected a whole number \(int\) in \[1, 2\^31\)"),
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
            {"lr_schedule": "step"},
            r"PPO.lr_schedule = 'step' is not accepted: expected one of 'constant', 'linear', 'cosine', 'robbins_monro",
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
    """A state, its rollout, and the rollout with advantages as PPO learns from it."""
    state = init(tiny, jax.random.key(0))
    _, batch, _ = collect(tiny, state, jax.random.key(1))
    return state, batch, tiny.credit(batch)


def policy_gradient_of(algorithm, state, samples):
    if isinstance(algorithm, pgjax.PPO):
        return mean_gradient(algorithm.loss, shared=1)(state.params, (), samples, jnp.float32(0.3))
    return mean_gradient(algorithm.loss)(state.params, (), samples)


@pytest.mark.parametrize("objective", ["clip", "cpi", "kl_penalty", "clip_kl"])
def test_gradient_at_ratio_one_is_that_of_a2c(tiny, tiny_algorithm, collected, objective):
    """For every objective: the KL divergence has gradient zero where the policies are the same."""
    state, _, learned = collected
    if objective in ("kl_penalty", "clip_kl"):
        policy = tiny.network.unroll(state.params, (), learned.obs, learned.reset)[1].distribution
        learned = learned._replace(policy=policy)
    ppo = dataclasses.replace(tiny, objective=objective, vf_coef=0.7, ent_coef=0.01)
    a2c = tiny_algorithm(pgjax.A2C, tiny.env, vf_coef=0.7, ent_coef=0.01)
    ours, metrics = policy_gradient_of(ppo, state, learned)
    theirs, _ = policy_gradient_of(a2c, state, learned)
    chex.assert_trees_all_close(ours, theirs, atol=1e-6)
    assert float(metrics["approx_kl"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_cpi_with_one_epoch_of_one_minibatch_is_vpg(tiny, tiny_algorithm, collected, step):
    """The whole iteration: same rollout, same gradient, same step of the policy's parameters."""
    state, _, learned = collected
    fields = {"normalize_advantage": "none", "vf_coef": 0.0, "max_grad_norm": float("inf")}
    ppo = dataclasses.replace(tiny, objective="cpi", num_epochs=1, num_minibatches=1, **fields)
    vpg = tiny_algorithm(
        pgjax.VPG, tiny.env, normalize_advantage=False, value_learning_rate=0.0, max_grad_norm=float("inf")
    )
    ours, theirs = (policy_gradient_of(algorithm, state, learned)[0] for algorithm in (ppo, vpg))
    chex.assert_trees_all_close(ours, theirs, atol=1e-6)
    vpg_state = state._replace(opt_state=vpg.init(jax.random.key(0)).opt_state)
    after, metrics = step(ppo, state)
    vpg_after, vpg_metrics = step(vpg, vpg_state)
    chex.assert_trees_all_close(after.params, vpg_after.params, atol=2e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(vpg_metrics["grad_norm"]), rel=1e-4)


def test_advantages_are_normalised_within_the_minibatch(tiny, collected):
    """Shifting and scaling all advantages leaves the policy loss as it is, unless normalisation is off."""
    state, _, learned = collected
    moved = learned._replace(advantage=3.0 * learned.advantage + 5.0)
    for mode, same in (("minibatch", True), ("none", False)):
        ppo = dataclasses.replace(tiny, normalize_advantage=mode, num_epochs=2, num_minibatches=1)

        @jax.jit
        def policy_loss(samples, ppo=ppo):
            learned = optimize(ppo, state.params, state.opt_state, (), samples, jax.random.key(0), ppo.learning_rate)
            return number(learned[2]["policy_loss"])

        values = [float(policy_loss(samples)) for samples in (learned, moved)]
        assert (values[0] == pytest.approx(values[1], abs=1e-5)) == same


def test_the_penalty_adapts_between_iterations(tiny, init, step):
    """A KL divergence above 1.5 times the target doubles the coefficient, below two thirds of it halves it."""
    for target, factor in ((1e-9, 2.0), (1e3, 0.5), (float("inf"), 1.0)):
        ppo = dataclasses.replace(tiny, objective="kl_penalty", kl_coef=0.8, adaptive_kl=target)
        state, metrics = step(ppo, init(ppo, jax.random.key(0)))
        assert float(metrics["kl_coef"]) == pytest.approx(0.8)
        assert 1e-8 < float(metrics["kl"]) < 1.0
        assert float(state.opt_state.kl_scale) == factor


def test_a_strong_penalty_holds_the_policy(tiny, init, step):
    kl = {}
    for coef in (0.0, 100.0):
        ppo = dataclasses.replace(tiny, objective="kl_penalty", kl_coef=coef, num_epochs=4, normalize_advantage="batch")
        kl[coef] = float(step(ppo, init(ppo, jax.random.key(0)))[1]["kl"])
    assert kl[100.0] < 0.2 * kl[0.0]


def test_vtrace_is_gae_until_the_policy_moves(tiny, collected):
    """In the first epoch of an iteration ratios are 1 and V-trace is the lambda-return; then it corrects."""
    state, batch, learned = collected
    vtrace_at = dataclasses.replace(tiny, advantage="vtrace").vtrace_at((), batch)
    first = vtrace_at(state.params)
    np.testing.assert_allclose(first.value_target, learned.value_target, atol=1e-5)
    np.testing.assert_allclose(first.advantage, learned.advantage, atol=1e-5)
    moved = jax.tree.map(lambda x: x, state.params)
    moved["policy"]["bias"] = jnp.array([3.0, -3.0])
    assert not np.allclose(vtrace_at(moved).value_target, learned.value_target, atol=1e-2)
