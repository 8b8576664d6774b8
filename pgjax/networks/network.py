"""The interface of every network: what it says about an observation, and the four methods that say it.

Law, tested for every network: `unroll` over `[T, B, ...]` equals a scan of `step` over time, resets included. A network
that remembers keeps arrays of shape `[B, ...]`; one that does not has `()` for a memory.
"""

from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
from jaxtyping import Array, Float

from pgjax.core.algorithm import Key, Params
from pgjax.core.own import traced
from pgjax.environments.base import Box, Space
from pgjax.networks.distributions import Distribution

Memory: TypeAlias = Any
"""What a network carries along an episode; `()` if nothing."""


class Output(NamedTuple):
    """What a network says about an observation."""

    distribution: Distribution
    value: Float[Array, "*batch"]


@runtime_checkable
class Network(Protocol):
    """a network such as `pgjax.MLP()` (the interface is `pgjax.networks.network.Network`)

    Implement these four methods to bring any network whatever; `Custom` covers most.
    """

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
        """The parameters of a new network for these spaces."""
        ...

    def initial_memory(self, batch: int) -> Memory:
        """What is remembered at the start of an episode; `()` for networks without memory."""
        ...

    def step(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """Acting: obs `[B, ...]`, reset `[B]`. Memory is forgotten first where `reset`."""
        ...

    def unroll(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """Learning: obs `[T, B, ...]`, reset `[T, B]`."""
        ...


def has_memory(network: Network) -> bool:
    """Whether minibatches must keep whole sequences.

    Raises:
        InputError: the network is of the user's own, and its `initial_memory` fails.
    """
    return bool(jax.tree.leaves(traced(type(network).__name__, "initial_memory", lambda: network.initial_memory(1))))
