"""Reinforcement learning from human feedback: PPO on a language model that stays near the one it started from.

The state is the prompt and the tokens so far, an action the next token; the dynamics append it, and the reward comes at
the end, less a penalty on the KL divergence token by token. So generation is the rollout, teacher forcing is `unroll`,
and what is left is PPO.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pgjax.algorithms.on_policy import Samples
from pgjax.algorithms.ppo import Learner, ProximalUpdate, initial_learner, optimize
from pgjax.alignment.generation import Generation
from pgjax.alignment.learned_rewards import ModelReward
from pgjax.alignment.models import Prompt, completion_hidden
from pgjax.alignment.reward_model import score_of, with_score
from pgjax.alignment.rewards import token_rewards, whiten
from pgjax.alignment.sampling import Reading, Rollout, Sampling, distribution, prepare
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.core.text import shows_briefly
from pgjax.learning import returns
from pgjax.learning.optimizers import scheduled
from pgjax.networks.network import Memory, Output
from pgjax.networks.transformer import Transformer

BETA_BOUNDS = 1e-2, 1e2
"""Of what the controller makes of beta, as multiples of where it started."""


@shows_briefly
class RLHFState(NamedTuple):
    """The `State` of RLHF."""

    key: Key
    iteration: Array
    params: Params
    """`"policy"`, a language model; `"critic"`, another one under `"model"` with a linear `"score"`."""
    opt_state: Learner
    beta_scale: Float[Array, ""]
    """What the controller has made of beta, as a multiple of it."""


class TokenPolicy(NamedTuple):
    """Policy and critic as a `Network` over tokens: an observation is the token before, memory is the prompt."""

    policy: Transformer
    critic: Transformer
    temperature: Scalar

    def initial_memory(self, batch: int) -> Memory:
        """Prompts of one token."""
        return Prompt(jnp.zeros((batch, 1), jnp.int32), jnp.ones((batch, 1), bool))

    def unroll(self, params: Params, memory: Prompt, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """Teacher forcing: obs `[T, B]` are the last token of the prompt and all of the completion but its last."""
        tokens = jnp.concatenate([obs[1:], obs[-1:]]).T  # the last one is read by nothing
        policy = distribution(self.policy, params["policy"], memory, tokens, self.temperature)
        return memory, Output(policy, self.value(params["critic"], memory, tokens))

    def value(self, params: Params, prompt: Prompt, tokens: Int[Array, "B T"]) -> Float[Array, "T B"]:
        """What a critic with these parameters says before each token of the completions."""
        return score_of(params["score"], completion_hidden(self.critic, params["model"], prompt, tokens)).T


@pytree
class RLHF(ProximalUpdate, Sampling):
    """PPO with a KL penalty per token (Ziegler et al., 2019; Stiennon et al., 2020; Ouyang et al., 2022):

        r_t = 1[t = last] r(x, y) - beta (log pi(y_t | x, y_<t) - log pi_ref(y_t | x, y_<t)),

    with generalised advantages over the tokens of a completion. pi_ref is the model that the run starts from.
    Everything is a mean over real tokens; where the score is paid one step after the last, that step counts too, as a
    state that is valued and in which nothing is chosen.
    """

    beta: Scalar = field(
        "weight of the KL penalty per token, to begin with if it adapts", default=0.1, accepts="[0, inf)"
    )
    kl_target: Scalar = field(
        "KL per completion that beta adapts to; inf leaves it", default=float("inf"), accepts="(0, inf]"
    )
    kl_horizon: Scalar = field(
        "completions after which beta has grown by as much as the KL is above its target, which counts up to 20 %",
        default=10_000.0,
        accepts="(0, inf)",
    )
    score_at: Literal["last", "after"] = field(
        "where the score is paid: at the last token, or one step after it", default="last"
    )
    whiten_rewards: bool = field("scale rewards about the mean of their batch, to standard deviation 1", default=False)
    critic: Literal["reward", "policy"] = field(
        "what the critic starts from: the reward model where there is one, or the policy", default="reward"
    )
    gamma: Scalar = field("discount per token", default=1.0, accepts="[0, 1]")
    gae_lambda: Scalar = field(
        "lambda of the generalised advantage: 0 one-step TD, 1 Monte Carlo", default=0.95, accepts="[0, 1]"
    )
    language_model_at = "params.policy"

    def __post_init__(self) -> None:
        prepare(self)

    @property
    def network(self) -> TokenPolicy:
        """Policy and critic, which compute alike."""
        policy = self.model.network
        critic = self.critic_start.network if self.critic_start else policy
        critic = dataclasses.replace(critic, dtype=policy.dtype, remat=policy.remat)
        return TokenPolicy(policy, critic, self.temperature)

    @property
    def critic_start(self) -> ModelReward | None:
        """The reward model that the critic starts from, if it starts from one."""
        return self.reward if isinstance(self.reward, ModelReward) and self.critic == "reward" else None

    def policy(self, params: Params) -> Params:
        """Without those of the critic."""
        return params["policy"]

    def init(self, key: Key) -> RLHFState:
        """The model as it is, with a critic."""
        critic = self.critic_start.first() if self.critic_start else with_score(self.model)
        params = {"policy": self.model.params, "critic": critic}
        return RLHFState(key, jnp.int32(0), params, initial_learner(self, params), jnp.float32(1.0))

    def step(self, state: RLHFState) -> tuple[RLHFState, Metrics]:
        """One completion for each prompt of a batch, and `num_epochs` passes over its minibatches."""
        sample_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))
        beta = self.beta * state.beta_scale

        # Collect
        rollout = self.rollout(state, self.prompts(state), sample_key)

        # Credit
        samples, credit = self.credit(rollout, beta)

        # Learn
        learning_rate = scheduled(self.lr_schedule, self.learning_rate, state.iteration, self.num_iterations, 1.0)
        params, learner, learning = optimize(
            self, state.params, state.opt_state, rollout.prompt, samples, update_key, learning_rate
        )

        metrics = learning | credit | {"beta": beta, "learning_rate": learning_rate}
        scale = self.adapted(state.beta_scale, credit["kl_to_start"])
        return RLHFState(state.key, state.iteration + 1, params, learner, scale), metrics

    def paid(self, completion: Generation, reward: Array) -> tuple[Generation, Array]:
        """One slot more where the score is paid after the last token."""
        if self.score_at == "after":
            completion = Generation(*(jnp.pad(x, ((0, 0), (0, 1))) for x in completion))
            reward = jnp.pad(reward, ((0, 0), (0, 1))) if reward.ndim == 2 else reward
        return completion, reward

    def reading(self, params: Params, prompt: Prompt, tokens: Int[Array, "B T"]) -> Reading:
        """Policy, critic and reference on completions, all at once."""
        value = self.network.value(params["critic"], prompt, tokens)
        return super().reading(params, prompt, tokens)._replace(value=value)

    def credit(self, rollout: Rollout, beta: Scalar) -> tuple[Samples, dict[str, Array]]:
        """Generalised advantages over the tokens of each completion, and what is to be known of the batch."""
        mask, reading = rollout.completion.mask, rollout.reading
        steps = mask
        if self.score_at == "after":
            steps |= jnp.arange(mask.shape[1]) == jnp.sum(mask, axis=1)[:, None]
        reward, score = self.token_rewards(rollout, beta)
        if self.whiten_rewards:
            reward = whiten(reward, steps, shift_mean=False)
        next_value = jnp.concatenate([reading.value[1:], reading.value[-1:]])
        last = (steps & ~jnp.pad(steps[:, 1:], ((0, 0), (0, 1)))).T
        truncated = jnp.zeros_like(last)
        advantage = returns.gae(reward.T, reading.value, next_value, last, truncated, self.gamma, self.gae_lambda)
        samples = Samples(
            obs=_before(rollout.prompt, rollout.completion),
            reset=truncated,
            action=rollout.completion.tokens.T,
            log_prob=reading.log_prob,
            value=reading.value,
            advantage=advantage,
            value_target=advantage + reading.value,
            weight=steps.T.astype(jnp.float32),
            is_choice=mask.T,
        )
        return self.normalized(samples), self.statistics(rollout, score)

    def token_rewards(self, rollout: Rollout, beta: Scalar) -> tuple[Float[Array, "B T"], Float[Array, "B"]]:
        """What each token earns, and each completion without the KL penalty."""
        mask = rollout.completion.mask
        missing = jnp.where(self.ended(rollout.completion), 0.0, -self.eos_penalty)
        score = self.scored(rollout)
        per_token = jnp.zeros(mask.shape) if rollout.reward.ndim == 1 else jnp.where(mask, rollout.reward, 0.0)
        at_end = score if rollout.reward.ndim == 1 else missing
        log_probs = rollout.reading.log_prob.T, rollout.reading.ref_log_prob.T
        return token_rewards(at_end, *log_probs, mask, beta, at=self.score_at) + per_token, score

    def adapted(self, scale: Float[Array, ""], kl: Float[Array, ""]) -> Float[Array, ""]:
        """beta (1 + n / horizon clip(KL / target - 1, -0.2, 0.2)) after n completions (Ziegler et al., 2019, section
        2.2), within `BETA_BOUNDS`; an infinite target leaves it."""
        error = jnp.clip(kl / self.kl_target - 1.0, -0.2, 0.2)
        adapted = jnp.clip(scale * (1.0 + error * self.batch_size / self.kl_horizon), *BETA_BOUNDS)
        return jnp.where(jnp.isinf(self.kl_target), scale, adapted)


def _before(prompt: Prompt, completion: Generation) -> Int[Array, "T B"]:
    """The token before each of the completions'."""
    return jnp.concatenate([prompt.tokens[:, -1:], completion.tokens[:, :-1]], axis=1).T
