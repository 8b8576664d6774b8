"""Return estimators against direct summation, and the identities that hold between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from pgjax.learning import losses, returns

T = 11
GAMMA, LAMBDA = 0.93, 0.85


def flags():
    """(terminated, truncated) `[T, B]`; every column is another way in which episodes end."""
    rng = np.random.default_rng(1)
    terminated, truncated = rng.random((2, T, 10)) < 0.25
    terminated[:, :6] = truncated[:, :6] = False  # column 0: no episode ends
    terminated[-1, 1] = True
    truncated[-1, 2] = True
    terminated[-1, 3] = truncated[-1, 3] = True
    terminated[4, 4] = truncated[4, 4] = True
    terminated[3, 5] = truncated[7, 5] = True
    both = terminated & truncated
    assert both[:, 6:].any() and (terminated & ~both)[:, 6:].any() and (truncated & ~both)[:, 6:].any()
    return terminated, truncated


def batch():
    """Random arrays `[T, B]`, with a next value unrelated to the values."""
    rng = np.random.default_rng(0)
    terminated, truncated = flags()
    reward, value, next_value = rng.normal(size=(3, *terminated.shape)).astype(np.float32)
    ratio = np.exp(rng.normal(size=terminated.shape)).astype(np.float32)
    return {
        "reward": reward,
        "value": value,
        "next_value": next_value,
        "terminated": terminated,
        "truncated": truncated,
        "ratio": ratio,
    }


def rollout():
    """`batch` as a rollout has it: inside an episode the next value is the value of the next step."""
    data = batch()
    inside = ~(data["terminated"] | data["truncated"])[:-1]
    data["next_value"][:-1] = np.where(inside, data["value"][1:], data["next_value"][:-1])
    return data


def on_device(data):
    return jax.tree.map(jnp.asarray, data)


def pick(data, *names):
    return {name: data[name] for name in names}


FLAGS = ("terminated", "truncated")
CALLS = {
    "reward_to_go": lambda f, d: f.reward_to_go(**pick(d, "reward", *FLAGS, "next_value"), gamma=GAMMA),
    "reward_to_go, nothing after the cut": lambda f, d: f.reward_to_go(**pick(d, "reward", *FLAGS), gamma=GAMMA),
    "lambda_return": lambda f, d: f.lambda_return(
        **pick(d, "reward", "next_value", *FLAGS), gamma=GAMMA, gae_lambda=LAMBDA
    ),
    "gae": lambda f, d: f.gae(**pick(d, "reward", "value", "next_value", *FLAGS), gamma=GAMMA, gae_lambda=LAMBDA),
    "vtrace": lambda f, d: f.vtrace(**d, gamma=GAMMA),
    "vtrace, both clips and lambda": lambda f, d: f.vtrace(
        **d, gamma=GAMMA, gae_lambda=LAMBDA, rho_clip=1.7, c_clip=0.6
    ),
} | {
    f"n_step {n}": lambda f, d, n=n: f.n_step(**pick(d, "reward", "next_value", *FLAGS), gamma=GAMMA, n=n)
    for n in (1, 3, T + 4)
}
"""Estimator -> call of it, by keyword, in the module `f` on the arrays `d`."""


def columns(call, data):
    """The reference on every trajectory of a batch."""
    per_column = [call(reference, {k: v[:, b] for k, v in data.items()}) for b in range(data["reward"].shape[1])]
    return jax.tree.map(lambda *x: np.stack(x, axis=-1), *per_column)


def assert_close(actual, expected, tolerance=2e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize("name", CALLS)
def test_equals_direct_summation_as_batch_as_single_trajectory_and_under_vmap(name):
    call, data = CALLS[name], batch()
    expected = columns(call, data)

    @jax.jit
    def estimate(data):
        one = call(returns, {k: v[:, 6] for k, v in data.items()})
        mapped = jax.vmap(lambda d: call(returns, d), in_axes=1, out_axes=1)(data)
        return call(returns, data), mapped, one

    together, mapped, one = estimate(on_device(data))
    assert_close(together, expected)
    assert_close(mapped, expected)
    assert_close(one, jax.tree.map(lambda x: x[:, 6], expected))


def test_reference_on_numbers_worked_out_by_hand():
    """Reward 1, 2, 4, values 10, 20, 40, gamma = lambda = 1/2; the cut after the second step keeps its bootstrap, 8."""
    none, cut = np.zeros(3, bool), np.array([False, True, False])
    reward, value, next_value = np.array([1.0, 2, 4]), np.array([10.0, 20, 40]), np.array([20.0, 8, 16])
    np.testing.assert_allclose(reference.reward_to_go(reward, none, cut, 0.5), [2, 2, 4])
    np.testing.assert_allclose(reference.reward_to_go(reward, none, cut, 0.5, next_value), [4, 6, 12])
    np.testing.assert_allclose(reference.reward_to_go(reward, cut, cut, 0.5, next_value), [2, 2, 12])
    np.testing.assert_allclose(reference.reward_to_go(reward, none, none, 0.5, next_value), [5, 8, 12])
    np.testing.assert_allclose(reference.n_step(reward, next_value, none, cut, 0.5, 1), [11, 6, 12])
    np.testing.assert_allclose(reference.n_step(reward, next_value, none, cut, 0.5, 2), [4, 6, 12])
    np.testing.assert_allclose(reference.lambda_return(reward, next_value, none, cut, 0.5, 0.5), [7.5, 6, 12])
    np.testing.assert_allclose(reference.gae(reward, value, next_value, none, cut, 0.5, 0.5), [-2.5, -14, -28])
    ratio = np.array([0.5, 2.0, 1.0])
    target, advantage = reference.vtrace(reward, value, next_value, none, cut, 0.5, ratio)
    np.testing.assert_allclose(target, [10 + 0.5 * 1 + 0.5 * 0.5 * -14, 6, 12])
    np.testing.assert_allclose(advantage, [1 + 0.5 * 6 - 10, -14, -28])


def test_identities_between_the_estimators():
    @jax.jit
    def estimates(data):
        arrays = pick(data, "reward", "next_value", *FLAGS)
        return {
            "gae": [returns.gae(**arrays, value=data["value"], gamma=GAMMA, gae_lambda=x) for x in (0.0, LAMBDA, 1.0)],
            "lambda": [returns.lambda_return(**arrays, gamma=GAMMA, gae_lambda=x) for x in (0.0, LAMBDA, 1.0)],
            "n": {n: returns.n_step(**arrays, gamma=GAMMA, n=n) for n in (1, T, T + 3)},
            "to_go": returns.reward_to_go(**arrays, gamma=GAMMA),
        }

    data = rollout()
    value, td_target = data["value"], data["reward"] + GAMMA * ~data["terminated"] * data["next_value"]
    G = jax.tree.map(np.asarray, estimates(on_device(data)))
    assert_close(G["gae"][0], td_target - value)
    assert_close(G["gae"][1] + value, G["lambda"][1])
    assert_close(G["gae"][2], G["to_go"] - value)
    assert_close(G["lambda"][0], td_target)
    assert_close(G["lambda"][2], G["to_go"])
    assert_close(G["n"][1], td_target)
    assert_close(G["n"][T], G["to_go"])
    assert_close(G["n"][T + 3], G["to_go"])


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, LAMBDA, 1.0])
def test_on_policy_vtrace_is_generalised_advantage_estimation(gae_lambda):
    data = on_device(rollout() | {"ratio": np.ones((T, 10), np.float32)})
    (target, advantage), expected = jax.jit(
        lambda data: (
            returns.vtrace(**data, gamma=GAMMA, gae_lambda=gae_lambda),
            returns.gae(**pick(data, "reward", "value", "next_value", *FLAGS), gamma=GAMMA, gae_lambda=gae_lambda),
        )
    )(data)
    assert_close(advantage, expected)
    assert_close(target, expected + data["value"])


def test_vtrace_at_lambda_one_follows_its_own_target_one_step_ahead():
    """A_t = r_t + gamma v_{t+1} - V_t (Espeholt et al., 2018, section 4.2), at any ratio."""
    data = rollout()
    target, advantage = jax.jit(lambda data: returns.vtrace(**data, gamma=GAMMA))(on_device(data))
    ends = data["terminated"] | data["truncated"]
    ends[-1] = True
    next_target = np.where(ends, data["next_value"], np.roll(target, -1, axis=0)) * ~data["terminated"]
    assert_close(advantage, data["reward"] + GAMMA * next_target - data["value"])


def test_the_surrogate_of_vtrace_has_the_gradient_of_the_expected_reward():
    """Of a two-armed bandit, from one draw of each arm under mu = (1/2, 1/2), at ratios 0.8 and 1.2."""
    logits, reward = jnp.log(jnp.array([0.4, 0.6])), jnp.array([1.0, 3.0])
    once = {"reward": reward, "value": jnp.full(2, 2.2), "next_value": jnp.zeros(2)}
    once = {k: v[None] for k, v in once.items()} | dict.fromkeys(FLAGS, jnp.ones((1, 2), bool))
    advantage = returns.vtrace(**once, gamma=GAMMA, ratio=2 * jax.nn.softmax(logits)[None])[1][0]
    of_surrogate = jax.grad(lambda x: -jnp.mean(losses.surrogate(2 * jax.nn.softmax(x), advantage)))(logits)
    np.testing.assert_allclose(of_surrogate, jax.grad(lambda x: jax.nn.softmax(x) @ reward)(logits), rtol=1e-5)


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    """One state that pays 1 for ever is worth 1 / (1 - gamma) = 10 however often a time limit interrupts it."""
    limit = jnp.zeros(5, bool).at[-1].set(True)
    never = jnp.zeros(5, bool)

    def learned_value(terminated, truncated):
        def iteration(_, value):
            same = jnp.full(5, value)
            advantage = returns.gae(
                reward=jnp.ones(5),
                value=same,
                next_value=same,
                terminated=terminated,
                truncated=truncated,
                gamma=0.9,
                gae_lambda=0.95,
            )
            return jnp.mean(advantage + same)

        return jax.lax.fori_loop(0, 300, iteration, jnp.float32(0.0))

    learned_value = jax.jit(learned_value)
    assert learned_value(never, limit) == pytest.approx(10.0, rel=1e-4)
    assert learned_value(never, never) == pytest.approx(10.0, rel=1e-4)
    assert learned_value(limit, never) < 5.0
    assert learned_value(limit, limit) < 5.0


def test_gamma_and_lambda_may_be_traced_and_vmapped():
    host = {k: v[:, 6] for k, v in batch().items()}
    data = on_device(host)
    gammas, lambdas = np.array([0.5, 0.9, 1.0], np.float32), np.array([0.0, 0.7, 1.0], np.float32)

    @jax.jit
    @jax.vmap
    def every_estimator(gamma, gae_lambda):
        arrays = pick(data, "reward", "next_value", *FLAGS)
        return (
            returns.reward_to_go(**arrays, gamma=gamma),
            returns.n_step(**arrays, gamma=gamma, n=3),
            returns.lambda_return(**arrays, gamma=gamma, gae_lambda=gae_lambda),
            returns.gae(**arrays, value=data["value"], gamma=gamma, gae_lambda=gae_lambda),
            *returns.vtrace(**data, gamma=gamma, gae_lambda=gae_lambda),
        )

    def expected(gamma, gae_lambda):
        arrays = pick(host, "reward", "next_value", *FLAGS)
        return (
            reference.reward_to_go(**arrays, gamma=gamma),
            reference.n_step(**arrays, gamma=gamma, n=3),
            reference.lambda_return(**arrays, gamma=gamma, gae_lambda=gae_lambda),
            reference.gae(**arrays, value=host["value"], gamma=gamma, gae_lambda=gae_lambda),
            *reference.vtrace(**host, gamma=gamma, gae_lambda=gae_lambda),
        )

    actual = every_estimator(gammas, lambdas)
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i], actual)
        assert_close(one, expected(float(gammas[i]), float(lambdas[i])))
