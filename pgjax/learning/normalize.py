"""Running moments for observations and rewards.

An algorithm keeps them fixed from the first env step of an iteration to its last gradient step and updates them after
it: the policy that is improved is then exactly the policy that acted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pgjax.core.hyperparameters import Scalar

CLIP = 10.0
"""Of normalised observations: it bounds what a feature that was constant so far can do when it first moves."""
EPSILON = 1e-8
"""Added to variances."""


class Moments(NamedTuple):
    """Mean and variance of everything seen, per element."""

    mean: Float[Array, "*shape"]
    var: Float[Array, "*shape"]
    samples: Float[Array, ""]
    """How many were seen; in float32 it stands still after some 2^24 batches, when one more weighs nothing."""


def initial_moments(shape: tuple[int, ...]) -> Moments:
    """Mean 0 and variance 1, weighing nothing against the first batch: until then `normalize` changes nothing."""
    return Moments(jnp.zeros(shape), jnp.ones(shape), jnp.float32(0.0))


def has_seen(moments: Moments) -> Bool[Array, ""]:
    """Whether they are of anything."""
    return moments.samples > 0.0


def update_moments(moments: Moments, batch: Float[Array, "*batch_and_shape"]) -> Moments:
    """Include `batch`, whose leading dimensions are samples (Chan et al., 1979, the pairwise update)."""
    axes = tuple(range(batch.ndim - moments.mean.ndim))
    size = float(batch.size // max(moments.mean.size, 1))
    samples = moments.samples + size
    share = size / samples
    delta = jnp.mean(batch, axes) - moments.mean
    within = (1.0 - share) * moments.var + share * jnp.var(batch, axes)
    return Moments(moments.mean + share * delta, within + share * (1.0 - share) * delta**2, samples)


def normalize(
    moments: Moments | None, x: Float[Array, "*batch_and_shape"], clip: float = CLIP
) -> Float[Array, "*batch_and_shape"]:
    """(x - mean) / std within [-clip, clip]; `x` itself without moments, or before they have seen anything.

    The clip bounds what a feature that was constant so far can do when it first moves.
    """
    if moments is None:
        return x
    normalized = jnp.clip((x - moments.mean) * jax.lax.rsqrt(moments.var + EPSILON), -clip, clip)
    return jnp.where(moments.samples > 0, normalized, x)


class RewardScale(NamedTuple):
    """Rewards are divided by the standard deviation of the discounted return so far (Engstrom et al., 2020)."""

    discounted_return: Float[Array, "B"]
    """Of the episode under way, per environment."""
    moments: Moments


def initial_reward_scale(num_envs: int) -> RewardScale:
    """Of no reward yet: `scale_reward` changes nothing before the first update."""
    return RewardScale(jnp.zeros(num_envs), initial_moments(()))


def at_start(scale: RewardScale) -> RewardScale:
    """The same scale where all environments start a new episode."""
    return scale._replace(discounted_return=jnp.zeros_like(scale.discounted_return))


def scale_reward(scale: RewardScale | None, reward: Float[Array, "*steps"]) -> Float[Array, "*steps"]:
    """reward / std[discounted return], neither centred nor clipped; `reward` itself without a scale."""
    return reward if scale is None else reward * jax.lax.rsqrt(scale.moments.var + EPSILON)


def update_reward_scale(
    scale: RewardScale, reward: Float[Array, "T B"], done: Bool[Array, "T B"], gamma: Scalar
) -> RewardScale:
    """Run R_t = gamma R_{t-1} + r_t through the rollout, restarting after `done`, and include all R_t."""

    def step(running: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = x
        running = gamma * running + reward
        return jnp.where(done, 0.0, running), running

    discounted_return, all_returns = jax.lax.scan(step, scale.discounted_return, (reward, done))
    return RewardScale(discounted_return, update_moments(scale.moments, all_returns))
