"""What a few seeds can say: interquartile means with bootstrap intervals, and probabilities of improvement.

As recommended by Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice". A
*stratum* is what is resampled on its own: the seeds of one setting or one task. Runs are never exchanged between them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from pgjax.core.errors import InputError


class Estimate(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def interquartile_mean(*strata: Any, resamples: int = 2000) -> Estimate:
    """The mean of the middle half of all scores, with a percentile bootstrap stratified over `strata`.

    Where a stratum has only one score, or a score is not finite, there is no interval: it is NaN.
    """
    return _bootstrapped(lambda *x, axis: stats.trim_mean(np.concatenate(x, axis), 0.25, axis=axis), strata, resamples)


def probability_of_improvement(better: Sequence[Any], worse: Sequence[Any], resamples: int = 2000) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for a score X of `better` and Y of `worse`, averaged over the strata they share.

    It is NaN if a score is: what did not finish can be compared with nothing.

    Raises:
        InputError: they have different numbers of strata.
    """
    if len(better) != len(worse):
        raise InputError(f"probability_of_improvement: {len(better)} and {len(worse)} strata, expected equally many")

    def probability(*x: Any, axis: int) -> Any:
        pairs = zip(x[: len(better)], x[len(better) :], strict=True)
        return np.mean([_above(a, b, axis) for a, b in pairs], axis=0)

    return _bootstrapped(probability, [*better, *worse], resamples)


def _above(x: Any, y: Any, axis: int) -> Any:
    difference = np.expand_dims(np.moveaxis(x, axis, -1), -1) - np.expand_dims(np.moveaxis(y, axis, -1), -2)
    return np.mean(np.where(np.isnan(difference), np.nan, (difference > 0) + 0.5 * (difference == 0)), axis=(-2, -1))


def _bootstrapped(statistic: Callable[..., Any], strata: Sequence[Any], resamples: int) -> Estimate:
    samples = [np.asarray(x, float) for x in strata]
    if not samples or any(x.ndim != 1 or not x.size for x in samples):
        raise InputError("statistics need at least one stratum, each a list of at least one score")
    value = float(statistic(*samples, axis=-1))
    if any(x.size == 1 for x in samples) or not np.all(np.isfinite(np.concatenate(samples))):
        return Estimate(value, float("nan"), float("nan"))
    found = stats.bootstrap(
        samples, statistic, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))
