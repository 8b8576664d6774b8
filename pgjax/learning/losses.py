"""Losses, one function per published equation. Each returns one number per sample, to be averaged over real steps."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar

PerSample = Float[Array, "*samples"]
Aggregation: TypeAlias = Literal["token", "sequence", "constant"]


def policy_gradient(log_prob: PerSample, advantage: PerSample) -> PerSample:
    """-log pi(a|s) A, whose gradient is the score-function estimator (Williams, 1992)."""
    return -log_prob * advantage


def surrogate(ratio: PerSample, advantage: PerSample) -> PerSample:
    """-ratio A, the importance-weighted objective of conservative policy iteration (Kakade & Langford, 2002;
    Schulman et al., 2017, eq. 6).

    `ratio` is pi(a|s) / pi_old(a|s); at ratio 1 its gradient is that of `policy_gradient`.
    """
    return -ratio * advantage


def ppo_clip(
    ratio: PerSample, advantage: PerSample, clip_eps: Scalar, clip_eps_high: Scalar | None = None
) -> PerSample:
    """-min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) (Schulman et al., 2017, eq. 7).

    The minimum is a pessimistic bound: the gradient vanishes only where moving
    further would profit from leaving the clip range. `clip_eps_high` is another eps above 1: a larger one lets
    improbable actions grow faster (Yu et al., 2025, section 3.1).
    """
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + (clip_eps if clip_eps_high is None else clip_eps_high))
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def kl_penalty(ratio: PerSample, advantage: PerSample, kl: PerSample, beta: Scalar) -> PerSample:
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


def value_loss(value: PerSample, value_target: PerSample) -> PerSample:
    """(V - target)^2 / 2."""
    return 0.5 * (value - value_target) ** 2


def clipped_value_loss(value: PerSample, old_value: PerSample, value_target: PerSample, clip_eps: Scalar) -> PerSample:
    """max((V - target)^2, (V_clip - target)^2) / 2 with V_clip within eps of the value at collection.

    From the reference implementation of PPO, not its paper (see Engstrom et al., 2020, section 3).
    """
    clipped = old_value + jnp.clip(value - old_value, -clip_eps, clip_eps)
    return jnp.maximum(value_loss(value, value_target), value_loss(clipped, value_target))


def bradley_terry(chosen: PerSample, rejected: PerSample, margin: PerSample | float = 0.0) -> PerSample:
    """-log sigmoid(chosen - rejected - margin) of each pair of scores (Bradley & Terry, 1952).

    The negative log-likelihood of a preference; a margin asks for that much distance (Touvron et al., 2023, eq. 2).
    """
    return jax.nn.softplus(margin - (chosen - rejected))


def dpo(
    chosen_log_ratio: PerSample, rejected_log_ratio: PerSample, beta: Scalar, label_smoothing: Scalar = 0.0
) -> PerSample:
    """-log sigmoid(beta h), h = log pi(y+) / pi_ref(y+) - log pi(y-) / pi_ref(y-) (Rafailov et al., 2023, eq. 7).

    Bradley-Terry with beta log pi / pi_ref as the reward of an answer. `label_smoothing` is the probability that a
    label is wrong, for which the loss expects that much of the other order (conservative DPO; Mitchell, 2023): its
    minimum is at sigmoid(beta h) = 1 - label_smoothing.
    """
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    return (1.0 - label_smoothing) * jax.nn.softplus(-margin) + label_smoothing * jax.nn.softplus(margin)


def robust_dpo(
    chosen_log_ratio: PerSample, rejected_log_ratio: PerSample, beta: Scalar, label_smoothing: Scalar
) -> PerSample:
    """The loss whose expectation over labels that are wrong with probability `label_smoothing` < 1/2 is that of `dpo`
    on the right ones (Chowdhury et al., 2024, eq. 12)."""
    right = dpo(chosen_log_ratio, rejected_log_ratio, beta)
    wrong = dpo(rejected_log_ratio, chosen_log_ratio, beta)
    return ((1.0 - label_smoothing) * right - label_smoothing * wrong) / (1.0 - 2.0 * label_smoothing)


def hinge(chosen_log_ratio: PerSample, rejected_log_ratio: PerSample, beta: Scalar) -> PerSample:
    """max(0, 1 - beta h) with h as for `dpo` (Zhao et al., 2023, eq. 1; Liu et al., 2024)."""
    return jax.nn.relu(1.0 - beta * (chosen_log_ratio - rejected_log_ratio))


def ipo(chosen_log_ratio: PerSample, rejected_log_ratio: PerSample, beta: Scalar) -> PerSample:
    """(h - 1 / (2 beta))^2 with h as for `dpo` (Azar et al., 2024, eq. 17): a margin to reach, and not to exceed."""
    return (chosen_log_ratio - rejected_log_ratio - 0.5 / beta) ** 2


def kto(
    log_ratio: PerSample,
    desirable: Shaped[Array, "*samples"],
    kl: PerSample | Float[Array, ""] | float,
    beta: Scalar,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> PerSample:
    """w (1 - sigmoid(s beta (log pi(y) / pi_ref(y) - kl))) (Ethayarajh et al., 2024, eq. 8).

    s = 1 and w = `desirable_weight` where an answer is desirable, s = -1 and w = `undesirable_weight` where it is not.

    `kl` is the reference point, an estimate of KL(pi || pi_ref); it is clamped at 0, and has no gradient.
    """
    reference = jax.lax.stop_gradient(jnp.maximum(kl, 0.0))
    gain = beta * (log_ratio - reference)
    good = desirable != 0
    weight = jnp.where(good, desirable_weight, undesirable_weight)
    return weight * jax.nn.sigmoid(jnp.where(good, -gain, gain))


def kl_k1(log_ratio: PerSample) -> PerSample:
    """-log r with r = pi(a|s) / pi_old(a|s), a ~ pi_old: unbiased for KL(pi_old || pi), high variance.

    J. Schulman, "Approximating KL Divergence", 2020. To keep a policy p that learns near p_ref, all three are given
    log r = log p_ref - log p with a ~ p, and estimate KL(p || p_ref). Put into a loss, whose gradient holds the sampled
    actions fixed, k1 gives E[grad log p] = 0 and regularises nothing. Taken off the reward of a score-function gradient
    it gives E[k1 grad log p] = grad KL(p || p_ref).
    """
    return -log_ratio


def kl_k2(log_ratio: PerSample) -> PerSample:
    """(log r)^2 / 2 with r and a as for `kl_k1`: biased, low variance.

    Put into a loss with r = p_ref / p and a ~ p it gives E[log(p / p_ref) grad log p] = grad KL(p || p_ref), as k1 does
    in the reward.
    """
    return 0.5 * log_ratio**2


def kl_k3(log_ratio: PerSample) -> PerSample:
    """(r - 1) - log r with r and a as for `kl_k1`: unbiased for KL(pi_old || pi), low variance and never negative.

    Put into a loss with r = p_ref / p and a ~ p it gives E[(1 - p_ref / p) grad log p] = -E_ref[grad log p] =
    grad KL(p_ref || p), the divergence in the other direction.
    """
    return jnp.expm1(log_ratio) - log_ratio


def masked_mean(x: PerSample, mask: Shaped[Array, "*samples"] | None) -> Float[Array, ""]:
    """sum(mask x) / sum(mask): the mean over what the mask counts, or weighs; over all without one; 0 of nothing."""
    if mask is None:
        return jnp.mean(x)
    weight = jnp.sum(mask, dtype=jnp.float32)
    return jnp.sum(jnp.where(mask != 0, mask * x, 0.0)) / jnp.where(weight > 0.0, weight, 1.0)


def aggregate(
    loss: Float[Array, "B T"], mask: Shaped[Array, "B T"], how: Aggregation, length: int | None = None
) -> Float[Array, ""]:
    """One loss of the losses of the tokens of answers, which `mask` counts:

    - `token`: their mean over all tokens of the batch (Yu et al., 2025, eq. 8): long answers weigh more;
    - `sequence`: the mean over answers of the mean over tokens (Shao et al., 2024, eq. 3): a token of a long answer
      weighs less, so that a wrong answer is punished less for being long;
    - `constant`: the sum over tokens divided by a constant `length`, by default T, averaged over answers (Liu et al.,
      2025, section 3.1): the one whose gradient is the policy gradient's, up to that constant.

    Raises:
        InputError: `how` is none of these.
    """
    total, weight = aggregate_sums(loss, mask, how, length)
    return total / jnp.where(weight > 0.0, weight, 1.0)


def aggregate_sums(
    loss: Float[Array, "B T"], mask: Shaped[Array, "B T"], how: Aggregation, length: int | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The numerator and the denominator of `aggregate`, which add up over parts of a batch."""
    known = get_args(Aggregation)
    if how not in known:
        raise InputError(f"aggregate: how = {how!r} is not accepted: expected one of {', '.join(known)}")
    tokens = jnp.sum(mask, axis=1, dtype=jnp.float32)
    sums = jnp.sum(jnp.where(mask != 0, mask * loss, 0.0), axis=1)
    if how == "token":
        return jnp.sum(sums), jnp.sum(tokens)
    answers = jnp.sum(tokens > 0.0, dtype=jnp.float32)
    return jnp.sum(sums / (jnp.maximum(tokens, 1.0) if how == "sequence" else (length or loss.shape[1]))), answers


def normalized_advantage(
    advantage: PerSample, mask: Shaped[Array, "*samples"] | None = None, epsilon: float = 1e-8
) -> PerSample:
    """(A - mean A) / (std A + epsilon) over what `mask` counts; over all without one."""
    centred = advantage - masked_mean(advantage, mask)
    return centred / (jnp.sqrt(masked_mean(centred**2, mask)) + epsilon)


def explained_variance(value: PerSample, value_target: PerSample) -> Float[Array, ""]:
    """1 - Var[target - V] / Var[target]: 1 is perfect, 0 no better than a constant; 0 where the target is constant."""
    varies = jnp.max(value_target) > jnp.min(value_target)  # the variance of equal numbers may round to more than 0
    variance = jnp.where(varies, jnp.var(value_target), 1.0)
    return jnp.where(varies, 1.0 - jnp.var(value_target - value) / variance, 0.0)
