"""Evaluation on complete episodes."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pgjax.core.algorithm import EVALUATION_STREAM, Key, Scores, check_key, check_one_member
from pgjax.core.devices import check_memory, env_mesh, largest_array
from pgjax.core.errors import InputError
from pgjax.learning.acting import Acting

MAX_STEPS = 100_000
"""After which an episode is given up, unless asked otherwise."""


class Evaluation(NamedTuple):
    """Undiscounted returns of complete episodes."""

    mean: Float[Array, ""]
    std: Float[Array, ""]
    min: Float[Array, ""]
    max: Float[Array, ""]
    num_episodes: Int[Array, ""]
    """Episodes counted: those that ended."""
    returns: Float[Array, "episodes"]
    lengths: Int[Array, "episodes"]
    ended: Bool[Array, "episodes"]
    """False for an episode still under way after `max_steps`; it counts nowhere above."""

    def __repr__(self) -> str:
        return f"Evaluation({', '.join(f'{name}={getattr(self, name)}' for name in self._fields[:5])}, ...)"


def evaluate(
    algorithm: Acting,
    state: Any,
    key: Key,
    num_episodes: int = 128,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
) -> Evaluation:
    """Run the policy of `state` for one complete episode in each of `num_episodes` fresh environments.

    One episode each, so that short episodes are not counted more often than long ones. An episode that has not ended
    after `max_steps` is not counted, and a `UserWarning` says so. `deterministic` plays the mode of the policy,
    otherwise actions are sampled. The keys are none that training from the same `key` uses.

    Raises:
        InputError: `num_episodes` or `max_steps` is not positive, the state is of several members, or the algorithm has
            no policy in an environment.
    """
    if not hasattr(algorithm, "actor"):
        raise InputError(
            f"evaluate: {type(algorithm).__name__} has no policy in an environment: expected its own "
            "algorithm.evaluate(state, key, num)"
        )
    check_key("evaluate", key)
    check_one_member("evaluate", state)
    for name, value in {"num_episodes": num_episodes, "max_steps": max_steps}.items():
        if value < 1:
            raise InputError(f"evaluate: {name} = {value} is not accepted: expected at least 1")
    how = num_episodes, deterministic, max_steps
    if not isinstance(key, jax.core.Tracer):
        check_memory(largest_array(_evaluate.trace(algorithm, state, key, *how).jaxpr), env_mesh(1))
    evaluation = _evaluate(algorithm, state, key, *how)
    if not isinstance(evaluation.ended, jax.core.Tracer) and not np.all(evaluation.ended):
        cut = int(num_episodes - np.sum(evaluation.ended))
        warnings.warn(
            f"{cut} of {num_episodes} episodes were cut after max_steps = {max_steps} and count nowhere: the mean is "
            "that of the shorter ones: raise max_steps",
            stacklevel=2,
        )
    return evaluation


def episode_scores(algorithm: Any, state: Any, key: Key, num_episodes: int) -> Scores:
    """The evaluation of one state that is kept: greedy, over complete episodes."""
    found = _evaluate(algorithm, state, key, num_episodes, True, MAX_STEPS)
    return {"return_mean": found.mean, "return_std": found.std, "episodes": found.num_episodes}


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _evaluate(
    algorithm: Acting, state: Any, key: Key, num_episodes: int, deterministic: bool, max_steps: int
) -> Evaluation:
    env, actor = algorithm.env, algorithm.actor(state)
    key = jax.random.fold_in(key, EVALUATION_STREAM)
    reset_key, key = jax.random.split(key)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))

    def unfinished(carry: Any) -> Array:
        time, ended, *_ = carry
        return ~jnp.all(ended) & (time < max_steps)

    def step(carry: Any) -> Any:
        time, ended, returns, lengths, env_state, obs, memory = carry
        action_key, env_key = jax.random.split(jax.random.fold_in(key, time))
        memory, output = actor.act(memory, obs, jnp.broadcast_to(time == 0, ended.shape))
        policy = output.distribution
        action = policy.mode() if deterministic else policy.sample_and_log_prob(policy.noise(action_key))[0]
        successor = jax.vmap(env.step)(jax.random.split(env_key, num_episodes), env_state, policy.env_action(action))
        returns = returns + jnp.where(ended, 0.0, successor.reward)
        lengths = lengths + jnp.where(ended, 0, 1)
        ended = ended | successor.terminated | successor.truncated
        return time + 1, ended, returns, lengths, successor.state, successor.obs, memory

    start = (
        jnp.int32(0),
        jnp.zeros(num_episodes, bool),
        jnp.zeros(num_episodes),
        jnp.zeros(num_episodes, jnp.int32),
        env_state,
        obs,
        actor.initial_memory(num_episodes),
    )
    _, ended, returns, lengths, *_ = jax.lax.while_loop(unfinished, step, start)
    count = jnp.sum(ended)
    mean = jnp.sum(jnp.where(ended, returns, 0.0)) / count
    return Evaluation(
        mean=mean,
        std=jnp.sqrt(jnp.sum(jnp.where(ended, (returns - mean) ** 2, 0.0)) / count),
        min=jnp.where(count > 0, jnp.min(jnp.where(ended, returns, jnp.inf)), jnp.nan),
        max=jnp.where(count > 0, jnp.max(jnp.where(ended, returns, -jnp.inf)), jnp.nan),
        num_episodes=count,
        returns=returns,
        lengths=lengths,
        ended=ended,
    )
