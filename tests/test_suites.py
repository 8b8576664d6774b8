"""Other suites behind the interface: their steps are the suite's own, and their episodes end for the right reason."""

import dataclasses
import functools
import json
import re

import chex
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.commands import cli
from pgjax.environments import host
from pgjax.environments.base import Box, Discrete, restart
from pgjax.environments.catalog import SUITE_MODULES
from pgjax.learning.rollout import initial_rollout, transitions
from pgjax.running.config import from_config, to_config
from pgjax.sweeping.space import check_axes, with_setting

IDS = {
    "navix:Navix-Empty-5x5-v0": {"max_steps": 7},
    "jumanji:Snake-v1": {},
    "jumanji:Game2048-v1": {"with_mask": True},
    "craftax:Craftax-Classic-Symbolic-v1": {"max_timesteps": 7},
    "brax:inverted_pendulum": {"backend": "spring", "episode_length": 7},
    "playground:CartpoleBalance": {"episode_length": 7},
}
STEPS = 7


@functools.cache
def made(env_id):
    return pgjax.make(env_id, **IDS[env_id])


@functools.cache
def walked(env_id):
    """One episode of random actions, cut by nobody: every time step, and the actions."""
    env = made(env_id)
    keys = jax.random.split(jax.random.key(1), STEPS)
    if isinstance(env.action_space, Discrete):
        actions = jax.vmap(lambda key: jax.random.randint(key, (), 0, env.action_space.n))(keys)
    else:
        actions = jax.vmap(lambda key: jax.random.uniform(key, env.action_space.shape, minval=-2.0, maxval=2.0))(keys)

    @jax.jit
    def walk(actions):
        state, obs = env.reset(jax.random.key(0))

        def step(state, x):
            taken = env.step(x[0], state, x[1])
            return taken.state, taken._replace(state=())

        return obs, jax.lax.scan(step, state, (keys, actions))[1]

    return (*walk(actions), actions)


def slow_walk(env_id, actions):
    """The suite's own (obs, reward, done) after each action, from the state that `reset` gives."""
    env = made(env_id)
    suite, raw, key = env_id.partition(":")[0], env.env, jax.random.key(0)
    keys = jax.random.split(jax.random.key(1), STEPS)
    if suite in ("playground", "brax"):
        step, state = jax.jit(raw.step), jax.jit(raw.reset)(key)
        for action in actions:
            state = step(state, jnp.clip(action, -1.0, 1.0))
            yield state.obs, state.reward, state.done
    if suite == "navix":
        timestep = raw.reset(key)
        for action in actions:
            timestep = raw.step(timestep, action)
            yield timestep.observation, timestep.reward, timestep.step_type > 0
    if suite == "jumanji":
        raw, with_mask = raw
        state, _ = raw.reset(key)
        for action in actions:
            state, timestep = raw.step(state, action)
            seen = timestep.observation
            mask = [seen.action_mask.astype(float)] if with_mask else []
            obs = jnp.concatenate([x.ravel() for x in [seen.board, *mask]]) if with_mask else seen.grid
            yield obs, timestep.reward, timestep.last()
    if suite == "craftax":
        raw, params, _ = raw
        state = raw.reset(key, params)[1]
        for key, action in zip(keys, actions, strict=True):
            obs, state, reward, done, _ = raw.step(key, state, action, params)
            yield obs, reward, done


@pytest.mark.filterwarnings("ignore:Brax System", "ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("env_id", IDS)
def test_steps_are_the_suites_own(env_id):
    first, steps, actions = walked(env_id)
    env = made(env_id)
    assert first.shape == env.observation_space.shape == steps.obs.shape[1:]
    for i, (obs, reward, done) in enumerate(slow_walk(env_id, actions)):
        np.testing.assert_allclose(steps.obs[i], obs, atol=1e-5)
        np.testing.assert_allclose(steps.reward[i], reward, atol=1e-5)
        at_limit = i + 1 == env.time_limit
        assert bool(steps.terminated[i]) == (bool(done) and not at_limit)
        assert bool(steps.truncated[i]) == at_limit
        if done:
            break
    else:
        assert not env_id.startswith(("navix", "craftax")), "which know their time limit themselves"


@pytest.mark.slow
def test_the_clock_of_snake_cuts_and_a_wall_ends():
    limit = 4000
    env = pgjax.make("jumanji:Snake-v1")
    assert env.time_limit == limit
    state, _ = env.reset(jax.random.key(3))
    late = state._replace(state=dataclasses.replace(state.state, step_count=jnp.int32(limit - 1)))
    late = late._replace(time=jnp.int32(limit - 1))
    ends = {}
    for name, start in {"early": state, "late": late}.items():
        for action in range(4):
            taken = jax.jit(env.step)(jax.random.key(0), start, jnp.int32(action))
            ends[name, action] = bool(taken.terminated), bool(taken.truncated)
    assert all(ends["late", action] == (False, True) for action in range(4))
    assert not any(truncated for _, truncated in (ends["early", action] for action in range(4)))
    for _ in range(20):  # no longer than the grid is wide
        taken = jax.jit(env.step)(jax.random.key(0), state, jnp.int32(1))
        state = taken.state
        if bool(taken.terminated):
            break
    assert bool(taken.terminated)
    assert not bool(taken.truncated)


@pytest.mark.slow
def test_lava_of_craftax_ends_and_its_clock_cuts():
    env = pgjax.make("craftax:Craftax-Classic-Symbolic-v1", max_timesteps=50)
    state, _ = env.reset(jax.random.key(0))
    dying = state._replace(state=state.state.replace(player_health=jnp.int32(0), timestep=jnp.int32(49)))
    late = state._replace(state=state.state.replace(timestep=jnp.int32(49)), time=jnp.int32(49))
    step = jax.jit(env.step)
    assert [bool(x) for x in step(jax.random.key(0), dying, jnp.int32(0))[3:]] == [True, False]
    assert [bool(x) for x in step(jax.random.key(0), late, jnp.int32(0))[3:]] == [False, True]


def test_new_episodes_are_the_same_whether_they_are_drawn_in_bulk(cartpole, tiny_ppo, init, monkeypatch):
    algorithm = tiny_ppo(pgjax.make("CartPole-v1", max_steps_in_episode=3))
    actor = algorithm.actor(init(algorithm, jax.random.key(0)))
    start = initial_rollout(algorithm.env, actor, jax.random.key(1), 4)
    collect = functools.partial(transitions, algorithm.env, actor, start, jax.random.key(2), 8)
    drawn = jax.jit(lambda: collect())()
    monkeypatch.setattr(type(algorithm.env), "restart", restart, raising=False)
    chex.assert_trees_all_equal(jax.jit(lambda: collect())(), drawn)


@pytest.mark.parametrize("env_id", ["navix:Navix-Empty-5x5-v0"])
def test_a_config_makes_it_again_and_its_options_can_be_swept(env_id, tiny_ppo):
    algorithm = tiny_ppo(made(env_id))
    assert from_config(json.loads(json.dumps(to_config(algorithm)))) == algorithm
    checked = check_axes(algorithm, {"max_steps": [5, 7]})
    assert [with_setting(algorithm, {"max_steps": x}).env.time_limit for x in checked["max_steps"]] == [5, 7]
    assert repr(algorithm.env) == "make('navix:Navix-Empty-5x5-v0', max_steps=7)"
    assert pgjax.make(env_id, **IDS[env_id]) == algorithm.env


def test_replay_keeps_symbols_as_bytes():
    assert made("navix:Navix-Empty-5x5-v0").observation_space == Box((5, 5, 3), dtype="uint8")


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("navx:Navix-Empty-5x5-v0", {}, "env = 'navx:Navix-Empty-5x5-v0' is of no known suite: did you mean navix"),
        ("navix:Navix-Empty-5x6-v0", {}, "is not a known environment: did you mean Navix-Empty-6x6-v0 or"),
        ("navix:Navix-Empty-5x5-v0", {"size": 3}, "with options {'size': 3} could not be made: "),
        ("jumanji:Sudoku-v0", {}, "jumanji: Sudoku acts in .*: expected one choice"),
    ],
)
def test_what_is_not_there_is_refused(env_id, options, message):
    with pytest.raises(pgjax.InputError, match=message):
        pgjax.make(env_id, **options)


def test_a_suite_that_is_not_installed_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(SUITE_MODULES, "navix", "navix_of_nobody")
    with pytest.raises(pgjax.InputError, match=r"needs navix_of_nobody: pip install 'pgjax\[navix\]'"):
        pgjax.make("navix:Navix-Empty-5x5-v0")
    assert cli.main(["envs"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^navix +pip install 'pgjax\[navix\]'$", out, re.M)
    assert re.search(r"^jumanji +pgjax envs jumanji$", out, re.M)
    assert cli.main(["envs", "jumanji"]) == 0
    assert "jumanji:Snake-v1" in capsys.readouterr().out


# Environments that are not JAX


def test_steps_of_the_host_are_gymnasiums_and_time_limits_cut():
    env = pgjax.make("gymnasium:CartPole-v1", max_episode_steps=12)
    keys = jax.random.split(jax.random.key(0), 3)
    state, first = jax.jit(jax.vmap(env.reset))(keys)
    own = [gymnasium.make("CartPole-v1", max_episode_steps=12) for _ in keys]
    obs = [
        each.reset(seed=int.from_bytes(np.asarray(s).tobytes(), "little"))[0]
        for each, s in zip(own, state.seed, strict=True)
    ]
    np.testing.assert_allclose(first, obs)
    step, ends = jax.jit(jax.vmap(env.step)), np.zeros(3, bool)
    for t in range(12):
        action = jnp.array([0, 1, t % 2])  # the first two fall over, the last is cut
        taken = step(keys, state, action)
        again = step(keys, state, action)
        for i, each in enumerate(own):
            if not ends[i]:
                obs, reward, terminated, truncated, _ = each.step(int(action[i]))
                np.testing.assert_allclose(taken.obs[i], obs, rtol=1e-6)
                assert (float(taken.reward[i]), bool(taken.terminated[i])) == (reward, terminated)
                assert bool(taken.truncated[i]) == truncated
                ends[i] = terminated or truncated
                if not ends[i]:
                    np.testing.assert_array_equal(again.obs[i], taken.obs[i])
        state = taken.state
    assert ends.all()
    assert bool(taken.truncated[2])


@pytest.mark.slow
def test_a_run_on_the_host_is_the_same_again_and_goes_on(tiny_ppo, tmp_path):
    algorithm = tiny_ppo(pgjax.make("gymnasium:Pendulum-v1", max_episode_steps=5))
    one, two = (pgjax.run(algorithm, progress=False) for _ in range(2))
    chex.assert_trees_all_equal(one.state.params, two.state.params)
    assert one.metrics["length_mean"].tolist() == [5.0] * 6
    pgjax.run(dataclasses.replace(algorithm, total_steps=96), directory=tmp_path, episodes=2, progress=False)
    algorithm.env.env.under_way.clear()  # another process
    longer = pgjax.resume(tmp_path, total_steps=192, progress=False)
    assert int(longer.state.iteration) == 6
    assert np.isfinite(longer.metrics["return_mean"]).all()


def test_the_host_flattens_spaces_and_maps_actions_onto_bounds():
    env = pgjax.make("gymnasium:Pendulum-v1").env
    assert env._received(np.array([-1.0])) == -2.0
    assert env._received(np.array([0.5])) == 1.0
    assert pgjax.make("gymnasium:FrozenLake-v1").observation_space == Box((16,))
    with pytest.raises(
        pgjax.InputError, match=r"gymnasium:CartPol-v1' is not a known environment: did you mean CartPole"
    ):
        pgjax.make("gymnasium:CartPol-v1")


def test_episodes_that_nobody_ends_are_forgotten(monkeypatch):
    monkeypatch.setattr(host, "MOST_EPISODES", 4)
    env = pgjax.make("gymnasium:CartPole-v1", max_episode_steps=3)
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 6))
    assert len(env.env.under_way) == 4
    taken = jax.vmap(env.step)(jax.random.split(jax.random.key(0), 6), state, jnp.zeros(6, int))
    assert taken.truncated.tolist() == [True, True, False, False, False, False]
