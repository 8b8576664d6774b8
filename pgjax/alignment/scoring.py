"""Rewards as a kind of part: models that were trained, functions that jax traces, right answers, functions of texts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pgjax.alignment import addition, constitution, countdown, grammar, sums, walks
from pgjax.alignment.data import COMPLETIONS, Data
from pgjax.alignment.learned_rewards import FROM_RUNS, OPTIONS, EnsembleOptions, algorithm_at, reward_of_run
from pgjax.alignment.models import Prompt, is_run
from pgjax.alignment.records import IN_CODE
from pgjax.alignment.tokenizers import TOKENIZERS, Tokenizer
from pgjax.core.devices import everywhere
from pgjax.core.errors import InputError, nearest
from pgjax.core.hyperparameters import TRACED, field_types, pytree
from pgjax.core.parts import Description, check_options, dataclass_options, plain_repr, to_json
from pgjax.running.directory import read_config

RewardFunction: TypeAlias = Callable[[Array, Array, Array], Array]
"""(tokens `[B, T]`, mask `[B, T]`, prompt `[B, P]`) -> one number per completion `[B]`, or per token `[B, T]`."""


@runtime_checkable
class Reward(Protocol):
    """a reward: a run of a reward model or judge, or a function (tokens, mask, prompt) -> [B] or [B, T]"""

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


OF_LANGUAGES: dict[str, dict[str, RewardFunction]] = {
    "grammar": {"sentiment": grammar.sentiment, "grammatical": grammar.is_grammatical},
    "addition": {"addition": addition.is_right, "addition-format": addition.is_number},
    "sums": {"sums": sums.is_right, "sums-steps": sums.right_steps},
    "countdown": {"countdown": countdown.is_right, "countdown-format": countdown.is_expression},
    "walks": {"walks": walks.optimality},
    "constitution": {"constitution": constitution.kept},
}
NAMED_REWARDS = {
    name: TracedReward(function, TOKENIZERS.make(language))
    for language, functions in OF_LANGUAGES.items()
    for name, function in functions.items()
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
        texts = everywhere((*prompt, tokens, mask))  # the host is one place
        return jax.pure_callback(on_host, shape, *texts, vmap_method="sequential")


@pytree
class AnswerReward:
    """1 where prompt and completion are among the records of a file, EOS included, and 0 elsewhere."""

    data: Annotated[Data, TRACED]

    def packed(self, tokenizer: Tokenizer, context: int) -> "AnswerReward":
        """With the records in tokens, for completions and prompts of so many."""
        return AnswerReward(self.data.packed(tokenizer, context))

    def __call__(self, prompt: Prompt, tokens: Array, mask: Array) -> Array:
        """As a `Reward`."""
        known = self.data.train
        wide = max(known.prompt.shape[1], prompt.tokens.shape[1])
        long = max(known.completion.shape[1], tokens.shape[1])

        def texts(prompt: Array, real: Array, completion: Array, mask: Array) -> Array:
            """-1 where no token is."""
            before, after = jnp.where(real, prompt, -1), jnp.where(mask, completion, -1)
            before = jnp.pad(before, ((0, 0), (wide - before.shape[1], 0)), constant_values=-1)
            after = jnp.pad(after, ((0, 0), (0, long - after.shape[1])), constant_values=-1)
            return jnp.concatenate([before, after], axis=1)

        asked, right = texts(*prompt, tokens, mask), texts(*known)
        return jnp.any(jnp.all(asked[:, None] == right, axis=2), axis=1).astype(jnp.float32)


class Rewards:
    """Reward models by the path of their run, right answers by the path of their file, functions by their name."""

    @property
    def sentence(self) -> str:
        """What there is."""
        names = ", ".join(NAMED_REWARDS)
        return f"a run of a reward model or judge or a file of right answers (*.jsonl) by its path, or one of: {names}"

    def make(self, name: str, sha256: str | None = None, **options: Any) -> Any:
        """The reward of that name; `sha256` is the digest that the parameters of a reward model must have.

        Raises:
            InputError: there is no such reward, it is not the one it was, or an option is not accepted.
        """
        declared = self.declaration(name)
        check_options(f"reward {name}", options, field_types(declared) if declared else ())
        if name in NAMED_REWARDS:
            return NAMED_REWARDS[name]
        if name.endswith(".jsonl"):
            return AnswerReward(COMPLETIONS.make(name, sha256, held_out=0.0))
        try:
            known = is_run(name)
        except InputError as error:
            raise InputError(f"reward = {name!r} is not known: {nearest(name, NAMED_REWARDS)}; {error}") from error
        config = read_config(name) if known else {}
        if config.get("algorithm") not in OPTIONS:
            raise InputError(f"reward = {name!r} is not accepted: expected the run of a reward model or a judge")
        return reward_of_run(config, name, sha256, options)

    def describe(self, part: Any) -> Description | None:
        """The path with the digest and the options, or the name of a function; None for what is made in code."""
        names = {reward.function: name for name, reward in NAMED_REWARDS.items()}
        if isinstance(part, TracedReward) and part.function in names:
            return {"name": names[part.function], "options": {}}
        if isinstance(part, AnswerReward) and part.data.source.sha256 and part.data.source.name != IN_CODE:
            return {"name": part.data.source.name, "options": {"sha256": part.data.source.sha256}}
        if not isinstance(part, FROM_RUNS) or not part.path:
            return None
        options = {f.name: to_json(getattr(part.options, f.name)) for f in dataclasses.fields(part.options)}
        return {"name": part.path, "options": {"sha256": part.sha256} | options}

    def with_options(self, part: Any, **options: Any) -> Any:
        """The same reward models used in another way; of somebody's own reward, other fields."""
        if isinstance(part, FROM_RUNS):
            changed: Any = {"options": dataclasses.replace(part.options, **options)}
            return dataclasses.replace(part, **changed)
        return dataclasses.replace(part, **options)

    def options(self, part: Any) -> dict[str, bool]:
        """Of reward models, how they are used; functions and answers have none. Of somebody's own reward, its
        fields."""
        if isinstance(part, (TracedReward, HostReward, AnswerReward)):
            return {}
        return dataclass_options(part.options if isinstance(part, FROM_RUNS) else part)

    def declaration(self, name: str) -> type | None:
        """`EnsembleOptions` for reward models, `StepOptions` for those of steps, `JudgeOptions` for judges."""
        if name in NAMED_REWARDS or name.endswith(".jsonl"):
            return None
        return OPTIONS.get(algorithm_at(name), EnsembleOptions)


REWARDS = Rewards()


def as_reward(reward: Any) -> Any:
    """A `Reward` as it is, which jax must know as a pytree, and a function of tokens as one.

    Raises:
        InputError: it is neither.
    """
    if not callable(reward):
        raise InputError(f"reward = {plain_repr(reward)} is not accepted: expected {(Reward.__doc__ or '').strip()}")
    return TracedReward(reward) if jax.tree_util.all_leaves([reward]) else reward
