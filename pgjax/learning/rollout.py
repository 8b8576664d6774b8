"""Collecting experience: one scan over time of a batch of environments."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.core.algorithm import Key, Metrics
from pgjax.core.devices import each_on_its_own, everywhere, total_bytes
from pgjax.core.metrics import Count, Greatest, Least, Mean
from pgjax.core.text import shows_briefly
from pgjax.environments.base import Environment, starts, where_done
from pgjax.learning.acting import Actor
from pgjax.networks.network import Memory, Output

BULK_BYTES = 128
"""Environments that start an episode with at most this much draw all the starts of a rollout at once; for larger ones
that would take more memory than it saves time."""

Record = TypeVar("Record")


@shows_briefly
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


class Step(NamedTuple):
    """All that is known of one step of B environments; whoever collects says what of it is recorded."""

    obs: Array
    reset: Array
    """`obs` is the first of an episode."""
    output: Output
    action: Array
    log_prob: Array
    reward: Array
    terminated: Array
    truncated: Array
    next_obs: Array
    """Of the true successor, before any reset."""
    next_memory: Memory


class Transition(NamedTuple):
    """What on-policy methods record, every array `[T, B, ...]`."""

    obs: Array
    reset: Array
    """`obs` is the first of an episode."""
    action: Array
    log_prob: Array
    value: Array
    reward: Array
    terminated: Array
    truncated: Array
    next_value: Array
    """V of the true successor, before any reset; meaningless where `terminated`."""


def initial_rollout(env: Environment, actor: Actor, key: Key, num_envs: int) -> RolloutState:
    """`num_envs` environments at the start of an episode each."""
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
    env: Environment, actor: Actor, state: RolloutState, key: Key, num_steps: int, record: Callable[[Step], Record]
) -> tuple[RolloutState, Record, Metrics]:
    """Act for `num_steps` steps in every environment.

    Returns the state to go on from, what `record` says of every step, `[T, B, ...]`, and statistics of the episodes
    that ended on the way.
    """
    noise, env_keys, starts, start = _draws(env, actor, state, key, num_steps)

    def step(state: RolloutState, drawn: tuple[Any, Key, Any]) -> tuple[RolloutState, Any]:
        noise, env_keys, starts = drawn
        memory, output = actor.act(state.memory, state.obs, state.reset)
        action, log_prob = output.distribution.sample_and_log_prob(noise)
        memory = actor.after(memory, action)
        successor = jax.vmap(env.step)(env_keys, state.env_state, output.distribution.env_action(action))
        ends = successor.terminated, successor.truncated
        done = successor.terminated | successor.truncated
        seen = Step(state.obs, state.reset, output, action, log_prob, successor.reward, *ends, successor.obs, memory)
        episode = state.episode_return + successor.reward, state.episode_length + 1
        env_state, obs = start(starts, done, (successor.state, successor.obs))
        under_way = (jnp.where(done, jnp.zeros_like(x), x) for x in episode)
        return RolloutState(env_state, obs, done, memory, *under_way), (record(seen), (done, *episode))

    collect = each_on_its_own(lambda *x: jax.lax.scan(step, *x), in_axes=(0, 1), out_axes=(0, 1))
    state, (recorded, episodes) = collect(state, (noise, env_keys, starts))
    recorded, episodes = everywhere((recorded, episodes))
    return state, recorded, _episode_metrics(*episodes)


def transitions(
    env: Environment, actor: Actor, state: RolloutState, key: Key, num_steps: int
) -> tuple[RolloutState, Transition, Metrics]:
    """A rollout of an actor with a value, as on-policy methods learn from it; returns like `rollout`."""

    def record(step: Step) -> Transition:
        ends = step.terminated, step.truncated
        acted = step.obs, step.reset, step.action, step.log_prob, step.output.value, step.reward
        return Transition(*acted, *ends, next_value=cut_value(actor, step))

    state, batch, metrics = rollout(env, actor, state, key, num_steps, record)
    last_value = actor.act(state.memory, state.obs, state.reset)[1].value
    following = jnp.concatenate([batch.value[1:], last_value[None]])
    next_value = jnp.where(batch.truncated, batch.next_value, following)
    return state, batch._replace(next_value=next_value), metrics


def cut_value(actor: Actor, step: Step) -> Float[Array, "B"]:
    """V of the successor where a time limit cut the episode, which no later step sees; anything elsewhere."""
    return jax.lax.cond(
        jnp.any(step.truncated),
        lambda: actor.act(step.next_memory, step.next_obs, jnp.zeros_like(step.truncated))[1].value,
        lambda: jnp.zeros_like(step.output.value),
    )


def _draws(
    env: Environment, actor: Actor, state: RolloutState, key: Key, num_steps: int
) -> tuple[Any, Key, Any, Callable[[Any, Array, Any], Any]]:
    """The randomness of all steps, `[T, B, ...]`: of actions, environments and new episodes, and what starts the last
    where episodes are done."""
    shape = num_steps, state.reset.shape[0]
    action_key, env_key, start_key = jax.random.split(key, 3)
    policy = jax.eval_shape(actor.act, state.memory, state.obs, state.reset)[1].distribution
    noise = policy.noise(action_key, (num_steps,))
    env_keys, start_keys = jax.random.split(env_key, shape), jax.random.split(start_key, shape)
    if hasattr(env, "restart") or total_bytes(jax.eval_shape(env.reset, key)) > BULK_BYTES:
        return noise, env_keys, start_keys, starts(env)
    return noise, env_keys, jax.vmap(jax.vmap(env.reset))(start_keys), lambda starts, *x: where_done(x[0], starts, x[1])


def _episode_metrics(
    done: Bool[Array, "T B"], episode_return: Float[Array, "T B"], episode_length: Int[Array, "T B"]
) -> Metrics:
    """Over the episodes that ended in this rollout; absent where none did."""
    count = jnp.sum(done)
    metrics: Metrics = {"episodes": Count(count)}
    for name, x in {"return": episode_return, "length": episode_length.astype(jnp.float32)}.items():
        metrics[f"{name}_mean"] = Mean(jnp.sum(jnp.where(done, x, 0.0)), count)
        metrics[f"{name}_min"] = Least(jnp.min(jnp.where(done, x, jnp.inf)))
        metrics[f"{name}_max"] = Greatest(jnp.max(jnp.where(done, x, -jnp.inf)))
    return metrics
