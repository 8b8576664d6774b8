"""Environments that are not JAX: Gymnasium's, stepped by Python on the host, in the middle of the compiled program.

Every step waits for Python, so it is the environment that decides how fast training is. What a
compiled program needs of an environment, that its state is a value, is had by naming episodes: the state holds the seed
that an episode began with and how many steps it has taken, and the host keeps the environment that has taken them. So
the same key gives the same episodes, wherever they are stepped. What cannot be had is a state that outlives its
process: a run that goes on from a checkpoint cuts the episodes that were under way, as a time limit would.
"""

import collections
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core.algorithm import Key
from pgjax.core.errors import InputError
from pgjax.environments.base import Box, Discrete, Space, TimeStep, where_done
from pgjax.environments.suite import SuiteEnvironment, module

MOST_EPISODES = 4096
"""Under way at the same time: the one that began first is forgotten when there are more."""


class Episode(NamedTuple):
    """The state of an environment of the host."""

    seed: jax.Array
    """uint32 `[2]`."""
    time: jax.Array
    obs: jax.Array


class Gymnasium(SuiteEnvironment):
    """Gymnasium: options are those of `gymnasium.make`. Its spaces are flattened; actions are one choice, or numbers.

    What other packages register is known once they have been imported.
    """

    @classmethod
    def names(cls) -> list[str]:
        """Those it has registered."""
        return list(module("gymnasium").registry)

    @classmethod
    def load(cls, name: str, **options: Any) -> Any:
        """A pool of such environments, the first of which is made."""
        return Pool(name, options)

    @classmethod
    def describe(cls, env: Any) -> tuple[Box, Space, int]:
        """Observations as a vector, or an image as it is."""
        return env.observation_space, env.action_space, env.time_limit

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        """The start of the episode of a seed drawn from `key`."""
        shape = self.observation_space.shape
        seed = jax.random.bits(key, (2,), jnp.uint32)
        obs = jax.pure_callback(
            self.env.reset, jax.ShapeDtypeStruct(shape, jnp.float32), seed, jnp.bool_(True), vmap_method="broadcast_all"
        )
        return Episode(seed, jnp.int32(0), obs), obs

    def restart(self, keys: Key, done: jax.Array, old: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        """New episodes where the old ones are done, and only there."""
        state, _ = old
        seed = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
        shape = jax.ShapeDtypeStruct(state.obs.shape, jnp.float32)
        new = jax.pure_callback(self.env.reset, shape, seed, done, vmap_method="broadcast_all")
        state = where_done(done, Episode(seed, jnp.zeros_like(state.time), new), state)
        return state, state.obs

    def step(self, key: Key, state: Any, action: jax.Array) -> TimeStep:
        """One transition of the environment that has taken the steps of `state`; the key is not needed."""
        flag = jax.ShapeDtypeStruct((), jnp.bool_)
        shapes = jax.ShapeDtypeStruct(state.obs.shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32), flag, flag
        obs, reward, terminated, truncated = jax.pure_callback(
            self.env.step, shapes, state, self.received(action), vmap_method="broadcast_all"
        )
        return TimeStep(Episode(state.seed, state.time + 1, obs), obs, reward, terminated, truncated)


class Pool:
    """Environments of one kind, by the seed of the episode that they are in."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.make = lambda: module("gymnasium").make(name, **options)
        self.lock = threading.Lock()
        self.under_way: collections.OrderedDict[bytes, list[Any]] = collections.OrderedDict()
        """Seed -> the environment, its steps, and what the last of them gave."""
        env = self.make()
        self.free = [env]
        self.spaces = module("gymnasium").spaces
        self.flat = env.observation_space
        is_image = isinstance(self.flat, self.spaces.Box) and len(self.flat.shape) > 1
        self.flatten = np.asarray if is_image else lambda obs: self.spaces.flatten(self.flat, obs)
        shape = self.flat.shape if is_image else (self.spaces.flatdim(self.flat),)
        dtype = "uint8" if is_image and self.flat.dtype == np.uint8 else "float32"
        self.observation_space = Box(tuple(shape), dtype=dtype)
        self.acts = env.action_space
        self.action_space = self._action_space(name)
        self.time_limit = (env.spec and env.spec.max_episode_steps) or np.iinfo(np.int32).max

    def _action_space(self, name: str) -> Space:
        if isinstance(self.acts, self.spaces.Discrete):
            return Discrete(int(self.acts.n))
        if not isinstance(self.acts, self.spaces.Box):
            raise InputError(f"gymnasium:{name} acts in {self.acts}: expected one choice (Discrete), or numbers (Box)")
        return Box((int(np.prod(self.acts.shape)),), -1.0, 1.0)

    def reset(self, seeds: Any, wanted: Any) -> np.ndarray:
        """First observations `[..., *obs]` of the episodes of `[..., 2]` seeds, where they are `[...]` wanted."""
        seeds, wanted = np.asarray(seeds), np.asarray(wanted)
        found = np.zeros((*wanted.shape, *self.observation_space.shape), np.float32)
        with self.lock:
            for i in np.ndindex(*wanted.shape):
                if wanted[i]:
                    found[i] = self._start(seeds[i])
        return found

    def _start(self, seed: np.ndarray) -> np.ndarray:
        env = self.free.pop() if self.free else self.make()
        obs, _ = env.reset(seed=int.from_bytes(seed.tobytes(), "little"))
        self.under_way[seed.tobytes()] = [env, 0, None]
        if len(self.under_way) > MOST_EPISODES:
            self.free.append(self.under_way.popitem(last=False)[1][0])
        return self.flatten(obs)

    def step(self, state: Any, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(obs, reward, terminated, truncated) `[...]`; an episode that is not under way here is cut where it is."""
        seeds, times, obs, actions = (np.asarray(x) for x in (*state, actions))
        obs, shape = obs.copy(), times.shape
        found = obs, np.zeros(shape, np.float32), np.zeros(shape, bool), np.ones(shape, bool)
        with self.lock:
            for i in np.ndindex(*shape):
                slot = self.under_way.get(seeds[i].tobytes())
                if slot is not None:
                    for all_of, x in zip(found, self._step(seeds[i], slot, int(times[i]), actions[i]), strict=True):
                        all_of[i] = x
        return found

    def _step(self, seed: np.ndarray, slot: list[Any], time: int, action: np.ndarray) -> tuple[Any, ...]:
        """The compiler may ask twice for the same step, which is taken once."""
        if slot[1] == time + 1:
            return slot[2]
        obs, reward, terminated, truncated, _ = slot[0].step(self._received(action))
        slot[1:] = [time + 1, (self.flatten(obs), float(reward), bool(terminated), bool(truncated))]
        if terminated or truncated:
            self.free.append(self.under_way.pop(seed.tobytes())[0])
        return slot[2]

    def _received(self, action: np.ndarray) -> Any:
        """[-1, 1] onto bounds that are finite."""
        if isinstance(self.acts, self.spaces.Discrete):
            return int(action) + int(self.acts.start)
        low, high, action = self.acts.low, self.acts.high, action.reshape(self.acts.shape)
        is_bounded = np.isfinite(low) & np.isfinite(high)
        with np.errstate(invalid="ignore"):
            return np.where(is_bounded, low + (action + 1.0) / 2.0 * (high - low), action).astype(self.acts.dtype)
