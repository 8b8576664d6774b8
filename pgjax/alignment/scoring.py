"""Rewards as a kind of part: a reward model that was trained, a function that jax traces, or a function of texts."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pgjax.alignment import addition, grammar
from pgjax.alignment.generation import Generation
from pgjax.alignment.models import Prompt, check_digest, digest_of, is_run, kind_of_model, nested
from pgjax.alignment.reward_model import Reference, score_at_last
from pgjax.alignment.tokenizers import TOKENIZERS, Tokenizer
from pgjax.core.algorithm import Params
from pgjax.core.errors import InputError, nearest
from pgjax.core.hyperparameters import TRACED, Scalar, check_fields, field, field_types, pytree
from pgjax.core.parts import Description, check_options, dataclass_options, plain_repr, to_json
from pgjax.networks.transformer import Transformer
from pgjax.running.checkpoint import load_under
from pgjax.running.directory import read_config

RewardFunction: TypeAlias = Callable[[Array, Array, Array], Array]
"""(tokens `[B, T]`, mask `[B, T]`, prompt `[B, P]`) -> one number per completion `[B]`, or per token `[B, T]`."""


@runtime_checkable
class Reward(Protocol):
    """a reward: a reward model's run, or a function (tokens, mask, prompt) -> [B] or [B, T]"""

    def __call__(
        self, prompt: Prompt, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B"] | Float[Array, "B T"]:
        """One number per completion, or one per token."""
        ...


@pytree
class TracedReward:
    """A function of tokens that jax traces."""

    function: RewardFunction
    tokenizer: Tokenizer | None = None
    """Whose tokens it knows; None for any."""

    def __call__(self, prompt: Prompt, tokens: Array, mask: Array) -> Array:
        """As a `Reward`; in float32."""
        return jnp.asarray(self.function(tokens, mask, prompt.tokens), jnp.float32)


NAMED_REWARDS = {
    "sentiment": TracedReward(grammar.sentiment, TOKENIZERS.make("grammar")),
    "grammatical": TracedReward(grammar.is_grammatical, TOKENIZERS.make("grammar")),
    "addition": TracedReward(addition.is_right, TOKENIZERS.make("addition")),
    "addition-format": TracedReward(addition.is_number, TOKENIZERS.make("addition")),
}


def register_reward(name: str, function: RewardFunction) -> None:
    """Make a reward function known by a name, so that configs and the command line can name it.

    Raises:
        InputError: the name is taken.
    """
    if name in NAMED_REWARDS:
        raise InputError(f"reward = {name!r} is taken: expected another name than {', '.join(NAMED_REWARDS)}")
    NAMED_REWARDS[name] = TracedReward(function)


@pytree
class HostReward:
    """A function of texts in plain Python, `(prompts, completions) -> numbers`, called from the compiled program.

    The texts are decoded without padding and end of text. The function must give the same numbers for the same texts:
    it is called as often as the program needs it.
    """

    function: Callable[[list[str], list[str]], Sequence[float]]
    tokenizer: Tokenizer

    def __call__(self, prompt: Prompt, tokens: Array, mask: Array) -> Array:
        """As a `Reward`."""

        def on_host(prompts: Any, prompt_masks: Any, completions: Any, masks: Any) -> np.ndarray:
            def texts(tokens: Any, masks: Any) -> list[str]:
                pairs = zip(np.asarray(tokens), np.asarray(masks), strict=True)
                return [self.tokenizer.decode(row[real].tolist()) for row, real in pairs]

            scores = np.asarray(self.function(texts(prompts, prompt_masks), texts(completions, masks)), np.float32)
            if scores.shape != (len(masks),):
                raise InputError(
                    f"a reward of texts gave numbers of shape {scores.shape}: expected one for each of {len(masks)}"
                )
            return scores

        shape = jax.ShapeDtypeStruct(tokens.shape[:1], jnp.float32)
        return jax.pure_callback(on_host, shape, *prompt, tokens, mask, vmap_method="sequential")


@pytree
class EnsembleOptions:
    """How the scores of several reward models become one."""

    reduce: Literal["mean", "min"] = field("over the members of a run with several seeds", default="mean")
    variance_coef: Scalar = field("times the members' variance is taken off", default=0.0, accepts="[0, inf)")

    def __post_init__(self) -> None:
        check_fields(self)


@pytree
class ModelReward:
    """The scores of reward models, each normalised to mean 0 and variance 1 on completions of the model that all of
    them started from, and reduced to one: their mean or minimum, minus `variance_coef` times their variance."""

    network: Transformer
    tokenizer: Tokenizer
    params: Annotated[Params, TRACED] = dataclasses.field(repr=False)
    """With a leading axis of members."""
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


class Rewards:
    """Reward models by the path of their run, functions by their name."""

    @property
    def sentence(self) -> str:
        """What there is."""
        return f"a run of a reward model by its path, or one of: {', '.join(NAMED_REWARDS)}"

    def make(self, name: str, sha256: str | None = None, **options: Any) -> Any:
        """The reward of that name; `sha256` is the digest that the parameters of a reward model must have.

        Raises:
            InputError: there is no such reward, it is not the one it was, or an option is not accepted.
        """
        check_options(f"reward {name}", options, () if name in NAMED_REWARDS else field_types(EnsembleOptions))
        return NAMED_REWARDS[name] if name in NAMED_REWARDS else self._of_run(name, sha256, EnsembleOptions(**options))

    def _of_run(self, path: str, sha256: str | None, options: EnsembleOptions) -> ModelReward:
        try:
            known = is_run(path)
        except InputError as error:
            raise InputError(f"reward = {path!r} is not known: {nearest(path, NAMED_REWARDS)}; {error}") from error
        config = read_config(path) if known else {}
        if config.get("algorithm") != "reward-model":
            raise InputError(f"reward = {path!r} is not accepted: expected the run of a reward model")
        network, tokenizer = kind_of_model(config, path)
        read = functools.partial(load_under, Path(path), tuple(config["score"]), "newest")
        params, reference = (nested(read(place), config, None) for place in ("params", "reference"))
        if config["seeds"] is None:
            params, reference = jax.tree.map(lambda x: x[None], (params, reference))
        completions = Reference(Prompt(**reference["prompt"]), Generation(**reference["completion"]))
        params, completions = jax.tree.map(jnp.asarray, (params, completions))
        reward = of_members(network, tokenizer, params, completions, options)
        digest = digest_of(reward.params)
        check_digest("reward", path, digest, sha256)
        return dataclasses.replace(reward, path=path, sha256=digest)

    def describe(self, part: Any) -> Description | None:
        """The path with the digest and the options, or the name of a function; None for what is made in code."""
        names = {reward.function: name for name, reward in NAMED_REWARDS.items()}
        if isinstance(part, TracedReward) and part.function in names:
            return {"name": names[part.function], "options": {}}
        if not isinstance(part, ModelReward) or not part.path:
            return None
        options = {f.name: to_json(getattr(part.options, f.name)) for f in dataclasses.fields(part.options)}
        return {"name": part.path, "options": {"sha256": part.sha256} | options}

    def with_options(self, part: Any, **options: Any) -> Any:
        """The same reward models reduced in another way; of somebody's own reward, other fields."""
        if isinstance(part, ModelReward):
            return dataclasses.replace(part, options=dataclasses.replace(part.options, **options))
        return dataclasses.replace(part, **options)

    def options(self, part: Any) -> dict[str, bool]:
        """Of reward models, how they are reduced; a function has none. Of somebody's own reward, its fields."""
        if isinstance(part, (TracedReward, HostReward)):
            return {}
        return dataclass_options(part.options if isinstance(part, ModelReward) else part)

    def declaration(self, name: str) -> type | None:
        """`EnsembleOptions` for reward models."""
        return None if name in NAMED_REWARDS else EnsembleOptions


REWARDS = Rewards()


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


def as_reward(reward: Any) -> Any:
    """A `Reward` as it is, which jax must know as a pytree, and a function of tokens as one.

    Raises:
        InputError: it is neither.
    """
    if not callable(reward):
        raise InputError(f"reward = {plain_repr(reward)} is not accepted: expected {(Reward.__doc__ or '').strip()}")
    return TracedReward(reward) if jax.tree_util.all_leaves([reward]) else reward
