"""Environments around environments: frames stacked, actions repeated or sticky, observations flat, rewards reshaped.

A wrapper is an environment itself, so wrappers go around each other, and everything that takes an environment takes it:
`pgjax.PPO(wrappers.FrameStack(pgjax.make("Breakout-MinAtar"), 4))`. A config describes it with what is inside, and
makes it again, except for `ShapedReward`, whose function is its owner's.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core.algorithm import Key
from pgjax.core.hyperparameters import TRACED, Scalar, check_fields, field, pytree
from pgjax.environments.base import Box, Discrete, Environment, Space, TimeStep, starts, where_done


class Wrapped(NamedTuple):
    """The state of a wrapper."""

    inner: Any
    """That of the environment inside."""
    obs: jax.Array
    """What that one shows."""
    own: Any
    """What the wrapper remembers of the episode."""


@pytree
class Wrapper:
    """What all wrappers do alike; each changes what it is there for."""

    env: Annotated[Environment, TRACED] = field("what is inside")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """That of what is inside, in that of the wrapper."""
        return f"{type(self).__name__}({self.env.name})"

    @property
    def observation_space(self) -> Box:
        """As inside."""
        return self.env.observation_space

    @property
    def action_space(self) -> Space:
        """As inside."""
        return self.env.action_space

    @property
    def time_limit(self) -> Any:
        """As inside."""
        return self.env.time_limit

    def received(self, action: jax.Array) -> jax.Array:
        """As inside."""
        return self.env.received(action)

    def begin(self, obs: jax.Array) -> Any:
        """What is remembered when an episode begins."""
        return ()

    def shown(self, obs: jax.Array, own: Any) -> jax.Array:
        """What the policy sees."""
        return obs

    def reset(self, key: Key) -> tuple[Wrapped, jax.Array]:
        """The start of an episode inside."""
        inner, obs = self.env.reset(key)
        own = self.begin(obs)
        return Wrapped(inner, obs, own), self.shown(obs, own)

    def restart(self, keys: Key, done: jax.Array, old: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        """New episodes `[B]` where the old ones are done, started as what is inside starts its own."""
        state, shown = old
        inner, obs = starts(self.env)(keys, done, (state.inner, state.obs))
        own = where_done(done, jax.vmap(self.begin)(obs), state.own)
        return Wrapped(inner, obs, own), where_done(done, jax.vmap(self.shown)(obs, own), shown)

    def step(self, key: Key, state: Wrapped, action: jax.Array) -> TimeStep:
        """One transition inside."""
        taken = self.env.step(key, state.inner, action)
        return self.after(state, taken, self.remembered(state.own, taken.obs, action))

    def remembered(self, own: Any, obs: jax.Array, action: jax.Array) -> Any:
        """What is remembered after a step to `obs`."""
        return own

    def after(self, state: Wrapped, taken: TimeStep, own: Any) -> TimeStep:
        """The step as the policy sees it."""
        return taken._replace(state=Wrapped(taken.state, taken.obs, own), obs=self.shown(taken.obs, own))


@pytree
class FrameStack(Wrapper):
    """The last `n` observations side by side along their last axis, the oldest first (Mnih et al., 2015).

    At the start of an episode they are n times the first one.
    """

    n: int = field("observations that are seen at once", default=4, accepts="[1, inf)")

    @property
    def observation_space(self) -> Box:
        """With n times as many channels."""
        space = self.env.observation_space
        return space._replace(shape=(*space.shape[:-1], self.n * space.shape[-1]))

    def begin(self, obs: jax.Array) -> jax.Array:
        """The first observation, n times."""
        return jnp.concatenate([obs] * self.n, axis=-1)

    def remembered(self, own: jax.Array, obs: jax.Array, action: jax.Array) -> jax.Array:
        """The oldest makes room."""
        return jnp.concatenate([own[..., obs.shape[-1] :], obs], axis=-1)

    def shown(self, obs: jax.Array, own: jax.Array) -> jax.Array:
        """All of them."""
        return own


@pytree
class ActionRepeat(Wrapper):
    """Every action is taken `n` times, or until the episode ends, and its rewards are added; what is between is not
    seen."""

    n: int = field("steps that an action lasts", default=4, accepts="[1, inf)")

    @property
    def time_limit(self) -> Any:
        """In actions."""
        limit = self.env.time_limit
        return None if limit is None else -(-limit // self.n)

    def step(self, key: Key, state: Wrapped, action: jax.Array) -> TimeStep:
        """Up to n transitions inside."""

        def again(taken: TimeStep, key: Key) -> tuple[TimeStep, None]:
            new = self.env.step(key, taken.state, action)
            new = new._replace(reward=taken.reward + new.reward)
            ended = taken.terminated | taken.truncated
            return jax.tree.map(lambda x, y: jnp.where(ended, x, y), taken, new), None

        first_key, *keys = jax.random.split(key, self.n)
        taken = self.env.step(first_key, state.inner, action)
        if keys:
            taken, _ = jax.lax.scan(again, taken, jnp.stack(keys))
        return self.after(state, taken, state.own)


@pytree
class StickyActions(Wrapper):
    """With a probability the environment takes the action before again, whatever is chosen (Machado et al., 2018).

    Before the first that is action 0, or no force.
    """

    probability: Scalar = field("that the action before is taken again", default=0.25, accepts="[0, 1)")

    def begin(self, obs: jax.Array) -> jax.Array:
        """Action 0."""
        space = self.action_space
        return jnp.int32(0) if isinstance(space, Discrete) else jnp.zeros(space.shape)

    def step(self, key: Key, state: Wrapped, action: jax.Array) -> TimeStep:
        """One transition inside, with the action that is taken."""
        sticky_key, key = jax.random.split(key)
        is_sticky = jax.random.bernoulli(sticky_key, self.probability)
        taken_action = jnp.where(is_sticky, state.own, action).astype(state.own.dtype)
        taken = self.env.step(key, state.inner, taken_action)
        return self.after(state, taken, taken_action)


@pytree
class FlatObservation(Wrapper):
    """Observations as vectors."""

    @property
    def observation_space(self) -> Box:
        """With one axis."""
        space = self.env.observation_space
        return space._replace(shape=(int(np.prod(space.shape)),))

    def shown(self, obs: jax.Array, own: Any) -> jax.Array:
        """Row by row."""
        return obs.reshape(-1)


@pytree
class ShapedReward(Wrapper):
    """Another reward: `reward(reward, obs, action, next_obs, terminated)`.

    One that leaves the optimal policy as it is adds gamma F(next_obs) - F(obs) for a potential F, which is 0 where the
    episode has terminated (Ng et al., 1999).
    """

    reward: Callable = field("what is paid instead")

    def step(self, key: Key, state: Wrapped, action: jax.Array) -> TimeStep:
        """One transition inside, paid otherwise."""
        taken = self.env.step(key, state.inner, action)
        paid = self.reward(taken.reward, state.obs, action, taken.obs, taken.terminated)
        return self.after(state, taken._replace(reward=jnp.asarray(paid, jnp.float32).reshape(())), state.own)


WRAPPERS: dict[str, type[Wrapper]] = {
    "frame-stack": FrameStack,
    "action-repeat": ActionRepeat,
    "sticky-actions": StickyActions,
    "flat-observation": FlatObservation,
}
"""Those that a config can make again."""


def own_options(wrapper: Wrapper) -> dict[str, Any]:
    """Its fields but for what is inside."""
    return {f.name: getattr(wrapper, f.name) for f in dataclasses.fields(wrapper) if f.name != "env"}
