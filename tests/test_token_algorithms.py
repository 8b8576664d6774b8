"""What methods over tokens compute, against slow loops over single rows and tokens."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_text import answers_of, slow_log_probs

import pgjax
from pgjax import alignment, losses
from pgjax.alignment import data as data_parts
from pgjax.alignment.learned_rewards import EnsembleOptions, of_members
from pgjax.alignment.models import Prompt
from pgjax.alignment.reward_model import score_at_last
from pgjax.alignment.sampling import distribution
from pgjax.alignment.tokenizers import Words
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.running.population import copies, differing
from pgjax.sweeping.space import leaves_named, with_setting


@pytest.fixture(scope="module")
def sft(tiny_token_algorithm):
    return tiny_token_algorithm("sft")


@pytest.fixture(scope="module")
def rlhf(tiny_token_algorithm):
    return tiny_token_algorithm("rlhf", kl_target=1.0)


@pytest.fixture(scope="module")
def moved(rlhf, init, step):
    """After a step, so that the policy is not the reference any more."""
    return step(rlhf, init(rlhf, jax.random.key(0)))[0]


def test_sft_counts_the_tokens_of_completions_and_nothing_else(sft, init, step):
    state = init(sft, jax.random.key(0))
    batch = data_parts.epoch_rows(state.key, 0, sft.data.train.prompt.shape[0], 8)
    rows = jax.tree.map(lambda x: x[batch], sft.data.train)
    answers = answers_of(*rows)
    total = -slow_log_probs(sft.model, sft.model.params, answers).sum()
    count = sum(len(completion) for _, completion in answers)
    _, metrics = step(sft, state)
    assert float(metrics["loss"]) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    "name", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rlhf", "grpo", "dpo", "kto"))]
)
def test_micro_batches_give_the_step_of_the_whole_batch(name, sft, rlhf, tiny_token_algorithm, init, step):
    """Their rows have different numbers of tokens, so a mean of means would be another."""
    algorithm = {"sft": sft, "rlhf": rlhf}.get(name) or tiny_token_algorithm(name)
    parts = dataclasses.replace(algorithm, micro_batches=4)
    state = init(algorithm, jax.random.key(0))
    (whole, metrics), (divided, of_parts) = step(algorithm, state), step(parts, state)
    chex.assert_trees_all_close(divided.params, whole.params, atol=2e-5)
    chex.assert_trees_all_close(of_parts, metrics, rtol=1e-4, atol=1e-5)


def test_what_is_held_out_never_trains_and_what_trains_is_never_judged(sft, init, step):
    train, held_out = ({tuple(p) for p, _ in answers_of(*rows)} for rows in (sft.data.train, sft.data.held_out))
    assert train
    assert held_out
    assert not train & held_out
    state = init(sft, jax.random.key(0))
    zeros = {name: jax.tree.map(jnp.zeros_like, getattr(sft.data, name)) for name in ("train", "held_out")}
    poisoned = dataclasses.replace(sft)
    object.__setattr__(poisoned, "data", dataclasses.replace(sft.data, held_out=zeros["held_out"]))
    chex.assert_trees_all_equal(step(poisoned, state)[0].params, step(sft, state)[0].params)
    judge = jax.jit(type(sft).evaluate, static_argnums=3)
    scores = judge(sft, state, jax.random.key(0), 100)
    assert not np.allclose(judge(poisoned, state, jax.random.key(0), 100)["loss"], scores["loss"])
    object.__setattr__(poisoned, "data", dataclasses.replace(sft.data, train=zeros["train"]))
    chex.assert_trees_all_equal(judge(poisoned, state, jax.random.key(0), 100), scores)


def test_every_row_that_is_held_out_is_judged(sft, init):
    """Also where they do not fill batches."""
    state, rows = init(sft, jax.random.key(0)), sft.data.held_out.prompt.shape[0]
    judge = jax.jit(type(sft).evaluate, static_argnums=3)
    assert rows % 4
    assert rows > 4
    whole, divided = (judge(x, state, jax.random.key(0), 99) for x in (sft, dataclasses.replace(sft, batch_size=4)))
    assert float(divided["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)


def reference_credit(rlhf, rollout, beta):
    """Advantages and value targets of every row, one token after another."""
    tokens, _, mask = map(np.asarray, rollout.completion)
    ratio = np.asarray(rollout.reading.log_prob - rollout.reading.ref_log_prob).T
    value = np.asarray(rollout.reading.value).T
    advantages, targets = np.zeros(tokens.shape), np.zeros(tokens.shape)
    for b in range(tokens.shape[0]):
        n = int(mask[b].sum())
        score = float(rollout.reward[b]) - float(rlhf.eos_penalty) * (rlhf.model.tokenizer.eos not in tokens[b, :n])
        reward = [-beta * x for x in ratio[b, :n]]
        if rlhf.score_at == "after":
            reward.append(score)
        else:
            reward[-1] += score
        following, advantage = 0.0, 0.0
        for t in reversed(range(len(reward))):
            delta = reward[t] + float(rlhf.gamma) * following - value[b, t]
            advantage = delta + float(rlhf.gamma * rlhf.gae_lambda) * advantage
            following, targets[b, t] = value[b, t], advantage + value[b, t]
            advantages[b, t] = advantage if t < n else 0.0
    return advantages, targets


@pytest.mark.parametrize("score_at", ["last", "after"])
def test_credit_is_that_of_a_slow_loop(rlhf, moved, score_at):
    algorithm = dataclasses.replace(rlhf, score_at=score_at, gamma=0.9)
    params = jax.tree.map(lambda x: x + 0.1, moved.params)

    @jax.jit
    def credited(state):
        rollout = algorithm.rollout(state, algorithm.prompts(state), jax.random.key(3))
        return rollout, *algorithm.credit(rollout, 0.3)

    rollout, samples, metrics = credited(moved._replace(params=params))
    mask = np.asarray(rollout.completion.mask)
    assert 0 < mask.sum() < mask.size
    advantages, targets = reference_credit(algorithm, rollout, 0.3)
    counted = np.asarray(samples.weight).T > 0
    np.testing.assert_array_equal(samples.is_choice.T, mask)
    np.testing.assert_allclose(np.where(mask, samples.advantage.T, 0.0), advantages, atol=1e-5)
    np.testing.assert_allclose(np.where(counted, samples.value_target.T, 0.0), targets, atol=1e-5)
    assert counted.sum() == mask.sum() + (mask.shape[0] if score_at == "after" else 0)
    log_ratio = np.asarray(rollout.reading.ref_log_prob - samples.log_prob).T
    assert float(metrics["kl_k3"]) == pytest.approx((np.expm1(log_ratio) - log_ratio)[mask].sum() / 8, rel=1e-4)
    assert float(metrics["length"]) == mask.sum() / 8
    entropy = np.asarray(rollout.reading.entropy).T[mask].mean()
    assert float(metrics["entropy"]) == pytest.approx(entropy, rel=1e-5)


def test_after_the_end_there_is_a_value_and_no_choice(rlhf, moved):
    """Losses of the policy, and their metrics, are those of its tokens, also once advantages are normalised."""
    algorithm = dataclasses.replace(rlhf, score_at="after", ent_coef=0.1, vf_coef=0.0, normalize_advantage="batch")

    @jax.jit
    def losses_and_gradient(state):
        rollout = algorithm.rollout(state, algorithm.prompts(state), jax.random.key(3))
        samples, _ = algorithm.credit(rollout, 0.3)

        def after_the_end(params):
            loss, metrics = algorithm.loss(params, rollout.prompt, samples, 0.0)
            after = (samples.weight > 0) & ~samples.is_choice
            return jnp.sum(jnp.where(after, loss, 0.0)), (jnp.sum(after), metrics)

        return samples, jax.grad(after_the_end, has_aux=True)(state.params)

    samples, (gradient, (count, metrics)) = losses_and_gradient(moved)
    assert int(count) == 8
    assert all(not np.any(x) for x in jax.tree.leaves(gradient["policy"]))
    chosen = np.asarray(samples.is_choice)
    assert all((np.asarray(x) != 0)[~chosen].sum() == 0 for name, x in metrics.items() if name != "value_loss")
    advantage = np.asarray(samples.advantage)[chosen]
    assert (advantage.mean(), advantage.std()) == pytest.approx((0.0, 1.0), abs=1e-5)


def test_completions_are_read_in_parts_as_at_once(rlhf, moved):
    """Seven rows, two at a time."""
    rows = rlhf.data.train
    prompt = Prompt(rows.prompt[:7], rows.prompt_mask[:7])
    tokens = jax.random.randint(jax.random.key(0), (7, 5), 0, rlhf.model.tokenizer.vocab)

    @jax.jit
    def both(params):
        network, temperature = rlhf.model.network, rlhf.temperature
        policy, reference = (
            distribution(network, each, prompt, tokens, temperature) for each in (params["policy"], rlhf.model.params)
        )
        value = rlhf.network.value(params["critic"], prompt, tokens)
        at_once = policy.log_prob(tokens.T), reference.log_prob(tokens.T), policy.kl(reference), policy.entropy(), value
        return dataclasses.replace(rlhf, micro_batches=4).read(params, prompt, tokens), at_once

    in_parts, at_once = both(moved.params)
    chex.assert_trees_all_close(tuple(in_parts), at_once, atol=1e-5)


def test_ratios_start_at_one(rlhf, moved, step):
    _, metrics = step(dataclasses.replace(rlhf, learning_rate=0.0), moved)
    assert float(metrics["approx_kl"]) < 1e-9
    assert float(metrics["clip_fraction"]) == 0.0


def test_with_one_token_and_no_penalty_the_gradient_is_that_of_a2c(rlhf, moved):
    """A bandit whose context is the prompt: E[-log pi(a) A] + vf_coef E[(V - G)^2 / 2] (Mnih et al., 2016)."""
    bandit = dataclasses.replace(rlhf, max_tokens=1, beta=0.0, eos_penalty=0.0, temperature=0.7)

    @jax.jit
    def gradients(state):
        rollout = bandit.rollout(state, bandit.prompts(state), jax.random.key(3))
        samples, _ = bandit.credit(rollout, 0.0)
        proximal = jax.grad(lambda p: jnp.mean(bandit.loss(p, rollout.prompt, samples, 0.0)[0]))(state.params)

        def a2c(params):
            _, output = bandit.network.unroll(params, rollout.prompt, samples.obs, samples.reset)
            advantage = rollout.reward - rollout.reading.value[0]
            policy_loss = losses.policy_gradient(output.distribution.log_prob(samples.action)[0], advantage)
            return jnp.mean(policy_loss + 0.5 * losses.value_loss(output.value[0], rollout.reward))

        return proximal, jax.grad(a2c)(state.params)

    proximal, a2c = gradients(moved)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(a2c)) > 1e-3
    chex.assert_trees_all_close(proximal, a2c, atol=1e-6)


@pytest.mark.slow
def test_a_sweep_over_beta_shares_the_model_and_its_rows_are_solo_runs(rlhf, train):
    rows = [dataclasses.replace(rlhf, beta=beta) for beta in (0.0, 1.0)]
    assert sum(differing(rows)) == 1
    result = pgjax.sweep(rlhf, seeds=1, beta=[0.0, 1.0], progress=False)
    for i, row in enumerate(rows):
        alone, _ = train(row, jax.random.key(0))
        chex.assert_trees_all_close(result.member(i).state.params, alone.params, atol=5e-5)


@pytest.fixture(scope="module")
def reward_models(tiny_token_algorithm, init):
    """Three that were not trained, but whose scores are not 0."""
    algorithm = tiny_token_algorithm("reward-model")
    states = jax.jit(copies(algorithm, 3).init)(jax.random.split(jax.random.key(0), 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 8))
    params = states.params | {"score": {"kernel": kernel, "bias": jnp.array([0.0, 1.0, 2.0])}}
    return algorithm, states._replace(params=params)


def reward_of(algorithm, states, options=None):
    model, options = algorithm.model, options or EnsembleOptions()
    return of_members(model.network, model.tokenizer, states.params, states.reference, options)


def test_rewards_of_models_are_normalised_on_completions_of_their_start_and_reduced(reward_models):
    algorithm, states = reward_models
    score_by = jax.jit(lambda reward, *given: reward(*given))
    for i in range(3):
        params, (prompt, completions) = jax.tree.map(lambda x, i=i: x[i], (states.params, states.reference))
        score = jax.jit(score_at_last, static_argnums=0)(
            algorithm.model.network, params, prompt, completions.tokens, completions.mask
        )
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], states)
        reward = reward_of(algorithm, one)
        np.testing.assert_allclose(
            score_by(reward, prompt, completions.tokens, completions.mask),
            (score - score.mean()) / score.std(),
            atol=1e-5,
        )
    prompt, completions = jax.tree.map(lambda x: x[0], states.reference)
    given = prompt, completions.tokens, completions.mask
    every = [reward_of(algorithm, jax.tree.map(lambda x, i=i: x[i : i + 1], states)) for i in range(3)]
    scores = np.stack([score_by(each, *given) for each in every])
    for options, expected in (
        (EnsembleOptions(), scores.mean(axis=0)),
        (EnsembleOptions(reduce="min"), scores.min(axis=0)),
        (EnsembleOptions(variance_coef=0.5), scores.mean(axis=0) - 0.5 * scores.var(axis=0)),
    ):
        together = reward_of(algorithm, states, options)
        np.testing.assert_allclose(score_by(together, *given), expected, atol=1e-5)


def test_a_reward_model_is_judged_by_pairs_in_both_orders(reward_models):
    """Every held-out pair by itself, with its margin."""
    trained, states = reward_models
    held_out = trained.data.train._replace(margin=jnp.linspace(0.0, 1.0, trained.data.train.margin.size))
    algorithm = dataclasses.replace(trained, data=dataclasses.replace(trained.data, held_out=held_out))
    state = jax.tree.map(lambda x: x[1], states)
    params = jax.tree.map(lambda x: 3 * x, state.params["score"]) | {"bias": jnp.zeros(())}
    state = state._replace(params=state.params | {"score": params})
    scores = jax.jit(type(algorithm).evaluate, static_argnums=3)(algorithm, state, jax.random.key(0), 99)
    gap = np.subtract(*map(np.float64, jax.jit(algorithm.scores)(state.params, held_out)))
    assert float(scores["accuracy"]) == pytest.approx((gap > 0).mean())
    assert float(scores["log_loss"]) == pytest.approx(np.log1p(np.exp(held_out.margin - gap)).mean(), rel=1e-5)
    bins = {}
    for predicted, preferred in [*((1 / (1 + np.exp(-g)), 1) for g in gap), *((1 / (1 + np.exp(g)), 0) for g in gap)]:
        bins.setdefault(int(10 * predicted), []).append(predicted - preferred)
    error = sum(abs(sum(gaps)) for gaps in bins.values()) / (2 * gap.size)
    assert float(scores["calibration_error"]) == pytest.approx(error, abs=1e-5)
    assert len(bins) > 2


def test_the_score_is_read_at_the_last_real_token(reward_models):
    algorithm, states = reward_models
    params = jax.tree.map(lambda x: x[0], states.params)
    score = jax.jit(score_at_last, static_argnums=0)
    prompt = Prompt(jnp.array([[9, 9, 1, 2]]), jnp.array([[False, False, True, True]]))
    tokens, mask = jnp.array([[3, 4, 7, 7]]), jnp.array([[True, True, False, False]])
    network = algorithm.model.network
    hidden = network.hidden(params["model"], jnp.array([[1, 2, 3, 4]]))[0, -1]
    expected = float(hidden @ params["score"]["kernel"] + params["score"]["bias"])
    assert float(score(network, params, prompt, tokens, mask)[0]) == pytest.approx(expected, abs=1e-5)


def other_reward(reward_models, **shape):
    """A reward model whose blocks are of another shape than the policy's."""
    algorithm, states = reward_models
    network = dataclasses.replace(algorithm.model.network, **shape)
    params = {"model": network.init_text(jax.random.key(2)), "score": {"kernel": jnp.ones(network.width), "bias": 1.0}}
    stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], params)
    reference = jax.tree.map(lambda x: x[:1], states.reference)
    return of_members(network, algorithm.model.tokenizer, stacked, reference, EnsembleOptions())


def test_a_critic_that_starts_from_a_reward_model_has_its_shape(rlhf, reward_models):
    """The value of a whole completion is then its score."""
    reward = other_reward(reward_models, width=12, num_heads=3, rotary_base=3.0)
    prompt, completion = jax.tree.map(lambda x: x[0], reward_models[1].reference)

    @jax.jit
    def values_and_score(algorithm):
        params = algorithm.init(jax.random.key(0)).params
        obs = jnp.concatenate([prompt.tokens[:, -1:], completion.tokens], axis=1).T
        _, output = algorithm.network.unroll(params, prompt, obs, jnp.zeros(obs.shape, bool))
        return output.value, reward(prompt, completion.tokens, completion.mask)

    value, score = values_and_score(dataclasses.replace(rlhf, reward=reward))
    at_end = np.take_along_axis(np.asarray(value), np.asarray(completion.mask).sum(1)[None], axis=0)[0]
    assert np.std(score) > 0.1
    np.testing.assert_allclose(at_end, score, atol=1e-5)


def test_a_reward_model_that_cannot_read_that_far_is_refused(rlhf, reward_models):
    with pytest.raises(InputError, match=r"RLHF.reward has context = 5, and reads up to 9 tok"):
        dataclasses.replace(rlhf, reward=other_reward(reward_models, context=5))


@pytest.mark.slow
def test_functions_of_tokens_and_of_texts_are_rewards_alike(rlhf, moved, step):
    """One number per completion or per token, traced or called back; the same reward gives the same step."""
    tokenizer = rlhf.model.tokenizer

    def spread(tokens, mask, prompt):
        return (
            alignment.REWARDS.make("sentiment")(Prompt(prompt, prompt >= 0), tokens, mask)[:, None]
            * mask
            / mask.sum(axis=1, keepdims=True)
        )

    def of_texts(prompts, completions):
        assert all(prompts)
        ids = [tokenizer.encode(completion) for completion in completions]
        width = max(map(len, ids))
        tokens = np.array([row + [tokenizer.pad] * (width - len(row)) for row in ids])
        return alignment.REWARDS.make("sentiment")(Prompt(tokens, tokens >= 0), tokens, tokens != tokenizer.pad)

    before, metrics = step(rlhf, moved)
    from_texts, same = step(dataclasses.replace(rlhf, reward=alignment.HostReward(of_texts, tokenizer)), moved)
    chex.assert_trees_all_close((from_texts.params, same), (before.params, metrics), atol=1e-6)
    _, by_token = step(dataclasses.replace(rlhf, reward=spread), moved)
    assert float(by_token["reward"]) == pytest.approx(float(metrics["reward"]), abs=1e-5)


@pytest.mark.slow
def test_a_reward_that_is_not_finite_stops_the_run_with_its_name(rlhf):
    bad = dataclasses.replace(rlhf, reward=lambda tokens, mask, prompt: jnp.where(tokens[:, 0] >= 0, jnp.nan, 0.0))
    with pytest.raises(FloatingPointError, match=r"iteration 1: .*reward.* is not finite"):
        pgjax.run(bad, progress=False)


def refused(tiny_token_algorithm, name, message, **fields):
    with pytest.raises(InputError, match=message):
        tiny_token_algorithm(name, **fields)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("sft", {"batch_size": 1000, "total_steps": 1000}, r"SFT.batch_size = 1000 is not accepted: grammar has"),
        ("sft", {"micro_batches": 3}, r"SFT.micro_batches = 3 does not divide batch_size = 8"),
        ("sft", {"total_steps": 4}, r"SFT.total_steps = 4 is less than one iteration: expected at least 8 examples"),
        ("sft", {"model": "runs/lm"}, r"SFT.model = 'runs/lm' is not accepted: expected a language model such as"),
        ("rlhf", {"batch_size": 1000, "total_steps": 1000}, r"RLHF.batch_size = 1000 is not accepted: grammar has 5"),
        ("rlhf", {"total_steps": 4}, r"RLHF.total_steps = 4 is less than one iteration: expected at least 8 comple"),
        ("rlhf", {"num_minibatches": 3}, r"RLHF.num_minibatches = 3 does not divide batch_size = 8"),
        ("rlhf", {"micro_batches": 3}, r"RLHF.micro_batches = 3 does not divide the 4 sequences of a minibatch"),
        ("rlhf", {"max_tokens": 20}, r"RLHF.max_tokens = 20 is not accepted: the context of the model is 20"),
        ("rlhf", {"beta": float("nan")}, r"RLHF.beta = nan is not accepted: expected a number in \[0, inf\)"),
        ("rlhf", {"reward": 3}, r"reward = 3 is not accepted: expected a reward: a run of a reward model or judge"),
    ],
)
def test_bad_input_is_refused(name, fields, message, tiny_token_algorithm):
    refused(tiny_token_algorithm, name, message, **fields)


def test_a_reward_model_of_another_tokenizer_is_refused(rlhf, reward_models):
    algorithm, states = reward_models
    reward = dataclasses.replace(reward_of(algorithm, states), tokenizer=alignment.TOKENIZERS.make("bytes"))
    with pytest.raises(InputError, match=r"RLHF.reward has another tokenizer than the model: bytes instead of grammar"):
        dataclasses.replace(rlhf, reward=reward)


@pytest.mark.parametrize("name", ["sentiment", "grammatical"])
def test_rewards_for_the_words_of_the_grammar_are_refused_for_other_tokens(rlhf, name):
    """They would take the ids for other words, and say something."""
    letters = dataclasses.replace(rlhf.model, tokenizer=Words(("a", "b")))
    with pytest.raises(InputError, match=r"RLHF.reward has another tokenizer than the model: grammar instead of"):
        alignment.RLHF(letters, alignment.REWARDS.make(name), max_tokens=5)


@pytree
class LengthReward:
    """A reward of somebody's own, with a number that can be swept."""

    target: Scalar = field("tokens", default=3.0)

    def __call__(self, prompt, tokens, mask):
        return -((mask.sum(axis=1) - self.target) ** 2)


def test_a_reward_of_somebodys_own_is_called_as_one_and_its_numbers_are_axes(rlhf):
    algorithm = with_setting(dataclasses.replace(rlhf, reward=LengthReward()), {"target": 2.0})
    assert algorithm.reward.target == 2.0
    assert sum(leaves_named(algorithm, ["target"])) == 1
    prompt, mask = Prompt(jnp.zeros((2, 1)), jnp.ones((2, 1))), jnp.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool)
    completion = alignment.Generation(jnp.zeros((2, 5), int), jnp.zeros((2, 5)), mask)
    np.testing.assert_array_equal(algorithm.rewarded(prompt, completion), [0.0, -1.0])


def test_rewards_of_another_shape_are_refused_before_anything_compiles(rlhf):
    wrong = dataclasses.replace(rlhf, reward=lambda tokens, mask, prompt: jnp.zeros(3))
    with pytest.raises(InputError, match=r"RLHF.reward gave numbers of shape \(3,\): expected \(8,\), one for each"):
        jax.eval_shape(wrong.step, jax.eval_shape(wrong.init, jax.random.key(0)))
