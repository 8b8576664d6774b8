"""Estimators, Fisher matrix and natural gradient against their exact values on a small MDP with known P and r.

The time is part of the state, the policy and the value are tables, and some transitions end the episode early, so that
an estimator which favours short episodes is found out.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import TabularReference

import pgjax
from pgjax.algorithms.npg import policy_and_objective
from pgjax.algorithms.on_policy import collect, gae_samples, samples_of
from pgjax.environments.probes import TabularMDP
from pgjax.learning import returns
from pgjax.learning.natural_gradient import conjugate_gradient, fisher_vector_product, shortened
from pgjax.learning.optimizers import mean_gradient
from pgjax.learning.rollout import initial_rollout

S, A, H, GAMMA = 3, 2, 4, 0.8
ROLLOUTS, ENVS = 3000, 8


@pytest.fixture(scope="module")
def mdp():
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.ones(S + 1), size=(S, A)).astype(np.float32)
    P[:, 0, -1] += 1.0  # action 0 tends to end the episode
    P /= P.sum(-1, keepdims=True)
    return TabularMDP(P, rng.normal(1.0, 1.0, size=(S, A)).astype(np.float32), horizon=H)


@pytest.fixture(scope="module")
def reference(mdp):
    logits = np.random.default_rng(1).normal(size=(H, S, A))
    return TabularReference(np.asarray(mdp.transition, np.float64), np.asarray(mdp.reward, np.float64), logits, GAMMA)


@pytest.fixture(scope="module")
def make(mdp):
    def make(cls, **fields):
        settings = {"num_envs": ENVS, "num_steps": H, "total_steps": ENVS * 64, "gamma": GAMMA} | fields
        return cls(mdp, network=pgjax.MLP(hidden=()), normalize_advantage=False, **settings)

    return make


def tables(algorithm, reference, value):
    """The state of an algorithm whose policy has the reference's logits and whose value is the given table."""
    state = algorithm.init(jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, state.params)
    params["policy"]["kernel"] = jnp.asarray(reference.logits.reshape(H * S, A), jnp.float32)
    params["value"]["kernel"] = jnp.asarray(value.reshape(H * S, 1), jnp.float32)
    return state._replace(params=params)


def gradients(algorithm, state):
    """The estimated gradient of the objective with respect to the logits, [ROLLOUTS, H, S, A], in fresh rollouts."""

    def one(key):
        keys = jax.random.split(key)
        start = state._replace(rollout=initial_rollout(algorithm.env, algorithm.actor(state), keys[0], ENVS))
        _, batch, _ = collect(algorithm, start, keys[1])
        if isinstance(algorithm, pgjax.REINFORCE):
            samples, counted = algorithm._samples(state.params, batch)
        else:
            samples, counted = gae_samples(algorithm, batch), 1.0
        return -counted * mean_gradient(algorithm.loss)(state.params, (), samples)[0]["policy"]["kernel"]

    rows = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), ROLLOUTS))
    return np.asarray(rows, np.float64).reshape(ROLLOUTS, H, S, A)


def deviations(rows, exact):
    """How many standard errors the mean is off, in the worst coordinate of those that vary."""
    error = rows.std(0) / np.sqrt(len(rows))
    return np.max(np.abs(rows.mean(0) - exact)[error > 0] / error[error > 0])


def test_the_reference_agrees_with_finite_differences(reference):
    direction = np.random.default_rng(2).normal(size=(H, S, A))
    moved = [dataclasses.replace(reference, logits=reference.logits + e * direction) for e in (1e-5, -1e-5)]
    slope = (moved[0].expected_return() - moved[1].expected_return()) / 2e-5
    assert slope == pytest.approx(np.sum(reference.gradient() * direction), rel=1e-6)


CREDITS = [("total_return", "none"), ("discounted_reward_to_go", "none"), ("discounted_reward_to_go", "mean")]
CREDITS += [("total_return", "mean"), ("discounted_reward_to_go", "value"), ("discounted_reward_to_go", "optimal")]


@pytest.fixture(scope="module")
def estimates(make, reference):
    """Rows of gradients for every expression of the policy gradient, from the same rollouts."""
    rows = {}
    for credit, baseline in CREDITS:
        algorithm = make(pgjax.REINFORCE, credit=credit, baseline=baseline)
        rows[credit, baseline] = gradients(algorithm, tables(algorithm, reference, reference.values()))
    return rows


@pytest.mark.parametrize("expression", CREDITS, ids="-".join)
def test_every_expression_has_the_exact_gradient_as_its_mean(estimates, reference, expression):
    """One complete episode in H steps: the mean over steps is the gradient of J divided by H."""
    assert deviations(estimates[expression], reference.gradient() / H) < 4.5


def test_what_is_left_out_and_subtracted_lowers_the_variance(estimates):
    variance = {expression: rows.var(0).sum() for expression, rows in estimates.items()}
    total, to_go = variance["total_return", "none"], variance["discounted_reward_to_go", "none"]
    mean, value = (variance["discounted_reward_to_go", baseline] for baseline in ("mean", "value"))
    assert value < mean < to_go < total


def test_reward_to_go_without_states_discounted_is_another_gradient(make, reference):
    """At gamma < 1 it is not that of the discounted return, which is why the switch says so; at gamma = 1 it is."""
    for gamma, exact in ((GAMMA, False), (1.0, True)):
        algorithm = make(pgjax.REINFORCE, baseline="none", gamma=gamma)
        undiscounted = dataclasses.replace(reference, gamma=gamma)
        rows = gradients(algorithm, tables(algorithm, reference, reference.values()))
        assert (deviations(rows, undiscounted.gradient() / H) < 4.5) == exact


def test_longer_rollouts_count_more_episodes_and_favour_none(make, reference):
    """In 2H + 1 steps several episodes fit. Those that start while H steps are left count; counting all that happen
    to end in time instead favours short ones, and is found out."""
    algorithm = make(pgjax.REINFORCE, credit="total_return", baseline="none", num_steps=2 * H + 1, total_steps=10**4)
    state = tables(algorithm, reference, reference.values())
    rows = gradients(algorithm, state)

    def episodes(key):
        fresh = state._replace(rollout=initial_rollout(algorithm.env, algorithm.actor(state), key, ENVS))
        return collect(algorithm, fresh, key)[1]

    batch = jax.jit(jax.vmap(episodes))(jax.random.split(jax.random.key(3), ROLLOUTS))
    starts = np.asarray(batch.reset)  # [ROLLOUTS, T, ENVS]
    counted = starts[:, : H + 2].sum(1).mean()
    assert counted > 1.5
    exact = reference.gradient() * counted / algorithm.num_steps
    assert deviations(rows, exact) < 4.5

    def all_that_end(batch):
        done = batch.terminated
        ends = jnp.flip(jax.lax.cummax(jnp.flip(done.astype(jnp.int32), 0), axis=0), 0) > 0
        start = returns.episode_start(batch.reset)
        time = jnp.arange(algorithm.num_steps)[:, None] - start
        rest = returns.reward_to_go(GAMMA**time * batch.reward, done, jnp.zeros_like(done), 1.0)
        credit = jnp.where(ends, jnp.take_along_axis(rest, start, axis=0), 0.0)
        samples = samples_of(batch, credit, credit, ends.astype(jnp.float32))
        grads, _ = mean_gradient(algorithm.loss)(state.params, (), samples)
        grads = jax.tree.map(lambda g: jnp.mean(samples.weight) * g, grads)
        return -grads["policy"]["kernel"]

    wrong = jax.jit(jax.vmap(all_that_end))(batch)
    wrong = np.asarray(wrong, np.float64).reshape(ROLLOUTS, H, S, A)
    scale = np.sum(wrong.mean(0) * exact) / np.sum(exact**2)  # whatever its length, its direction is off
    assert deviations(wrong, scale * exact) > 8


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_generalised_advantages_with_the_true_value_have_no_bias_at_any_lambda(make, reference, gae_lambda):
    """The mean over a rollout of H steps, restarts included, of grad log pi Q."""
    vpg = make(pgjax.VPG, gae_lambda=gae_lambda)
    rows = gradients(vpg, tables(vpg, reference, reference.values()))
    assert deviations(rows, reference.gradient_over_steps(H)) < 4.5


def test_with_a_wrong_value_only_lambda_one_has_no_bias(make, reference):
    """lambda = 1 uses a value only as a baseline, where no episode is cut off: here all last H steps."""
    P = reference.P * (np.arange(S + 1) < S)
    P /= P.sum(-1, keepdims=True)
    lasting = dataclasses.replace(reference, P=P)
    wrong = lasting.values() + np.random.default_rng(4).normal(scale=2.0, size=(H, S))
    off = {}
    for gae_lambda in (0.0, 1.0):
        vpg = make(pgjax.VPG, gae_lambda=gae_lambda)
        vpg = dataclasses.replace(vpg, env=dataclasses.replace(vpg.env, transition=P.astype(np.float32)))
        off[gae_lambda] = deviations(gradients(vpg, tables(vpg, lasting, wrong)), lasting.gradient_over_steps(H))
    assert off[0.0] > 8
    assert off[1.0] < 4.5


def test_more_lambda_more_variance(make, reference):
    variances = []
    for gae_lambda in (0.0, 0.5, 1.0):
        vpg = make(pgjax.VPG, gae_lambda=gae_lambda)
        variances.append(gradients(vpg, tables(vpg, reference, reference.values())).var(0).sum())
    assert variances == sorted(variances)


@pytest.fixture(scope="module")
def natural(make, reference):
    """TRPO's batch at the reference's policy: its policy and objective as functions, parameters, and the dense F."""
    trpo = make(pgjax.TRPO, num_envs=256, total_steps=10**5)
    state = tables(trpo, reference, reference.values())
    _, batch, _ = collect(trpo, state, jax.random.key(5))
    learned = gae_samples(trpo, batch)
    policy, objective = policy_and_objective(trpo, state.params, (), learned)
    counts = np.asarray(batch.obs, np.float64).reshape(-1, H * S).mean(0)
    return trpo, state, policy, objective, reference.fisher(counts)


def test_fisher_vector_product_is_the_dense_fisher_matrix(natural, reference):
    """E over the batch's states and all actions of grad log pi grad log pi^T, by enumeration."""
    _, state, policy, _, fisher = natural
    product = fisher_vector_product(policy, state.params, damping=0.0)
    v = jax.tree.map(jnp.zeros_like, state.params)
    direction = np.random.default_rng(6).normal(size=(H * S, A))
    v["policy"]["kernel"] = jnp.asarray(direction, jnp.float32)
    ours = np.asarray(product(v)["policy"]["kernel"], np.float64).ravel()
    np.testing.assert_allclose(ours, fisher @ direction.ravel(), atol=1e-6)
    assert np.linalg.matrix_rank(fisher) < H * S * A  # logits of a state may move together: damping is needed


def test_the_fisher_matrix_of_the_batch_is_the_exact_one_on_average(natural, reference):
    """Of the policy's own distribution of states, to the error of a batch."""
    fisher = natural[-1]
    exact = reference.fisher(reference.visits(H).mean(0).ravel())
    assert np.max(np.abs(fisher - exact)) < 0.1 * np.max(np.abs(exact))


def test_fewer_environments_give_the_fisher_matrix_of_those(natural, reference):
    trpo, state, *_ = natural
    _, batch, _ = collect(trpo, state, jax.random.key(5))
    policy, _ = policy_and_objective(
        dataclasses.replace(trpo, fisher_stride=4), state.params, (), gae_samples(trpo, batch)
    )
    assert policy(state.params).logits.shape == (H, 64, A)
    v = jax.tree.map(jnp.ones_like, state.params) | {"policy": {"kernel": jnp.eye(H * S, A), "bias": jnp.zeros(A)}}
    counts = np.asarray(batch.obs[:, ::4], np.float64).reshape(-1, H * S).mean(0)
    ours = fisher_vector_product(policy, state.params, damping=0.0)(v)["policy"]["kernel"]
    np.testing.assert_allclose(np.ravel(ours), reference.fisher(counts) @ np.eye(H * S, A).ravel(), atol=1e-6)


def test_conjugate_gradients_solve_for_the_natural_gradient(natural):
    _, state, policy, objective, fisher = natural
    gradient = jax.grad(objective, has_aux=True)(state.params)[0]
    # The policy's parameters alone: kernel and bias, as the solver sees them.
    product = fisher_vector_product(policy, state.params, damping=0.1)
    ours = conjugate_gradient(product, gradient, 50)["policy"]
    tall = np.vstack([np.eye(H * S * A), np.tile(np.eye(A), H * S)])  # d logits / d (kernel, bias)
    whole = tall @ fisher @ tall.T + 0.1 * np.eye(H * S * A + A)
    right = np.concatenate([np.ravel(gradient["policy"][name]) for name in ("kernel", "bias")])
    exact = np.linalg.solve(whole, right.astype(np.float64))
    np.testing.assert_allclose(np.concatenate([np.ravel(ours[name]) for name in ("kernel", "bias")]), exact, atol=1e-4)
    np.testing.assert_array_equal(conjugate_gradient(product, gradient, 50)["value"]["kernel"], 0.0)


@pytest.fixture(scope="module")
def trpo_step(natural):
    trpo, state, *_ = natural
    step = jax.jit(lambda trpo, state: trpo.step(state))
    return lambda **fields: step(dataclasses.replace(trpo, **fields), state)


@pytest.mark.parametrize("max_kl", [1e-3, 1e-2, 0.1])
def test_a_trust_region_step_keeps_its_bound_and_improves(natural, trpo_step, max_kl):
    _, state, _, objective, _ = natural
    after, metrics = trpo_step(max_kl=max_kl)
    assert 0.3 * max_kl < float(metrics["kl"]) <= max_kl
    assert float(metrics["policy_loss"]) < -float(objective(state.params)[0])
    assert float(metrics["step_fraction"]) > 0.0
    assert not np.allclose(after.params["policy"]["kernel"], state.params["policy"]["kernel"])


def test_it_backs_off_where_the_quadratic_model_fails(make, natural, trpo_step):
    """Next to undamped, the natural step of 0.1 nats overshoots the bound. NPG and TRPO shorten it, and where TRPO may
    not, the policy stays where it was."""
    _, state, *_ = natural
    npg = make(pgjax.NPG, num_envs=256, total_steps=10**5, max_kl=0.1, cg_damping=1e-3)
    _, metrics = jax.jit(npg.step)(state)
    assert 0.0 < float(metrics["step_fraction"]) < 1.0
    assert 0.03 < float(metrics["kl"]) <= 0.1
    _, metrics = trpo_step(max_kl=0.1, cg_damping=1e-3)
    assert 0.0 < float(metrics["step_fraction"]) < 1.0
    assert 0.03 < float(metrics["kl"]) <= 0.1
    assert float(trpo_step(max_kl=0.1, cg_damping=1e-3, backtrack=0.5)[1]["step_fraction"]) == 0.5
    stays, metrics = trpo_step(max_kl=0.1, cg_damping=1e-3, max_backtracks=0)
    assert float(metrics["step_fraction"]) == 0.0
    assert float(metrics["kl"]) == pytest.approx(0.0, abs=1e-7)
    np.testing.assert_array_equal(stays.params["policy"]["kernel"], state.params["policy"]["kernel"])


def test_trpo_whose_full_step_is_accepted_is_npg(make, natural, trpo_step):
    """Without its line search TRPO is NPG."""
    _, state, *_ = natural
    after, metrics = trpo_step(max_kl=1e-3)
    assert float(metrics["step_fraction"]) == 1.0
    npg = make(pgjax.NPG, num_envs=256, total_steps=10**5, max_kl=1e-3)
    ours, metrics = jax.jit(npg.step)(state)
    assert float(metrics["step_fraction"]) == 1.0
    chex.assert_trees_all_close(ours.params, after.params, atol=1e-6)


@pytest.mark.parametrize(("fisher_stride", "cg_damping"), [(8, 1e-3), (8, 0.0), (1, 0.0)])
def test_natural_steps_keep_their_bound_also_with_a_poor_fisher_matrix(make, train, fisher_stride, cg_damping):
    """Of 4 environments or undamped: unshortened, the KL reaches 55 to 10^8 times the bound in these runs."""
    size = {"num_envs": 32, "total_steps": 32 * H * 100}
    npg = make(pgjax.NPG, max_kl=0.1, fisher_stride=fisher_stride, cg_damping=cg_damping, **size)
    _, metrics = train(npg, jax.random.key(0))
    assert (metrics["kl"] <= 0.1 * (1 + 1e-4)).all()
    assert (metrics["step_fraction"] <= 1.0).all()
    assert (metrics["step_fraction"] < 1.0).any()
    assert np.isfinite(metrics["step_norm"]).all()


@pytest.mark.parametrize(
    ("divergence", "fraction"),
    [
        (lambda x: x**2 / 25, 1.0),
        (lambda x: x**2, 0.9 / 5),  # quadratic: shortened once
        (lambda x: jnp.where(x > 1.0, jnp.inf, x**2), 0.1),
        (lambda x: jnp.where(x > 1.0, jnp.nan, x**2), 0.1),
        (lambda x: x + 1.1, 0.0),  # nowhere within the bound
    ],
)
def test_a_step_is_shortened_until_its_divergence_is_within_the_bound(divergence, fraction):
    """A step of 5 from 1, with a bound of 1."""
    start, step = jnp.float32(1.0), jnp.float32(5.0)
    new, found = shortened(lambda x: divergence(x - start), start, step, bound=1.0)
    assert float(found) == pytest.approx(fraction)
    assert float(new) == pytest.approx(1.0 + 5.0 * fraction)


def test_a_step_that_is_not_finite_is_not_made():
    new, fraction = shortened(lambda x: x**2, jnp.float32(0.5), jnp.float32(jnp.nan), bound=1.0)
    assert (float(new), float(fraction)) == (0.5, 0.0)


def test_natural_steps_by_learning_rate_are_proportional_to_it(make, natural):
    _, state, *_ = natural
    step = jax.jit(lambda npg: npg.step(state)[0].params["policy"]["kernel"] - state.params["policy"]["kernel"])
    npg = make(pgjax.NPG, num_envs=256, total_steps=10**5, step_rule="learning_rate", lr_schedule="constant")
    one, two = (step(dataclasses.replace(npg, learning_rate=rate)) for rate in (0.1, 0.2))
    np.testing.assert_allclose(2 * one, two, atol=1e-5)
    assert float(jnp.max(jnp.abs(one))) > 1e-3


def test_natural_steps_by_learning_rate_have_no_bound(make, natural):
    _, state, *_ = natural
    npg = make(pgjax.NPG, num_envs=256, total_steps=10**5, step_rule="learning_rate", learning_rate=3.0, max_kl=1e-4)
    _, metrics = jax.jit(npg.step)(state)
    assert float(metrics["step_fraction"]) == 1.0
    assert float(metrics["kl"]) > 1e-3
