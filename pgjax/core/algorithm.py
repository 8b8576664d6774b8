"""The interface between an algorithm and everything that runs it, and the words it is written in."""

from typing import Any, Protocol, TypeAlias

import jax
import numpy as np

Key: TypeAlias = jax.Array
"""A typed random key, `jax.random.key(seed)`."""
Params: TypeAlias = Any
"""A pytree of network parameters."""
Metrics: TypeAlias = dict[str, jax.Array]
"""Scalars of one iteration, reduced on the device."""

INIT_STREAM = np.uint32(0xFFFFFFFF)
EVALUATION_STREAM = np.uint32(0xFFFFFFFE)
SWEEP_STREAM = np.uint32(0xFFFFFFFD)
"""Folded into a root key these give keys no iteration has: iterations are counted in int32."""


class Algorithm(Protocol):
    """The whole interface between an algorithm and everything that runs it: a pytree of hyperparameters that is three
    pure functions of a state with at least `key`, `iteration` and `params`."""

    @property
    def env(self) -> Any: ...

    @property
    def total_steps(self) -> int: ...

    @property
    def steps_per_iteration(self) -> int: ...

    @property
    def num_iterations(self) -> int: ...

    def init(self, key: Key) -> Any: ...

    def step(self, state: Any) -> tuple[Any, Metrics]: ...

    def actor(self, state: Any) -> Any: ...

    def divides_into(self, devices: int) -> bool:
        """Whether an iteration can be divided over so many devices, and is large enough for that to pay."""
        ...
