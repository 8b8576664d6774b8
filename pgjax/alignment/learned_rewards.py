"""Rewards that were learned: reward models, process reward models and judges, from the runs that trained them."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pgjax.alignment.generation import Generation
from pgjax.alignment.judge import Judge, JudgeOptions
from pgjax.alignment.models import LANGUAGE_MODELS, Prompt, check_digest, digest_of, is_run, kind_of_model, nested
from pgjax.alignment.process_reward_model import StepEnds
from pgjax.alignment.reward_model import Reference, score_at_last, scores_at_all
from pgjax.alignment.tokenizers import Tokenizer
from pgjax.core.algorithm import Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import TRACED, Scalar, check_fields, field, pytree
from pgjax.networks.transformer import Transformer
from pgjax.running.checkpoint import load_under
from pgjax.running.directory import read_config


@pytree
class EnsembleOptions:
    """How the scores of several reward models become one."""

    reduce: Literal["mean", "min"] = field("over the members of a run with several seeds", default="mean")
    variance_coef: Scalar = field("times the members' variance is taken off", default=0.0, accepts="[0, inf)")

    def __post_init__(self) -> None:
        check_fields(self)


@pytree
class ScoringModels:
    """Models with a score, which read prompt and completion."""

    network: Transformer
    tokenizer: Tokenizer
    params: Annotated[Params, TRACED] = dataclasses.field(repr=False)
    """With a leading axis of members."""

    def reads(self, prompt: int, completion: int) -> int:
        """How many tokens it reads of a prompt with a completion of so many."""
        return prompt + completion


@pytree
class ModelReward(ScoringModels):
    """The scores of reward models, each normalised to mean 0 and variance 1 on completions of the model that all of
    them started from, and reduced to one: their mean or minimum, minus `variance_coef` times their variance."""

    mean: Annotated[Any, TRACED] = dataclasses.field(repr=False)
    std: Annotated[Any, TRACED] = dataclasses.field(repr=False)
    """`[members]` both, of the scores that are normalised."""
    options: Annotated[EnsembleOptions, TRACED] = dataclasses.field(default_factory=EnsembleOptions)
    path: str = ""
    sha256: str = ""

    def __call__(self, prompt: Prompt, tokens: Array, mask: Array) -> Array:
        """As a `Reward`."""

        def of_member(params: Params) -> Array:
            return score_at_last(self.network, params, prompt, tokens, mask)

        scores = (jax.lax.map(of_member, self.params) - self.mean[:, None]) / self.std[:, None]
        reduced = jnp.min(scores, axis=0) if self.options.reduce == "min" else jnp.mean(scores, axis=0)
        return reduced - self.options.variance_coef * jnp.var(scores, axis=0)

    def first(self) -> Params:
        """The parameters of the first member, with its score normalised."""
        params = jax.tree.map(lambda x: x[0], self.params)
        kernel, bias = params["score"]["kernel"] / self.std[0], (params["score"]["bias"] - self.mean[0]) / self.std[0]
        return params | {"score": {"kernel": kernel, "bias": bias}}


@pytree
class StepOptions:
    """How the probabilities of steps become rewards."""

    pay: Literal["product", "sum"] = field(
        "of a step, by how much it changes the probability that all steps are right, or its own probability",
        default="product",
    )

    def __post_init__(self) -> None:
        check_fields(self)


@pytree
class ProcessReward(ScoringModels):
    """What a process reward model says of each step, paid where the step ends.

    With the probabilities p_1, p_2, ... of the steps, each a mean over the members, `pay="product"` gives step k
    p_1 ... p_k - p_1 ... p_(k-1): it says which step went wrong, sums to the probability that all are right less 1 (by
    which Lightman et al., 2024, rank answers), and no answer earns more by further steps. `pay="sum"` gives p_k, so
    that more steps do earn more. Of a model with `outcome_only` the only step is the last.
    """

    ends: Annotated[Any, TRACED] = dataclasses.field(repr=False)
    """`StepEnds`, with a leading axis of members."""
    outcome_only: bool = False
    options: StepOptions = dataclasses.field(default_factory=StepOptions)
    path: str = ""
    sha256: str = ""

    def __call__(self, prompt: Prompt, tokens: Array, mask: Array) -> Array:
        """As a `Reward`, one number per token."""

        def of_member(params: Params) -> Array:
            return jax.nn.sigmoid(scores_at_all(self.network, params, prompt, tokens, mask))

        separator, eos = (x[0] for x in self.ends)
        ends = (tokens == eos) | ((tokens == separator) & (not self.outcome_only))
        probability = jnp.mean(jax.lax.map(of_member, self.params), axis=0)
        if self.options.pay == "sum":
            return jnp.where(ends & mask, probability, 0.0)
        whole = jnp.cumprod(jnp.where(ends & mask, probability, 1.0), axis=1)
        return jnp.diff(whole, axis=1, prepend=1.0)


FROM_RUNS = (ModelReward, ProcessReward, Judge)
OPTIONS = {"reward-model": EnsembleOptions, "process-reward-model": StepOptions, "sft": JudgeOptions}
"""How rewards are used that a run of these algorithms trained."""


def algorithm_at(path: str) -> str:
    """The name of the algorithm of the run that is kept there; empty if there is none."""
    try:
        return str(read_config(path)["algorithm"]) if is_run(path) else ""
    except InputError:
        return ""


def reward_of_run(
    config: dict[str, Any], path: str, sha256: str | None, options: dict[str, Any]
) -> ModelReward | ProcessReward | Judge:
    """The reward of the models that a run with this config has trained; `sha256` is the digest they must have.

    Raises:
        InputError: its models are not the ones they were.
    """
    algorithm = config["algorithm"]
    if algorithm == "sft":
        model = LANGUAGE_MODELS.make(path, sha256)
        return Judge(model, JudgeOptions(**options), path, model.sha256)
    network, tokenizer = kind_of_model(config, path)

    def of_all(place: str) -> Any:
        """What the state has there, with a leading axis of members."""
        leaves = load_under(Path(path), tuple(config["score"]), "newest", place)
        found = jax.tree.map(jnp.asarray, nested(leaves, config, None))
        return jax.tree.map(lambda x: x[None], found) if config["seeds"] is None else found

    params = of_all("params")
    reward: ModelReward | ProcessReward
    if algorithm == "reward-model":
        reference = of_all("reference")
        completions = Reference(Prompt(**reference["prompt"]), Generation(**reference["completion"]))
        reward = of_members(network, tokenizer, params, completions, EnsembleOptions(**options))
    else:
        outcome_only = config["hyperparameters"]["outcome_only"]
        ends = StepEnds(**of_all("ends"))
        reward = ProcessReward(network, tokenizer, params, ends, outcome_only, StepOptions(**options))
    digest = digest_of(params)
    check_digest("reward", path, digest, sha256)
    named: Any = {"path": path, "sha256": digest}
    return dataclasses.replace(reward, **named)


def of_members(
    network: Transformer, tokenizer: Tokenizer, params: Params, reference: Reference, options: EnsembleOptions
) -> ModelReward:
    """The reward of trained reward models, from their parameters and references with a leading axis of members."""

    members = reference.prompt.tokens.shape[0]
    found = [_moments(network, *jax.tree.map(lambda x, i=i: x[i], (params, reference))) for i in range(members)]
    mean, std = (jnp.stack(column) for column in zip(*found, strict=True))
    return ModelReward(network, tokenizer, params, mean, std, options)


@functools.partial(jax.jit, static_argnums=0)
def _moments(network: Transformer, params: Params, reference: Reference) -> tuple[Array, Array]:
    """Mean and standard deviation of the scores of a reward model on completions; 1 for one that is 0."""
    prompt, completion = reference
    scores = score_at_last(network, params, prompt, completion.tokens, completion.mask)
    std = jnp.std(scores)
    return jnp.mean(scores), jnp.where(std > 0.0, std, 1.0)
