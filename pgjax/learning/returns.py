"""Returns and advantages, all on one reverse recurrence over time.

Every estimator takes `[T]` for one trajectory or `[T, B]` for a batch. Two flags tell how a step ends:

- `terminated`: the successor is absorbing, so its value is zero;
- `truncated`: the episode was cut, so the recursion stops but the successor still has a value.

`next_value[t]` is V of the true successor of step t: V(final observation) where the episode was truncated, V(s_T) at
the last step, V(s_{t+1}) otherwise. A rollout that stops in the middle of an episode is bootstrapped like a truncated
one. `terminated` wins where both flags are set.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar

Values = Float[Array, "T *B"]
Flags = Bool[Array, "T *B"]


def _backward(backup: Callable[..., Any], last: Any, *sequences: Array) -> Any:
    """y_t = backup(y_{t+1}, *sequences_t) for t = T-1, ..., 0, with y_T = last; returns all y."""

    def step(y: Any, x: Any) -> tuple[Any, Any]:
        y = backup(y, *x)
        return y, y

    return jax.lax.scan(step, last, sequences, reverse=True)[1]


def lambda_return(
    reward: Values,
    next_value: Values,
    terminated: Flags,
    truncated: Flags,
    gamma: Scalar,
    gae_lambda: Scalar,
) -> Values:
    """G_t = r_t + gamma [(1 - lambda) V(s_{t+1}) + lambda G_{t+1}] (Sutton & Barto, 2018, eq. 12.2, recursively)."""
    discount = gamma * (1.0 - terminated)
    trace = gae_lambda * ~(terminated | truncated)
    return _backward(
        lambda G, r, d, v, c: r + d * ((1.0 - c) * v + c * G), next_value[-1], reward, discount, next_value, trace
    )


def reward_to_go(
    reward: Values,
    terminated: Flags,
    truncated: Flags,
    gamma: Scalar,
    next_value: Values | None = None,
) -> Values:
    """G_t = r_t + gamma G_{t+1} until the episode ends (Sutton & Barto, 2018, eq. 3.9): the lambda-return at lambda 1.

    `next_value` bootstraps where the episode or the rollout was cut short; without it what was not seen counts as 0.
    """
    next_value = jnp.zeros_like(reward) if next_value is None else next_value
    return lambda_return(reward, next_value, terminated, truncated, gamma, 1.0)


def episode_start(reset: Bool[Array, "T B"]) -> Int[Array, "T B"]:
    """For every step the index of the first step of its episode; 0 for one that was under way before."""
    step = jnp.arange(reset.shape[0])[:, None]
    return jax.lax.cummax(jnp.where(reset, step, 0), axis=0)


def time_step_baseline(
    target: Float[Array, "T B"], weight: Float[Array, "T B"], time: Int[Array, "T B"]
) -> Float[Array, "T B"]:
    """b_t = sum(weight target) / sum(weight) over the steps at the same `time` of *other* trajectories (columns).

    Weights of 1 (0 for steps that do not count) give the mean per time step; weights of |grad log pi|^2 the baseline
    E[g^2 R | t] / E[g^2 | t] of least variance (Greensmith et al., 2004, section 3.3). Its own trajectory is left out,
    so the baseline is independent of the action and the gradient stays unbiased; 0 where there is no other.
    """

    def of_others(x: Array) -> Array:
        own = jnp.zeros_like(x).at[time, jnp.arange(x.shape[1])].add(x)
        # The columns on either side: everything less one's own would cancel where that is nearly everything.
        before = jnp.cumsum(jnp.pad(own, ((0, 0), (1, 0)))[:, :-1], axis=1)
        after = jax.lax.cumsum(jnp.pad(own, ((0, 0), (0, 1)))[:, 1:], axis=1, reverse=True)
        return jnp.take_along_axis(before + after, time, axis=0)

    total, weights = of_others(weight * target), of_others(weight)
    return jnp.where(weights > 0.0, total / jnp.where(weights > 0.0, weights, 1.0), 0.0)


def n_step(
    reward: Values,
    next_value: Values,
    terminated: Flags,
    truncated: Flags,
    gamma: Scalar,
    n: int,
) -> Values:
    """G_{t:t+n} = r_t + ... + gamma^{n-1} r_{t+n-1} + gamma^n V(s_{t+n}) (Sutton & Barto, 2018, eq. 7.1).

    Fewer than n rewards are used where the episode or the rollout ends before. The recurrence carries the returns of
    length 1..n together: G^(k)_t = r_t + gamma G^(k-1)_{t+1} with G^(0) = V.
    """
    done = terminated | truncated

    def backup(G: Array, r: Array, d: Array, v: Array, done: Array) -> Array:
        shorter = jnp.concatenate([v[None], G[:-1]])
        return r + d * jnp.where(done, v, shorter)

    last = jnp.broadcast_to(next_value[-1], (n, *next_value.shape[1:]))
    return _backward(backup, last, reward, gamma * (1.0 - terminated), next_value, done)[:, -1]


def gae(
    reward: Values,
    value: Values,
    next_value: Values,
    terminated: Flags,
    truncated: Flags,
    gamma: Scalar,
    gae_lambda: Scalar,
) -> Values:
    """Generalised advantage A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t).

    Schulman et al. (2016), eq. 16. The recursion is cut at termination and at truncation; only termination removes the
    bootstrap. Where `next_value[t]` is `value[t+1]` as long as the episode goes on, `advantage + value` is the
    lambda-return.
    """
    delta = reward + gamma * (1.0 - terminated) * next_value - value
    decay = gamma * gae_lambda * ~(terminated | truncated)
    return _backward(lambda A, d, c: d + c * A, jnp.zeros_like(value[0]), delta, decay)


def vtrace(
    reward: Values,
    value: Values,
    next_value: Values,
    terminated: Flags,
    truncated: Flags,
    gamma: Scalar,
    ratio: Values,
    gae_lambda: Scalar = 1.0,
    rho_clip: Scalar = 1.0,
    c_clip: Scalar = 1.0,
) -> tuple[Values, Values]:
    """V-trace value targets and advantages (Espeholt et al., 2018, eq. 1 and section 4.2), with a trace decay lambda.

    v_t = V_t + y_t with the correction y_t = rho_t delta_t + gamma c_t y_{t+1}, where rho = min(rho_clip, ratio),
    c = lambda min(c_clip, ratio) and delta_t = r_t + gamma V(s_{t+1}) - V_t. `ratio` is pi(a|s) / mu(a|s), the policy
    that learns over the one that acted.

    A_t = delta_t + gamma lambda y_{t+1}: at ratio 1 that of `gae`, at lambda 1 r_t + gamma v_{t+1} - V_t. It corrects
    for the actions after a_t; the importance weight of a_t itself is left to the loss. A surrogate multiplies by the
    ratio, a policy gradient by min(rho_clip, ratio).

    Returns:
        (value_target, advantage), each shaped like `value`.
    """
    continues = ~(terminated | truncated)
    rho = jnp.minimum(rho_clip, ratio)
    c = gae_lambda * jnp.minimum(c_clip, ratio)
    delta = reward + gamma * (1.0 - terminated) * next_value - value
    last = jnp.zeros_like(value[0])
    correction = _backward(lambda y, d, c: d + c * y, last, rho * delta, gamma * c * continues)
    following = jnp.concatenate([correction[1:], last[None]])
    return value + correction, delta + gamma * gae_lambda * continues * following


def group_advantage(
    reward: Float[Array, "N *rest"],
    group_size: int,
    scale: Literal["std", "none"] = "std",
    epsilon: float = 1e-4,
    ddof: int = 1,
) -> Float[Array, "N *rest"]:
    """A_i = (r_i - mean r) / (std r + epsilon) over the group of i: `group_size` answers to one question, side by side.

    Shao et al. (2024), section 4.1.1, with the standard deviation of `ddof` degrees of freedom less than the group has
    members. Scaled by it, a question counts for more the closer its answers are to all right or all wrong; with
    `scale="none"` (Liu et al., 2025, section 3.1) all count alike, and A_i is (group_size - 1) / group_size times the
    advantage of `leave_one_out`, whose expectation is the policy gradient.

    Raises:
        InputError: `group_size` is less than 2 or does not divide N, or `scale` is neither.
    """
    if scale not in ("std", "none"):
        raise InputError(f"group_advantage: scale = {scale!r} is not accepted: expected 'std' or 'none'")
    groups = _in_groups(reward, group_size)
    centred = groups - jnp.mean(groups, axis=1, keepdims=True)
    if scale == "std":
        centred /= jnp.std(groups, axis=1, keepdims=True, ddof=ddof) + epsilon
    return centred.reshape(reward.shape)


def leave_one_out(reward: Float[Array, "N *rest"], group_size: int) -> Float[Array, "N *rest"]:
    """A_i = r_i - mean of the others in the group of i (Kool et al., 2019, eq. 8; Ahmadian et al., 2024, eq. 8).

    Groups are `group_size` answers to one question, side by side. The baseline knows nothing of answer i, so that the
    expectation of A_i grad log pi is the policy gradient.

    Raises:
        InputError: `group_size` is less than 2 or does not divide N.
    """
    groups = _in_groups(reward, group_size)
    others = (jnp.sum(groups, axis=1, keepdims=True) - groups) / (group_size - 1)
    return (groups - others).reshape(reward.shape)


def _in_groups(reward: Array, group_size: int) -> Array:
    if group_size < 2 or reward.shape[0] % group_size:
        raise InputError(
            f"group_size = {group_size} is not accepted: expected 2 or more, and a divisor of the {reward.shape[0]} "
            "rewards"
        )
    return reward.reshape(-1, group_size, *reward.shape[1:])
