"""Language models: reading at once is reading token by token, and what is sampled is what the model says."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import pgjax
from pgjax.alignment import Transformer, generate
from pgjax.alignment.generation import restricted

TINY = Transformer(width=8, layers=2, num_heads=4, num_groups=2, mlp_width=6, context=16, vocab=5)
CHANGES = {
    "rotary": {},
    "learned": {
        "positions": "learned",
        "norm": "layer",
        "gated": False,
        "activation": "gelu",
        "biases": "all",
        "tied": False,
    },
    "wide heads": {"head_width": 6, "query_key_norm": True, "biases": "qkv", "remat": True},
}
EOS, PAD = 3, 4
PROMPTS = [[0, 1, 2], [2], [1, 1]] * 8


def params_of(model, seed=0):
    """Large ones, so that the model has opinions."""
    return jax.tree.map(lambda x: x + 4 * x, model.init_text(jax.random.key(seed)))


@pytest.fixture(scope="module")
def params():
    return params_of(TINY)


def teacher_forced(model, params, prompts, found, temperature=1.0):
    """log p of each token of the completions, one row at a time, with nothing before the prompt."""
    expected = np.zeros(found.tokens.shape)
    logits = jax.jit(model.logits)
    for row, prompt in enumerate(prompts):
        tokens = np.asarray(found.tokens[row])[np.asarray(found.mask[row])]
        whole = np.resize([*prompt, *tokens], 9)  # what comes after is seen by nothing
        log_probs = jax.nn.log_softmax(logits(params, whole[None])[0] / temperature)
        for t, token in enumerate(tokens):
            expected[row, t] = log_probs[len(prompt) + t - 1, token]
    return expected


@pytest.mark.parametrize("name", CHANGES)
def test_a_prompt_and_then_one_token_at_a_time_is_reading_it_all(name):
    """With padding on the left, which changes nothing, and other text beside it."""
    model = dataclasses.replace(TINY, **CHANGES[name])
    params = params_of(model)
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 5)
    padded, mask = (jnp.pad(x, ((0, 0), (3, 0))) for x in (tokens, jnp.ones((2, 9), bool)))

    @jax.jit
    def both(params):
        cache, hidden = model.prefill(params, padded[:, :7], mask[:, :7], 5)
        said = [model.unembed(params, hidden)]
        for slot in range(7, 12):
            cache, hidden = model.decode(params, cache, jnp.int32(slot), padded[:, slot])
            said.append(model.unembed(params, hidden))
        return model.logits(params, tokens), model.logits(params, padded, mask)[:, 3:], jnp.stack(said, axis=1)

    at_once, after_padding, one_by_one = both(params)
    assert float(jnp.std(at_once)) > 0.05
    np.testing.assert_allclose(after_padding, at_once, atol=1e-5)
    np.testing.assert_allclose(one_by_one, at_once[:, 3:], atol=1e-5)


def test_log_probabilities_are_those_of_a_teacher_forced_pass(params):
    found = generate(TINY, params, PROMPTS, jax.random.key(0), 6, eos=EOS, pad=PAD)
    assert found.mask.sum() < found.mask.size, "one row ends early"
    np.testing.assert_allclose(found.log_prob, teacher_forced(TINY, params, PROMPTS, found), atol=1e-5)
    cool = generate(TINY, params, PROMPTS, jax.random.key(0), 6, temperature=0.5, eos=EOS, pad=PAD)
    np.testing.assert_allclose(cool.log_prob, teacher_forced(TINY, params, PROMPTS, cool, 0.5), atol=1e-5)


def test_a_completion_ends_with_the_first_end_of_text_and_is_padded(params):
    found = generate(TINY, params, PROMPTS, jax.random.key(1), 6, eos=EOS, pad=PAD)
    for tokens, log_prob, mask in zip(*map(np.asarray, found), strict=True):
        ends = np.flatnonzero(tokens == EOS)
        length = ends[0] + 1 if ends.size else 6
        assert mask.tolist() == [t < length for t in range(6)]
        assert (tokens[length:] == PAD).all()
        assert (log_prob[length:] == 0).all()
    endless = generate(TINY, params, PROMPTS, jax.random.key(1), 6)
    assert endless.mask.all()
    assert (endless.tokens == EOS)[:, :-1].any()


def test_how_far_prompts_are_padded_changes_nothing(params):
    found = generate(TINY, params, PROMPTS, jax.random.key(0), 6, eos=EOS, pad=PAD)
    tokens = jnp.tile(jnp.array([[4, 4, 0, 1, 2], [0, 0, 0, 0, 2], [3, 2, 1, 1, 1]]), (8, 1))
    mask = jnp.tile(jnp.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 1, 1]], bool), (8, 1))
    wider = generate(TINY, params, tokens, jax.random.key(0), 6, mask=mask, eos=EOS, pad=PAD)
    np.testing.assert_array_equal(wider.tokens, found.tokens)
    np.testing.assert_allclose(wider.log_prob, found.log_prob, atol=1e-5)


def test_sampled_frequencies_are_the_probabilities(params):
    """All 125 completions of three tokens, with a temperature (chi-square)."""
    rows, prompt = 20_000, [0, 1]
    found = generate(TINY, params, [prompt] * rows, jax.random.key(2), 3, temperature=2.0)
    every = np.array(list(itertools.product(range(5), repeat=3)))
    logits = TINY.logits(params, jnp.concatenate([jnp.tile(jnp.array([prompt]), (125, 1)), every[:, :2]], axis=1))
    log_probs = jax.nn.log_softmax(logits[:, 1:] / 2.0)
    exact = np.exp(np.take_along_axis(np.asarray(log_probs, np.float64), every[..., None], axis=-1)[..., 0].sum(axis=1))
    assert exact.sum() == pytest.approx(1.0, abs=1e-4)
    counts = np.bincount(np.asarray(found.tokens) @ [25, 5, 1], minlength=125)
    common = exact * rows > 5
    observed, expected = (
        np.append(counts[common], counts[~common].sum()),
        np.append(exact[common], exact[~common].sum()),
    )
    assert scipy.stats.chisquare(observed, expected / expected.sum() * rows).pvalue > 1e-3
    assert scipy.stats.chisquare(observed[::-1], expected / expected.sum() * rows).pvalue < 1e-3


def reference_restriction(logits, temperature, top_k, top_p, min_p):
    kept = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = kept[:top_k] if top_k else kept
    weights = np.exp(logits[kept] / temperature)
    probability = weights / weights.sum()
    nucleus = 1 + int(np.searchsorted(np.cumsum(probability), top_p - 1e-9))
    kept = [i for i, p in zip(kept[:nucleus], probability, strict=False) if p >= min_p * probability[0]]
    return np.array([x / temperature if i in kept else -np.inf for i, x in enumerate(logits)])


@pytest.mark.parametrize(
    "setting", [(0.7, 0, 1.0, 0.0), (1.0, 2, 1.0, 0.0), (1.0, 0, 0.7, 0.0), (2.0, 0, 1.0, 0.3), (0.8, 3, 0.8, 0.2)]
)
def test_restrictions_keep_what_a_slow_reference_keeps(setting):
    logits = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32) * 2
    ours = restricted(jnp.asarray(logits), *setting)
    np.testing.assert_allclose(ours, [reference_restriction(row, *setting) for row in logits], rtol=1e-5)


def test_all_of_the_probability_is_all_tokens():
    """However little is left when the sum has come to 1 in float32."""
    logits = jnp.array([[30.0, 0.0, -1.0, -2.0]])
    np.testing.assert_array_equal(restricted(logits, 1.0, 3, 1.0, 0.0), [[30.0, 0.0, -1.0, -np.inf]])


def test_restricted_samples_are_within_and_say_their_own_probability(params):
    found = generate(TINY, params, [[0, 1, 2]] * 24, jax.random.key(0), 6, top_k=2)
    logits = np.tile(TINY.logits(params, jnp.array([[0, 1, 2]]))[:, -1], (24, 1))
    best = np.argsort(-logits, axis=1)[:, :2]
    token = np.asarray(found.tokens[:, :1])
    assert (token == best).any(axis=1).all()
    assert len(np.unique(token)) > 1
    two = np.take_along_axis(logits, best, axis=1)
    expected = np.take_along_axis(logits, token, axis=1)[:, 0] - scipy.special.logsumexp(two, axis=1)
    np.testing.assert_allclose(found.log_prob[:, 0], expected, atol=1e-5)
    greedy = generate(TINY, params, [[0, 1, 2]] * 24, jax.random.key(0), 6, temperature=0.0)
    np.testing.assert_array_equal(greedy.tokens[:, 0], best[:, 0])


def test_temperatures_map_without_compiling_again(params):
    temperatures = jnp.array([0.5, 1.0])
    prompts = jnp.array([[0, 1, 2]] * 24)
    both = jax.vmap(lambda t: generate(TINY, params, prompts, jax.random.key(0), 6, t))(temperatures)
    for i, temperature in enumerate(temperatures):
        alone = generate(TINY, params, prompts, jax.random.key(0), 6, float(temperature))
        np.testing.assert_array_equal(both.tokens[i], alone.tokens)


def test_half_precision_computes_in_it_and_says_so_in_float32(params):
    half = dataclasses.replace(TINY, dtype="bfloat16", param_dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    tokens = jnp.array([[0, 1, 2, 1]])
    assert jax.eval_shape(half.hidden, rounded, tokens).dtype == jnp.bfloat16
    logits = jax.jit(half.logits)(rounded, tokens)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, jax.jit(TINY.logits)(params, tokens), atol=0.3)
    found = jax.eval_shape(lambda params: generate(half, params, PROMPTS, jax.random.key(0), 4), rounded)
    assert found.log_prob.dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [[0, 5]]}, r"token 5 is not accepted: expected ids below vocab = 5"),
        ({"prompts": [[0], []]}, "a prompt without tokens"),
        ({"prompts": []}, "a prompt without tokens"),
        ({"prompts": jnp.array([[0, 1]]), "mask": jnp.array([[True, False]])}, "padded on the right"),
        ({"max_tokens": 14}, r"longer than the context of the model: expected at most context = 16"),
        ({"max_tokens": 0}, r"max_tokens = 0"),
        ({"temperature": -1.0}, r"temperature = -1.0 is not accepted: expected a number in \[0, inf\)"),
        ({"top_p": 0.0}, r"top_p = 0.0"),
        ({"top_k": 1.5}, r"top_k = 1.5"),
        ({"top_k": float("inf")}, r"top_k = inf"),
        ({"min_p": 2}, r"min_p = 2"),
    ],
)
def test_bad_input_is_refused(changes, message, params):
    arguments = {"prompts": PROMPTS, "max_tokens": 4} | changes
    with pytest.raises(pgjax.InputError, match=message):
        generate(TINY, params, key=jax.random.key(0), **arguments)
