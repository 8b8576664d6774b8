"""The suites in JAX, an adapter each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core.algorithm import Key
from pgjax.core.errors import InputError
from pgjax.environments.base import Box, Discrete, Space
from pgjax.environments.suite import SuiteEnvironment, module


class Physics(SuiteEnvironment):
    """What Playground and Brax have in common: physics, reward and observation are one state."""

    def start(self, key: Key) -> tuple[Any, Any]:
        """The state, and what is seen of it."""
        state = self.env.reset(key)
        return state, _seen(state.obs)

    def advance(self, key: Key, state: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        """`done` is the end of an episode, and nothing else."""
        state = self.env.step(state, action)
        return state, _seen(state.obs), state.reward, state.done > 0


class Playground(Physics):
    """MuJoCo Playground: options override its config, such as `episode_length=500` or `impl="warp"`."""

    @classmethod
    def names(cls) -> list[str]:
        """Those of all its suites."""
        return list(module("mujoco_playground").registry.ALL_ENVS)

    @classmethod
    def load(cls, name: str, **options: Any) -> Any:
        """With the implementation in JAX, unless asked otherwise."""
        return module("mujoco_playground").registry.load(name, config_overrides={"impl": "jax"} | options)

    @classmethod
    def describe(cls, env: Any) -> tuple[Box, Space, int]:
        """Where observations are a dictionary, what the policy is meant to see is its `state`."""
        shape = env.observation_size["state"] if isinstance(env.observation_size, dict) else env.observation_size
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return Box(shape), Box((env.action_size,), -1.0, 1.0), int(env._config.episode_length)


class Brax(Physics):
    """Brax: options are those of its environments, such as `backend="spring"`, and `episode_length`."""

    @classmethod
    def names(cls) -> list[str]:
        """Those it has registered."""
        return list(module("brax.envs")._envs)

    @classmethod
    def load(cls, name: str, episode_length: int = 1000, **options: Any) -> Any:
        """Without the wrappers that cut and reset episodes."""
        env = module("brax.envs").get_environment(name, **options)
        env.episode_length = episode_length
        return env

    @classmethod
    def describe(cls, env: Any) -> tuple[Box, Space, int]:
        """Vectors of numbers."""
        return Box((env.observation_size,)), Box((env.action_size,), -1.0, 1.0), env.episode_length


class Navix(SuiteEnvironment):
    """Navix, MiniGrid in JAX: options are those of `navix.make`, such as `max_steps=100`."""

    @classmethod
    def names(cls) -> list[str]:
        """Those it has registered."""
        return list(module("navix").registry())

    @classmethod
    def load(cls, name: str, **options: Any) -> Any:
        """As `navix.make` does."""
        return module("navix").make(name, **options)

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
        env = module("craftax.craftax_env").make_craftax_env_from_name(name, auto_reset=False)
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
        return sorted(module("jumanji").registered_environments())

    @classmethod
    def load(cls, name: str, with_mask: bool = False, **options: Any) -> Any:
        """As `jumanji.make` does."""
        return module("jumanji").make(name, **options), with_mask

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
