"""A reward model: scores of completions, learned from which of two was preferred."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.alignment.data import PREFERENCES, Data
from pgjax.alignment.generation import Generation, generate
from pgjax.alignment.models import LANGUAGE_MODELS, LanguageModel, Prompt, both_answers
from pgjax.alignment.packing import Preferences
from pgjax.alignment.supervised import (
    Supervised,
    batch_of,
    held_out_means,
    initial_state,
    learn,
    prepare_supervised,
)
from pgjax.core.algorithm import INIT_STREAM, Key, Metrics, Params, Scores
from pgjax.core.hyperparameters import TRACED, Scalar, field, pytree
from pgjax.core.text import shows_briefly
from pgjax.learning import losses
from pgjax.networks.transformer import Transformer

CALIBRATION_BINS = 10


@shows_briefly
class RewardModelState(NamedTuple):
    """The `State` of a reward model."""

    key: Key
    iteration: Array
    params: Params
    opt_state: Any
    reference: "Reference"


class Reference(NamedTuple):
    """Completions of the model it starts from: what its scores are normalised on where they become a reward."""

    prompt: Prompt
    completion: Generation


@pytree
class RewardModel(Supervised):
    """A reward model from preferences (Bradley & Terry, 1952; Ouyang et al., 2022, eq. 1).

    AdamW minimises the mean over pairs of

        -log sigmoid(r(x, y_chosen) - r(x, y_rejected) - margin) + center_coef (r(x, y_chosen) + r(x, y_rejected))^2,

    where r(x, y) is a linear function of the stream at the last token of y, and the second term (Eisenstein et al.,
    2023, section 3) settles the constant that preferences leave open.
    """

    model: Annotated[LanguageModel, TRACED] = field("what it starts from", part=LANGUAGE_MODELS)
    data: Annotated[Data, TRACED] = field("preferences", default=PREFERENCES.make("grammar"), part=PREFERENCES)
    total_steps: int = field("pairs to train on", default=8192, accepts="[1, 1e18]")
    center_coef: Scalar = field("weight of the squared sum of a pair's scores", default=0.01, accepts="[0, inf)")
    references: int = field(
        "completions of the model it starts from that its scores are normalised on", default=256, accepts="[2, inf)"
    )

    unit = "pairs"
    score = ("log_loss", "min")

    def __post_init__(self) -> None:
        prepare_supervised(self)

    def init(self, key: Key) -> RewardModelState:
        """The model as it is, with a score of 0 for everything, and completions of it."""
        state = initial_state(self, key, lambda _: with_score(self.model))
        return RewardModelState(*state, self.sampled(jax.random.fold_in(key, INIT_STREAM)))

    def sampled(self, key: Key) -> Reference:
        """Completions of the model for prompts of the training data."""
        rows = self.data.train
        row_key, sample_key = jax.random.split(key)
        chosen = jax.random.randint(row_key, (self.references,), 0, rows.prompt.shape[0])
        prompt = Prompt(rows.prompt[chosen], rows.prompt_mask[chosen])
        model, tokenizer = self.model, self.model.tokenizer
        ends = {"eos": tokenizer.eos, "pad": tokenizer.pad}
        length = min(rows.chosen.shape[1], model.network.context - rows.prompt.shape[1])
        completion = generate(model.network, model.params, prompt.tokens, sample_key, length, mask=prompt.mask, **ends)
        return Reference(prompt, completion)

    def step(self, state: RewardModelState) -> tuple[RewardModelState, Metrics]:
        """One batch of pairs, one gradient step."""
        return learn(self, state, batch_of(self, state), self.sums)

    def sums(self, params: Params, rows: Preferences) -> tuple[Array, tuple[dict[str, Array], Array]]:
        """Of all pairs; both completions of a pair are read in one pass."""
        return self.compared(rows, *self.scores(params, rows))

    def compared(
        self, rows: Preferences, chosen: Float[Array, "B"], rejected: Float[Array, "B"]
    ) -> tuple[Array, tuple[dict[str, Array], Array]]:
        """Loss and metrics of pairs with these scores, summed, and how many they are."""
        log_loss = losses.bradley_terry(chosen, rejected, rows.margin)
        loss = jnp.sum(log_loss + self.center_coef * (chosen + rejected) ** 2)
        metrics = {
            "log_loss": log_loss,
            "accuracy": jnp.where(chosen == rejected, 0.5, chosen > rejected),
            "margin": chosen - rejected,
        }
        return loss, (jax.tree.map(jnp.sum, metrics), jnp.float32(chosen.size))

    def scores(self, params: Params, rows: Preferences) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """Of the chosen and of the rejected completions."""
        chosen, rejected = jnp.split(score_at_last(self.model.network, params, *both_answers(rows)), 2)
        return chosen, rejected

    def evaluate(self, state: RewardModelState, key: Key, num: int) -> Scores:
        """Over `num` held-out pairs: `log_loss` of the preferences, `accuracy`, and `calibration_error`.

        The last is the expected calibration error (Naeini et al., 2015): the mean distance, over ten bins of the
        predicted probability that the first of two is preferred, between prediction and frequency.
        """

        def sums(params: Params, rows: Preferences) -> tuple[Array, tuple[dict[str, Array], Array]]:
            chosen, rejected = self.scores(params, rows)
            loss, (metrics, weight) = self.compared(rows, chosen, rejected)
            return loss, (metrics | _bins(jax.nn.sigmoid(chosen - rejected)), weight)

        means = held_out_means(self, state.params, key, num, sums)
        gap = jnp.abs(means.pop("predicted") - means.pop("preferred"))
        return {name: means[name] for name in ("log_loss", "accuracy")} | {"calibration_error": jnp.sum(gap)}


def with_score(model: LanguageModel) -> Params:
    """A language model's parameters as `"model"`, and a linear `"score"` that is 0 everywhere."""
    return {"model": model.params, "score": {"kernel": jnp.zeros(model.network.width), "bias": jnp.zeros(())}}


def score_of(params: Params, hidden: Float[Array, "*tokens width"]) -> Float[Array, "*tokens"]:
    """The linear score of the normalised stream, in float32."""
    return hidden.astype(jnp.float32) @ params["kernel"] + params["bias"]


def scores_at_all(
    network: Transformer, params: Params, prompt: Prompt, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """The score of each completion up to each of its tokens."""
    hidden = network.hidden(
        params["model"],
        jnp.concatenate([prompt.tokens, tokens], axis=1),
        jnp.concatenate([prompt.mask, mask], axis=1),
    )
    return score_of(params["score"], hidden[:, prompt.tokens.shape[1] :])


def score_at_last(
    network: Transformer, params: Params, prompt: Prompt, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B"]:
    """The score of each completion, read at its last real token."""
    last = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
    return jnp.take_along_axis(scores_at_all(network, params, prompt, tokens, mask), last[:, None], axis=1)[:, 0]


def _bins(probability: Float[Array, "B"]) -> dict[str, Array]:
    """By bin, sums of the predicted probability and of how often the prediction came true, each pair in both orders."""
    predicted = jnp.concatenate([probability, 1.0 - probability])
    preferred = jnp.concatenate([jnp.ones_like(probability), jnp.zeros_like(probability)])
    index = jnp.minimum((predicted * CALIBRATION_BINS).astype(jnp.int32), CALIBRATION_BINS - 1)
    of_bin = jax.nn.one_hot(index, CALIBRATION_BINS) / 2
    return {"predicted": predicted @ of_bin, "preferred": preferred @ of_bin}
