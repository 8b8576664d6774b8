"""A process reward model: the probability that each step of an answer is right, learned from judged steps."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from pgjax.alignment.data import STEPS, Data
from pgjax.alignment.models import LANGUAGE_MODELS, LanguageModel, Prompt
from pgjax.alignment.packing import Steps
from pgjax.alignment.reward_model import scores_at_all, with_score
from pgjax.alignment.supervised import (
    Supervised,
    batch_of,
    held_out_means,
    initial_state,
    learn,
    prepare_supervised,
)
from pgjax.core.algorithm import Key, Metrics, Params, Scores
from pgjax.core.hyperparameters import TRACED, field, pytree
from pgjax.core.text import shows_briefly


@shows_briefly
class ProcessRewardModelState(NamedTuple):
    """The `State` of a process reward model."""

    key: Key
    iteration: Array
    params: Params
    opt_state: Any
    ends: "StepEnds"


class StepEnds(NamedTuple):
    """The tokens that steps end at, for those who read the model as a reward."""

    separator: Int[Array, ""]
    eos: Int[Array, ""]


@pytree
class ProcessRewardModel(Supervised):
    """A process reward model from judged steps (Uesato et al., 2022; Lightman et al., 2024).

    AdamW minimises the mean over steps of

        -log p if the step is right, -log(1 - p) if it is wrong,   p = sigmoid(r(x, y_<=t)),

    where r is a linear function of the stream at t, where the step ends: at the separator after it, and at EOS for the
    last one, which is right only if the answer ends rightly there. With `outcome_only` it learns nothing but the
    latter: an outcome reward model (Cobbe et al., 2021).
    """

    model: Annotated[LanguageModel, TRACED] = field("what it starts from", part=LANGUAGE_MODELS)
    data: Annotated[Data, TRACED] = field("answers with judged steps", default=STEPS.make("sums"), part=STEPS)
    total_steps: int = field("answers to train on", default=8192, accepts="[1, 1e18]")
    outcome_only: bool = field("learn from the last step of each answer alone", default=False)

    unit = "answers"
    score = ("log_loss", "min")

    def __post_init__(self) -> None:
        prepare_supervised(self)

    def init(self, key: Key) -> ProcessRewardModelState:
        """The model as it is, with a probability of 1/2 for everything."""
        state = initial_state(self, key, lambda _: with_score(self.model))
        tokenizer = self.model.tokenizer
        separator = tokenizer.encode(self.data.options.separator)[0]
        return ProcessRewardModelState(*state, StepEnds(jnp.int32(separator), jnp.int32(tokenizer.eos)))

    def step(self, state: ProcessRewardModelState) -> tuple[ProcessRewardModelState, Metrics]:
        """One batch of answers, one gradient step."""
        return learn(self, state, batch_of(self, state), self.sums)

    def sums(self, params: Params, rows: Steps) -> tuple[Array, tuple[dict[str, Array], Array]]:
        """Loss and metrics of the steps of these answers, summed, and how many they are."""
        prompt = Prompt(rows.prompt, rows.prompt_mask)
        score = scores_at_all(self.model.network, params, prompt, rows.completion, rows.completion_mask)
        ends = rows.ends & (rows.completion == self.model.tokenizer.eos) if self.outcome_only else rows.ends
        log_loss = optax.sigmoid_binary_cross_entropy(score, rows.label.astype(jnp.float32))
        metrics = {"log_loss": log_loss, "accuracy": jnp.where(score == 0.0, 0.5, (score > 0.0) == rows.label)}
        summed = jax.tree.map(lambda x: jnp.sum(jnp.where(ends, x, 0.0)), metrics)
        return summed["log_loss"], (summed, jnp.sum(ends, dtype=jnp.float32))

    def evaluate(self, state: ProcessRewardModelState, key: Key, num: int) -> Scores:
        """Over the steps of `num` held-out answers: `log_loss` of the judgements, and `accuracy`."""
        return held_out_means(self, state.params, key, num, self.sums)
