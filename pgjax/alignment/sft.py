"""Supervised fine-tuning: a language model learns the completions of prompts, and of the prompts nothing."""

from typing import Annotated

import jax.numpy as jnp
import optax
from jaxtyping import Array

from pgjax.alignment.data import COMPLETIONS, Data
from pgjax.alignment.models import LANGUAGE_MODELS, LanguageModel, Prompt, completion_logits
from pgjax.alignment.packing import Completions
from pgjax.alignment.supervised import (
    ModelState,
    Supervised,
    batch_of,
    held_out_means,
    initial_state,
    learn,
    prepare_supervised,
)
from pgjax.core.algorithm import Key, Metrics, Params, Scores
from pgjax.core.hyperparameters import TRACED, field, pytree


@pytree
class SFT(Supervised):
    """Supervised fine-tuning (Ouyang et al., 2022, section 3.5): AdamW minimises -log pi(y_t | x, y_<t), its mean over
    all tokens of the completions of a batch, their end of text included."""

    model: Annotated[LanguageModel, TRACED] = field("what is fine-tuned", part=LANGUAGE_MODELS)
    data: Annotated[Data, TRACED] = field(
        "prompts with completions", default=COMPLETIONS.make("grammar"), part=COMPLETIONS
    )
    total_steps: int = field("examples to train on", default=8192, accepts="[1, 1e18]")

    unit = "examples"
    language_model_at = "params"

    def __post_init__(self) -> None:
        prepare_supervised(self)

    def init(self, key: Key) -> ModelState:
        """The model as it is."""
        return initial_state(self, key, lambda _: self.model.params)

    def step(self, state: ModelState) -> tuple[ModelState, Metrics]:
        """One batch of examples, one gradient step."""
        return learn(self, state, batch_of(self, state), self.sums)

    def sums(self, params: Params, rows: Completions) -> tuple[Array, tuple[dict[str, Array], Array]]:
        """Of all tokens of completions; padding counts nothing."""
        prompt = Prompt(rows.prompt, rows.prompt_mask)
        logits = completion_logits(self.model.network, params, prompt, rows.completion)
        token_losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows.completion)
        loss = jnp.sum(jnp.where(rows.completion_mask, token_losses, 0.0))
        correct = jnp.sum((jnp.argmax(logits, axis=-1) == rows.completion) & rows.completion_mask, dtype=jnp.float32)
        weight = jnp.sum(rows.completion_mask, dtype=jnp.float32)
        return loss, ({"loss": loss, "accuracy": correct}, weight)

    def evaluate(self, state: ModelState, key: Key, num: int) -> Scores:
        """`loss` in nats per token, `perplexity` = exp(loss), and `accuracy` of the most probable token, over `num`
        held-out examples."""
        means = held_out_means(self, state.params, key, num, self.sums)
        return means | {"perplexity": jnp.exp(means["loss"])}

    def language_model(self, state: ModelState) -> LanguageModel:
        """The model of `state`."""
        return self.model.with_params(state.params)
