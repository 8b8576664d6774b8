"""Problems so small that their answers are known in closed form: what an algorithm learns can be checked exactly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax.core.algorithm import Key
from pgjax.core.hyperparameters import Scalar, check_fields, field, pytree
from pgjax.environments.base import Box, Discrete, Space, TimeStep


class ProbeState(NamedTuple):
    """What a probe knows of the episode under way."""

    cue: jax.Array
    """int32: what the episode is about."""
    time: jax.Array
    """int32: steps taken in this episode."""


@pytree
class ConstantReward:
    """Reward 1 at every step and nothing else, cut after `time_limit` steps.

    With the limit treated as truncation V = 1 / (1 - gamma); treated as death, V averages over the time to the limit
    and is smaller.
    """

    time_limit: Scalar = field("steps until the episode is truncated", default=10, accepts="[1, inf)")
    continuous: bool = field("ask for a number instead of a choice", default=False)

    name = "ConstantReward"

    def __post_init__(self) -> None:
        check_fields(self)

    observation_space = Box((1,))

    @property
    def action_space(self) -> Space:
        """Two choices, or one number in [-1, 1] if `continuous`."""
        return Box((1,), -1.0, 1.0) if self.continuous else Discrete(2)

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        """Observation 1, the only one there is."""
        return ProbeState(jnp.int32(0), jnp.int32(0)), jnp.ones((1,))

    def step(self, key: Key, state: Any, action: jax.Array) -> TimeStep:
        """Reward 1 for any action; truncated at `time_limit`."""
        time = state.time + 1
        state = ProbeState(state.cue, time)
        return TimeStep(state, jnp.ones((1,)), jnp.float32(1.0), jnp.bool_(False), time >= self.time_limit)

    def received(self, action: jax.Array) -> jax.Array:
        """The action unchanged."""
        return action


@pytree
class DelayedReward:
    """Two steps: observation 0 with reward 0, then observation 1 with reward 1 and the end. V(0) = gamma, V(1) = 1."""

    name = "DelayedReward"
    observation_space = Box((1,))
    action_space: Space = Discrete(2)
    time_limit = 2

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        """Observation 0."""
        return ProbeState(jnp.int32(0), jnp.int32(0)), jnp.zeros((1,))

    def step(self, key: Key, state: Any, action: jax.Array) -> TimeStep:
        """Observation 1 after either step; the second one pays 1 and terminates."""
        last = state.time == 1
        next_state = ProbeState(state.cue, state.time + 1)
        return TimeStep(next_state, jnp.ones((1,)), last.astype(jnp.float32), last, jnp.zeros_like(last))

    def received(self, action: jax.Array) -> jax.Array:
        """The action unchanged."""
        return action


@pytree
class Recall:
    """A cue of -1 or +1 in the first observation, `delay` empty ones, then reward 1 for the action that names the cue.

    Without memory the best expected return is 1/2, with memory 1; with `delay` 0 no memory is needed.
    `continuous` asks for an action in [-1, 1] and pays 1 - (action - cue)^2.
    """

    delay: int = field("observations between the cue and the answer", default=0, accepts="[0, inf)")
    continuous: bool = field("answer with a number instead of a choice", default=False)

    name = "Recall"

    def __post_init__(self) -> None:
        check_fields(self)

    observation_space = Box((2,))

    @property
    def time_limit(self) -> int:
        """`delay` steps before the answer, and the answer's own."""
        return self.delay + 1

    @property
    def action_space(self) -> Space:
        """Two choices, or one number in [-1, 1] if `continuous`."""
        return Box((1,), -1.0, 1.0) if self.continuous else Discrete(2)

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        """A cue of either sign with probability 1/2, seen in the first observation only."""
        state = ProbeState(jax.random.randint(key, (), 0, 2), jnp.int32(0))
        return state, self._observe(state)

    def step(self, key: Key, state: Any, action: jax.Array) -> TimeStep:
        """Reward 0 before the answer at time `delay`, which is paid for and terminates."""
        asked = state.time == self.delay
        if self.continuous:
            reward = 1.0 - (self.received(action)[0] - (2.0 * state.cue - 1.0)) ** 2
        else:
            reward = (action == state.cue).astype(jnp.float32)
        next_state = ProbeState(state.cue, state.time + 1)
        return TimeStep(
            state=next_state,
            obs=self._observe(next_state),
            reward=jnp.where(asked, reward, 0.0),
            terminated=asked,
            truncated=jnp.zeros_like(asked),
        )

    def received(self, action: jax.Array) -> jax.Array:
        """A number clipped to [-1, 1]; a choice unchanged."""
        return jnp.clip(action, -1.0, 1.0) if self.continuous else action

    def _observe(self, state: ProbeState) -> jax.Array:
        cue = jnp.where(state.time == 0, 2.0 * state.cue - 1.0, 0.0)
        return jnp.stack([cue, (state.time == self.delay).astype(jnp.float32)])


@pytree
class TabularMDP:
    """A finite MDP with known transitions and rewards, of at most `horizon` steps.

    In state s < S action a pays r[s, a] and leads to s' with probability P[s, a, s']; s' = S ends the episode. The time
    is part of the observation, a one-hot vector over (time, state), so that values are those of a finite horizon and
    the policy without hidden layers, `MLP(hidden=())`, is a table. Episodes start in state 0.
    """

    transition: Scalar
    """P, of shape [S, A, S + 1]."""
    reward: Scalar
    """r, of shape [S, A]."""
    horizon: int = field("steps after which the episode ends", default=1, accepts="[1, inf)")

    name = "TabularMDP"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def observation_space(self) -> Box:
        """One-hot over (time, state): `[horizon * S]`."""
        return Box((self.horizon * jnp.shape(self.reward)[0],))

    @property
    def action_space(self) -> Space:
        """A choice of A, the columns of `reward`."""
        return Discrete(jnp.shape(self.reward)[1])

    @property
    def time_limit(self) -> int:
        """The horizon, at which every episode has terminated."""
        return self.horizon

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        """State 0 at time 0."""
        state = ProbeState(jnp.int32(0), jnp.int32(0))
        return state, self._observe(state)

    def step(self, key: Key, state: Any, action: jax.Array) -> TimeStep:
        """s' ~ P[s, a, .] and r[s, a]; terminates where s' = S and at the horizon."""
        probabilities = jnp.asarray(self.transition)[state.cue, action]
        successor = jax.random.categorical(key, jnp.log(probabilities)).astype(jnp.int32)
        next_state = ProbeState(successor, state.time + 1)
        ended = (successor == jnp.shape(self.reward)[0]) | (next_state.time == self.horizon)
        reward = jnp.asarray(self.reward)[state.cue, action]
        return TimeStep(next_state, self._observe(next_state), reward, ended, jnp.zeros_like(ended))

    def received(self, action: jax.Array) -> jax.Array:
        """The action unchanged."""
        return action

    def _observe(self, state: ProbeState) -> jax.Array:
        index = state.time * jnp.shape(self.reward)[0] + state.cue
        return jax.nn.one_hot(index, *self.observation_space.shape)
