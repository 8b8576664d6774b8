"""Collecting experience: one scan over time of a batch of environments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.environments.base import Environment
from pgjax.networks import Memory, Output
from pgjax.types import Key, Metrics


class Actor(NamedTuple):
    """A policy that can be run: what rollout, evaluation and rendering need of an algorithm."""

    initial_memory: Callable[[int], Memory]
    """batch size -> memory at the start of an episode."""
    act: Callable[[Memory, Array, Array], tuple[Memory, Output]]
    """(memory, obs `[B, ...]`, reset `[B]`) -> (memory, output)."""


class RolloutState(NamedTuple):
    """Where B environments stand between rollouts."""

    env_state: Any
    obs: Float[Array, "B *obs"]
    reset: Bool[Array, "B"]
    """`obs` is the first of an episode."""
    memory: Memory
    episode_return: Float[Array, "B"]
    """Of the episode under way."""
    episode_length: Int[Array, "B"]


class Transition(NamedTuple):
    """One rollout, every array `[T, B, ...]`."""

    obs: Array
    action: Array
    log_prob: Array
    value: Array
    reward: Array
    terminated: Array
    truncated: Array
    next_value: Array
    """V of the true successor, before any reset; meaningless where `terminated`."""
    reset: Array
    """`obs` is the first of an episode."""


def initial_rollout(env: Environment, actor: Actor, key: Key, num_envs: int) -> RolloutState:
    env_state, obs = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    return RolloutState(
        env_state=env_state,
        obs=obs,
        reset=jnp.ones(num_envs, bool),
        memory=actor.initial_memory(num_envs),
        episode_return=jnp.zeros(num_envs),
        episode_length=jnp.zeros(num_envs, jnp.int32),
    )


def rollout(
    env: Environment, actor: Actor, state: RolloutState, key: Key, num_steps: int
) -> tuple[RolloutState, Transition, Metrics]:
    """Act for `num_steps` steps in every environment.

    Returns the state to go on from, the transitions, and statistics of the episodes that ended on the way.
    """
    num_envs = state.reset.shape[0]
    action_key, env_key = jax.random.split(key)
    keys = jax.random.split(action_key, num_steps), jax.random.split(env_key, (num_steps, num_envs))

    def step(state: RolloutState, keys: tuple[Key, Key]) -> tuple[RolloutState, Any]:
        action_key, env_keys = keys
        memory, output = actor.act(state.memory, state.obs, state.reset)
        action, log_prob = output.distribution.sample_and_log_prob(action_key)
        after = jax.vmap(env.step)(env_keys, state.env_state, action)
        done = after.terminated | after.truncated
        # Only a cut episode needs the value of an observation that the next step does not see.
        cut_value = jax.lax.cond(
            jnp.any(after.truncated),
            lambda: actor.act(memory, after.next_obs, jnp.zeros_like(done))[1].value,
            lambda: jnp.zeros_like(output.value),
        )
        episode_return = state.episode_return + after.reward
        episode_length = state.episode_length + 1
        transition = Transition(
            obs=state.obs,
            action=action,
            log_prob=log_prob,
            value=output.value,
            reward=after.reward,
            terminated=after.terminated,
            truncated=after.truncated,
            next_value=cut_value,
            reset=state.reset,
        )
        state = RolloutState(
            env_state=after.state,
            obs=after.obs,
            reset=done,
            memory=memory,
            episode_return=jnp.where(done, 0.0, episode_return),
            episode_length=jnp.where(done, 0, episode_length),
        )
        return state, (transition, (done, episode_return, episode_length))

    state, (batch, episodes) = jax.lax.scan(step, state, keys)
    last_value = actor.act(state.memory, state.obs, state.reset)[1].value
    following = jnp.concatenate([batch.value[1:], last_value[None]])
    batch = batch._replace(next_value=jnp.where(batch.truncated, batch.next_value, following))
    return state, batch, _episode_metrics(*episodes)


def _episode_metrics(
    done: Bool[Array, "T B"], episode_return: Float[Array, "T B"], episode_length: Int[Array, "T B"]
) -> Metrics:
    """Over the episodes that ended in this rollout; NaN, not zero, where none did."""
    count = jnp.sum(done)
    metrics: Metrics = {"episodes": count}
    for name, x in {"return": episode_return, "length": episode_length.astype(jnp.float32)}.items():
        metrics[f"{name}_mean"] = jnp.sum(jnp.where(done, x, 0.0)) / count
        metrics[f"{name}_min"] = jnp.where(count > 0, jnp.min(jnp.where(done, x, jnp.inf)), jnp.nan)
        metrics[f"{name}_max"] = jnp.where(count > 0, jnp.max(jnp.where(done, x, -jnp.inf)), jnp.nan)
    return metrics


def absent_without_episodes(name: str) -> bool:
    """Whether a metric is NaN by design where no episode ended."""
    return name.startswith(("return_", "length_"))
