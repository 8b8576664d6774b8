"""What the environments of other suites have in common, whose adapters are in `suites` and `host`.

An id is `suite:name`, such as `playground:CartpoleBalance`; a suite is imported when one of its is made. What is seen
to here and by the adapters, because suites differ in it:

- *Ends.* Termination and time limit are told apart, and the successor's observation is that before any reset: none of
  the resets that suites do themselves is used.
- *States* keep the types they start with, whatever a step makes of them, as a compiled loop needs it.
- *Actions* are choices, or numbers in [-1, 1], which is what physics engines expect.
"""

import functools
import importlib
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax.core.algorithm import Key
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import pytree
from pgjax.environments.base import Box, Discrete, Space, TimeStep, restart, strong


class Timed(NamedTuple):
    """The state of a suite, and the steps of the episode so far."""

    state: Any
    time: jax.Array


@pytree
class SuiteEnvironment:
    """One environment of a suite; made by `pgjax.make`."""

    id: str
    """`suite:name`."""
    options: tuple[tuple[str, Any], ...]
    observation_space: Box
    action_space: Space
    time_limit: int

    restart = restart
    """They cost about as much as a step."""

    def __repr__(self) -> str:
        options = dict(self.options)
        return f"make({', '.join([repr(self.id), *(f'{name}={value!r}' for name, value in options.items())])})"

    @property
    def name(self) -> str:
        """The id."""
        return self.id

    @property
    def env(self) -> Any:
        """The suite's own object, the same for the same id and options."""
        cls: Any = type(self)
        return loaded(cls, self.id, self.options)

    @classmethod
    def names(cls) -> list[str]:
        """What the suite calls its environments."""
        raise NotImplementedError

    @classmethod
    def load(cls, name: str, **options: Any) -> Any:
        """The suite's own object."""
        raise NotImplementedError

    @classmethod
    def describe(cls, env: Any) -> tuple[Box, Space, int]:
        """Observations, actions and the time limit of such an object."""
        raise NotImplementedError

    def start(self, key: Key) -> tuple[Any, Any]:
        """The suite's (state, obs)."""
        raise NotImplementedError

    def advance(self, key: Key, state: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        """The suite's (state, obs, reward, terminated)."""
        raise NotImplementedError

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        """The start of an episode."""
        state, obs = self.start(key)
        return Timed(jax.tree.map(strong, state), jnp.int32(0)), jnp.asarray(obs, jnp.float32)

    def step(self, key: Key, state: Any, action: jax.Array) -> TimeStep:
        """One transition; at the time limit it is cut unless it ends there."""
        after, obs, reward, terminated = self.advance(key, state.state, self.received(action))
        time, terminated = state.time + 1, jnp.asarray(terminated, bool).reshape(())
        return TimeStep(
            state=Timed(jax.tree.map(_like, after, state.state), time),
            obs=jnp.asarray(obs, jnp.float32),
            reward=jnp.asarray(reward, jnp.float32).reshape(()),
            terminated=terminated,
            truncated=~terminated & (time >= self.time_limit),
        )

    def received(self, action: jax.Array) -> jax.Array:
        """A choice unchanged; numbers clipped to [-1, 1]."""
        return action if isinstance(self.action_space, Discrete) else jnp.clip(action, -1.0, 1.0)


@functools.lru_cache(maxsize=64)
def loaded(cls: Any, env_id: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """The same object for the same id and options: it is in the program, and a new one would compile it again."""
    try:
        return cls.load(env_id.partition(":")[2], **dict(options))
    except Exception as error:
        said = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        raise InputError(f"{env_id} with options {dict(options)} could not be made: {said}") from error


def module(name: str) -> Any:
    """A package of a suite, without the warnings about what it is built on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what a suite is built on, which none of us can change
        return importlib.import_module(name)


def _like(x: Any, old: jax.Array) -> jax.Array:
    return x if jnp.issubdtype(old.dtype, jax.dtypes.prng_key) else jnp.asarray(x, old.dtype).reshape(old.shape)
