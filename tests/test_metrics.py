"""What iterations report, merged: against NumPy over all of them at once."""

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core.metrics import Count, Greatest, Least, Mean, identity, is_absent, merge, mergeable, number, numbers


def metrics_of(returns):
    """Of one iteration with these finished episodes, as a rollout reports them."""
    x = jnp.asarray(returns, jnp.float32)
    return {
        "mean": Mean(jnp.sum(x), jnp.int32(x.size)),
        "count": Count(jnp.int32(x.size)),
        "least": Least(jnp.min(x, initial=jnp.inf)),
        "greatest": Greatest(jnp.max(x, initial=-jnp.inf)),
        "rate": jnp.float32(0.5 * x.size),
    }


def test_merged_metrics_are_those_of_all_episodes_together():
    iterations = [[], [3.0, 1.0, 2.0], [], [10.0]]
    parts = [{name: mergeable(metric) for name, metric in metrics_of(x).items()} for x in iterations]
    together = {name: identity(metric) for name, metric in parts[0].items()}
    for part in parts:
        together = {name: merge(together[name], metric) for name, metric in part.items()}
    found = numbers(together)
    assert {name: float(x) for name, x in found.items()} == {
        "mean": 4.0,
        "count": 4.0,
        "least": 1.0,
        "greatest": 10.0,
        "rate": 0.5,
    }


def test_what_is_absent_is_nan_and_known_to_be_absent():
    for metrics in (metrics_of([]), jax.device_get(metrics_of([]))):
        assert {name for name, metric in metrics.items() if np.all(is_absent(metric))} == {"mean", "least", "greatest"}
        assert all(np.isnan(number(metrics[name])) for name in ("mean", "least", "greatest"))
        assert number(metrics["count"]) == 0


def test_a_number_that_is_not_finite_is_not_absent():
    broken = {"mean": Mean(jnp.float32(jnp.nan), jnp.int32(2)), "bare": jnp.float32(jnp.nan), "least": Least(jnp.nan)}
    assert not any(np.any(is_absent(metric)) for metric in broken.values())
    assert all(np.isnan(number(metric)) for metric in broken.values())
