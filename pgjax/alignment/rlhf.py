"""Reinforcement learning from human feedback: PPO on a language model that stays near the one it started from.

The state is the prompt and the tokens so far, an action the next token; the dynamics append it, and the reward comes at
the end, less a penalty on the KL divergence token by token. So generation is the rollout, teacher forcing is `unroll`,
and what is left is PPO.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.algorithms.on_policy import Samples
from pgjax.algorithms.ppo import Learner, ProximalUpdate, check_micro_batches, initial_learner, optimize
from pgjax.alignment.data import PROMPTS, Data, epoch_rows
from pgjax.alignment.generation import Generation, generate
from pgjax.alignment.models import LANGUAGE_MODELS, LanguageModel, Prompt, completion_hidden, completion_logits
from pgjax.alignment.reward_model import init_score, score_of
from pgjax.alignment.rewards import KL_ESTIMATORS, token_rewards, whiten
from pgjax.alignment.scoring import REWARDS, ModelReward, Reward, as_reward
from pgjax.alignment.supervised import SHARE_TOKENS, check_batches, held_out_rows
from pgjax.alignment.tokenizers import TOKENIZERS
from pgjax.core.algorithm import EVALUATION_STREAM, Key, Metrics, Params, Scores
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import TRACED, Scalar, check_fields, field, pytree
from pgjax.core.parts import part_name
from pgjax.learning import losses, returns
from pgjax.learning.optimizers import scheduled
from pgjax.networks.distributions import Categorical
from pgjax.networks.network import Memory, Output
from pgjax.networks.transformer import Transformer

BETA_BOUNDS = 1e-2, 1e2
"""Of what the controller makes of beta, as multiples of where it started."""


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
        policy = self.distribution(params["policy"], memory, tokens)
        return memory, Output(policy, self.value(params["critic"], memory, tokens))

    def distribution(self, params: Params, prompt: Prompt, tokens: Int[Array, "B T"]) -> Categorical:
        """What each token of the completions was sampled from, `[T, B]`, by a policy with these parameters."""
        logits = completion_logits(self.policy, params, prompt, tokens)
        return Categorical(logits.swapaxes(0, 1) / self.temperature)

    def value(self, params: Params, prompt: Prompt, tokens: Int[Array, "B T"]) -> Float[Array, "T B"]:
        """What a critic with these parameters says before each token of the completions."""
        return score_of(params["score"], completion_hidden(self.critic, params["model"], prompt, tokens)).T


class Reading(NamedTuple):
    """What is known of completions once they are read again, `[T, B]` each."""

    value: Float[Array, "T B"]
    log_prob: Float[Array, "T B"]
    ref_log_prob: Float[Array, "T B"]
    """Of the same tokens, under the model that the run starts from."""
    kl: Float[Array, "T B"]
    """KL(pi || pi_ref) over the whole vocabulary."""
    entropy: Float[Array, "T B"]


class Rollout(NamedTuple):
    """Completions, and what is known of them."""

    prompt: Prompt
    completion: Generation
    obs: Int[Array, "T B"]
    """The token before each."""
    reward: Float[Array, "B"] | Float[Array, "B T"]
    reading: Reading


@pytree
class RLHF(ProximalUpdate):
    """PPO with a KL penalty per token (Ziegler et al., 2019; Stiennon et al., 2020; Ouyang et al., 2022):

        r_t = 1[t = last] r(x, y) - beta (log pi(y_t | x, y_<t) - log pi_ref(y_t | x, y_<t)),

    with generalised advantages over the tokens of a completion. pi_ref is the model that the run starts from.
    Everything is a mean over real tokens; where the score is paid one step after the last, that step counts too, as a
    state that is valued and in which nothing is chosen.
    """

    model: Annotated[LanguageModel, TRACED] = field("what is trained, and stayed near to", part=LANGUAGE_MODELS)
    reward: Annotated[Reward, TRACED] = field("what scores completions", part=REWARDS)
    data: Annotated[Data, TRACED] = field("prompts", default=PROMPTS.make("grammar"), part=PROMPTS)
    total_steps: int = field("completions to sample over the run", default=16_384, accepts="[1, inf)")
    batch_size: int = field("completions per iteration", default=128, accepts="[1, inf)")
    max_tokens: int = field("longest completion in tokens, EOS included", default=24, accepts="[1, inf)")
    temperature: Scalar = field("of the policy, sampling and learning alike", default=1.0, accepts="(0, inf)")
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
    eos_penalty: Scalar = field("taken off the score of a completion without EOS", default=1.0, accepts="[0, inf)")
    whiten_rewards: bool = field("scale rewards about the mean of their batch, to standard deviation 1", default=False)
    critic: Literal["reward", "policy"] = field(
        "what the critic starts from: the reward model where there is one, or the policy", default="reward"
    )
    gamma: Scalar = field("discount per token", default=1.0, accepts="[0, 1]")
    gae_lambda: Scalar = field(
        "lambda of the generalised advantage: 0 one-step TD, 1 Monte Carlo", default=0.95, accepts="[0, 1]"
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = field(
        "the learning rate over the run: constant, or down to 0 linearly or as a half cosine", default="linear"
    )

    unit = "completions"
    language_model_at = "params.policy"
    score = ("reward", "max")

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", as_reward(self.reward))
        check_fields(self)
        _check(self)
        room = self.model.network.context - self.max_tokens
        object.__setattr__(self, "data", self.data.packed(self.model.tokenizer, room))
        check_batches(self)
        check_micro_batches(self, self.batch_size)
        _check_reward(self)

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

    @property
    def steps_per_iteration(self) -> int:
        """Completions of a batch."""
        return self.batch_size

    @property
    def num_iterations(self) -> int:
        """Whole batches within `total_steps`."""
        return self.total_steps // self.batch_size

    def divides_into(self, devices: int) -> bool:
        """Whether minibatches can be divided, with enough tokens for each device to pay."""
        size = self.batch_size // self.num_minibatches
        tokens = size * (self.data.train.prompt.shape[1] + self.max_tokens)
        return size % (devices * self.micro_batches) == 0 and tokens // devices >= SHARE_TOKENS

    def init(self, key: Key) -> RLHFState:
        """The model as it is, with a critic."""
        if self.critic_start:
            critic = self.critic_start.first()
        else:
            critic = {"model": self.model.params, "score": init_score(self.model.network.width)}
        params = {"policy": self.model.params, "critic": critic}
        return RLHFState(key, jnp.int32(0), params, initial_learner(self, params), jnp.float32(1.0))

    def step(self, state: RLHFState) -> tuple[RLHFState, Metrics]:
        """One completion for each prompt of a batch, and `num_epochs` passes over its minibatches."""
        sample_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))
        beta = self.beta * state.beta_scale

        # Collect
        rollout = self.rollout(state, sample_key)

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

    def rollout(self, state: RLHFState, key: Key) -> Rollout:
        """Completions of the prompts of this iteration, under the policy of `state`."""
        rows = self.data.train
        chosen = epoch_rows(state.key, state.iteration, rows.prompt.shape[0], self.batch_size)
        prompt = Prompt(rows.prompt[chosen], rows.prompt_mask[chosen])
        completion = self.sampled(state.params["policy"], prompt, key)
        reward = self.rewarded(prompt, completion)
        if self.score_at == "after":
            completion = Generation(*(jnp.pad(x, ((0, 0), (0, 1))) for x in completion))
        obs = jnp.concatenate([prompt.tokens[:, -1:], completion.tokens[:, :-1]], axis=1).T
        return Rollout(prompt, completion, obs, reward, self.read(state.params, prompt, completion.tokens))

    def sampled(self, params: Params, prompt: Prompt, key: Key) -> Generation:
        """A completion for each prompt, of a policy with these parameters."""
        ends = {"eos": self.model.tokenizer.eos, "pad": self.model.tokenizer.pad}
        return generate(
            self.model.network, params, prompt.tokens, key, self.max_tokens, self.temperature, mask=prompt.mask, **ends
        )

    def read(self, params: Params, prompt: Prompt, tokens: Int[Array, "B T"]) -> Reading:
        """Policy, critic and reference on completions, as many rows at once as `micro_batches` leaves of a batch: the
        logits of all would need most of the memory."""

        def of_part(rows: tuple[Prompt, Array]) -> Reading:
            prompt, tokens = rows
            policy, reference = (
                self.network.distribution(each, prompt, tokens) for each in (params["policy"], self.model.params)
            )
            value = self.network.value(params["critic"], prompt, tokens)
            log_prob, ref_log_prob = (each.log_prob(tokens.T) for each in (policy, reference))
            return _transposed(Reading(value, log_prob, ref_log_prob, policy.kl(reference), policy.entropy()))

        return _transposed(_in_parts(of_part, (prompt, tokens), self.batch_size // self.micro_batches))

    def rewarded(self, prompt: Prompt, completion: Generation) -> Array:
        """What the reward says of the completions, in float32."""
        reward = self.reward(prompt, completion.tokens, completion.mask)
        if reward.shape not in (completion.tokens.shape[:1], completion.tokens.shape):
            raise InputError(
                f"RLHF.reward gave numbers of shape {reward.shape}: expected {completion.tokens.shape[:1]}, one for "
                f"each completion, or {completion.tokens.shape}, one for each token"
            )
        return reward.astype(jnp.float32)

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
            obs=rollout.obs,
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
        score = jnp.where(self.ended(rollout.completion), 0.0, -self.eos_penalty)
        per_token = jnp.zeros(mask.shape)
        if rollout.reward.ndim == 1:
            score += rollout.reward
        else:
            per_token = jnp.where(mask, per_token.at[:, : self.max_tokens].set(rollout.reward), 0.0)
        log_probs = rollout.reading.log_prob.T, rollout.reading.ref_log_prob.T
        at_end = token_rewards(score, *log_probs, mask, beta, at=self.score_at)
        return at_end + per_token, score + jnp.sum(per_token, axis=1)

    def ended(self, completion: Generation) -> Bool[Array, "B"]:
        """Whether each completion has come to its EOS."""
        return jnp.any((completion.tokens == self.model.tokenizer.eos) & completion.mask, axis=1)

    def statistics(self, rollout: Rollout, score: Float[Array, "B"]) -> dict[str, Array]:
        """Means over completions of what is summed over their tokens, and over tokens of the entropy.

        `kl_to_start` is the sum over the tokens of KL(pi || pi_ref) over the whole vocabulary; `kl_k1`, `kl_k2`,
        `kl_k3` are the sums of its estimates from the sampled tokens.
        """
        real, reading = rollout.completion.mask.T, rollout.reading

        def per_completion(x: Float[Array, "T B"]) -> Array:
            return jnp.mean(jnp.sum(jnp.where(real, x, 0.0), axis=0))

        log_ratio = reading.ref_log_prob - reading.log_prob
        estimates = {f"kl_{name}": per_completion(kl_of(log_ratio)) for name, kl_of in KL_ESTIMATORS.items()}
        return estimates | {
            "reward": jnp.mean(score),
            "kl_to_start": per_completion(reading.kl),
            "entropy": losses.masked_mean(reading.entropy, real),
            "eos_rate": jnp.mean(self.ended(rollout.completion)),
            "length": jnp.mean(jnp.sum(real, axis=0, dtype=jnp.float32)),
        }

    def adapted(self, scale: Float[Array, ""], kl: Float[Array, ""]) -> Float[Array, ""]:
        """beta (1 + n / horizon clip(KL / target - 1, -0.2, 0.2)) after n completions (Ziegler et al., 2019, section
        2.2), within `BETA_BOUNDS`; an infinite target leaves it."""
        error = jnp.clip(kl / self.kl_target - 1.0, -0.2, 0.2)
        adapted = jnp.clip(scale * (1.0 + error * self.batch_size / self.kl_horizon), *BETA_BOUNDS)
        return jnp.where(jnp.isinf(self.kl_target), scale, adapted)

    def evaluate(self, state: RLHFState, key: Key, num: int) -> Scores:
        """Of one completion for each of `num` held-out prompts, or all there are: `reward` (without the penalty for a
        missing EOS), `kl_to_start` per completion, `entropy` per token, `eos_rate`, `length`, and `win_rate` against a
        completion by the model that the run started from, ties counting half."""
        rows = held_out_rows(self.data, key, num)
        prompt, key = Prompt(rows.prompt, rows.prompt_mask), jax.random.fold_in(key, EVALUATION_STREAM)
        completion, by_start = (
            self.sampled(params, prompt, jax.random.fold_in(key, i))
            for i, params in enumerate((state.params["policy"], self.model.params))
        )
        score, start_score = (self.total_reward(prompt, each) for each in (completion, by_start))
        real, reading = completion.mask.T, self.read(state.params, prompt, completion.tokens)
        return {
            "reward": jnp.mean(score),
            "kl_to_start": jnp.mean(jnp.sum(jnp.where(real, reading.kl, 0.0), axis=0)),
            "entropy": losses.masked_mean(reading.entropy, real),
            "eos_rate": jnp.mean(self.ended(completion)),
            "length": jnp.mean(jnp.sum(real, axis=0, dtype=jnp.float32)),
            "win_rate": jnp.mean(jnp.where(score == start_score, 0.5, score > start_score)),
        }

    def total_reward(self, prompt: Prompt, completion: Generation) -> Float[Array, "B"]:
        """The reward of each completion, summed over its tokens where it has one for each."""
        reward = self.rewarded(prompt, completion)
        return reward if reward.ndim == 1 else jnp.sum(jnp.where(completion.mask, reward, 0.0), axis=1)

    def language_model(self, state: RLHFState) -> LanguageModel:
        """The policy of `state`."""
        return dataclasses.replace(self.model, params=state.params["policy"], path="", sha256="")


def _transposed(tree: Any) -> Any:
    return jax.tree.map(jnp.transpose, tree)


def _in_parts(f: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """`f` of all rows, computed for so many at a time; rows are on the first axis of what it is given and gives."""
    n = jax.tree.leaves(rows)[0].shape[0]
    parts = -(-n // size)
    divided = jax.tree.map(lambda x: jnp.resize(x, (parts, size, *x.shape[1:])), rows)
    return jax.tree.map(lambda x: x.reshape(parts * size, *x.shape[2:])[:n], jax.lax.map(f, divided))


def _check(algorithm: RLHF) -> None:
    """Before the data is packed, which needs room for completions."""
    model, batch_size = algorithm.model, algorithm.batch_size
    if algorithm.max_tokens >= model.network.context:
        raise InputError(
            f"RLHF.max_tokens = {algorithm.max_tokens} is not accepted: the context of the model is "
            f"{model.network.context}, and prompts need some of it"
        )
    if batch_size % algorithm.num_minibatches:
        raise InputError(
            f"RLHF.num_minibatches = {algorithm.num_minibatches} does not divide batch_size = {batch_size}"
        )
    tokenizer = getattr(algorithm.reward, "tokenizer", None) or model.tokenizer
    if tokenizer != model.tokenizer:
        names = [part_name(TOKENIZERS, each) for each in (tokenizer, model.tokenizer)]
        raise InputError(f"RLHF.reward has another tokenizer than the model: {names[0]} instead of {names[1]}")


def _check_reward(algorithm: RLHF) -> None:
    """Whether a reward model can read the longest prompts with their completions."""
    longest = algorithm.data.train.prompt.shape[1] + algorithm.max_tokens
    if isinstance(algorithm.reward, ModelReward) and algorithm.reward.network.context < longest:
        raise InputError(
            f"RLHF.reward has context = {algorithm.reward.network.context}, and prompts with completions have up to "
            f"{longest} tokens: expected a smaller max_prompt or max_tokens"
        )
