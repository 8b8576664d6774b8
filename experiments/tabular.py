"""What the experiments on gradient estimates share: two policies that stand still, estimates from fresh batches, and
what repeated batches say about them.

One policy is a table in a small finite MDP, where values and gradients are known exactly. The other is an MLP on
CartPole-v1, partly trained, with a value network fitted to it. gamma is 1 in both, so that every expression of the
policy gradient has the same mean.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import pgjax
from pgjax.algorithms.on_policy import OnPolicyState, collect, samples_of
from pgjax.core.algorithm import Key, Params
from pgjax.core.metrics import numbers
from pgjax.environments.probes import TabularMDP
from pgjax.learning.optimizers import mean_gradient
from pgjax.learning.rollout import Transition, initial_rollout
from pgjax.reporting.statistics import Estimate

S, A, H = 4, 3, 8
"""States, actions and horizon of the finite MDP."""


class Setting(NamedTuple):
    """A policy, and how batches of it are collected: one complete episode in each environment."""

    name: str
    algorithm: pgjax.REINFORCE
    state: OnPolicyState
    policy: Callable[[Params], Params]
    """The parameters that the gradient is taken in, out of all."""
    about: str


def random_mdp(seed: int) -> TabularMDP:
    """States pay and actions mostly choose what state comes next, so that credit is delayed; one step in ten is the
    last."""
    rng = np.random.default_rng(seed)
    to_others = 0.6 * rng.dirichlet(np.full(S, 0.2), (S, A))
    transition = np.concatenate([0.3 * np.eye(S)[:, None] + to_others, np.full((S, A, 1), 0.1)], axis=-1)
    reward = rng.normal(1.0, 1.0, (S, 1)) + 0.3 * rng.normal(size=(S, A))
    return TabularMDP(jnp.asarray(transition, jnp.float32), jnp.asarray(reward, jnp.float32), horizon=H)


def tabular(num_envs: int, mdp: TabularMDP, logits: jax.Array, value: jax.Array) -> Setting:
    """A softmax policy with `logits` [H, S, A] beside a `value` [H, S]."""
    algorithm = pgjax.REINFORCE(
        mdp,
        network=pgjax.MLP(hidden=()),
        num_envs=num_envs,
        num_steps=mdp.horizon,
        total_steps=num_envs * mdp.horizon,
        gamma=1.0,
        baseline="none",
        value_minibatches=1,
    )
    state = algorithm.init(jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, state.params)
    params["policy"]["kernel"] = logits.reshape(-1, logits.shape[-1])
    params["value"]["kernel"] = value.reshape(-1, 1)
    about = f"{mdp.horizon} steps at most, a table of {logits.size} logits"
    return Setting("tabular MDP", algorithm, state._replace(params=params), lambda x: x["policy"]["kernel"], about)


def random_logits(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(H, S, A)), jnp.float32)


def visits(mdp: TabularMDP, logits: jax.Array) -> jax.Array:
    """P(s_t = s), `[H, S]`, from the first step on; the rest of 1 is what has ended."""
    transition = jnp.asarray(mdp.transition)[..., :-1]

    def step(reached: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = reached[:, None] * jax.nn.softmax(logits)
        return jnp.einsum("sa,sap->p", chosen, transition), reached

    return jax.lax.scan(step, jax.nn.one_hot(0, logits.shape[1]), logits)[1]


def expected_return(mdp: TabularMDP, logits: jax.Array) -> jax.Array:
    return jnp.sum(visits(mdp, logits)[..., None] * jax.nn.softmax(logits) * mdp.reward)


def action_values(mdp: TabularMDP, logits: jax.Array) -> jax.Array:
    """Q, `[H, S, A]`, from the last step back."""
    transition = jnp.asarray(mdp.transition)[..., :-1]

    def step(later: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        Q = mdp.reward + transition @ later
        return jnp.sum(jax.nn.softmax(logits) * Q, axis=-1), Q

    return jax.lax.scan(step, jnp.zeros(logits.shape[1]), logits, reverse=True)[1]


def values(mdp: TabularMDP, logits: jax.Array) -> jax.Array:
    return jnp.sum(jax.nn.softmax(logits) * action_values(mdp, logits), axis=-1)


def cartpole(num_envs: int, limit: int, iterations: int, fit_iterations: int) -> Setting:
    """PPO after so many iterations; then REINFORCE's regression fits the value while the policy stands still."""
    env = pgjax.make("CartPole-v1", max_steps_in_episode=limit)
    ppo = pgjax.tuned("ppo", "CartPole-v1", env=env)
    trained, _ = steps(ppo, ppo.init(jax.random.key(0)), iterations)
    fitting = pgjax.REINFORCE(
        env,
        num_envs=64,
        num_steps=limit,
        total_steps=64 * limit * fit_iterations,
        gamma=1.0,
        baseline="value",
        learning_rate=0.0,
        value_learning_rate=3e-3,
    )
    start = fitting.init(jax.random.key(1))._replace(params=trained.params)
    fitted, metrics = steps(fitting, start, fit_iterations)
    algorithm = pgjax.REINFORCE(
        env, num_envs=num_envs, num_steps=limit, total_steps=num_envs * limit, gamma=1.0, baseline="none"
    )
    state = algorithm.init(jax.random.key(0))._replace(params=fitted.params)
    about = (
        f"{limit} steps at most; {iterations} iterations of PPO have brought the MLP to a mean return of "
        f"{limit * np.mean(metrics['counted']):.1f}; the value explains {metrics['explained_variance'][-1]:.2f} of the "
        "variance of the reward-to-go"
    )
    return Setting("CartPole-v1", algorithm, state, lambda params: (params["actor"], params["policy"]), about)


@functools.partial(jax.jit, static_argnums=2)
def steps(algorithm: Any, state: Any, iterations: int) -> tuple[Any, dict[str, jax.Array]]:
    """The state after so many iterations, and the figures of each."""

    def step(state: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
        state, metrics = algorithm.step(state)
        return state, numbers(metrics)

    return jax.lax.scan(step, state, length=iterations)


def fresh_batch(setting: Setting, key: Key) -> Transition:
    algorithm, state = setting.algorithm, setting.state
    start_key, key = jax.random.split(key)
    rollout = initial_rollout(algorithm.env, algorithm.actor(state), start_key, algorithm.num_envs)
    return collect(algorithm, state._replace(rollout=rollout), key)[1]


def credited(setting: Setting, batch: Transition, **switches: Any) -> tuple[jax.Array, jax.Array]:
    """`[T, B]`: what REINFORCE with these switches weighs the scores by, 0 where a step does not count; and 1 where it
    does, else 0."""
    reinforce = dataclasses.replace(setting.algorithm, **switches)
    samples, _ = reinforce._samples(setting.state.params, batch)
    return samples.weight * samples.advantage, samples.weight


def gradients(setting: Setting, batch: Transition, weights: jax.Array) -> jax.Array:
    """`[expressions, parameters]`: the mean over episodes of sum_t weight_t grad log pi, for weights
    `[expressions, T, B]`."""
    algorithm, params = setting.algorithm, setting.state.params

    def gradient(weight: jax.Array) -> jax.Array:
        grads, _ = mean_gradient(algorithm.loss)(params, (), samples_of(batch, weight, weight))
        return -algorithm.num_steps * ravel_pytree(setting.policy(grads))[0]

    return jax.vmap(gradient)(weights)


def sample_gradients(
    setting: Setting, weights: Callable[[Transition], jax.Array], batches: int, seed: int, chunk: int = 8
) -> np.ndarray:
    """`[expressions, batches, parameters]`, every expression from the same batches."""
    keys = jax.random.split(jax.random.key(seed), batches)

    def one(key: Key) -> jax.Array:
        batch = fresh_batch(setting, key)
        return gradients(setting, batch, weights(batch))

    rows = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=chunk))(keys)
    return np.moveaxis(np.asarray(rows), 1, 0)


def resampled(batches: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each batch is drawn, `[1 + resamples, batches]`: once each, then as the bootstrap draws them.

    The same for everything that is compared, so that differences are those on the same batches.
    """
    drawn = np.random.default_rng(seed).multinomial(batches, np.full(batches, 1 / batches), resamples)
    return np.vstack([np.ones(batches), drawn])


class Moments(NamedTuple):
    """Of rows `[batches, parameters]`, for every row of `resampled`."""

    mean: np.ndarray
    squared_norm: np.ndarray
    """|E x|^2 from pairs of different batches: a batch with itself would add the variance of the mean."""
    mean_square: np.ndarray
    """E |x|^2."""

    @property
    def variance(self) -> np.ndarray:
        """The trace of the covariance."""
        return self.mean_square - self.squared_norm


def moments(drawn: np.ndarray, rows: np.ndarray) -> Moments:
    rows, batches = rows.astype(np.float64), drawn.shape[1]
    total, square, itself = drawn @ rows, np.sum(rows**2, axis=1), drawn**2
    of_pairs = np.sum(total**2, axis=1) - itself @ square
    return Moments(total / batches, of_pairs / (batches**2 - itself.sum(1)), drawn @ square / batches)


def interval(found: np.ndarray) -> Estimate:
    """Of a figure for every row of `resampled`: the figure itself and the percentiles of the bootstrap."""
    return Estimate(float(found[0]), *map(float, np.quantile(found[1:], [0.025, 0.975])))
