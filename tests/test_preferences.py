"""Methods that learn from preferences and labels, against slow loops over single answers."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_text import answers_of, slow_log_probs

import pgjax
from pgjax import losses
from pgjax.alignment.data import epoch_rows

RNG = np.random.default_rng(0)
CHOSEN, REJECTED = RNG.normal(size=(2, 50))


@pytest.fixture(scope="module")
def dpo(tiny_token_algorithm):
    return tiny_token_algorithm("dpo", beta=0.5)


@pytest.fixture(scope="module")
def kto(tiny_token_algorithm):
    return tiny_token_algorithm("kto", beta=0.5, desirable_weight=2.0)


@pytest.fixture(scope="module")
def online(tiny_token_algorithm):
    return tiny_token_algorithm("online-dpo", beta=0.5, eos_penalty=0.0)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def test_losses_of_pairs_are_their_formulas():
    h = CHOSEN - REJECTED
    for found, expected in [
        (losses.dpo(CHOSEN, REJECTED, 0.3), -np.log(sigmoid(0.3 * h))),
        (losses.dpo(CHOSEN, REJECTED, 0.3, 0.2), -0.8 * np.log(sigmoid(0.3 * h)) - 0.2 * np.log(sigmoid(-0.3 * h))),
        (losses.hinge(CHOSEN, REJECTED, 2.0), np.maximum(0.0, 1.0 - 2.0 * h)),
        (losses.ipo(CHOSEN, REJECTED, 0.25), (h - 2.0) ** 2),
    ]:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_robust_loss_is_on_average_that_of_the_right_labels():
    right, wrong = (losses.robust_dpo(*x, 0.7, 0.3) for x in ((CHOSEN, REJECTED), (REJECTED, CHOSEN)))
    np.testing.assert_allclose(0.7 * right + 0.3 * wrong, losses.dpo(CHOSEN, REJECTED, 0.7), rtol=1e-5)


def test_the_smoothed_loss_is_least_at_the_smoothed_probability():
    h = np.linspace(-5, 5, 10_001)
    assert sigmoid(0.5 * h[np.argmin(losses.dpo(h, 0.0, 0.5, 0.2))]) == pytest.approx(0.8, abs=1e-3)


def test_kto_is_its_formula_and_its_reference_point_has_no_gradient():
    label, kl = RNG.random(50) < 0.5, 0.4
    value = np.where(label, sigmoid(0.3 * (CHOSEN - kl)), sigmoid(0.3 * (kl - CHOSEN)))
    expected = np.where(label, 1.5, 0.5) * (1.0 - value)
    np.testing.assert_allclose(losses.kto(CHOSEN, label, kl, 0.3, 1.5, 0.5), expected, rtol=1e-5)
    np.testing.assert_array_equal(losses.kto(CHOSEN, label, -3.0, 0.3), losses.kto(CHOSEN, label, 0.0, 0.3))
    assert jax.grad(lambda kl: losses.kto(CHOSEN, label, kl, 0.3).sum())(kl) == 0.0


def dpo_batch(dpo, state):
    """The pairs of the first iteration, as answers, and log pi of them under the model of `state` and the start."""
    rows = dpo.data.train
    chosen = epoch_rows(state.key, 0, rows.prompt.shape[0], dpo.batch_size)
    rows = jax.tree.map(lambda x: x[chosen], rows)
    both = [
        answers_of(rows.prompt, rows.prompt_mask, rows.chosen, rows.chosen_mask),
        answers_of(rows.prompt, rows.prompt_mask, rows.rejected, rows.rejected_mask),
    ]
    lengths = np.array([[len(completion) for _, completion in answers] for answers in both])
    of = [np.stack([slow_log_probs(dpo.model, p, x) for x in both]) for p in (state.params, dpo.model.params)]
    return *of, lengths


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="sigmoid"),
        pytest.param({"loss": "ipo_mean"}, id="ipo_mean"),
        pytest.param({"loss": "ipo_sum"}, id="ipo_sum", marks=pytest.mark.slow),
        pytest.param({"length_normalized": True}, id="length_normalized", marks=pytest.mark.slow),
        pytest.param({"reference_free": True}, id="reference_free", marks=pytest.mark.slow),
    ],
)
def test_dpo_is_that_of_a_slow_loop(dpo, fields, init, step):
    dpo = dataclasses.replace(dpo, **fields)
    state = init(dpo, jax.random.key(0))
    moved = state._replace(params=jax.tree.map(lambda x: 1.3 * x, state.params))
    log_prob, reference, lengths = dpo_batch(dpo, moved)
    log_ratio = log_prob - (0.0 if dpo.reference_free else reference)
    if fields in ({"loss": "ipo_mean"}, {"length_normalized": True}):
        log_ratio = log_ratio / lengths
    h = log_ratio[0] - log_ratio[1]
    loss = (h - 1.0) ** 2 if dpo.loss.startswith("ipo") else -np.log(sigmoid(0.5 * h))
    _, metrics = step(dpo, moved)
    assert float(metrics["loss"]) == pytest.approx(loss.mean(), rel=1e-4)
    assert float(metrics["rewards/chosen"]) == pytest.approx(0.5 * log_ratio[0].mean(), rel=1e-3, abs=1e-4)
    assert float(metrics["rewards/margins"]) == pytest.approx(0.5 * h.mean(), rel=1e-3, abs=1e-4)
    assert float(metrics["rewards/accuracies"]) == pytest.approx((h > 0).mean())
    assert float(metrics["logps/rejected"]) == pytest.approx(log_prob[1].mean(), rel=1e-4)


def test_the_reference_is_what_the_start_says_and_stays(dpo, init, step):
    state = init(dpo, jax.random.key(0))
    assert state.reference.shape == (dpo.data.train.prompt.shape[0], 2)
    later, metrics = step(dpo, state)
    chex.assert_trees_all_equal(later.reference, state.reference)
    assert float(metrics["loss"]) == pytest.approx(np.log(2.0), rel=1e-5)
    np.testing.assert_allclose(
        jax.jit(type(dpo).log_probs)(dpo, dpo.model.params, dpo.data.train), state.reference, rtol=1e-5
    )


def test_kto_is_that_of_a_slow_loop(kto, init, step):
    state = init(kto, jax.random.key(0))
    moved = state._replace(params=jax.tree.map(lambda x: 1.3 * x, state.params))
    rows = kto.data.train
    chosen = np.asarray(epoch_rows(state.key, 0, rows.prompt.shape[0], 8))
    answers = answers_of(*(x[chosen] for x in rows[:4]))
    label = np.asarray(rows.label)[chosen]
    assert 0 < label.sum() < 8
    mismatched = [(answers[i][0], answers[(i + 1) % 8][1]) for i in range(8)]
    log_prob, reference = (slow_log_probs(kto.model, p, answers) for p in (moved.params, kto.model.params))
    others = [slow_log_probs(kto.model, p, mismatched) for p in (moved.params, kto.model.params)]
    kl, gain = max(0.0, np.mean(others[0] - others[1])), log_prob - reference
    value = sigmoid(0.5 * np.where(label, gain - kl, kl - gain))
    _, metrics = step(kto, moved)
    assert float(metrics["kl"]) == pytest.approx(kl, rel=1e-4, abs=1e-5)
    assert float(metrics["loss"]) == pytest.approx(np.mean(np.where(label, 2.0, 1.0) * (1.0 - value)), rel=1e-4)
    assert float(metrics["rewards/chosen"]) == pytest.approx(0.5 * gain[label].mean(), rel=1e-3, abs=1e-4)
    assert float(metrics["logps/rejected"]) == pytest.approx(log_prob[~label].mean(), rel=1e-4)


def test_online_pairs_are_labelled_by_the_reward_and_ties_weigh_nothing(online, init):
    state = init(online, jax.random.key(0))
    rule = dataclasses.replace(online, label="greater")

    @jax.jit
    def labelled(state):
        rollout = rule.rollout(state, rule.prompts(state), jax.random.key(3))
        rollout = rollout._replace(reward=jnp.array([1.0, 0.0, 0.0, 2.0, 3.0, 3.0, -1.0, -2.0]))
        pairs, metrics = rule.labelled(rollout, jax.random.key(4))
        params = jax.tree.map(lambda x: 1.3 * x, state.params)
        loss, (summed, weight) = rule.sums(params, pairs)
        return rollout, pairs, metrics, params, loss / weight, summed["rewards/chosen"] / weight

    rollout, pairs, metrics, params, loss, chosen = labelled(state)
    np.testing.assert_array_equal(rollout.prompt.tokens[::2], rollout.prompt.tokens[1::2])
    np.testing.assert_array_equal(pairs.first, [True, False, False, True])
    np.testing.assert_array_equal(pairs.weight, [1, 1, 0, 1])
    assert float(metrics["ties"]) == 0.25
    answers = answers_of(*rollout.prompt, rollout.completion.tokens, rollout.completion.mask)
    gain = slow_log_probs(online.model, params, answers) - slow_log_probs(online.model, online.model.params, answers)
    pairs = [(gain[0], gain[1]), (gain[3], gain[2]), (gain[6], gain[7])]
    assert float(loss) == pytest.approx(np.mean([-np.log(sigmoid(0.5 * (a - b))) for a, b in pairs]), rel=1e-4)
    assert float(chosen) == pytest.approx(0.5 * np.mean([a for a, _ in pairs]), rel=1e-3, abs=1e-4)


def test_drawn_labels_have_the_probability_of_bradley_terry(online, init):
    state = init(online, jax.random.key(0))

    @jax.jit
    def firsts(state):
        rollout = online.rollout(state, online.prompts(state), jax.random.key(3))
        rollout = rollout._replace(reward=jnp.array([1.0, 0.0, 0.0, 2.0, 3.0, 3.0, -1.0, -2.5]))
        keys = jax.random.split(jax.random.key(4), 4000)
        return jnp.mean(jax.vmap(lambda key: online.labelled(rollout, key)[0].first)(keys), axis=0)

    np.testing.assert_allclose(firsts(state), sigmoid(np.array([1.0, -2.0, 0.0, 1.5])), atol=0.03)


def test_bad_options_are_refused(dpo, kto, online):
    for algorithm, fields, message in [
        (dpo, {"loss": "hinge", "label_smoothing": 0.1}, r"label_smoothing = 0.1 .* instead of 'hinge'"),
        (dpo, {"label_smoothing": 0.5}, r"label_smoothing = 0.5 .*\[0, 0.5\)"),
        (dpo, {"loss": "ipo_sum", "length_normalized": True}, "length_normalized = True .* 'ipo_sum'"),
        (dpo, {"beta": 0.0}, r"beta = 0.0 .*\(0, inf\)"),
        (kto, {"batch_size": 1}, "KTO.batch_size = 1 is not accepted: expected 2 or more"),
        (online, {"batch_size": 7}, "OnlineDPO.batch_size = 7 is not accepted: expected a multiple of 2"),
        (online, {"num_minibatches": 8}, "num_minibatches = 8 does not divide batch_size = 8 into whole groups of 2"),
    ]:
        with pytest.raises(pgjax.InputError, match=message):
            dataclasses.replace(algorithm, **fields)
