"""What single tokens earn where a whole answer is scored, and the policy shall stay near another one."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar
from pgjax.learning import losses

KL_ESTIMATORS = {"k1": losses.kl_k1, "k2": losses.kl_k2, "k3": losses.kl_k3}


def token_rewards(
    score: Float[Array, "B"],
    log_prob: Float[Array, "B T"],
    ref_log_prob: Float[Array, "B T"],
    mask: Shaped[Array, "B T"],
    beta: Scalar,
    kl: Literal["k1", "k2", "k3"] = "k1",
    at: Literal["last", "after"] = "last",
) -> Float[Array, "B T"]:
    """r_t = 1[t = last] score - beta KL_t, with an estimate KL_t of KL(pi || pi_ref) at the token that was sampled.

    Ziegler et al. (2019), eq. 2, token by token: with k1, KL_t = log pi(a_t) - log pi_ref(a_t), the sum over an answer
    is score - beta (log pi(y) - log pi_ref(y)).

    The reward is the right place for k1 under PPO: its score-function gradient is that of KL(pi || pi_ref), so that the
    best policy is pi_ref(y) exp(score / beta) / Z. With k2 and k3 it is not, since a score function leaves out the
    gradients of the estimates themselves: E[k3 grad log pi] = grad KL(pi || pi_ref) - grad KL(pi_ref || pi), which like
    E[k2 grad log pi] is 0 to first order where pi is near pi_ref, and drives what has become rare to probability 0.
    What they do in a loss is said in `losses`.

    Args:
        score: of each answer.
        log_prob: of its tokens, right-padded, under the policy that sampled them.
        ref_log_prob: under the policy to stay near.
        mask: which slots are tokens of the answer, its end of text included; the others earn nothing but the score.
        kl: the estimator, as in `losses`.
        at: the score is paid at the last token, or in the slot after it where there is one.

    Raises:
        InputError: `kl` or `at` is none of these.
    """
    if kl not in KL_ESTIMATORS:
        raise InputError(f"token_rewards: kl = {kl!r} is not accepted: expected one of {', '.join(KL_ESTIMATORS)}")
    if at not in ("last", "after"):
        raise InputError(f"token_rewards: at = {at!r} is not accepted: expected 'last' or 'after'")
    counted = mask != 0
    penalty = jnp.where(counted, beta * KL_ESTIMATORS[kl](ref_log_prob - log_prob), 0.0)
    slot = jnp.arange(mask.shape[1])
    last = jnp.max(jnp.where(counted, slot, -1), axis=1)
    paid_at = last if at == "last" else jnp.where(last < 0, -1, jnp.minimum(last + 1, mask.shape[1] - 1))
    return jnp.where(slot == paid_at[:, None], score[:, None], 0.0) - penalty


def whiten(
    x: Float[Array, "*tokens"], mask: Shaped[Array, "*tokens"], shift_mean: bool = True
) -> Float[Array, "*tokens"]:
    """(x - mean) / sqrt(var + 1e-8) by the mean and the unbiased variance of what `mask` counts.

    Without `shift_mean` the mean is added again, so that it stays: a reward of 0 does not, unless the mean is 0. What
    is not counted is shifted and scaled like the rest and enters nothing.
    """
    mean = losses.masked_mean(x, mask)
    count = jnp.sum(mask, dtype=jnp.float32)
    variance = losses.masked_mean((x - mean) ** 2, mask) * count / jnp.maximum(count - 1.0, 1.0)
    whitened = (x - mean) / jnp.sqrt(variance + 1e-8)
    return whitened if shift_mean else whitened + mean


def pass_at_k(passed: Shaped[Array, "prompts n"], k: int) -> Float[Array, "prompts"]:
    """1 - C(n - c, k) / C(n, k) with c of n answers to a prompt that pass: the unbiased estimate of the probability
    that one of k does (Chen et al., 2021, eq. 1).

    Raises:
        InputError: `k` is not between 1 and n.
    """
    n = passed.shape[1]
    if not 1 <= k <= n:
        raise InputError(f"pass_at_k: k = {k} is not accepted: expected 1 to {n}, the number of answers")
    wrong = n - jnp.sum(passed != 0, axis=1)
    none_of_k = jnp.prod(jnp.clip((wrong[:, None] - jnp.arange(k)) / (n - jnp.arange(k)), 0.0), axis=1)
    return 1.0 - none_of_k
