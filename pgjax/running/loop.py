"""The loop: a training run is one scan over an algorithm's iterations."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pgjax.core.algorithm import Algorithm, Key, Metrics, check_key
from pgjax.core.metrics import identity, merge, mergeable, numbers


def train(algorithm: Algorithm, key: Key) -> tuple[Any, dict[str, Array]]:
    """A whole run: `init`, then `num_iterations` times `step`.

    Pure, so `jax.jit`, `jax.vmap` over keys or hyperparameters, and sharding apply to the run. Returns the final state
    and the metrics of every iteration, each of shape `[num_iterations]`, NaN where there was nothing to report.
    `total_steps` that is not a whole number of iterations is not exceeded, and a `UserWarning` says so.
    """
    check_key("train", key)
    note = budget_note(algorithm)
    if note:
        warnings.warn(note, stacklevel=2)

    def step(state: Any, _: None) -> tuple[Any, dict[str, Array]]:
        state, metrics = algorithm.step(state)
        return state, numbers(metrics)

    return jax.lax.scan(step, algorithm.init(key), length=algorithm.num_iterations)


def budget_note(algorithm: Algorithm) -> str:
    """What a run does with a `total_steps` that is not a whole number of iterations; empty if it is one."""
    steps = algorithm.num_iterations * algorithm.steps_per_iteration
    if steps == algorithm.total_steps:
        return ""
    return (
        f"total_steps = {algorithm.total_steps} is not a multiple of one iteration "
        f"({algorithm.steps_per_iteration} steps): training {algorithm.num_iterations} iterations = {steps} steps"
    )


def train_chunk(
    algorithm: Algorithm, state: Any, num_iterations: Int[Array, ""], max_iterations: int
) -> tuple[Any, Metrics]:
    """`num_iterations` more iterations, at most `max_iterations`; one program serves every number.

    Returns the state and metrics of shape `[max_iterations]` of which the first `num_iterations` are filled. However
    a run is cut into chunks, its bits are the same: every iteration draws from its own key.
    """
    shapes = jax.eval_shape(algorithm.step, state)[1]
    buffer = jax.tree.map(lambda x: jnp.zeros((max_iterations, *x.shape), x.dtype), shapes)

    def body(i: Array, carry: Any) -> Any:
        state, buffer = carry
        state, metrics = algorithm.step(state)
        return state, jax.tree.map(lambda rows, x: rows.at[i].set(x), buffer, metrics)

    return jax.lax.fori_loop(0, num_iterations, body, (state, buffer))


def train_means(algorithm: Algorithm, state: Any, num_iterations: Int[Array, ""]) -> tuple[Any, Metrics]:
    """`num_iterations` more iterations, and their metrics merged into one of each. One program serves every number."""
    shapes = jax.eval_shape(lambda state: _mergeable(algorithm.step(state)[1]), state)

    def body(_: Array, carry: Any) -> Any:
        state, so_far = carry
        state, metrics = algorithm.step(state)
        return state, {name: merge(so_far[name], metric) for name, metric in _mergeable(metrics).items()}

    empty = {name: identity(shape) for name, shape in shapes.items()}
    return jax.lax.fori_loop(0, num_iterations, body, (state, empty))


def _mergeable(metrics: Metrics) -> Metrics:
    return {name: mergeable(metric) for name, metric in metrics.items()}
