"""Environments around environments, against loops over what is inside."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import wrappers
from pgjax.environments.base import Box
from pgjax.learning.rollout import initial_rollout, transitions
from pgjax.running.config import from_config, to_config
from pgjax.sweeping.space import check_axes, with_setting

KEYS = jax.random.split(jax.random.key(1), 8)


def walk(env, actions, keys=KEYS):
    """The start and every time step of these actions."""

    @jax.jit
    def walked():
        state, obs = env.reset(jax.random.key(0))

        def step(state, x):
            taken = env.step(x[0], state, x[1])
            return taken.state, taken._replace(state=())

        return obs, jax.lax.scan(step, state, (keys[: len(actions)], actions))[1]

    return walked()


def test_frames_are_stacked_oldest_first_and_begin_with_the_first(cartpole):
    actions = jnp.array([0, 1, 1, 0, 1])
    env = wrappers.FrameStack(cartpole, n=3)
    first, steps = walk(cartpole, actions)
    stacked, seen = walk(env, actions)
    frames = [first, first, first, *steps.obs]
    assert env.observation_space == Box((12,))
    np.testing.assert_array_equal(stacked, np.concatenate(frames[:3]))
    for i in range(5):
        np.testing.assert_array_equal(seen.obs[i], np.concatenate(frames[i + 1 : i + 4]))
    breakout = wrappers.FrameStack(pgjax.make("Breakout-MinAtar"), n=2)
    assert breakout.observation_space == Box((10, 10, 8), dtype="bool")
    assert walk(breakout, jnp.array([0]))[0].shape == (10, 10, 8)


def test_a_repeated_action_adds_rewards_and_stops_where_the_episode_ends():
    cartpole = pgjax.make("CartPole-v1", max_steps_in_episode=10)
    env = wrappers.ActionRepeat(cartpole, n=4)
    assert env.time_limit == 3
    _, steps = walk(env, jnp.array([0, 1, 0]))
    assert steps.reward.tolist() == [4.0, 4.0, 2.0]
    assert steps.truncated.tolist() == [False, False, True]
    state, _ = cartpole.reset(jax.random.key(0))
    for i in range(10):
        taken = cartpole.step(jax.random.key(0), state, jnp.int32([0, 1, 0][i // 4]))
        state = taken.state
        if i % 4 == 3 or i == 9:
            np.testing.assert_allclose(steps.obs[i // 4], taken.obs, rtol=1e-5)
    falls = walk(wrappers.ActionRepeat(pgjax.make("CartPole-v1"), n=20), jnp.array([0]))[1]
    assert bool(falls.terminated[0])
    assert 5 < float(falls.reward[0]) < 20


def test_sticky_actions_are_the_ones_before_with_their_probability():
    n = 4000
    keys, actions = jax.random.split(jax.random.key(2), n), jnp.arange(n) % 2
    env = wrappers.StickyActions(pgjax.make("CartPole-v1", max_steps_in_episode=2 * n), probability=0.3)
    inside = dataclasses.replace(env, probability=0.0)
    state, _ = env.reset(jax.random.key(0))

    def step(own, x):
        taken = env.step(x[0], state._replace(own=own), x[1]).state.own
        return taken, taken

    _, taken = jax.jit(lambda: jax.lax.scan(step, state.own, (keys, actions)))()
    # an action that alternates is another one where the one before was taken, unless that was sticky itself
    taken, chosen = np.asarray(taken), np.asarray(actions)
    before = np.concatenate([[0], taken[:-1]])
    told = before != chosen
    assert (taken[told] == before[told]).mean() == pytest.approx(0.3, abs=0.03)
    chex.assert_trees_all_equal(walk(inside, actions[:8])[1].obs.shape, (8, 4))


def test_flat_observations_and_other_rewards():
    flat = wrappers.FlatObservation(pgjax.make("Catch-bsuite"))
    assert flat.observation_space.shape == (50,)
    assert walk(flat, jnp.array([0, 1]))[1].obs.shape == (2, 50)
    cartpole = pgjax.make("CartPole-v1")

    def paid(reward, obs, action, next_obs, terminated):
        return reward + 0.9 * jnp.where(terminated, 0.0, next_obs[0]) - obs[0] + action

    first, plain = walk(cartpole, jnp.array([0, 1]))
    _, shaped = walk(wrappers.ShapedReward(cartpole, paid), jnp.array([0, 1]))
    position = [float(first[0]), *plain.obs[:, 0].tolist()]
    expected = [1.0 + 0.9 * position[i + 1] - position[i] + i for i in range(2)]
    np.testing.assert_allclose(shaped.reward, expected, rtol=1e-6)


def test_in_a_rollout_memory_of_an_episode_ends_with_it(tiny_ppo, init):
    env = wrappers.FrameStack(pgjax.make("CartPole-v1", max_steps_in_episode=3), n=2)
    algorithm = tiny_ppo(env)
    actor = algorithm.actor(init(algorithm, jax.random.key(0)))
    start = initial_rollout(env, actor, jax.random.key(1), 4)
    _, batch, _ = jax.jit(lambda: transitions(env, actor, start, jax.random.key(2), 8))()
    old, new = batch.obs[..., :4], batch.obs[..., 4:]
    np.testing.assert_array_equal(np.all(old == new, axis=-1), batch.reset)
    np.testing.assert_array_equal(batch.reset[:, 0], [True, False, False] * 2 + [True, False])
    np.testing.assert_array_equal(old[1:3], new[0:2])


def test_a_config_makes_wrappers_again_and_what_is_inside_can_be_swept(tiny_ppo):
    env = wrappers.FrameStack(wrappers.StickyActions(pgjax.make("CartPole-v1", length=0.7), probability=0.1), n=2)
    algorithm = tiny_ppo(env)
    again = from_config(json.loads(json.dumps(to_config(algorithm))))
    assert jax.tree.structure(again) == jax.tree.structure(algorithm)
    assert float(again.env.env.env.params.length) == np.float32(0.7)
    check_axes(algorithm, {"probability": [0.5], "length": [0.6]})
    changed = with_setting(algorithm, {"probability": 0.5, "length": 0.6, "n": 3}).env
    assert (changed.n, float(changed.env.probability), changed.env.env.params.length) == (3, 0.5, np.float32(0.6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda env: wrappers.FrameStack(env, n=0), r"FrameStack.n = 0 is not accepted: expected a whole number"),
        (lambda env: wrappers.FrameStack("CartPole-v1"), r"FrameStack.env = 'CartPole-v1' is not accepted"),
        (lambda env: wrappers.StickyActions(env, probability=1.0), r"probability = 1.0 is not accepted"),
    ],
)
def test_what_no_wrapper_can_do_is_refused(cartpole, make, message):
    with pytest.raises(pgjax.InputError, match=message):
        make(cartpole)
