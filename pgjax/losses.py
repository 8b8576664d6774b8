"""Losses, one function per published equation. Each returns one number per sample, to be averaged over real steps."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pgjax.types import Scalar

Samples = Float[Array, "*samples"]


def policy_gradient(log_prob: Samples, advantage: Samples) -> Samples:
    """-log pi(a|s) A, whose gradient is the score-function estimator (Williams, 1992)."""
    return -log_prob * advantage


def ppo_clip(ratio: Samples, advantage: Samples, clip_eps: Scalar) -> Samples:
    """-min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) (Schulman et al., 2017, eq. 7).

    `ratio` is pi(a|s) / pi_old(a|s). The minimum is a pessimistic bound: the gradient vanishes only where moving
    further would profit from leaving the clip range.
    """
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def kl_penalty(ratio: Samples, advantage: Samples, kl: Samples, beta: Scalar) -> Samples:
    """-(ratio A - beta KL[pi_old, pi]) (Schulman et al., 2017, eq. 8)."""
    return beta * kl - ratio * advantage


def value_loss(value: Samples, value_target: Samples) -> Samples:
    """(V - target)^2 / 2."""
    return 0.5 * (value - value_target) ** 2


def clipped_value_loss(value: Samples, old_value: Samples, value_target: Samples, clip_eps: Scalar) -> Samples:
    """max((V - target)^2, (V_clip - target)^2) / 2 with V_clip within eps of the value at collection.

    From the reference implementation of PPO, not its paper (see Engstrom et al., 2020, section 3).
    """
    clipped = old_value + jnp.clip(value - old_value, -clip_eps, clip_eps)
    return jnp.maximum(value_loss(value, value_target), value_loss(clipped, value_target))


def kl_k1(log_ratio: Samples) -> Samples:
    """-log r with r = pi(a|s) / pi_old(a|s), a ~ pi_old: unbiased for KL(pi_old || pi), high variance.

    J. Schulman, "Approximating KL Divergence", 2020.
    """
    return -log_ratio


def kl_k2(log_ratio: Samples) -> Samples:
    """(log r)^2 / 2: biased, low variance; its gradient at r = 1 is that of the KL."""
    return 0.5 * log_ratio**2


def kl_k3(log_ratio: Samples) -> Samples:
    """(r - 1) - log r: unbiased for KL(pi_old || pi), low variance and never negative."""
    return jnp.expm1(log_ratio) - log_ratio


def normalized_advantage(advantage: Samples, epsilon: float = 1e-8) -> Samples:
    """(A - mean A) / (std A + epsilon) over all samples given."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + epsilon)


def explained_variance(value: Samples, value_target: Samples) -> Float[Array, ""]:
    """1 - Var[target - V] / Var[target]: 1 is perfect, 0 no better than a constant; 0 where the target is constant."""
    varies = jnp.max(value_target) > jnp.min(value_target)  # the variance of equal numbers may round to more than 0
    variance = jnp.where(varies, jnp.var(value_target), 1.0)
    return jnp.where(varies, 1.0 - jnp.var(value_target - value) / variance, 0.0)
