"""The networks as a kind of part: by name, with the fields of their classes as options."""

from typing import Any

import jax
import jax.numpy as jnp

from pgjax.core.errors import InputError
from pgjax.core.own import is_own, traced
from pgjax.core.parts import Dataclasses
from pgjax.environments.base import Box, Space
from pgjax.networks.feedforward import CNN, MLP, Custom
from pgjax.networks.network import Memory, Network, Output
from pgjax.networks.recurrent import GRU
from pgjax.networks.transformer import Transformer

NETWORKS = Dataclasses("network", {"mlp": MLP, "cnn": CNN, "gru": GRU, "transformer": Transformer})
"""A network that is not of these classes is somebody's own code."""


def register_network(name: str, cls: type) -> None:
    """Make a network class of your own, a `@pgjax.pytree`, known as `name`, as `register_algorithm` does.

    Raises:
        InputError: the name is taken, or `cls` is not such a class.
    """
    NETWORKS.register(name, cls)


def check_network(network: Network, observation_space: Box, action_space: Space) -> None:
    """Trace the methods of a network of the user's own, without compiling, and refuse what they give if it is not what
    is due.

    Raises:
        InputError: naming the method, what it raised or gave, and what is expected.
    """
    if not (is_own(network) or isinstance(network, Custom)):
        return
    name, T, B = type(network).__name__, 2, 3
    key, obs = jax.random.key(0), jnp.zeros((T, B, *observation_space.shape))
    params = traced(name, "init", lambda: network.init(key, observation_space, action_space))
    memory = traced(name, "initial_memory", lambda: network.initial_memory(B))
    wrong = [x.shape for x in jax.tree.leaves(memory) if x.shape[:1] != (B,)]
    if wrong:
        raise InputError(
            f"{name}: initial_memory(batch) gives arrays of shape {wrong[0]} for a batch of {B}: expected ({B}, ...)"
        )
    reset = jnp.zeros((T, B), bool)
    step = traced(name, "step", lambda params, memory: network.step(params, memory, obs[0], reset[0]), params, memory)
    _check_said(f"{name}: step", step, memory, (B,), action_space)
    unroll = traced(name, "unroll", lambda params, memory: network.unroll(params, memory, obs, reset), params, memory)
    _check_said(f"{name}: unroll", unroll, memory, (T, B), action_space)


def _check_said(method: str, said: Any, memory: Memory, batch: tuple[int, ...], action_space: Space) -> None:
    if not (isinstance(said, tuple) and len(said) == 2 and isinstance(said[1], Output)):
        raise InputError(f"{method} gives {_kind(said)}: expected (memory, Output(distribution, value))")
    after, output = said
    if _shapes(after) != _shapes(memory):
        raise InputError(f"{method} gives another memory, {_shapes(after)}, than it is given, {_shapes(memory)}")
    if getattr(output.value, "shape", None) != batch:
        raise InputError(f"{method} gives a value of shape {getattr(output.value, 'shape', None)}: expected {batch}")
    action = traced(method, "its distribution", lambda policy: policy.env_action(policy.mode()), output.distribution)
    expected = (*batch, *(action_space.shape if isinstance(action_space, Box) else ()))
    if action.shape != expected:
        raise InputError(f"{method} gives a distribution of actions of shape {action.shape}: expected {expected}")


def _kind(x: Any) -> str:
    return f"({', '.join(type(each).__name__ for each in x)})" if isinstance(x, tuple) else f"a {type(x).__name__}"


def _shapes(memory: Memory) -> Any:
    return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", memory)
