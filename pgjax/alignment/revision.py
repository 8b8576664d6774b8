"""Critique and revision: a language model says what is wrong with its own answers, and answers again."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from pgjax.alignment.generation import generate
from pgjax.alignment.models import LanguageModel
from pgjax.core.algorithm import Key
from pgjax.core.errors import InputError


class Revision(NamedTuple):
    """What a model wrote about one prompt, in words."""

    prompt: str
    answer: str
    critique: str
    revision: str
    """Empty where the model came to none."""


def revise(
    model: LanguageModel,
    prompts: Sequence[str],
    key: Key,
    max_tokens: int,
    *,
    critic: LanguageModel | None = None,
    between: str = "|",
    temperature: float = 1.0,
) -> list[Revision]:
    """Constitutional AI's first stage (Bai et al., 2022, section 3): the model answers each prompt; a critic, by
    default the model itself, then reads "prompt | answer |" and writes "critique | revision".

    Args:
        max_tokens: of an answer; critique and revision together may have twice as many.
        between: the text between the parts.
        temperature: of all that is sampled.

    Raises:
        InputError: as `generate` does, or the critic has another tokenizer.
    """
    critic = critic or model
    tokenizer = model.tokenizer
    if critic.tokenizer != tokenizer:
        raise InputError("revise: critic has another tokenizer than model: expected the same")
    separator = tokenizer.encode(between)
    asked = [tokenizer.encode(prompt) or [tokenizer.eos] for prompt in prompts]
    answer_key, critique_key = jax.random.split(key)
    answers = _written(model, asked, answer_key, max_tokens, temperature)
    questions = [[*prompt, *separator, *answer, *separator] for prompt, answer in zip(asked, answers, strict=True)]
    found = []
    for prompt, answer, written in zip(
        prompts, answers, _written(critic, questions, critique_key, 2 * max_tokens, temperature), strict=True
    ):
        critique, _, revision = tokenizer.decode(written).partition(between)
        found.append(Revision(prompt, tokenizer.decode(answer), critique.strip(), revision.strip()))
    return found


def _written(
    model: LanguageModel, prompts: list[list[int]], key: Key, max_tokens: int, temperature: float
) -> list[list[int]]:
    """A completion of each prompt, without EOS."""
    eos, pad = model.tokenizer.eos, model.tokenizer.pad
    found = generate(model.network, model.params, prompts, key, max_tokens, temperature, eos=eos, pad=pad)
    rows = zip(*(np.asarray(x) for x in (found.tokens, found.mask)), strict=True)
    return [tokens[real & (tokens != eos)].tolist() for tokens, real in rows]


def as_completions(revisions: Sequence[Revision]) -> list[dict[str, str]]:
    """Records of prompts and revisions, for supervised fine-tuning: `prompt`, `completion`."""
    return [{"prompt": r.prompt, "completion": r.revision} for r in revisions if r.revision]


def as_preferences(revisions: Sequence[Revision]) -> list[dict[str, str]]:
    """Records of revisions over the answers that they revise, where they differ: `prompt`, `chosen`, `rejected`."""
    return [
        {"prompt": r.prompt, "chosen": r.revision, "rejected": r.answer}
        for r in revisions
        if r.revision and r.answer and r.revision != r.answer
    ]
