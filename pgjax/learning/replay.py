"""Replay: transitions kept on the device in the order they happened, and batches of n-step targets drawn from them."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pgjax.core.algorithm import Key
from pgjax.core.devices import total_bytes
from pgjax.core.hyperparameters import Scalar
from pgjax.environments.base import Discrete, Environment

ReplayState: TypeAlias = Any
"""flashbax's, whose arrays are `[B, length, ...]`."""


class Experience(NamedTuple):
    """One step of each environment, as it is stored: observations in the smallest type that holds them."""

    obs: Array
    action: Array
    """What the environment was given."""
    reward: Array
    terminated: Array
    truncated: Array
    next_obs: Array
    """Of the true successor, before any reset."""


class Batch(NamedTuple):
    """What critics learn from: r + discount Q(next_obs, .), `[N, ...]`."""

    obs: Float[Array, "N *obs"]
    action: Array
    reward: Float[Array, "N"]
    """sum_k gamma^k r_k over the steps of a target."""
    discount: Float[Array, "N"]
    """gamma to the number of those steps; 0 where the last one terminated."""
    next_obs: Float[Array, "N *obs"]
    """After the last of them."""


def example(env: Environment) -> Experience:
    """Zeros in the shapes and types of one stored transition."""
    space, actions = env.observation_space, env.action_space
    obs = jnp.zeros(space.shape, space.dtype)
    action = jnp.zeros((), jnp.int32) if isinstance(actions, Discrete) else jnp.zeros(actions.shape)
    return Experience(obs, action, jnp.float32(0.0), jnp.bool_(False), jnp.bool_(False), obs)


def replay_bytes(env: Environment, size: int) -> int:
    """What `size` transitions take."""
    return size * total_bytes(jax.eval_shape(lambda: example(env)))


class Replay(NamedTuple):
    """A buffer for `num_envs` environments with `length` transitions of each, from which sequences of n are drawn."""

    num_envs: int
    length: int
    n: int
    batch_size: int

    @property
    def _buffer(self) -> Any:
        import flashbax  # a second to import, which only off-policy algorithms need

        return flashbax.make_trajectory_buffer(
            add_batch_size=self.num_envs,
            max_length_time_axis=self.length,
            min_length_time_axis=self.n,
            sample_batch_size=self.batch_size,
            sample_sequence_length=self.n,
            period=1,
        )

    def init(self, env: Environment) -> ReplayState:
        """Without any transition."""
        empty = self._buffer.init(example(env))
        return empty.replace(current_index=jnp.int32(0))

    def add(self, state: ReplayState, batch: Experience) -> ReplayState:
        """With a rollout `[T, B, ...]` in place of the oldest transitions."""
        return self._buffer.add(state, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch))

    def holds(self, state: ReplayState, num: int) -> Bool[Array, ""]:
        """Whether there are at least `num` transitions."""
        return state.is_full | (state.current_index * self.num_envs >= num)

    def sample(self, state: ReplayState, key: Key, gamma: Scalar) -> Batch:
        """`batch_size` targets, drawn with replacement."""
        return n_step(self._buffer.sample(state, key).experience, gamma)


def n_step(sequence: Experience, gamma: Scalar) -> Batch:
    """Targets of sequences `[N, n, ...]` (Sutton & Barto, 2018, eq. 7.1), cut at the end of an episode.

    A step that was truncated is the last one like one that terminated, but its successor has a value.
    """
    n = sequence.reward.shape[1]
    goes_on = 1.0 - (sequence.terminated | sequence.truncated).astype(jnp.float32)
    counted = jnp.concatenate([jnp.ones_like(goes_on[:, :1]), jnp.cumprod(goes_on, axis=1)[:, :-1]], axis=1)
    powers = jnp.asarray(gamma, jnp.float32) ** jnp.arange(n + 1)
    steps = jnp.sum(counted, axis=1).astype(jnp.int32)

    def last(x: Array) -> Array:
        return x[jnp.arange(x.shape[0]), steps - 1]

    return Batch(
        obs=sequence.obs[:, 0].astype(jnp.float32),
        action=sequence.action[:, 0],
        reward=jnp.sum(powers[:-1] * counted * sequence.reward, axis=1),
        discount=jnp.where(last(sequence.terminated), 0.0, powers[steps]),
        next_obs=last(sequence.next_obs).astype(jnp.float32),
    )
