"""What the methods that learn from their own completions share: prompts, completions, rewards, and what is reported."""

from dataclasses import KW_ONLY
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from pgjax.algorithms.ppo import MinibatchUpdate, check_micro_batches
from pgjax.alignment.data import PROMPTS, Data, epoch_rows
from pgjax.alignment.generation import Generation, generate
from pgjax.alignment.learned_rewards import FROM_RUNS
from pgjax.alignment.models import LANGUAGE_MODELS, LanguageModel, Prompt, completion_logits
from pgjax.alignment.rewards import KL_ESTIMATORS, pass_at_k
from pgjax.alignment.scoring import REWARDS, AnswerReward, Reward, as_reward
from pgjax.alignment.supervised import SHARE_TOKENS, ModelState, Sums, check_batches, held_out_rows, in_parts
from pgjax.alignment.tokenizers import TOKENIZERS
from pgjax.core.algorithm import EVALUATION_STREAM, Key, Params, Scores
from pgjax.core.devices import everywhere, shared_out
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import TRACED, Scalar, check_fields, field, pytree
from pgjax.core.parts import part_name
from pgjax.learning import losses
from pgjax.learning.optimizers import adam, gradient_of_mean, minibatch_epochs, scheduled
from pgjax.networks.distributions import Categorical
from pgjax.networks.transformer import Transformer


class Reading(NamedTuple):
    """What is known of completions once they are read again, `[T, B]` each."""

    log_prob: Float[Array, "T B"]
    ref_log_prob: Float[Array, "T B"]
    """Of the same tokens, under the model that the run starts from."""
    kl: Float[Array, "T B"]
    """KL(pi || pi_ref) over the whole vocabulary."""
    entropy: Float[Array, "T B"]
    value: Any = None
    """`[T, B]`, what a critic says before each token, where there is one."""


class Rollout(NamedTuple):
    """Completions, and what is known of them."""

    prompt: Prompt
    completion: Generation
    reward: Float[Array, "B"] | Float[Array, "B T"]
    reading: Reading


def distribution(
    network: Transformer, params: Params, prompt: Prompt, tokens: Int[Array, "B T"], temperature: Scalar
) -> Categorical:
    """What each token of the completions is sampled from, `[T, B]`."""
    logits = completion_logits(network, params, prompt, tokens)
    return Categorical(logits.swapaxes(0, 1) / temperature)


@pytree
class Sampling(MinibatchUpdate):
    """The hyperparameters of learning from completions of the model that learns, which stays near where it started."""

    model: Annotated[LanguageModel, TRACED] = field("what is trained, and stayed near to", part=LANGUAGE_MODELS)
    reward: Annotated[Reward, TRACED] = field("what scores completions", part=REWARDS)
    data: Annotated[Data, TRACED] = field("prompts", default=PROMPTS.make("grammar"), part=PROMPTS)
    total_steps: int = field("completions to sample over the run", default=16_384, accepts="[1, 1e18]")
    _: KW_ONLY
    batch_size: int = field("completions per iteration", default=128, accepts="[1, inf)")
    num_epochs: int = field("passes over the completions of an iteration", default=1, accepts="[1, inf)")
    lr_schedule: Literal["constant", "linear", "cosine"] = field(
        "the learning rate over the run: constant, or down to 0 linearly or as a half cosine", default="linear"
    )
    max_tokens: int = field("longest completion in tokens, EOS included", default=24, accepts="[1, inf)")
    temperature: Scalar = field("of the policy, sampling and learning alike", default=1.0, accepts="(0, inf)")
    passes: int = field(
        "completions of each prompt of an evaluation; of several it says how often one earns at least 1 (pass@k)",
        default=1,
        accepts="[1, inf)",
    )
    eos_penalty: Scalar = field("taken off the score of a completion without EOS", default=1.0, accepts="[0, inf)")

    group_size = 1
    """Completions of each prompt, side by side."""
    row = 1
    """How many completions side by side are one row of what is learned from."""
    unit = "completions"
    language_model_at = "params"
    score = ("reward", "max")

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
        rows = self.batch_size // self.row // self.num_minibatches
        tokens = rows * self.row * (self.data.train.prompt.shape[1] + self.max_tokens)
        return rows % (devices * self.micro_batches) == 0 and tokens // devices >= SHARE_TOKENS

    def init(self, key: Key) -> Any:
        """The model as it is."""
        params = self.model.params
        return ModelState(key, jnp.int32(0), params, adam(self.learning_rate, self.max_grad_norm).init(params))

    def policy(self, params: Params) -> Params:
        """Those of the language model among `params`."""
        return params

    def prompts(self, state: Any) -> Prompt:
        """Those of the iteration after `state`, each `group_size` times side by side."""
        rows = self.data.train
        chosen = epoch_rows(state.key, state.iteration, rows.prompt.shape[0], self.batch_size // self.group_size)
        return Prompt(*(jnp.repeat(x[chosen], self.group_size, axis=0) for x in (rows.prompt, rows.prompt_mask)))

    def rollout(self, state: Any, prompt: Prompt, key: Key) -> Rollout:
        """A completion of each prompt under the policy of `state`."""
        prompt = shared_out(prompt)
        completion = self.sampled(self.policy(state.params), prompt, key)
        completion, reward = self.paid(completion, self.rewarded(prompt, completion))
        return everywhere(Rollout(prompt, completion, reward, self.read(state.params, prompt, completion.tokens)))

    def paid(self, completion: Generation, reward: Array) -> tuple[Generation, Array]:
        """What is learned from, with the tokens that a reward is paid at."""
        return completion, reward

    def sampled(self, policy: Params, prompt: Prompt, key: Key) -> Generation:
        """A completion for each prompt, of a policy with these parameters, which are brought together once for all
        tokens."""
        tokens, network, tokenizer = prompt.tokens, self.model.network, self.model.tokenizer
        ends = {"eos": tokenizer.eos, "pad": tokenizer.pad}
        how = self.max_tokens, self.temperature
        return generate(network, everywhere(policy), tokens, key, *how, mask=prompt.mask, **ends)

    def rewarded(self, prompt: Prompt, completion: Generation) -> Array:
        """What the reward says of the completions, in float32."""
        reward = self.reward(prompt, completion.tokens, completion.mask)
        if reward.shape not in (completion.tokens.shape[:1], completion.tokens.shape):
            raise InputError(
                f"{type(self).__name__}.reward gave numbers of shape {reward.shape}: expected "
                f"{completion.tokens.shape[:1]}, one for each completion, or {completion.tokens.shape}, one for each "
                "token"
            )
        return reward.astype(jnp.float32)

    def read(self, params: Params, prompt: Prompt, tokens: Int[Array, "B T"]) -> Reading:
        """All models on completions, as many rows at once as `micro_batches` leaves of a batch: the logits of all would
        need most of the memory."""

        def of_part(rows: tuple[Prompt, Array]) -> Reading:
            return _transposed(self.reading(params, *rows))

        return _transposed(in_parts(of_part, (prompt, tokens), self.batch_size // self.micro_batches))

    def reading(self, params: Params, prompt: Prompt, tokens: Int[Array, "B T"]) -> Reading:
        """Policy and reference on completions, all at once."""
        policy, reference = (
            distribution(self.model.network, each, prompt, tokens, self.temperature)
            for each in (self.policy(params), self.model.params)
        )
        log_prob, ref_log_prob = (each.log_prob(tokens.T) for each in (policy, reference))
        return Reading(log_prob, ref_log_prob, policy.kl(reference), policy.entropy())

    def ended(self, completion: Generation) -> Bool[Array, "B"]:
        """Whether each completion has come to its EOS."""
        return jnp.any((completion.tokens == self.model.tokenizer.eos) & completion.mask, axis=1)

    def scored(self, rollout: Rollout) -> Float[Array, "B"]:
        """The reward of each completion, summed over its tokens where it has one for each, less `eos_penalty`."""
        missing = jnp.where(self.ended(rollout.completion), 0.0, -self.eos_penalty)
        return missing + in_all(rollout.reward, rollout.completion.mask)

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

    def evaluate(self, state: Any, key: Key, num: int) -> Scores:
        """Of one completion for each of `num` held-out prompts, or all there are: `reward` (without the penalty for a
        missing EOS), `kl_to_start` per completion, `entropy` per token, `eos_rate`, `length`, and `win_rate` against a
        completion by the model that the run started from, ties counting half. With `passes` = k > 1 also `pass@1` and
        `pass@k`, the share of k completions that earn at least 1, and of prompts with such a one among k."""
        rows = held_out_rows(self.data, key, num)
        prompt, key = Prompt(rows.prompt, rows.prompt_mask), jax.random.fold_in(key, EVALUATION_STREAM)
        completion, by_start = (
            self.sampled(params, prompt, jax.random.fold_in(key, i))
            for i, params in enumerate((self.policy(state.params), self.model.params))
        )
        score, start_score = (in_all(self.rewarded(prompt, each), each.mask) for each in (completion, by_start))
        reading = self.read(state.params, prompt, completion.tokens)
        found = self.statistics(Rollout(prompt, completion, score, reading), score)
        return {
            **{name: found[name] for name in ("reward", "kl_to_start", "entropy", "eos_rate", "length")},
            "win_rate": jnp.mean(jnp.where(score == start_score, 0.5, score > start_score)),
            **(self.passed(state, prompt, jax.random.fold_in(key, 2)) if self.passes > 1 else {}),
        }

    def passed(self, state: Any, prompt: Prompt, key: Key) -> Scores:
        """`pass@1` and `pass@k` of k = `passes` completions."""

        def of_one(key: Key) -> Array:
            completion = self.sampled(self.policy(state.params), prompt, key)
            return in_all(self.rewarded(prompt, completion), completion.mask) >= 1.0

        found = jax.lax.map(of_one, jax.random.split(key, self.passes)).T
        return {f"pass@{k}": jnp.mean(pass_at_k(found, k)) for k in (1, self.passes)}

    def language_model(self, state: Any) -> LanguageModel:
        """The policy of `state`."""
        return self.model.with_params(self.policy(state.params))


def learn(
    algorithm: Sampling, state: ModelState, rows: Any, num: int, key: Key, sums: Sums
) -> tuple[ModelState, dict[str, Array]]:
    """`num_epochs` passes of Adam over the minibatches of `num` rows, and the means over them of what `sums` says."""
    schedule, iterations = algorithm.lr_schedule, algorithm.num_iterations
    learning_rate = scheduled(schedule, algorithm.learning_rate, state.iteration, iterations, 1.0)
    optimizer = adam(learning_rate, algorithm.max_grad_norm)
    gradient = gradient_of_mean(sums, (0,), algorithm.micro_batches)

    def update(carry: Any, chosen: Array, rows: Any) -> tuple[Any, dict[str, Array]]:
        params, opt_state = carry
        grads, metrics = gradient(params, jax.tree.map(lambda x: x[chosen], rows))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics | {"grad_norm": optax.tree.norm(grads)}

    epochs, minibatches = algorithm.num_epochs, algorithm.num_minibatches
    (params, opt_state), metrics = minibatch_epochs(
        update, (state.params, state.opt_state), key, num, epochs, minibatches, lambda _: rows
    )
    means = jax.tree.map(jnp.mean, metrics) | {"learning_rate": learning_rate}
    return ModelState(state.key, state.iteration + 1, params, opt_state), means


def in_all(reward: Float[Array, "B"] | Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B"]:
    """The reward of each completion, summed over its real tokens where it has one for each."""
    return reward if reward.ndim == 1 else jnp.sum(jnp.where(mask, reward, 0.0), axis=1)


def prepare(algorithm: Any) -> None:
    """Check the fields, pack the prompts, and refuse sizes that do not fit together or to the data.

    Raises:
        InputError: naming the field, the value and what would be accepted.
    """
    object.__setattr__(algorithm, "reward", as_reward(algorithm.reward))
    check_fields(algorithm)
    _check_sizes(algorithm)
    name, model = type(algorithm).__name__, algorithm.model
    room = model.network.context - algorithm.max_tokens
    if room < 1:
        raise InputError(
            f"{name}.max_tokens = {algorithm.max_tokens} is not accepted: the context of the model is "
            f"{model.network.context}, and prompts need some of it"
        )
    _check_tokenizer(algorithm)
    object.__setattr__(algorithm, "data", algorithm.data.packed(model.tokenizer, room))
    if isinstance(algorithm.reward, AnswerReward):
        object.__setattr__(algorithm, "reward", algorithm.reward.packed(model.tokenizer, model.network.context))
    check_batches(algorithm, algorithm.group_size)
    if isinstance(algorithm.reward, FROM_RUNS):
        context = algorithm.reward.network.context
        longest = algorithm.reward.reads(algorithm.data.train.prompt.shape[1], algorithm.max_tokens)
        if context < longest:
            raise InputError(
                f"{name}.reward has context = {context}, and reads up to {longest} tokens of prompts with completions: "
                "expected a smaller max_prompt or max_tokens"
            )


def _check_sizes(algorithm: Any) -> None:
    name, size, row = type(algorithm).__name__, algorithm.batch_size, algorithm.row
    if size % algorithm.group_size:
        raise InputError(
            f"{name}.batch_size = {size} is not accepted: expected a multiple of {algorithm.group_size}, the "
            "completions of a prompt"
        )
    if size // row % algorithm.num_minibatches:
        raise InputError(
            f"{name}.num_minibatches = {algorithm.num_minibatches} does not divide batch_size = {size}"
            + (f" into whole groups of {row}" if row > 1 else "")
        )
    check_micro_batches(algorithm, size // row)


def _check_tokenizer(algorithm: Any) -> None:
    tokenizer = getattr(algorithm.reward, "tokenizer", None) or algorithm.model.tokenizer
    if tokenizer != algorithm.model.tokenizer:
        names = [part_name(TOKENIZERS, each) for each in (tokenizer, algorithm.model.tokenizer)]
        raise InputError(
            f"{type(algorithm).__name__}.reward has another tokenizer than the model: {names[0]} instead of {names[1]}"
        )


def _transposed(tree: Any) -> Any:
    return jax.tree.map(jnp.transpose, tree)
