"""What the experiments on the built-in grammar share: the model they start from, and judges of what models write."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import pgjax
from pgjax.alignment import LM, SFT, LanguageModel, Transformer, generate, grammar
from pgjax.alignment.data import COMPLETIONS, TEXTS
from pgjax.alignment.generation import left_padded
from pgjax.alignment.tokenizers import TOKENIZERS

TOKENIZER = TOKENIZERS.make("grammar")
MAX_TOKENS = 24
JUDGED_ON = 9_999
"""Seed of the prompts that models are judged on; training and its held-out rows are of seed 0."""


class Judged(NamedTuple):
    """Means over the completions of a model, one for each prompt."""

    sentiment: jax.Array
    grammatical: jax.Array
    length: jax.Array


def new_model(tokenizer: Any, width: int, layers: int, context: int) -> LanguageModel:
    """A transformer for these tokens that has learned nothing."""
    network = Transformer(
        width=width,
        layers=layers,
        num_heads=4,
        num_groups=4,
        mlp_width=4 * width,
        context=context,
        vocab=tokenizer.vocab,
    )
    return LanguageModel(network, tokenizer, network.init_text(jax.random.key(0)))


def pretraining(total_steps: int = 1_999_872) -> LM:
    """A model of about 130,000 parameters on the grammar's text."""
    network = Transformer(width=64, layers=2, num_heads=4, num_groups=4, mlp_width=256, context=64)
    data = TEXTS.make("grammar", length=64, examples=16_384)
    return LM(data, TOKENIZER, network, total_steps, learning_rate=3e-3)


def fine_tuning(model: LanguageModel, total_steps: int = 16_384) -> SFT:
    """The same model on prompts and their completions."""
    return SFT(model, COMPLETIONS.make("grammar"), total_steps, batch_size=64)


def trained(algorithm: Any, seed: int = 0) -> tuple[LanguageModel, pgjax.Result]:
    """The language model that a run ends with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # budgets that are no whole number of iterations
        result = pgjax.run(algorithm, seed, progress=False)
    return algorithm.language_model(result.state), result


def base_model(seed: int = 0) -> LanguageModel:
    """Pretrained and fine-tuned: about 98 % of what it writes is grammatical."""
    model, _ = trained(pretraining(), seed)
    return trained(fine_tuning(model), seed)[0]


def prompts(num: int) -> tuple[jax.Array, jax.Array]:
    """Prompts that no method has seen, padded on the left, and which of their tokens are real."""
    records = grammar.prompts(num, JUDGED_ON)
    tokens, mask = left_padded([TOKENIZER.encode(record["prompt"]) for record in records], TOKENIZER.pad)
    return jnp.asarray(tokens), jnp.asarray(mask)


@functools.partial(jax.jit, static_argnums=(0, 3))
def judged(network: Transformer, params: Any, key: jax.Array, num: int = 1024) -> Judged:
    """What a model writes, by the rules that made the language."""
    tokens, mask = prompts(num)
    found = generate(network, params, tokens, key, MAX_TOKENS, mask=mask, eos=TOKENIZER.eos, pad=TOKENIZER.pad)
    written = found.tokens, found.mask, tokens
    length = jnp.sum(found.mask, axis=1).astype(jnp.float32)
    return Judged(*map(jnp.mean, (grammar.sentiment(*written), grammar.is_grammatical(*written), length)))


def written(model: LanguageModel, key: jax.Array, num: int) -> list[str]:
    """Prompts with one completion each, as text."""
    tokens, mask = prompts(num)
    found = generate(
        model.network, model.params, tokens, key, MAX_TOKENS, mask=mask, eos=TOKENIZER.eos, pad=TOKENIZER.pad
    )
    both = zip(tokens.tolist(), found.tokens.tolist(), strict=True)
    return [f"{TOKENIZER.decode(prompt)} | {TOKENIZER.decode(completion)}" for prompt, completion in both]
