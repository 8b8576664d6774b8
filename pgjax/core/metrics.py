"""What an iteration reports, and how iterations are put together into one figure.

A metric is a scalar, or one of the four tuples below, which know how much they stand for. Several iterations, or the
parts of a curve, merge exactly: means weigh what they were taken over, counts add up, extremes stay extremes, and what
was not there (a mean over no episode) is absent and not a number that happens to be NaN.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Number: TypeAlias = Any
"""An array of JAX or NumPy, of any shape: a scalar in a step, with leading axes of iterations or members later."""


class Mean(NamedTuple):
    """total / count; absent where count is 0."""

    total: Number
    count: Number


class Count(NamedTuple):
    """How many there were of something; never absent."""

    total: Number


class Least(NamedTuple):
    """A minimum; absent where it is +inf."""

    value: Number


class Greatest(NamedTuple):
    """A maximum; absent where it is -inf."""

    value: Number


Metric: TypeAlias = Number | Mean | Count | Least | Greatest
"""A bare number is a mean over one iteration."""


def mergeable(metric: Metric) -> Metric:
    """A metric that can be merged: a bare number as the mean over itself."""
    if isinstance(metric, (Mean, Count, Least, Greatest)):
        return metric
    return Mean(jnp.asarray(metric, jnp.float32), jnp.ones(jnp.shape(metric)))


def identity(metric: Metric) -> Metric:
    """What merges with `metric`, a shape or an array, into itself."""
    empty = jnp.inf if isinstance(metric, Least) else -jnp.inf if isinstance(metric, Greatest) else 0
    return jax.tree.map(lambda x: jnp.full(x.shape, empty, x.dtype), metric)


def merge(a: Metric, b: Metric) -> Metric:
    """Two metrics of one kind, neither bare, as the metric of both parts together."""
    combine = jnp.minimum if isinstance(a, Least) else jnp.maximum if isinstance(a, Greatest) else jnp.add
    return jax.tree.map(combine, a, b)


def merged(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """Metrics with a leading axis, each merged along it into one."""

    def along(metric: Metric) -> Metric:
        combine = jnp.min if isinstance(metric, Least) else jnp.max if isinstance(metric, Greatest) else jnp.sum
        return jax.tree.map(lambda x: combine(x, axis=0), mergeable(metric))

    return {name: along(metric) for name, metric in metrics.items()}


def is_absent(metric: Metric) -> Number:
    """Where there was nothing to report, as booleans of the metric's shape."""
    if isinstance(metric, Mean):
        return metric.count == 0
    if isinstance(metric, (Least, Greatest)):
        return metric.value == (np.inf if isinstance(metric, Least) else -np.inf)
    (value,) = metric if isinstance(metric, Count) else (metric,)
    return np.zeros(np.shape(value), bool)


def number(metric: Metric) -> Number:
    """The figure itself; NaN where it is absent."""
    if isinstance(metric, Mean):
        xp = jnp if isinstance(metric.count, jax.Array) else np
        absent = metric.count == 0
        return xp.where(absent, xp.float32(np.nan), metric.total / xp.where(absent, 1, metric.count))
    if isinstance(metric, (Least, Greatest)):
        xp = jnp if isinstance(metric.value, jax.Array) else np
        return xp.where(is_absent(metric), xp.float32(np.nan), metric.value)
    return metric.total if isinstance(metric, Count) else metric


def numbers(metrics: dict[str, Metric]) -> dict[str, Number]:
    """Each metric's figure, by name; NaN where it is absent."""
    return {name: number(metric) for name, metric in metrics.items()}
