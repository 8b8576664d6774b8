"""Collecting experience: one scan over time of a batch of environments."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.core.algorithm import Key, Metrics
from pgjax.core.devices import each_on_its_own, everywhere
from pgjax.environments.base import Environment
from pgjax.networks.network import Memory, Output

BULK_BYTES = 128
"""Environments that start an episode with at most this much draw all the starts of a rollout at once; for larger ones
that would take more memory than it saves time."""


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
    action_key, env_key, start_key = jax.random.split(key, 3)
    policy = jax.eval_shape(actor.act, state.memory, state.obs, state.reset)[1].distribution
    noise = policy.noise(action_key, (num_steps,))
    env_keys = jax.random.split(env_key, (num_steps, num_envs))
    start_keys = jax.random.split(start_key, (num_steps, num_envs))
    start = jax.vmap(env.reset)
    in_bulk = _bytes(jax.eval_shape(env.reset, key)) <= BULK_BYTES
    starts = jax.vmap(start)(start_keys) if in_bulk else start_keys

    def step(state: RolloutState, drawn: tuple[Array, Key, Any]) -> tuple[RolloutState, Any]:
        noise, env_keys, starts = drawn
        memory, output = actor.act(state.memory, state.obs, state.reset)
        action, log_prob = output.distribution.sample_and_log_prob(noise)
        after = jax.vmap(env.step)(env_keys, state.env_state, action)
        done = after.terminated | after.truncated
        # Only a cut episode needs the value of an observation that the next step does not see.
        cut_value = jax.lax.cond(
            jnp.any(after.truncated),
            lambda: actor.act(memory, after.obs, jnp.zeros_like(done))[1].value,
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
            reset=done,  # of the step after, until all are known
        )
        env_state, obs = jax.tree.map(
            lambda new, old: jnp.where(done.reshape(-1, *(1,) * (old.ndim - 1)), new, old),
            starts if in_bulk else start(starts),
            (after.state, after.obs),
        )
        state = RolloutState(
            env_state=env_state,
            obs=obs,
            reset=done,
            memory=memory,
            episode_return=jnp.where(done, 0.0, episode_return),
            episode_length=jnp.where(done, 0, episode_length),
        )
        return state, (transition, (episode_return, episode_length))

    collect = each_on_its_own(lambda *x: jax.lax.scan(step, *x), in_axes=(0, 1), out_axes=(0, 1))
    after, (batch, episodes) = collect(state, (noise, env_keys, starts))
    batch, episodes = everywhere((batch, episodes))
    last_value = actor.act(after.memory, after.obs, after.reset)[1].value
    following = jnp.concatenate([batch.value[1:], last_value[None]])
    metrics = _episode_metrics(batch.reset, *episodes)
    batch = batch._replace(
        next_value=jnp.where(batch.truncated, batch.next_value, following),
        reset=jnp.concatenate([state.reset[None], batch.reset[:-1]]),
    )
    return after, batch, metrics


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


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
