"""A language model from nothing: the next token of running text, one row after another."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from pgjax.alignment.data import TEXTS, Data
from pgjax.alignment.models import TEXT_NETWORKS, LanguageModel
from pgjax.alignment.supervised import (
    ModelState,
    Supervised,
    batch_of,
    check_supervised,
    held_out_means,
    initial_state,
    learn,
)
from pgjax.alignment.tokenizers import TOKENIZERS, Bytes, Tokenizer
from pgjax.core.algorithm import Key, Metrics, Params, Scores
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import TRACED, check_fields, field, pytree
from pgjax.networks.transformer import Transformer


@pytree
class LM(Supervised):
    """Next-token prediction: AdamW minimises the mean of -log p(token | those before it in its row), in nats."""

    data: Annotated[Data, TRACED] = field("what is read", default=TEXTS.make("grammar"), part=TEXTS)
    tokenizer: Tokenizer = field("what turns text into tokens", default=Bytes(), part=TOKENIZERS)
    network: Transformer = field("the model", default=Transformer(context=128), part=TEXT_NETWORKS)
    total_steps: int = field("tokens to train on", default=2_000_000, accepts="[1, 1e18]")

    unit = "tokens"
    language_model_at = "params"

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.network.vocab:
            object.__setattr__(self, "network", dataclasses.replace(self.network, vocab=self.tokenizer.vocab))
        if self.tokenizer.vocab > self.network.vocab:
            raise InputError(
                f"LM.network.vocab = {self.network.vocab} is not accepted: the tokenizer has {self.tokenizer.vocab} ids"
            )
        object.__setattr__(self, "data", self.data.packed(self.tokenizer, self.network.context))
        check_supervised(self)

    @property
    def steps_per_iteration(self) -> int:
        """Tokens of a batch."""
        return self.batch_size * self.data.train.tokens.shape[1]

    def init(self, key: Key) -> ModelState:
        """A new model."""
        return initial_state(self, key, self.network.init_text)

    def step(self, state: ModelState) -> tuple[ModelState, Metrics]:
        """One batch of rows, one gradient step."""
        return learn(self, state, batch_of(self, state), self.sums)

    def sums(self, params: Params, rows: Any) -> tuple[Array, tuple[dict[str, Array], Array]]:
        """Of all tokens but the first of each row, which nothing predicts."""
        logits = self.network.logits(params, rows.tokens[:, :-1])
        target = rows.tokens[:, 1:]
        loss = jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, target))
        correct = jnp.sum(jnp.argmax(logits, axis=-1) == target, dtype=jnp.float32)
        return loss, ({"loss": loss, "accuracy": correct}, jnp.float32(target.size))

    def evaluate(self, state: ModelState, key: Key, num: int) -> Scores:
        """`loss` in nats per token, `perplexity` = exp(loss), and `accuracy` of the most probable token, over `num`
        held-out rows."""
        means = held_out_means(self, state.params, key, num, self.sums)
        return means | {"perplexity": jnp.exp(means["loss"])}

    def language_model(self, state: ModelState) -> LanguageModel:
        """The model of `state`."""
        return LanguageModel(self.network, self.tokenizer, jax.tree.map(jnp.asarray, state.params))
