"""Sampling completions: a prompt is read at once, then token by token until every row has ended."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pgjax.core.algorithm import Key, Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar
from pgjax.networks.distributions import Categorical
from pgjax.networks.transformer import TextCache, Transformer


class Generation(NamedTuple):
    """Completions, right-padded."""

    tokens: Int[Array, "B T"]
    log_prob: Float[Array, "B T"]
    """Of each token under the distribution it was sampled from; 0 where it is padding."""
    mask: Bool[Array, "B T"]
    """True for the tokens of a completion, its end of text included."""


class _Decoding(NamedTuple):
    """Where the loop stands after step t."""

    step: Int[Array, ""]
    cache: TextCache
    done: Bool[Array, "B"]
    completions: Generation


def generate(
    model: Transformer,
    params: Params,
    prompts: Int[Array, "B P"] | Sequence[Sequence[int]],
    key: Key,
    max_tokens: int,
    temperature: Scalar = 1.0,
    top_k: Scalar = 0,
    top_p: Scalar = 1.0,
    min_p: Scalar = 0.0,
    *,
    mask: Bool[Array, "B P"] | None = None,
    eos: int | None = None,
    pad: int = 0,
) -> Generation:
    """Sample one completion for each prompt, of at most `max_tokens` tokens.

    The next token is drawn from softmax(logits / temperature), restricted as `restricted` says. The log-probabilities
    are those of one teacher-forced pass, and how far prompts are padded changes nothing.

    Args:
        prompts: tokens, padded on the left where `mask` is False; or lists of tokens, which are padded here.
        temperature: 0 takes the most probable token.
        mask: which tokens of the prompts are real; all of them by default. The last one must be.
        eos: the token that ends a completion; without it all have `max_tokens` tokens.
        pad: what fills the rest.

    Raises:
        InputError: no prompt or one without tokens, a token outside the vocabulary, prompts and completions longer than
            the model's context, or a setting that is not accepted.
    """
    tokens: Any = prompts
    real: Any = mask
    if not hasattr(prompts, "shape"):
        tokens, real = left_padded(prompts, pad)
    elif mask is None:
        real = np.ones(tokens.shape, bool)
    _check_settings(max_tokens, temperature, top_k, top_p, min_p)
    _check_prompts(model, tokens, real, max_tokens)
    restricts = any(isinstance(x, jax.core.Tracer) for x in (top_k, top_p, min_p)) or bool(top_k or top_p < 1 or min_p)
    settings = temperature, top_k, top_p, min_p
    ends = jnp.int32(-1 if eos is None else eos), jnp.int32(pad)
    texts = jnp.asarray(tokens, jnp.int32), jnp.asarray(real, bool)
    return _generate(model, max_tokens, restricts, params, *texts, key, settings, ends)


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of tokens as an array whose rows end with them, and which of its entries are real."""
    shape = len(prompts), max(map(len, prompts), default=0)
    width = shape[1]
    tokens = np.array([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], np.int32)
    real = np.array([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts], bool)
    return tokens.reshape(shape), real.reshape(shape)


def restricted(
    logits: Float[Array, "B vocab"], temperature: Scalar, top_k: Scalar, top_p: Scalar, min_p: Scalar
) -> Float[Array, "B vocab"]:
    """logits / temperature, with -inf for tokens that are left out, in this order:

    `top_k` > 0 keeps the k most probable tokens; `top_p` the smallest set of most probable ones that has at least this
    probability (Holtzman et al., 2020), renormalised after top_k; `min_p` those with at least this share of the
    probability of the most probable one (Nguyen et al., 2024).
    """
    scaled = logits / temperature
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    rank = jnp.arange(ordered.shape[-1])
    ordered = jnp.where((top_k > 0) & (rank >= top_k), -jnp.inf, ordered)
    probability = jax.nn.softmax(ordered)
    before = jnp.cumsum(probability, axis=-1) - probability
    within = (before < top_p) | (rank == 0) | (top_p >= 1.0)  # sums of float32 reach 1 before the last token
    kept = (ordered > -jnp.inf) & within & (probability >= min_p * probability[:, :1])
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled >= least, scaled, -jnp.inf)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    model: Transformer,
    max_tokens: int,
    restricts: bool,
    params: Params,
    prompts: Int[Array, "B P"],
    real: Bool[Array, "B P"],
    key: Key,
    settings: tuple[Scalar, ...],
    ends: tuple[Array, Array],
) -> Generation:
    eos, pad = ends
    rows, width = prompts.shape
    noise = Categorical(jnp.zeros((rows, model.vocab))).noise(key, (max_tokens,))

    def sampled(t: Array, hidden: Array, done: Array, completions: Generation) -> tuple[Array, Generation]:
        policy = Categorical(_next_token_logits(model.unembed(params, hidden), restricts, *settings))
        token, log_prob = policy.sample_and_log_prob(noise[t])
        row = jnp.where(done, pad, token), jnp.where(done, 0.0, log_prob), ~done
        return done | (token == eos), Generation(
            *(x.at[:, t].set(new) for x, new in zip(completions, row, strict=True))
        )

    def step(at: _Decoding) -> _Decoding:
        token = jax.lax.dynamic_index_in_dim(at.completions.tokens, at.step, axis=1, keepdims=False)
        cache, hidden = model.decode(params, at.cache, width + at.step, token)
        return _Decoding(at.step + 1, cache, *sampled(at.step + 1, hidden, at.done, at.completions))

    cache, hidden = model.prefill(params, prompts, real, max_tokens - 1)
    empty = jnp.full((rows, max_tokens), pad), jnp.zeros((rows, max_tokens)), jnp.zeros((rows, max_tokens), bool)
    first = sampled(jnp.int32(0), hidden, jnp.zeros(rows, bool), Generation(*empty))
    started = _Decoding(jnp.int32(0), cache, *first)
    return jax.lax.while_loop(lambda at: (at.step < max_tokens - 1) & ~jnp.all(at.done), step, started).completions


def _next_token_logits(logits: Array, restricts: bool, temperature: Scalar, *restrictions: Scalar) -> Array:
    """Of the distribution that is sampled."""
    positive = jnp.where(temperature > 0, temperature, 1.0)
    scaled = restricted(logits, positive, *restrictions) if restricts else logits / positive
    greedy = jnp.where(jnp.arange(logits.shape[-1]) == jnp.argmax(logits, axis=-1)[:, None], 0.0, -jnp.inf)
    return jnp.where(temperature > 0, scaled, greedy)


def _check_settings(max_tokens: int, temperature: Any, top_k: Any, top_p: Any, min_p: Any) -> None:
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, (int, np.integer)) or max_tokens < 1:
        raise InputError(f"generate: max_tokens = {max_tokens!r} is not accepted: expected a whole number (int) >= 1")
    bounds = {
        "temperature": (temperature, lambda x: x >= 0 and np.isfinite(x), "a number in [0, inf)"),
        "top_k": (
            top_k,
            lambda x: x >= 0 and np.isfinite(x) and x == int(x),
            "a whole number >= 0, where 0 keeps all tokens",
        ),
        "top_p": (top_p, lambda x: 0 < x <= 1, "a number in (0, 1]"),
        "min_p": (min_p, lambda x: 0 <= x <= 1, "a number in [0, 1]"),
    }
    for name, (value, accepted, expected) in bounds.items():
        if not isinstance(value, jax.core.Tracer) and not np.all([accepted(x) for x in np.ravel(value)]):
            raise InputError(f"generate: {name} = {value} is not accepted: expected {expected}")


def _check_prompts(model: Transformer, tokens: Any, real: Any, max_tokens: int) -> None:
    """What can be said of tracers is said of them too."""
    width = tokens.shape[1]
    if width + max_tokens > model.context:
        raise InputError(
            f"generate: prompts of {width} tokens and max_tokens = {max_tokens} are longer than the context of the "
            f"model: expected at most context = {model.context} together"
        )
    if isinstance(tokens, jax.core.Tracer) or isinstance(real, jax.core.Tracer):
        return
    tokens, real = np.asarray(tokens), np.asarray(real, bool)
    if width == 0 or not real[:, -1].all():
        raise InputError(
            "generate: a prompt without tokens, or one padded on the right, is not accepted: expected at least one "
            "real token at the end of each row"
        )
    wrong = tokens[real & ((tokens < 0) | (tokens >= model.vocab))]
    if wrong.size:
        raise InputError(f"generate: token {wrong[0]} is not accepted: expected ids below vocab = {model.vocab}")
