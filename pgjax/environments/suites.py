"""Environments of other suites behind our interface, an adapter each; a suite is imported when one of its is made.

An id is `suite:name`, such as `playground:CartpoleBalance`. What the adapters see to, because suites differ in it:

- *Ends.* Termination and time limit are told apart, and the successor's observation is that before any reset: none of
  the resets that suites do themselves is used.
- *States* keep the types they start with, whatever a step makes of them, as a compiled loop needs it.
- *Actions* are choices, or numbers in [-1, 1], which is what the physics engines expect.
"""

import dataclasses
import functools
import importlib
import importlib.util
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core.algorithm import Key
from pgjax.core.errors import InputError, nearest
from pgjax.core.hyperparameters import pytree
from pgjax.environments.base import Box, Discrete, Space, TimeStep
from pgjax.environments.catalog import SUITE_MODULES


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

    draws_in_bulk = False
    """New episodes start where one has ended: they cost about as much as a step."""

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
        return _loaded(type(self), self.id, self.options)

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

    def reset(self, key: Key) -> tuple[Timed, jax.Array]:
        """The start of an episode."""
        state, obs = self.start(key)
        return Timed(jax.tree.map(_strong, state), jnp.int32(0)), jnp.asarray(obs, jnp.float32)

    def step(self, key: Key, state: Timed, action: jax.Array) -> TimeStep:
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


class Playground(SuiteEnvironment):
    """MuJoCo Playground: options override its config, such as `episode_length=500` or `impl="warp"`."""

    @classmethod
    def names(cls) -> list[str]:
        """Those of all its suites."""
        return list(_module("mujoco_playground").registry.ALL_ENVS)

    @classmethod
    def load(cls, name: str, **options: Any) -> Any:
        """With the implementation in JAX, unless asked otherwise."""
        return _module("mujoco_playground").registry.load(name, config_overrides={"impl": "jax"} | options)

    @classmethod
    def describe(cls, env: Any) -> tuple[Box, Space, int]:
        """Where observations are a dictionary, what the policy is meant to see is its `state`."""
        shape = env.observation_size["state"] if isinstance(env.observation_size, dict) else env.observation_size
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return Box(shape), Box((env.action_size,), -1.0, 1.0), int(env._config.episode_length)

    def start(self, key: Key) -> tuple[Any, Any]:
        """Physics, reward and observation are one state."""
        state = self.env.reset(key)
        return state, _seen(state.obs)

    def advance(self, key: Key, state: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        """`done` is the end of an episode, and nothing else."""
        state = self.env.step(state, action)
        return state, _seen(state.obs), state.reward, state.done > 0


class Brax(SuiteEnvironment):
    """Brax: options are those of its environments, such as `backend="spring"`, and `episode_length`."""

    @classmethod
    def names(cls) -> list[str]:
        """Those it has registered."""
        return list(_module("brax.envs")._envs)

    @classmethod
    def load(cls, name: str, episode_length: int = 1000, **options: Any) -> Any:
        """Without the wrappers that cut and reset episodes."""
        env = _module("brax.envs").get_environment(name, **options)
        env.episode_length = episode_length
        return env

    @classmethod
    def describe(cls, env: Any) -> tuple[Box, Space, int]:
        """Vectors of numbers."""
        return Box((env.observation_size,)), Box((env.action_size,), -1.0, 1.0), env.episode_length

    def start(self, key: Key) -> tuple[Any, Any]:
        """Physics, reward and observation are one state."""
        state = self.env.reset(key)
        return state, state.obs

    def advance(self, key: Key, state: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        """`done` is the end of an episode, and nothing else."""
        state = self.env.step(state, action)
        return state, state.obs, state.reward, state.done > 0


class Navix(SuiteEnvironment):
    """Navix, MiniGrid in JAX: options are those of `navix.make`, such as `max_steps=100`."""

    @classmethod
    def names(cls) -> list[str]:
        """Those it has registered."""
        return list(_module("navix").registry())

    @classmethod
    def load(cls, name: str, **options: Any) -> Any:
        """As `navix.make` does."""
        return _module("navix").make(name, **options)

    @classmethod
    def describe(cls, env: Any) -> tuple[Box, Space, int]:
        """Symbols of what the agent sees, [H, W, 3], by default."""
        space = env.observation_space
        dtype = "uint8" if np.dtype(space.dtype) == np.uint8 else "float32"
        return Box(tuple(space.shape), dtype=dtype), Discrete(len(env.action_set)), int(env.max_steps)

    def start(self, key: Key) -> tuple[Any, Any]:
        """Its timestep is the state."""
        timestep = self.env.reset(key)
        return timestep, timestep.observation

    def advance(self, key: Key, state: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        """Its own step without the reset that would come first: where steps are vmapped it is computed every time."""
        timestep = self.env._step(state, action)
        return timestep, timestep.observation, timestep.reward, timestep.is_termination()


class Craftax(SuiteEnvironment):
    """Craftax, full and Classic, symbolic and pixels: options are its parameters, such as `max_timesteps=1000`."""

    @classmethod
    def names(cls) -> list[str]:
        """There are four."""
        kinds = ("Craftax-Symbolic-v1", "Craftax-Pixels-v1", "Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1")
        return list(kinds)

    @classmethod
    def load(cls, name: str, **options: Any) -> Any:
        """The environment, its parameters, and these without their time limit."""
        env = _module("craftax.craftax_env").make_craftax_env_from_name(name, auto_reset=False)
        params = env.default_params.replace(**options)
        return env, params, params.replace(max_timesteps=np.iinfo(np.int32).max)

    @classmethod
    def describe(cls, env: Any) -> tuple[Box, Space, int]:
        """Vectors or images; numbers are between 0 and 1."""
        env, params, _ = env
        shape = tuple(env.observation_space(params).shape)
        return Box(shape), Discrete(int(env.action_space(params).n)), int(params.max_timesteps)

    def start(self, key: Key) -> tuple[Any, Any]:
        """A new world."""
        env, params, _ = self.env
        obs, state = env.reset_env(key, params)
        return state, obs

    def advance(self, key: Key, state: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        """Its `done` holds the time limit as well: whether it has ended is asked of the successor without one."""
        env, params, without_limit = self.env
        obs, state, reward, _, _ = env.step_env(key, state, action, params)
        return state, obs, reward, env.is_terminal(state, without_limit)


class Jumanji(SuiteEnvironment):
    """Jumanji: options are those of `jumanji.make`, and `with_mask=True` for observations that end with the mask of the
    actions that are allowed.

    An observation is its grid where it has one; else, and with the mask, all its arrays as one vector.
    """

    @classmethod
    def names(cls) -> list[str]:
        """Those it has registered."""
        return sorted(_module("jumanji").registered_environments())

    @classmethod
    def load(cls, name: str, with_mask: bool = False, **options: Any) -> Any:
        """As `jumanji.make` does."""
        return _module("jumanji").make(name, **options), with_mask

    @classmethod
    def describe(cls, env: Any) -> tuple[Box, Space, int]:
        """Choices of one number; other actions are refused."""
        env, with_mask = env
        actions = env.action_spec
        if not hasattr(actions, "num_values") or np.ndim(actions.num_values):
            raise InputError(f"jumanji: {type(env).__name__} acts in {actions!r}: expected one choice")
        seen = jax.eval_shape(lambda: _arrays(env.reset(jax.random.key(0))[1].observation, with_mask))
        limit = int(getattr(env, "time_limit", np.iinfo(np.int32).max))
        return Box(seen.shape), Discrete(int(actions.num_values)), limit

    def start(self, key: Key) -> tuple[Any, Any]:
        """The state, and what is seen of it."""
        env, with_mask = self.env
        state, timestep = env.reset(key)
        return state, _arrays(timestep.observation, with_mask)

    def advance(self, key: Key, state: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        """The last step by the clock has discount 0 like any other: it is told by the number of steps."""
        env, with_mask = self.env
        state, timestep = env.step(state, action)
        at_limit = getattr(state, "step_count", 0) >= self.time_limit
        return state, _arrays(timestep.observation, with_mask), timestep.reward, timestep.last() & ~at_limit


SUITES: dict[str, type[SuiteEnvironment]] = {
    "playground": Playground,
    "brax": Brax,
    "navix": Navix,
    "craftax": Craftax,
    "jumanji": Jumanji,
}


def make_of_suite(env_id: str, **options: Any) -> SuiteEnvironment:
    """`suite:name`, with options as the suite's class says.

    Raises:
        InputError: the suite or the name is not known (with the nearest ones), the suite is not installed, or an option
            is not accepted.
    """
    cls = _suite(env_id)
    name = env_id.partition(":")[2]
    if name not in cls.names():
        raise InputError(f"env = {env_id!r} is not a known environment: {nearest(name, cls.names())}")
    kept = tuple(sorted((option, _hashable(value)) for option, value in options.items()))
    return cls(env_id, kept, *cls.describe(_loaded(cls, env_id, kept)))


def names_of(suite: str) -> list[str]:
    """The ids of a suite.

    Raises:
        InputError: it is not known, or not installed.
    """
    return [f"{suite}:{name}" for name in _suite(f"{suite}:").names()]


def _suite(env_id: str) -> type[SuiteEnvironment]:
    suite = env_id.partition(":")[0]
    if suite not in SUITES:
        raise InputError(f"env = {env_id!r} is of no known suite: {nearest(suite, SUITES)}")
    if importlib.util.find_spec(SUITE_MODULES[suite]) is None:
        raise InputError(f"env = {env_id!r} needs {SUITE_MODULES[suite]}: pip install 'pgjax[{suite}]'")
    return SUITES[suite]


@functools.lru_cache(maxsize=64)
def _loaded(cls: Any, env_id: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """The same object for the same id and options: it is in the program, and a new one would compile it again."""
    try:
        return cls.load(env_id.partition(":")[2], **dict(options))
    except Exception as error:
        said = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        raise InputError(f"{env_id} with options {dict(options)} could not be made: {said}") from error


def _module(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what a suite is built on, which none of us can change
        return importlib.import_module(name)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def _seen(obs: Any) -> Any:
    return obs["state"] if isinstance(obs, dict) else obs


def _arrays(observation: Any, with_mask: bool) -> jax.Array:
    """What a policy sees of an observation with several fields."""
    fields = observation._asdict() if hasattr(observation, "_asdict") else dataclasses.asdict(observation)
    mask = fields.pop("action_mask", None)
    if not with_mask and "grid" in fields:
        return jnp.asarray(fields["grid"], jnp.float32)
    leaves = jax.tree.leaves(fields) + ([mask] if with_mask else [])
    return jnp.concatenate([jnp.asarray(x, jnp.float32).ravel() for x in leaves])


def _strong(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(x, x.dtype)


def _like(x: Any, old: jax.Array) -> jax.Array:
    return x if jnp.issubdtype(old.dtype, jax.dtypes.prng_key) else jnp.asarray(x, old.dtype).reshape(old.shape)
