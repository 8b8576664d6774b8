"""Policies in environments: what rollout, evaluation, prediction and rendering need of an algorithm."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pgjax.core.algorithm import Algorithm, Key, check_key, check_one_member
from pgjax.core.errors import InputError
from pgjax.environments.base import Environment
from pgjax.networks.network import Memory, Output


class Actor(NamedTuple):
    """A policy that can be run."""

    initial_memory: Callable[[int], Memory]
    """batch size -> memory at the start of an episode."""
    act: Callable[[Memory, Array, Array], tuple[Memory, Output]]
    """(memory, obs `[B, ...]`, reset `[B]`) -> (memory, output)."""
    after: Callable[[Memory, Any], Memory] = lambda memory, action: memory
    """(memory, action) -> memory, once the action is drawn: for what depends on it."""


class Acting(Algorithm, Protocol):
    """An algorithm with a policy in an environment."""

    @property
    def env(self) -> Environment:
        """What the policy acts in."""
        ...

    def actor(self, state: Any) -> Actor:
        """The policy of `state`, for observations as the environment gives them."""
        ...


def greedy(
    actor: Actor, memory: Memory, obs: Float[Array, "B *obs"], reset: Bool[Array, "B"]
) -> tuple[Memory, Float[Array, "B *action"]]:
    """The memory after these observations, and the mode of the policy as the environment receives it."""
    memory, output = actor.act(memory, obs, reset)
    return memory, output.distribution.env_action(output.distribution.mode())


def predict(
    algorithm: Any, state: Any, obs: Any, deterministic: bool = True, key: Key | None = None, memory: Memory = None
) -> Any:
    """The action for one observation, or one per observation of a batch, as NumPy; with the memory of a network that
    remembers.

    `deterministic` plays the mode of the policy; otherwise the action is sampled with `key`. A continuous action is
    what the environment would receive, in its own bounds. A network with memory gives `(action, memory)`, and gets
    that memory with the next observation of the episode; None, its start.

    Raises:
        InputError: `key` is missing or none, the state is of several members, `obs` has another shape, or `memory` is
            not of this network and batch.
    """
    if not deterministic and key is None:
        raise InputError("predict: key = None is not accepted: expected a random key to sample the action with")
    if not deterministic:
        check_key("predict", key)
    check_one_member("predict", state)
    try:
        obs = jnp.asarray(obs, jnp.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"predict: obs = {obs!r} is not accepted: expected an array of numbers") from error
    shape = algorithm.env.observation_space.shape
    if obs.shape not in (shape, (*obs.shape[:1], *shape)) or not obs.size:
        raise InputError(f"predict: obs of shape {obs.shape} is not accepted: expected {shape} or {('N', *shape)}")
    batch = obs.reshape(-1, *shape)
    start = algorithm.actor(state).initial_memory(len(batch))
    given = start if memory is None else memory
    if jax.tree.map(jnp.shape, given) != jax.tree.map(jnp.shape, start):
        raise InputError(
            f"predict: memory is not that of this network after {len(batch)} observations: expected what predict "
            "returned for the observations before, or None"
        )
    action, memory = _actions(algorithm, state, batch, deterministic, key, given, jnp.full(len(batch), memory is None))
    action = np.asarray(action[0] if obs.shape == shape else action)
    return (action, memory) if jax.tree.leaves(start) else action


@functools.partial(jax.jit, static_argnums=3)
def _actions(
    algorithm: Any, state: Any, obs: Array, deterministic: bool, key: Any, memory: Memory, reset: Array
) -> tuple[Array, Memory]:
    memory, output = algorithm.actor(state).act(memory, obs, reset)
    policy = output.distribution
    action = policy.mode() if deterministic else policy.sample_and_log_prob(policy.noise(key))[0]
    return jax.vmap(algorithm.env.received)(policy.env_action(action)), memory
