"""Losses, one function per published equation. Each returns one number per sample, to be averaged over real steps."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pgjax.core.hyperparameters import Scalar

Samples = Float[Array, "*samples"]


def policy_gradient(log_prob: Samples, advantage: Samples) -> Samples:
    """-log pi(a|s) A, whose gradient is the score-function estimator (Williams, 1992)."""
    return -log_prob * advantage


def surrogate(ratio: Samples, advantage: Samples) -> Samples:
    """-ratio A, the importance-weighted objective of conservative policy iteration (Kakade & Langford, 2002;
    Schulman et al., 2017, eq. 6).

    `ratio` is pi(a|s) / pi_old(a|s); at ratio 1 its gradient is that of `policy_gradient`.
    """
    return -ratio * advantage


def ppo_clip(ratio: Samples, advantage: Samples, clip_eps: Scalar) -> Samples:
    """-min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) (Schulman et al., 2017, eq. 7).

    The minimum is a pessimistic bound: the gradient vanishes only where moving
    further would profit from leaving the clip range.
    """
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def kl_penalty(ratio: Samples, advantage: Samples, kl: Samples, beta: Scalar) -> Samples:
    """-(ratio A - beta KL[pi_old, pi]) (Schulman et al., 2017, eq. 8)."""
    return surrogate(ratio, advantage) + beta * kl


def adapted_kl_coef(
    beta: Scalar, kl: Scalar, target: Scalar, low: Scalar = 1e-3, high: Scalar = 1e3
) -> Float[Array, ""]:
    """beta halved where the KL of an iteration fell below target / 1.5, doubled where it exceeded 1.5 target.

    Schulman et al. (2017), section 4. The result stays within [low, high], from which it can return; where beta is kept
    as a multiple of its initial value, as in `PPO`, so are the bounds. An infinite target leaves beta as it is.
    """
    factor = jnp.where(kl < target / 1.5, 0.5, jnp.where(kl > target * 1.5, 2.0, 1.0))
    return jnp.where(jnp.isinf(target), beta, jnp.clip(beta * factor, low, high))


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


def normalized_advantage(
    advantage: Samples, counted: Bool[Array, "*samples"] | None = None, epsilon: float = 1e-8
) -> Samples:
    """(A - mean A) / (std A + epsilon) over all samples given, or those that are `counted`."""
    mean, std = jnp.mean(advantage, where=counted), jnp.std(advantage, where=counted)
    return (advantage - mean) / (std + epsilon)


def explained_variance(value: Samples, value_target: Samples) -> Float[Array, ""]:
    """1 - Var[target - V] / Var[target]: 1 is perfect, 0 no better than a constant; 0 where the target is constant."""
    varies = jnp.max(value_target) > jnp.min(value_target)  # the variance of equal numbers may round to more than 0
    variance = jnp.where(varies, jnp.var(value_target), 1.0)
    return jnp.where(varies, 1.0 - jnp.var(value_target - value) / variance, 0.0)
