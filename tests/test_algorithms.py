"""What the algorithms below PPO refuse, and their own arithmetic."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.algorithms.on_policy import collect
from pgjax.environments import probes
from pgjax.learning import losses, returns
from pgjax.learning.optimizers import mean_gradient

SHARED = pgjax.MLP(hidden=(8,), shared_torso=True)
EPISODES = {"max_steps_in_episode": 8}


@pytest.fixture(scope="module")
def short():
    return pgjax.make("CartPole-v1", **EPISODES)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (pgjax.REINFORCE, {"num_steps": 7}, r"num_steps = 7 is not accepted: expected at least the longest .* 8 steps"),
        (pgjax.REINFORCE, {"baseline": "critic"}, r"expected one of 'none', 'mean', 'value', 'optimal'"),
        (pgjax.REINFORCE, {"baseline": np.zeros((2, 2))}, r"expected one of 'none', 'mean', 'value', 'optimal'"),
        (pgjax.REINFORCE, {"baseline": "optimal", "network": pgjax.GRU()}, r"'optimal' is not accepted with a network"),
        (pgjax.REINFORCE, {"baseline": "value", "value_minibatches": 3}, r"value_minibatches = 3 does not divide"),
        (pgjax.PPO, {"n_steps": 8}, "PPO has no field 'n_steps': did you mean num_steps"),
        (pgjax.PPO, {"clip_range": 0.1}, "PPO has no field 'clip_range': did you mean clip_eps"),
        (pgjax.VPG, {"gama": 0.9}, "VPG has no field 'gama': did you mean gamma"),
        (pgjax.VPG, {"network": SHARED}, r"VPG.network = MLP\(.*\) is not accepted: expected shared_torso=False"),
        (pgjax.VPG, {"value_minibatches": 5}, r"VPG.value_minibatches = 5 does not divide num_envs \* num_steps = 32"),
        (pgjax.VPG, {"total_steps": 31}, r"VPG.total_steps = 31 is less than one iteration"),
        (pgjax.A2C, {"n": 0}, r"A2C.n = 0 is not accepted: expected a whole number \(int\) in \[1, 2\^31\)"),
        (pgjax.A2C, {"advantage": "td"}, r"A2C.advantage = 'td' is not accepted: expected one of 'gae', 'n_step'"),
        (pgjax.NPG, {"max_kl": 0.0}, r"NPG.max_kl = 0.0 is not accepted: expected a number in \(0, inf\)"),
        (pgjax.NPG, {"network": SHARED}, r"NPG.network"),
        (pgjax.TRPO, {"backtrack": 1.0}, r"TRPO.backtrack = 1.0 is not accepted: expected a number in \(0, 1\)"),
        (pgjax.TRPO, {"cg_damping": -1.0}, r"TRPO.cg_damping = -1.0"),
        (pgjax.TRPO, {"reward_clip": 0.0}, r"TRPO.reward_clip = 0.0 is not accepted: expected a number in \(0, inf\]"),
    ],
)
def test_bad_fields_are_refused_at_once(short, tiny_algorithm, cls, fields, message):
    with pytest.raises(pgjax.InputError, match=message):
        tiny_algorithm(cls, short, **fields)


@pytest.mark.parametrize("where", ["loss", "metrics", "alone"])
def test_a_loss_that_is_not_a_number_per_sample_is_refused(short, tiny_algorithm, where):
    @pgjax.pytree
    class Wide(pgjax.A2C):
        def loss(self, params, memory, samples):
            losses, metrics = super().loss(params, memory, samples)
            if where == "alone":
                return losses
            return (losses[..., None], metrics) if where == "loss" else (losses, metrics | {"mine": jnp.mean(losses)})

    said = {
        "loss": r"the loss of shape \(8, 4, 1\): expected \(8, 4\), a number per sample",
        "metrics": r"mine of shape \(\): expected \(8, 4\), a number per sample",
        "alone": r"a \w+: expected \(losses, metrics\)",
    }
    with pytest.raises(pgjax.InputError, match=f"loss gives {said[where]}"):
        jax.eval_shape(pgjax.train, tiny_algorithm(Wide, short), jax.random.key(0))


def test_episode_starts_by_a_loop():
    reset = np.random.default_rng(0).random((9, 4)) < 0.3
    ours = returns.episode_start(jnp.asarray(reset))
    for b in range(4):
        start = 0
        for t in range(9):
            start = t if reset[t, b] else start
            assert ours[t, b] == start


def test_time_step_baseline_by_a_loop():
    """The weighted mean over the steps at the same time in other columns; nothing of the own column enters."""
    rng = np.random.default_rng(0)
    T, B = 6, 5
    target, weight = rng.normal(size=(2, T, B)).astype(np.float32)
    weight = np.abs(weight) * (rng.random((T, B)) < 0.7)
    time = rng.integers(0, 3, size=(T, B))
    ours = returns.time_step_baseline(jnp.asarray(target), jnp.asarray(weight, jnp.float32), jnp.asarray(time))
    for t in range(T):
        for b in range(B):
            total = weights = 0.0
            for s in range(T):
                for c in range(B):
                    if c != b and time[s, c] == time[t, b]:
                        total += weight[s, c] * target[s, c]
                        weights += weight[s, c]
            assert ours[t, b] == pytest.approx(total / weights if weights else 0.0, abs=1e-5)


def test_the_optimal_baseline_minimises_the_variance():
    """Of g (R - b) at one time step, for scores of different size: E[g^2 R] / E[g^2], not E[R]."""
    rng = np.random.default_rng(1)
    g = rng.normal(size=4000) * np.where(rng.random(4000) < 0.2, 5.0, 1.0)
    R = 3.0 + np.where(np.abs(g) > 3.0, 2.0, 0.0) + rng.normal(size=4000)
    optimal = np.sum(g**2 * R) / np.sum(g**2)
    ours = returns.time_step_baseline(
        jnp.asarray(R, jnp.float32)[None], jnp.asarray(g**2, jnp.float32)[None], jnp.zeros((1, 4000), jnp.int32)
    )
    np.testing.assert_allclose(ours, optimal, rtol=1e-2)  # each leaves itself out
    spread = {b: np.var(g * (R - b)) for b in (0.0, R.mean(), optimal)}
    assert spread[optimal] < spread[R.mean()] < spread[0.0]


def test_scores_are_per_sample_gradients(short, tiny_algorithm, init):
    reinforce = tiny_algorithm(pgjax.REINFORCE, short, baseline="optimal")
    params = init(reinforce, jax.random.key(0)).params
    obs, action = jax.random.normal(jax.random.key(1), (3, 4)), jnp.array([0, 1, 1])
    ours = reinforce._squared_score(params, obs, action)
    for i in range(3):

        def log_prob(params, i=i):
            _, output = reinforce.network.unroll(params, (), obs[None, i : i + 1], jnp.zeros((1, 1), bool))
            return output.distribution.log_prob(action[None, i : i + 1])[0, 0]

        grads = jax.grad(log_prob)(params)
        assert ours[i] == pytest.approx(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)), rel=1e-4)


def test_only_complete_episodes_count(short, tiny_algorithm, init):
    """Rollouts of 12 steps, episodes of at most 8: those that start in the first five steps count, to their end."""
    reinforce = tiny_algorithm(pgjax.REINFORCE, short, num_steps=12, num_envs=16, total_steps=10**4, baseline="none")
    state = init(reinforce, jax.random.key(0))
    _, batch, _ = jax.jit(lambda state, key: collect(reinforce, state, key))(state, jax.random.key(1))
    learned, _ = reinforce._samples(state.params, batch)
    counted = learned.weight > 0
    reset, done = np.asarray(batch.reset), np.asarray(batch.terminated | batch.truncated)
    for b in range(16):
        for t in range(12):
            start = max(s for s in range(t + 1) if s == 0 or reset[s, b])
            assert counted[t, b] == (start + 8 <= 12)
            if counted[t, b]:
                end = next(s for s in range(t, 12) if done[s, b])
                discounted = sum(0.99 ** (s - t) for s in range(t, end + 1))
                assert learned.advantage[t, b] == pytest.approx(discounted, rel=1e-5)
    assert 0 < counted.mean() < 1


def test_policy_loss_and_entropy_bonus_are_averaged_over_the_same_steps(short, tiny_algorithm, init):
    """The gradient is that of sum over what counts (-log pi A - ent_coef H) / all steps, a fixed number."""
    reinforce = tiny_algorithm(pgjax.REINFORCE, short, num_steps=12, num_envs=16, total_steps=10**4, ent_coef=0.5)
    state = init(reinforce, jax.random.key(0))
    _, batch, _ = jax.jit(lambda state, key: collect(reinforce, state, key))(state, jax.random.key(1))
    samples, counted = reinforce._samples(state.params, batch)

    def total(params):
        policy = reinforce.network.unroll(params, (), batch.obs, batch.reset)[1].distribution
        per_step = -policy.log_prob(batch.action) * samples.advantage - 0.5 * policy.entropy()
        return jnp.sum(jnp.where(samples.weight > 0, per_step, 0.0)) / samples.weight.size

    mean, metrics = mean_gradient(reinforce.loss)(state.params, (), samples)
    expected = jax.grad(total)(state.params)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(counted * ours, theirs, atol=1e-6), mean, expected)
    policy = reinforce.network.unroll(state.params, (), batch.obs, batch.reset)[1].distribution
    assert metrics["entropy"] == pytest.approx(
        float(np.mean(np.asarray(policy.entropy())[np.asarray(samples.weight) > 0])), rel=1e-5
    )


def test_the_reward_scale_of_reinforce_knows_no_episode_that_was_left(tiny_algorithm, init, step):
    """Every iteration starts anew, so the discounted returns of three are three times those of one."""
    limit, T, gamma = 10, 14, 0.9
    fields = {"num_steps": T, "total_steps": 10**4, "normalize_reward": True, "gamma": gamma, "baseline": "none"}
    reinforce = tiny_algorithm(pgjax.REINFORCE, probes.ConstantReward(limit), **fields)
    state = init(reinforce, jax.random.key(0))
    for _ in range(3):
        state, _ = step(reinforce, state)
    discounted = np.array([sum(gamma**k for k in range(t % limit + 1)) for t in range(T)])
    moments = state.reward_scale.moments
    assert float(moments.mean) == pytest.approx(discounted.mean(), rel=1e-5)
    assert float(moments.var) == pytest.approx(discounted.var(), rel=1e-4)


def test_the_first_iteration_is_left_alone_by_normalisers(tiny_ppo, init):
    """Nothing has been seen: observations and rewards are learned from as they are; from the second on clipped."""
    ppo = tiny_ppo(pgjax.make("Pendulum-v1"), normalize_obs=True, normalize_reward=True, reward_clip=0.01)
    state = init(ppo, jax.random.key(0))
    state, first, _ = collect(ppo, state, jax.random.key(1))
    _, second, _ = collect(ppo, state, jax.random.key(2))
    assert float(jnp.min(first.reward)) < -0.01
    assert float(jnp.min(second.reward)) >= -0.01
    np.testing.assert_allclose(first.obs[..., 0] ** 2 + first.obs[..., 1] ** 2, 1.0, rtol=1e-5)
    assert not np.allclose(second.obs[..., 0] ** 2 + second.obs[..., 1] ** 2, 1.0, rtol=1e-5)


def test_a_time_limit_that_is_swept_moves_what_counts(short, tiny_algorithm):
    """The limit is a leaf of the environment: the same program serves another one, if rollouts are long enough."""
    reinforce = tiny_algorithm(pgjax.REINFORCE, short, num_steps=8)
    limits = jnp.array([3, 8])

    def counted(limit):
        env = dataclasses.replace(short, params=dataclasses.replace(short.params, max_steps_in_episode=limit))
        algorithm = dataclasses.replace(reinforce, env=env)
        return algorithm.step(algorithm.init(jax.random.key(0)))[1]["counted"]

    several, one = jax.jit(jax.vmap(counted))(limits)
    assert float(several) == 6 / 8  # two episodes of three steps, and two steps that cannot be a whole one
    assert float(one) == 1.0


def test_reward_clipping_bounds_what_is_learned_from(tiny_algorithm, init):
    env = pgjax.make("Pendulum-v1")
    rewards = {}
    for bound in (float("inf"), 0.5):
        algorithm = tiny_algorithm(pgjax.VPG, env, reward_clip=bound)
        _, batch, _ = collect(algorithm, init(algorithm, jax.random.key(0)), jax.random.key(1))
        rewards[bound] = np.asarray(batch.reward)
    np.testing.assert_array_equal(rewards[0.5], np.clip(rewards[float("inf")], -0.5, 0.5))
    assert rewards[float("inf")].min() < -0.5


def test_advantages_are_normalised_over_what_counts_only():
    advantage = jnp.array([1.0, 2.0, 3.0, 1000.0])
    counted = jnp.array([True, True, True, False])
    ours = losses.normalized_advantage(advantage, counted)[:3]
    np.testing.assert_allclose(ours, losses.normalized_advantage(advantage[:3]), rtol=1e-6)


SLOW = pytest.mark.slow
SOLVERS = {
    "reinforce": (pgjax.REINFORCE, {"num_steps": 1, "baseline": "value"}),
    "vpg": (pgjax.VPG, {}),
    "a2c": (pgjax.A2C, {}),
    "npg": (pgjax.NPG, {"max_kl": 0.01}),
    "trpo": (pgjax.TRPO, {"max_kl": 0.05}),
}


@pytest.mark.parametrize("continuous", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["choice", "number"])
@pytest.mark.parametrize("name", [pytest.param(x, marks=SLOW) if x in ("vpg", "npg") else x for x in SOLVERS])
def test_every_algorithm_answers_a_cue(tiny_algorithm, name, continuous):
    """The probe whose best return is 1: chance is 1/2 for a choice and below 0 for a number."""
    cls, fields = SOLVERS[name]
    env = probes.Recall(continuous=continuous)
    settings = {"num_envs": 64, "num_steps": 4, "lr_schedule": "constant", "network": pgjax.MLP(hidden=(16,))} | fields
    settings["total_steps"] = 100 * settings["num_envs"] * settings["num_steps"]
    algorithm = tiny_algorithm(cls, env, **settings)
    state, _ = jax.jit(pgjax.train)(algorithm, jax.random.key(0))
    assert float(pgjax.evaluate(algorithm, state, jax.random.key(1), num_episodes=64).mean) > 0.9


@pytest.mark.parametrize(
    "cls", [pgjax.VPG, pgjax.A2C, *(pytest.param(x, marks=pytest.mark.slow) for x in (pgjax.NPG, pgjax.TRPO))]
)
def test_a_time_limit_is_not_death(tiny_algorithm, cls):
    """Reward 1 for ever, gamma 0.9, episodes cut at 10 steps: V = 1 / (1 - gamma) = 10."""
    env = probes.ConstantReward(time_limit=10)
    algorithm = tiny_algorithm(
        cls, env, num_envs=16, num_steps=16, gamma=0.9, lr_schedule="constant", total_steps=400 * 256
    )
    state, _ = jax.jit(pgjax.train)(algorithm, jax.random.key(0))
    value = algorithm.actor(state).act((), jnp.ones((1, 1)), jnp.ones(1, bool))[1].value[0]
    assert float(value) == pytest.approx(10.0, abs=0.5)
