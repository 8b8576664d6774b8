"""A judge: a language model that reads a prompt and two answers, and says which is better."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.alignment.data import PREFERENCES
from pgjax.alignment.models import LanguageModel, Prompt
from pgjax.alignment.packing import Preferences
from pgjax.alignment.supervised import in_parts
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import TRACED, check_fields, field, pytree
from pgjax.networks.transformer import Transformer

AT_ONCE = 64
"""Pairs that a judge reads at once."""


@pytree
class JudgeOptions:
    """How a judge is asked: prompt, `between`, an answer, `between`, the other one, `question`; and how it answers."""

    between: str = field("the text between prompt and answers", default="|")
    question: str = field("the text after them", default="?")
    first: str = field("the token that prefers the first answer", default="A")
    second: str = field("the token that prefers the second answer", default="B")
    swap: bool = field("ask in both orders, and take the mean of the two probabilities", default=True)

    def __post_init__(self) -> None:
        check_fields(self)


class Answers(NamedTuple):
    """One answer to each of N prompts, right-padded, with or without EOS."""

    tokens: Int[Array, "N T"]
    mask: Bool[Array, "N T"]


@pytree
class Judge:
    """AI feedback (Bai et al., 2022; Lee et al., 2024): the probability that an answer is better than another,

        p(a over b) = q(first | x, a, b),   q = softmax over the two verdicts of the model's next token,

    and with `swap` the mean of it and q(second | x, b, a), which does not favour a place. It is asked about words
    alone: the EOS of answers is left out. As a reward of single answers it gives log p / (1 - p) against the empty
    answer.
    """

    model: Annotated[LanguageModel, TRACED]
    options: JudgeOptions = dataclasses.field(default_factory=JudgeOptions)
    path: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            text = getattr(self.options, name)
            if len(self.model.tokenizer.encode(text)) != 1:
                raise InputError(f"Judge: {name} = {text!r} is not accepted: expected a single token")

    @property
    def tokenizer(self) -> Any:
        """Of the model."""
        return self.model.tokenizer

    @property
    def network(self) -> Transformer:
        """Of the model."""
        return self.model.network

    def reads(self, prompt: int, completion: int) -> int:
        """How many tokens it reads of a prompt with two completions of so many."""
        between, question = (len(self.tokenizer.encode(text)) for text in (self.options.between, self.options.question))
        return prompt + 2 * (between + completion) + question

    def __call__(self, prompt: Prompt, tokens: Array, mask: Array) -> Float[Array, "B"]:
        """As a `Reward`."""
        nothing = Answers(jnp.full_like(tokens[:, :1], self.tokenizer.pad), jnp.zeros_like(mask[:, :1]))
        return self.compare(prompt, Answers(tokens, mask), nothing)

    def compare(self, prompt: Prompt, a: Answers, b: Answers) -> Float[Array, "N"]:
        """log p / (1 - p) of the probability p that a is better than b."""
        probability = jax.nn.sigmoid(self.asked(prompt, a, b))
        if self.options.swap:
            probability = (probability + jax.nn.sigmoid(-self.asked(prompt, b, a))) / 2.0
        return jax.scipy.special.logit(jnp.clip(probability, 1e-6, 1.0 - 1e-6))

    def asked(self, prompt: Prompt, a: Answers, b: Answers) -> Float[Array, "N"]:
        """log q(first) / q(second), asked in this order."""
        encode, rows = self.tokenizer.encode, prompt.tokens.shape[0]

        def said(text: str) -> Answers:
            ids = jnp.broadcast_to(jnp.array(encode(text), jnp.int32), (rows, len(encode(text))))
            return Answers(ids, jnp.ones_like(ids, bool))

        between = said(self.options.between)
        words = [Answers(x.tokens, x.mask & (x.tokens != self.tokenizer.eos)) for x in (a, b)]
        texts = [Answers(*prompt), between, words[0], between, words[1], said(self.options.question)]
        tokens, mask = (jnp.concatenate(column, axis=1) for column in zip(*texts, strict=True))
        params = self.model.params
        logits = self.network.unembed(params, self.network.hidden(params, tokens, mask)[:, -1])
        first, second = (logits[:, encode(text)[0]] for text in (self.options.first, self.options.second))
        return first - second

    def prefers(self, rows: Preferences) -> Float[Array, "N"]:
        """`compare` of the chosen and the rejected answers of pairs, some at a time."""

        def of_part(rows: Preferences) -> Array:
            chosen, rejected = Answers(rows.chosen, rows.chosen_mask), Answers(rows.rejected, rows.rejected_mask)
            return self.compare(Prompt(rows.prompt, rows.prompt_mask), chosen, rejected)

        return in_parts(of_part, rows, AT_ONCE)

    def relabel(
        self, records: Sequence[dict[str, Any]], *, max_prompt: int = 64, max_completion: int = 64
    ) -> list[dict[str, Any]]:
        """Records of preferences with the answer chosen that the judge prefers, and a `margin`, its log p / (1 - p).

        Args:
            max_prompt: how many tokens of a prompt it reads, the last ones.
            max_completion: how many tokens of an answer it reads, the first ones.
        """
        limits = {"max_prompt": max_prompt, "max_completion": max_completion, "too_long": "cut", "held_out": 0.0}
        rows = PREFERENCES.of(records, **limits).packed(self.tokenizer, self.network.context).train
        found = []
        for record, log_odds in zip(records, jax.jit(self.prefers)(rows).tolist(), strict=True):
            answers = record["chosen"], record["rejected"]
            chosen, rejected = answers if log_odds >= 0 else answers[::-1]
            found.append({"prompt": record["prompt"], "chosen": chosen, "rejected": rejected, "margin": abs(log_odds)})
        return found
