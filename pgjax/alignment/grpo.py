"""Group relative policy optimisation: what an answer is worth beside others to the same prompt, without a critic."""

import warnings
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.alignment.models import Prompt
from pgjax.alignment.rewards import KL_ESTIMATORS
from pgjax.alignment.sampling import Rollout, Sampling, distribution, learn, prepare
from pgjax.alignment.supervised import ModelState
from pgjax.core.algorithm import Metrics, Params
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.learning import losses, returns


class Answers(NamedTuple):
    """What is learned from: completions, `[B, ...]`."""

    prompt: Prompt
    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    """Which tokens count; none of answers that are left out."""
    log_prob: Float[Array, "B T"]
    ref_log_prob: Float[Array, "B T"]
    advantage: Float[Array, "B T"]
    kl_advantage: Float[Array, "B T"]
    """Of the log-ratios to the reference, from each token to the end."""


@pytree
class GRPO(Sampling):
    """Group relative policy optimisation (Shao et al., 2024, eq. 3).

    Adam minimises, aggregated over the tokens of completions,

        -min(rho A, clip(rho, 1 - eps, 1 + eps_high) A) + beta KL,  A = (r - mean r) / (std r + 1e-4)

    with mean and standard deviation (of group_size - 1 degrees of freedom) over the completions of one prompt, and
    rho = pi(y_t | x, y_<t) / pi_old(y_t | x, y_<t). With `scale="none"` and `aggregate="constant"` it is the policy
    gradient again, up to a factor (Dr. GRPO; Liu et al., 2025); `ratio="sequence"` is GSPO (Zheng et al., 2025, eq. 5):
    rho is the geometric mean of the ratios of all tokens.

    Where the reward has one number per token, A is that of the sum from a token on, about its mean at the same place of
    the group's completions; the standard deviation is of the whole sums.

    The penalty's gradient is by default (`kl="sequence"`) that of KL(pi || pi_ref) between completions: the score
    function of each token times the log-ratios from it to the end, less their `baseline` over the group.
    `k2` has that of the divergence token by token, with the tokens before as they were sampled; `k1` none on average,
    and `k3`, the estimator of the paper, that of KL(pi_ref || pi) (see `losses`).
    """

    group_size: int = field("completions of each prompt", default=8, accepts="[2, inf)")
    beta: Scalar = field("weight of the KL penalty", default=0.05, accepts="[0, inf)")
    kl: Literal["sequence", "k1", "k2", "k3"] = field(
        "the penalty: the divergence of completions, or an estimate of it at each token", default="sequence"
    )
    baseline: Literal["mean", "leave_one_out"] = field(
        "what an answer is compared to: the mean of its group, or of the others in it", default="mean"
    )
    scale: Literal["std", "none"] = field(
        "what advantages are divided by: the standard deviation of the group, or nothing", default="std"
    )
    ratio: Literal["token", "sequence"] = field(
        "the probability ratio that is clipped: of tokens, or their geometric mean over a completion",
        default="token",
    )
    aggregate: losses.Aggregation = field(
        "how tokens become one loss: all alike, by completions, or divided by max_tokens", default="token"
    )
    clip_eps: Scalar = field("how far the ratio may fall below 1", default=0.2, accepts="(0, inf)")
    clip_eps_high: Scalar = field("how far the ratio may rise above 1", default=0.2, accepts="(0, inf)")
    skip_equal: bool = field("leave out groups whose completions all score alike", default=False)

    def __post_init__(self) -> None:
        prepare(self)
        if self.kl in ("k1", "k3"):
            gradient = {"k1": "0 on average", "k3": "that of KL(pi_ref || pi)"}[self.kl]
            warnings.warn(
                f"{type(self).__name__}.kl = {self.kl!r}: the gradient of this penalty is {gradient}, not that of "
                "KL(pi || pi_ref), which 'sequence' has",
                stacklevel=3,
            )

    def step(self, state: ModelState) -> tuple[ModelState, Metrics]:
        """`group_size` completions for each prompt of a batch, and `num_epochs` passes over its minibatches."""
        sample_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))

        # Collect
        rollout = self.rollout(state, self.prompts(state), sample_key)

        # Credit
        answers, credit = self.credit(rollout)

        # Learn
        state, learning = learn(self, state, answers, self.batch_size, update_key, self.sums)
        clipped = learning.pop("clipped") / jnp.maximum(learning.pop("counted"), 1e-9)
        return state, {**learning, **credit, "clip_fraction": clipped}

    def credit(self, rollout: Rollout) -> tuple[Answers, dict[str, Array]]:
        """Advantages within groups, and what is to be known of the batch."""
        mask, score = rollout.completion.mask, self.scored(rollout)
        groups = score.reshape(-1, self.group_size)
        equal = jnp.max(groups, axis=1) == jnp.min(groups, axis=1)
        counted = mask & ~jnp.repeat(equal, self.group_size)[:, None] if self.skip_equal else mask
        log_prob, ref_log_prob = rollout.reading.log_prob.T, rollout.reading.ref_log_prob.T
        log_ratio = jnp.where(mask, log_prob - ref_log_prob, 0.0)
        answers = Answers(
            prompt=rollout.prompt,
            tokens=rollout.completion.tokens,
            mask=counted,
            log_prob=log_prob,
            ref_log_prob=ref_log_prob,
            advantage=self.advantage(rollout, score),
            kl_advantage=self.compared(_to_go(log_ratio)),
        )
        return answers, self.statistics(rollout, score) | {"equal_groups": jnp.mean(equal)}

    def advantage(self, rollout: Rollout, score: Float[Array, "B"]) -> Float[Array, "B T"]:
        """Of each token, against the group."""
        mask = rollout.completion.mask
        earned = jnp.broadcast_to(score[:, None], mask.shape)
        if rollout.reward.ndim == 2:
            reward = jnp.where(mask, rollout.reward, 0.0)
            earned += reward - jnp.cumsum(reward, axis=1)
        advantage = self.compared(earned)
        if self.scale == "none":
            return advantage
        spread = jnp.std(score.reshape(-1, self.group_size), axis=1, ddof=1)
        return advantage / (jnp.repeat(spread, self.group_size) + 1e-4)[:, None]

    def compared(self, x: Float[Array, "B T"]) -> Float[Array, "B T"]:
        """Less the `baseline` of the group."""
        if self.baseline == "leave_one_out":
            return returns.leave_one_out(x, self.group_size)
        return returns.group_advantage(x, self.group_size, "none")

    def sums(self, params: Params, rows: Answers) -> tuple[Array, tuple[dict[str, Array], Array]]:
        """The loss of these answers and its metrics, summed as `aggregate` says, and how much they weigh."""
        policy = distribution(self.model.network, params, rows.prompt, rows.tokens, self.temperature)
        log_prob = policy.log_prob(rows.tokens.T).T
        log_ratio = jnp.where(rows.mask, log_prob - rows.log_prob, 0.0)
        ratio = token_ratio = jnp.exp(log_ratio)
        if self.ratio == "sequence":
            tokens = jnp.maximum(jnp.sum(rows.mask, axis=1, keepdims=True), 1)
            ratio = jnp.broadcast_to(jnp.exp(jnp.sum(log_ratio, axis=1, keepdims=True) / tokens), log_ratio.shape)
        policy_loss = losses.ppo_clip(ratio, rows.advantage, self.clip_eps, self.clip_eps_high)
        if self.kl == "sequence":
            penalty = token_ratio * rows.kl_advantage
        else:
            penalty = KL_ESTIMATORS[self.kl](rows.ref_log_prob - log_prob)

        def aggregated(x: Array) -> tuple[Array, Array]:
            return losses.aggregate_sums(x, rows.mask, self.aggregate, self.max_tokens)

        loss, weight = aggregated(policy_loss + self.beta * penalty)
        outside = (ratio < 1.0 - self.clip_eps) | (ratio > 1.0 + self.clip_eps_high)
        metrics = {
            "policy_loss": aggregated(policy_loss)[0],
            "approx_kl": aggregated(losses.kl_k3(log_ratio))[0],
            "clipped": jnp.sum(outside & rows.mask, dtype=jnp.float32),
            "counted": jnp.sum(rows.mask, dtype=jnp.float32),
        }
        return loss, (metrics, weight)


def _to_go(x: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """The sum from each token to the end."""
    return jnp.cumsum(x[:, ::-1], axis=1)[:, ::-1]
