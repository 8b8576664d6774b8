"""What an environment is: two pure functions and two spaces.

An environment is a pytree whose leaves are its physical parameters, so physics is swept like any coefficient. It steps
one instance; `jax.vmap` makes the batch. Observations are float arrays of a fixed shape.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from pgjax.core.algorithm import Key


class Discrete(NamedTuple):
    """Actions 0, 1, ..., n - 1 (int32 scalars)."""

    n: int


class Box(NamedTuple):
    """Float arrays of one shape. `low` and `high` bound every element and may be infinite."""

    shape: tuple[int, ...]
    low: float = -float("inf")
    high: float = float("inf")
    dtype: str = "float32"
    """The smallest type that holds every value exactly, which is what a replay buffer stores."""


Space: TypeAlias = Discrete | Box


class TimeStep(NamedTuple):
    """What one step gives. Nothing has been reset: who steps starts a new episode after `terminated | truncated`."""

    state: Any
    """The state to step from next; meaningless where the episode ended."""
    obs: jax.Array
    """The observation of the successor."""
    reward: jax.Array
    """float32 scalar."""
    terminated: jax.Array
    """bool scalar: the successor is absorbing, its value is zero."""
    truncated: jax.Array
    """bool scalar: a time limit cut the episode; the successor has a value."""


@runtime_checkable
class Environment(Protocol):
    """an environment such as `pgjax.make(ID)` gives (the interface is `pgjax.environments.base.Environment`)

    Two pure functions, and the two spaces a network is built for.
    """

    @property
    def name(self) -> str:
        """What messages and tables call it."""
        ...

    @property
    def observation_space(self) -> Box:
        """The shape and the bounds of an observation."""
        ...

    @property
    def action_space(self) -> Space:
        """What a policy chooses from: `Discrete`, or a `Box` of shape `(D,)`."""
        ...

    @property
    def time_limit(self) -> Any:
        """Steps after which every episode has ended, a number or an array; None if that is not known."""
        ...

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        """-> (state, obs): the start of an episode."""
        ...

    def step(self, key: Key, state: Any, action: jax.Array) -> TimeStep:
        """One transition. Any real action is accepted and brought into bounds."""
        ...

    def received(self, action: jax.Array) -> jax.Array:
        """What `step` makes of a policy's action before acting on it: within the bounds of the environment."""
        ...


def restart(env: Environment, keys: Key, done: jax.Array, old: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
    """New episodes `[B]` where the old (state, obs) are done; nothing is computed in a step in which none is.

    An environment with a method of that name starts its episodes itself.
    """
    return jax.lax.cond(jnp.any(done), lambda: where_done(done, jax.vmap(env.reset)(keys), old), lambda: old)


def starts(env: Environment) -> Callable[[Key, jax.Array, tuple[Any, jax.Array]], tuple[Any, jax.Array]]:
    """How `env` starts episodes in a loop: its own `restart`, or the one above."""
    return getattr(env, "restart", functools.partial(restart, env))


def where_done(done: jax.Array, new: Any, old: Any) -> Any:
    """Each of `new` where it is done `[B]`, else of `old`."""
    return jax.tree.map(lambda x, y: jnp.where(done.reshape(-1, *(1,) * (y.ndim - 1)), x, y), new, old)


def strong(leaf: Any) -> jax.Array:
    """Without JAX's weak type, which a checkpoint cannot keep: a restored state must give the same program."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)
