"""Replay, and DDPG, TD3 and SAC against loops, finite differences and problems whose answers are known."""

import dataclasses
import signal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import EXACTLY

import pgjax
from pgjax.algorithms.off_policy import Explored, Learner
from pgjax.environments import probes
from pgjax.environments.base import Box
from pgjax.learning.replay import Batch, Experience, Replay, n_step, replay_bytes
from pgjax.networks.distributions import Categorical, TanhGaussian

GAMMA = 0.9


# Replay


class Numbered:
    """The spaces of transitions that are known by the number of their step, in the first of two observations."""

    observation_space, action_space = Box((1,)), Box((1,), -1.0, 1.0)


def history(seed, T, B):
    """T steps of B environments whose observation is (step, environment) as one number, with random ends."""
    rng = np.random.default_rng(seed)
    number = np.arange(T)[:, None] * 100.0 + np.arange(B)
    kind = rng.integers(6, size=(T, B))
    return Experience(
        obs=jnp.asarray(number[..., None], jnp.float32),
        action=jnp.asarray(number[..., None] / 10, jnp.float32),
        reward=jnp.asarray(rng.normal(size=(T, B)), jnp.float32),
        terminated=jnp.asarray(kind == 0),
        truncated=jnp.asarray(kind == 1),
        next_obs=jnp.asarray(number[..., None] + 0.5, jnp.float32),
    )


@pytest.mark.parametrize(("n", "T"), [(1, 7), (3, 5), (3, 40)], ids=["one step", "not full", "around the end"])
def test_every_target_is_of_steps_that_happened_in_order_and_of_one_episode(n, T):
    """Against the loops of the reference over the whole history; the oldest steps are forgotten, no other."""
    B, length = 2, 16
    whole, replay = history(n, T, B), Replay(B, length, n, 256)
    state, add = replay.init(Numbered()), jax.jit(replay.add)
    for t in range(T):
        state = add(state, jax.tree.map(lambda x, t=t: x[t : t + 1], whole))
        assert bool(replay.holds(state, min(t + 1, length) * B))
        assert not bool(replay.holds(state, min(t + 1, length) * B + 1)) or t + 1 >= length
    batch = jax.jit(replay.sample)(state, jax.random.key(0), GAMMA)
    seen = set()
    for i in range(256):
        number = int(batch.obs[i, 0])
        t, b = divmod(number, 100)
        seen.add((t, b))
        of_one = [np.asarray(x)[:, b] for x in whole]
        _, _, reward, terminated, truncated, next_obs = of_one
        last = min(reference.end(t, terminated, truncated), t + n - 1)
        assert last < T
        assert float(batch.action[i, 0]) == pytest.approx(number / 10)
        expected = sum(GAMMA ** (s - t) * reward[s] for s in range(t, last + 1))
        assert float(batch.reward[i]) == pytest.approx(expected, abs=1e-5)
        assert float(batch.next_obs[i, 0]) == next_obs[last, 0]
        assert float(batch.discount[i]) == pytest.approx(0.0 if terminated[last] else GAMMA ** (last - t + 1))
    kept = range(max(0, T - length), T - n + 1)
    assert seen == {(t, b) for t in kept for b in range(B)}


def test_n_step_targets_are_those_of_the_reference():
    whole = history(4, 4, 30)
    sequence = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), whole)
    batch = n_step(sequence, GAMMA)
    for b in range(30):
        reward, terminated, truncated = (np.asarray(x)[:, b] for x in whole[2:5])
        value = np.asarray(whole.next_obs)[:, b, 0]
        expected = reference.n_step(reward, value, terminated, truncated, GAMMA, 4)[0]
        assert float(batch.reward[b] + batch.discount[b] * batch.next_obs[b, 0]) == pytest.approx(expected, rel=1e-5)


def test_replay_stores_the_smallest_type_that_holds_an_observation():
    pong = pgjax.make("Asterix-MinAtar")
    space = pong.observation_space
    stored = jax.eval_shape(lambda: Replay(1, 4, 1, 1).init(pong)).experience.obs
    assert (stored.shape, str(stored.dtype)) == ((1, 4, *space.shape), space.dtype)
    assert space.dtype == "bool"
    assert replay_bytes(pong, 1000) < 1000 * (2 * np.prod(space.shape) + 16)
    assert pgjax.make("Pendulum-v1").observation_space.dtype == "float32"


# Exploring


def test_random_actions_are_uniform_and_the_policys_own_come_after():
    policy = TanhGaussian(jnp.full((4096, 1), 2.0), jnp.full((4096, 1), -3.0))
    for is_random in (True, False):
        explored = Explored(policy, jnp.bool_(is_random))
        action, _ = explored.sample_and_log_prob(explored.noise(jax.random.key(0)))
        given = np.asarray(explored.env_action(action))
        if is_random:
            assert np.histogram(given, 4, (-1, 1))[0].min() > 900
        else:
            assert given.min() > 0.9
    choices = Explored(Categorical(jnp.tile(jnp.array([9.0, 0.0, 0.0]), (4096, 1))), jnp.bool_(True))
    action, _ = choices.sample_and_log_prob(choices.noise(jax.random.key(0)))
    assert np.bincount(np.asarray(action)).min() > 1200


def test_random_actions_can_last_for_several_steps(tiny_algorithm):
    sac = tiny_algorithm(pgjax.DiscreteSAC, pgjax.make("CartPole-v1"), warmup=36, warmup_repeat=3, num_rounds=9)
    state = jax.jit(sac.step)(sac.init(jax.random.key(0)))[0]
    actions = np.asarray(state.replay.experience.action)[:, :9].reshape(-1, 3, 3)
    assert np.all(actions == actions[..., :1])
    assert len({tuple(each) for each in actions[..., 0]}) > 1, "environments differ"
    assert np.any(actions[:, 0, 0] != actions[:, 1, 0]), "so do the actions that follow each other"


@pytest.mark.slow
def test_ddpg_explores_with_an_ornstein_uhlenbeck_process(tiny_algorithm):
    """x <- (1 - theta) x + std N(0, 1), forgotten where an episode starts."""
    ddpg = tiny_algorithm(pgjax.DDPG, pgjax.make("Pendulum-v1"), noise_theta=0.25, noise_std=0.1)
    params = ddpg.initial_params(jax.random.key(0))
    actor = ddpg.explorer(params, None, jnp.bool_(False))
    obs, memory, noise = jnp.ones((4, 3)), actor.initial_memory(4), np.zeros((4, 1))
    greedy = np.asarray(ddpg.deterministic(params["policy"], obs))
    for i, reset in enumerate([True, False, False, True, False]):
        starts = jnp.array([reset, False, False, False]) if i else jnp.ones(4, bool)
        memory, output = actor.act(memory, obs, starts)
        drawn = output.distribution.noise(jax.random.key(i))
        action, _ = output.distribution.sample_and_log_prob(drawn)
        memory = actor.after(memory, action)
        noise = np.where(np.asarray(starts)[:, None], 0.0, 0.75 * noise) + 0.1 * np.asarray(drawn[0])
        np.testing.assert_allclose(action - greedy, noise, atol=1e-6)


# Targets, losses, gradients


def batch_of(obs_size, actions, size=6):
    keys = jax.random.split(jax.random.key(3), 5)
    obs, next_obs = (jax.random.normal(key, (size, obs_size)) for key in keys[:2])
    action = jnp.arange(size) % 2 if actions is None else jax.random.uniform(keys[2], (size, actions), minval=-1.0)
    reward = jax.random.normal(keys[3], (size,))
    return Batch(obs, action, reward, jnp.array([0.9, 0.0, 0.9, 0.81, 0.9, 0.0]), next_obs)


def parts(cls, env, tiny_algorithm, **fields):
    """An algorithm with a learner whose targets are not what they are copies of, and a batch."""
    algorithm = tiny_algorithm(cls, pgjax.make(env), **fields)
    params, targets = (algorithm.initial_params(jax.random.key(i)) for i in range(2))
    discrete = cls is pgjax.DiscreteSAC
    batch = batch_of(algorithm.env.observation_space.shape[0], None if discrete else 1)
    return algorithm, Learner(params, {name: targets[name] for name in algorithm.with_target}, {}), batch


def q(algorithm, critic, obs, action):
    return float(algorithm.critic.values(critic, obs[None], action[None])[0])


def test_targets_of_ddpg_and_td3_are_those_of_a_loop(tiny_algorithm):
    for cls in (pgjax.DDPG, pgjax.TD3):
        algorithm, learner, batch = parts(cls, "Pendulum-v1", tiny_algorithm)
        key = jax.random.key(5)
        found = algorithm.target(learner.targets, batch, key)
        noise = np.asarray(jax.random.normal(key, (6, 1)))
        for i in range(6):
            obs = batch.next_obs[i]
            action = algorithm.deterministic(learner.targets["policy"], obs[None])[0]
            if cls is pgjax.TD3:
                action = jnp.clip(action + np.clip(0.2 * noise[i], -0.5, 0.5), -1.0, 1.0)
            value = min(q(algorithm, critic, obs, action) for critic in learner.targets["critics"])
            assert float(found[i]) == pytest.approx(float(batch.reward[i] + batch.discount[i] * value), rel=1e-4)
        assert len(learner.params["critics"]) == (2 if cls is pgjax.TD3 else 1)


def test_the_target_of_sac_is_that_of_a_loop(tiny_algorithm):
    algorithm, learner, batch = parts(pgjax.SAC, "Pendulum-v1", tiny_algorithm)
    alpha, key = jnp.float32(0.3), jax.random.key(5)
    found = algorithm.target(learner, batch, alpha, key)
    policy = algorithm.policy(learner.params["policy"], batch.next_obs)
    noise = np.asarray(policy.noise(key), np.float64)
    mean, std = np.asarray(policy.mean, np.float64), np.exp(np.asarray(policy.log_std, np.float64))
    for i in range(6):
        u = mean[i] + std[i] * noise[i]
        density = np.exp(-0.5 * noise[i] ** 2) / np.sqrt(2 * np.pi) / std[i] / (1.0 - np.tanh(u) ** 2)
        action = jnp.tanh(jnp.asarray(u, jnp.float32))
        value = min(q(algorithm, critic, batch.next_obs[i], action) for critic in learner.targets["critics"])
        expected = batch.reward[i] + batch.discount[i] * (value - 0.3 * np.log(density[0]))
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


def test_the_target_of_discrete_sac_is_that_of_a_loop(tiny_algorithm):
    algorithm, learner, batch = parts(pgjax.DiscreteSAC, "CartPole-v1", tiny_algorithm)
    found = algorithm.target(learner, batch, jnp.float32(0.3), jax.random.key(5))
    probability = np.asarray(jax.nn.softmax(algorithm.policy(learner.params["policy"], batch.next_obs).logits))
    values = np.asarray(algorithm.action_values(learner.targets["critics"], batch.next_obs, None))
    for i in range(6):
        value = sum(p * (values[:, i, a].min() - 0.3 * np.log(p)) for a, p in enumerate(probability[i]))
        assert float(found[i]) == pytest.approx(float(batch.reward[i] + batch.discount[i] * value), rel=1e-4)


@pytest.mark.slow
def test_the_policy_of_ddpg_follows_the_deterministic_policy_gradient(tiny_algorithm):
    """grad_a Q(s, a) grad mu(s), with grad_a Q by finite differences of the critic (Silver et al., 2014, eq. 9)."""
    smooth = {"critic": pgjax.MLPCritic(hidden=(8,), activation="tanh")}
    algorithm, learner, batch = parts(pgjax.DDPG, "Pendulum-v1", tiny_algorithm, **smooth)
    policy, (critic,) = learner.params["policy"], learner.params["critics"]

    def loss(policy):
        action = algorithm.deterministic(policy, batch.obs)
        return -jnp.mean(algorithm.critic.values(critic, batch.obs, action))

    action, step = algorithm.deterministic(policy, batch.obs), 1e-2
    above, below = (algorithm.critic.values(critic, batch.obs, action + s) for s in (step, -step))
    slope = (above - below) / (2 * step)
    jacobian = jax.jacobian(lambda policy: algorithm.deterministic(policy, batch.obs)[:, 0])(policy)
    expected = jax.tree.map(lambda j: -jnp.tensordot(slope, j, 1) / slope.size, jacobian)
    for found, wanted in zip(jax.tree.leaves(jax.grad(loss)(policy)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-4)
    state = algorithm.init(jax.random.key(0))
    rates = {"policy": jnp.float32(1e-3), "critics": jnp.float32(1e-3)}
    after, policy_loss = algorithm.with_policy(learner._replace(opt_state=state.opt_state), batch, rates)
    assert float(policy_loss) == pytest.approx(float(loss(policy)), rel=1e-5)
    assert float(loss(after.params["policy"])) < float(loss(policy))


@pytest.mark.slow
def test_the_temperature_follows_its_loss(tiny_algorithm):
    """E[-alpha log pi - alpha H] in log alpha (Haarnoja et al., 2018b, eq. 18): down where the entropy is above H."""
    for target_entropy, sign in ((-50.0, -1.0), (50.0, 1.0)):
        algorithm = tiny_algorithm(
            pgjax.SAC, pgjax.make("Pendulum-v1"), target_entropy=target_entropy, temperature_learning_rate=0.02
        )
        state = algorithm.init(jax.random.key(0))
        learner = Learner(state.params, state.targets, state.opt_state)
        rates = {name: jnp.asarray(rate, jnp.float32) for name, rate in algorithm.rates.items()}
        learner, metrics = algorithm.update(learner, batch_of(3, 1), jax.random.key(0), jnp.int32(0), rates)
        assert float(metrics["temperature"].total) == 1.0
        # The first step of Adam is the learning rate, up to its epsilon.
        assert float(learner.params["log_scale"]) == pytest.approx(sign * 0.02, rel=1e-4)


def test_td3_moves_policy_and_targets_in_every_second_step(tiny_algorithm):
    algorithm = tiny_algorithm(pgjax.TD3, pgjax.make("Pendulum-v1"))
    state = algorithm.init(jax.random.key(0))
    learner = Learner(state.params, state.targets, state.opt_state)
    rates = {name: jnp.asarray(rate, jnp.float32) for name, rate in algorithm.rates.items()}
    for nth, moves in enumerate([False, True, False, True]):
        after, metrics = algorithm.update(learner, batch_of(3, 1), jax.random.key(nth), jnp.int32(nth), rates)
        after = after._replace(targets=algorithm.moved(after, jnp.int32(nth)))
        for before, now in ((learner.params["policy"], after.params["policy"]), (learner.targets, after.targets)):
            same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(now), strict=True))
            assert same != moves
        assert float(metrics["policy_loss"].count) == moves
        learner = after


def test_hard_targets_are_copies_from_time_to_time(tiny_algorithm):
    algorithm, learner, _ = parts(pgjax.DDPG, "Pendulum-v1", tiny_algorithm, tau=1.0, target_every=3)
    for nth in range(6):
        moved = algorithm.moved(learner, jnp.int32(nth))
        online = {name: learner.params[name] for name in algorithm.with_target}
        expected = online if nth % 3 == 2 else learner.targets
        for found, wanted in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.slow
def test_nothing_is_updated_and_no_loss_reported_before_the_warm_up_is_over(tiny_algorithm, init, step):
    """48 transitions are due, an iteration brings 32 in 8 rounds."""
    algorithm = tiny_algorithm(pgjax.SAC, pgjax.make("Pendulum-v1"), warmup=48)
    start = init(algorithm, jax.random.key(0))
    state, metrics = step(algorithm, start)
    assert float(metrics["updates"]) == 0
    assert np.isnan(metrics["critic_loss"])
    for before, now in zip(jax.tree.leaves(start.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(before, now)
    _, metrics = step(algorithm, state)
    assert float(metrics["updates"]) == 5  # rounds 4 to 8: the fourth one completes the 48
    assert np.isfinite(metrics["critic_loss"])


# Problems with known answers


def learner_on(cls, env, total_steps, **fields):
    continuous = cls is not pgjax.DiscreteSAC
    network = pgjax.MLP(hidden=(16,), shared_torso=True, squash=continuous, state_dependent_std=continuous)
    settings = {
        "network": network,
        "critic": pgjax.MLPCritic(hidden=(16,), activation="tanh"),
        "num_envs": 4,
        "num_rounds": 100,
        "batch_size": 32,
        "buffer_size": 4000,
        "warmup": 200,
        "learning_rate": 3e-3,
        "critic_learning_rate": 1e-2,
        "tau": 0.05,
        "gamma": GAMMA,
    }
    if issubclass(cls, pgjax.SAC):
        settings |= {"temperature": 1e-3, "adapt_temperature": False}
    return cls(env, total_steps=total_steps, **(settings | fields))


@pytest.mark.slow
@pytest.mark.parametrize("cls", [pgjax.DDPG, pgjax.TD3, pgjax.SAC, pgjax.DiscreteSAC])
def test_a_time_limit_is_not_death(cls):
    """Reward 1 for ever: Q = 1 / (1 - gamma) = 10 for whatever is done, also from two steps."""
    env = probes.ConstantReward(time_limit=10, continuous=cls is not pgjax.DiscreteSAC)
    for n in (1, 2):
        algorithm = learner_on(cls, env, 8000, n=n)
        state, _ = jax.jit(pgjax.train)(algorithm, jax.random.key(0))
        action = None if cls is pgjax.DiscreteSAC else jnp.zeros((1, 1))
        values = algorithm.action_values(state.params["critics"], jnp.ones((1, 1)), action)
        np.testing.assert_allclose(values, 10.0, atol=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [pgjax.DDPG, pgjax.TD3, pgjax.SAC])
def test_a_continuous_policy_finds_the_action_that_pays(cls):
    algorithm = learner_on(cls, probes.Recall(continuous=True), 20_000)
    state, _ = jax.jit(pgjax.train)(algorithm, jax.random.key(0))
    assert float(pgjax.evaluate(algorithm, state, jax.random.key(1), num_episodes=64).mean) > 0.95


@pytest.mark.slow
def test_discrete_sac_finds_the_soft_optimal_policy_of_a_bandit():
    """pi(a) = exp(r(a) / alpha) / sum_b exp(r(b) / alpha), to 2 %."""
    reward, alpha = np.array([[1.0, 0.5, 0.0, 0.8]], np.float32), 0.5
    bandit = probes.TabularMDP(np.array([[[0.0, 1.0]] * 4], np.float32), reward)
    rates = {"lr_schedule": "linear", "learning_rate": 3e-2, "critic_learning_rate": 3e-2}
    algorithm = learner_on(pgjax.DiscreteSAC, bandit, 4000, temperature=alpha, **rates)
    state, _ = jax.jit(pgjax.train)(algorithm, jax.random.key(0))
    found = jax.nn.softmax(algorithm.policy(state.params["policy"], jnp.ones((1, 1))).logits[0])
    np.testing.assert_allclose(found, jax.nn.softmax(reward[0] / alpha), rtol=0.02)


@pytest.mark.slow
def test_a_cnn_learns_from_replay():
    """Its observations stay as small in the buffer as they are."""
    network = pgjax.CNN(channels=(4,), hidden=(16,), shared_torso=True)
    env = pgjax.make("Freeway-MinAtar")
    sac = pgjax.DiscreteSAC(
        env,
        network,
        critic=pgjax.CNNCritic(channels=(4,), hidden=(16,)),
        total_steps=1000,
        num_envs=8,
        num_rounds=25,
        batch_size=16,
        buffer_size=800,
        warmup=200,
    )
    state, metrics = jax.jit(pgjax.train)(sac, jax.random.key(0))
    assert state.replay.experience.obs.dtype == bool
    assert np.isfinite(metrics["critic_loss"][1:]).all()
    assert float(metrics["updates"].sum()) == 25 * 4 + 1


# Runs


@pytest.mark.slow
def test_a_run_may_leave_its_buffer_out_of_checkpoints(tiny_algorithm, tmp_path, monkeypatch):
    """What is kept is the same, the rest starts anew, and a warning says so."""
    from test_resume import stop_at

    algorithm = tiny_algorithm(pgjax.SAC, pgjax.make("Pendulum-v1"), keep_replay=False)
    monkeypatch.setattr("pgjax.running.shell.CHUNK_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, signal.SIGTERM)
        with pytest.raises(pgjax.Interrupted):
            pgjax.run(algorithm, directory=tmp_path / "run", checkpoint_every=1, progress=False)
    state = pgjax.load(tmp_path / "run").state
    assert int(state.iteration) == 3
    assert int(state.replay.current_index) == 0
    with pytest.warns(UserWarning, match="holds no replay, which starts as in a new run"):
        result = pgjax.resume(tmp_path / "run", progress=False)
    assert int(result.state.iteration) == 6
    updates = result.metrics["updates"]
    assert updates[3] == 5  # sixteen transitions come first, four in a round
    assert updates[4] == 8
    whole = sum(f.stat().st_size for f in (tmp_path / "run" / "checkpoints").rglob("*") if f.is_file())
    kept = dataclasses.replace(algorithm, keep_replay=True)
    pgjax.run(kept, directory=tmp_path / "kept", checkpoint_every=1, progress=False)
    assert whole < sum(f.stat().st_size for f in (tmp_path / "kept" / "checkpoints").rglob("*") if f.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 8, 32])
def test_members_of_a_sweep_are_their_solo_runs(tiny_algorithm, members, train, monkeypatch):
    """Fused as a user's programs are: the fusions that the tests compile with make NaN of this one."""

    def compiled(*lowered):
        return [x.compile(compiler_options=EXACTLY) for x in lowered]

    monkeypatch.setattr("pgjax.running.compile._compiled", compiled)
    sac = tiny_algorithm(pgjax.SAC, pgjax.make("Pendulum-v1"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = pgjax.sweep(sac, seeds=members, progress=False)
    for i in {0, members - 1}:
        solo, _ = train(sac, jax.random.key(i))
        for a, b in zip(jax.tree.leaves(result.member(i).state.params), jax.tree.leaves(solo.params), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


# Bad input

REFUSED = {
    "total_steps": (
        {"total_steps": 100},
        r"SAC.total_steps = 100 is less than one iteration: expected at least num_envs",
    ),
    "batch": (
        {"batch_size": 4096, "buffer_size": 1024},
        r"batch_size = 4096 is larger than the buffer: expected at most",
    ),
    "warmup_repeat": (
        {"warmup_repeat": 4, "num_steps": 2},
        r"SAC.warmup_repeat = 4 is not accepted with num_steps = 2: expected num_steps = 1",
    ),
    "warmup": ({"warmup": 2000, "total_steps": 1000}, r"SAC.warmup = 2000 is not accepted: expected at most 999"),
    "warmup of the buffer": (
        {"warmup": 2000, "buffer_size": 1000},
        r"warmup = 2000 is not accepted: expected at most 1000",
    ),
    "buffer": ({"buffer_size": 2 * 10**9}, r"buffer_size = 2000000000 takes .* GB of .* GB: expected at most \d+"),
    "buffer of many": ({"num_envs": 3}, r"buffer_size = 100000 is not accepted: expected a multiple of num_envs = 3"),
    "memory": (
        {"network": pgjax.GRU()},
        r"network = GRU.* is not accepted: expected one without memory, because replay",
    ),
    "steps": ({"n": 0}, r"SAC.n = 0 is not accepted: expected a whole number \(int\) in \[1, 2\^31\)"),
    "delay": (
        {"policy_delay": 4, "cls": pgjax.TD3},
        r"policy_delay = 4 does not divide num_rounds \* num_updates = 250",
    ),
    "choices": (
        {"env": "CartPole-v1", "cls": pgjax.DDPG},
        r"DDPG.env = CartPole-v1 has discrete actions: expected cont",
    ),
    "choices of td3": ({"env": "CartPole-v1", "cls": pgjax.TD3}, r"TD3.env = CartPole-v1 has discrete actions"),
    "choices of sac": (
        {"env": "CartPole-v1"},
        r"SAC.env = CartPole-v1 has discrete actions: expected continuous ones; disc",
    ),
    "numbers": ({"cls": pgjax.DiscreteSAC}, r"DiscreteSAC.env = Pendulum-v1 has continuous actions: expected discrete"),
    "critic": ({"critic": pgjax.MLP()}, r"SAC.critic = MLP.* is not accepted: expected a critic such as"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused(name):
    fields, message = REFUSED[name]
    fields = dict(fields)
    cls, env = fields.pop("cls", pgjax.SAC), pgjax.make(fields.pop("env", "Pendulum-v1"))
    with pytest.raises(pgjax.InputError, match=message):
        cls(env, **fields)


def test_a_critic_for_grids_needs_grids():
    sac = pgjax.SAC(pgjax.make("Pendulum-v1"), critic=pgjax.CNNCritic())
    with pytest.raises(pgjax.InputError, match=r"CNNCritic needs observations of shape \(H, W, C\), not \(3,\)"):
        jax.eval_shape(sac.init, jax.random.key(0))
