"""A bandit that shows where each estimator of the KL divergence leads, in the reward or in the loss.

There is no noise: the policy follows the exact mean of the sampled gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from pgjax import alignment, losses
from pgjax.alignment.rewards import KL_ESTIMATORS

ARMS, BETA = 8, 0.5
PLACEMENTS = {
    ("k1", "reward"): "KL(pi, pi_ref)",
    ("k2", "reward"): "none, 0 to first order",
    ("k3", "reward"): "KL(pi, pi_ref) - KL(pi_ref, pi)",
    ("k1", "loss"): "0",
    ("k2", "loss"): "KL(pi, pi_ref)",
    ("k3", "loss"): "KL(pi_ref, pi)",
}
"""What the mean gradient of each estimator is that of, when it is in the reward or in the loss."""


class Bandit(NamedTuple):
    """Expected rewards, where policies should end, and where they go."""

    reward: np.ndarray
    ref: np.ndarray
    tilted: np.ndarray
    """pi_ref exp(r / beta) / Z, where E[r] - beta KL(pi, pi_ref) is largest."""
    forward: np.ndarray
    """Where E[r] - beta KL(pi_ref, pi) is largest."""
    policies: dict[tuple[str, str], np.ndarray]
    """`[steps + 1, arms]` for each of `PLACEMENTS`."""
    unregularised: np.ndarray
    """The same with beta = 0."""


def bandit(steps: int) -> Bandit:
    """So many steps of gradient ascent in the logits, of size 1, from pi_ref."""
    rng = np.random.default_rng(0)
    ref, reward = rng.dirichlet(np.full(ARMS, 2.0)), rng.normal(size=ARMS)
    tilted = ref * np.exp(reward / BETA)
    policies = {placement: ascent(ref, reward, BETA, *placement, steps) for placement in PLACEMENTS}
    unregularised = ascent(ref, reward, 0.0, "k1", "loss", steps)
    return Bandit(reward, ref, tilted / tilted.sum(), forward_optimum(ref, reward), policies, unregularised)


def forward_optimum(ref: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Where E[r] - beta KL(pi_ref, pi) is largest: r(a) + beta pi_ref(a) / pi(a) is the same number for all a, so
    pi(a) = beta pi_ref(a) / (number - r(a)), which sums to 1."""

    def policy(number: float) -> np.ndarray:
        return BETA * ref / (number - reward)

    best = reward.argmax()
    least, most = reward[best] + BETA * ref[best], reward[best] + BETA  # sums of at least 1, and of at most 1
    return policy(brentq(lambda number: policy(number).sum() - 1.0, least, most, xtol=1e-14))


def ascent(ref: np.ndarray, reward: np.ndarray, beta: float, name: str, place: str, steps: int) -> np.ndarray:
    """The policies on the way, `[steps + 1, arms]`; one stays where it is when its next logits are not finite."""
    ref_log_prob, score = jnp.log(jnp.asarray(ref, jnp.float32)), jnp.asarray(reward, jnp.float32)

    def loss(logits: jax.Array) -> jax.Array:
        """The mean over the arms as they are sampled, which no gradient goes through."""
        log_prob = jax.nn.log_softmax(logits)
        sampled = jax.lax.stop_gradient(jnp.exp(log_prob))
        if place == "loss":
            penalty = beta * KL_ESTIMATORS[name](ref_log_prob - log_prob)
            return jnp.sum(sampled * (losses.policy_gradient(log_prob, score) + penalty))
        tokens = (x[:, None] for x in (log_prob, ref_log_prob, jnp.ones(ARMS)))
        earned = alignment.token_rewards(score, *tokens, beta, kl=name)[:, 0]
        return jnp.sum(sampled * losses.policy_gradient(log_prob, jax.lax.stop_gradient(earned)))

    def step(logits: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        moved = logits - jax.grad(loss)(logits)
        moved = jnp.where(jnp.all(jnp.isfinite(moved)), moved, logits)
        return moved, moved

    logits = jax.jit(lambda start: jax.lax.scan(step, start, length=steps)[1])(ref_log_prob)
    return np.asarray(jax.nn.softmax(jnp.concatenate([ref_log_prob[None], logits])), float)


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return 0.5 * np.abs(p - q).sum(axis=-1)
