"""What a few seeds can say: interquartile means and probabilities of improvement, with intervals that cover them.

As recommended by Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice". A
*stratum* is what is resampled on its own: the seeds of one setting or one task. Runs are never exchanged between them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from pgjax.core.errors import InputError

FEW = 10
"""A stratum with fewer scores is too small for the percentile bootstrap."""


class Estimate(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def interquartile_mean(*strata: Any, resamples: int = 2000) -> Estimate:
    """The mean of the middle half of all scores, with the interval of a bootstrap stratified over `strata`.

    That is the percentile bootstrap's, unless a stratum has fewer than 10 scores. Few scores vary less when resampled
    than they do when drawn: the percentiles of 3 would cover the truth in 75 % of cases. There it is
    value +- t s sqrt(n / (n - 1)) with s the bootstrap's standard error, n the size of the smallest stratum and t
    Student's quantile for sum(size - 1) degrees of freedom; in simulations with 3 to 8 normal or skewed scores it
    covers in 93 to 97 %.

    Where a stratum has only one score, or a score is not finite, there is no interval: it is NaN.

    Raises:
        InputError: there is no stratum, or one is not a list of scores.
    """

    def statistic(*x: Any, axis: int) -> Any:
        return stats.trim_mean(np.concatenate(x, axis), 0.25, axis=axis)

    def of_few(value: float, samples: list[Any], quantile: float) -> tuple[float, float]:
        n = min(x.size for x in samples)
        half = quantile * np.sqrt(n / (n - 1)) * _bootstrap(statistic, samples, resamples).standard_error
        return value - half, value + half

    return _estimate(statistic, strata, resamples, of_few)


def probability_of_improvement(better: Sequence[Any], worse: Sequence[Any], resamples: int = 2000) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for a score X of `better` and Y of `worse`, averaged over the strata they share.

    The interval is the percentile bootstrap's, unless a stratum has fewer than 10 scores, where all pairs often agree
    and resampling finds no doubt. There it is the probabilities p from which the value is at most t standard errors
    away, sqrt(V(p)) (Newcombe, 2006, method 5, with Student's quantile t for the normal one). For n and m scores
    V(p) = p (1 - p) [1 + k (1 - p) / (2 - p) + k p / (1 + p)] / (n m), k = (n + m) / 2 - 1.

    It is NaN if a score is: what did not finish can be compared with nothing.

    Raises:
        InputError: they have different numbers of strata.
    """
    if len(better) != len(worse):
        raise InputError(f"probability_of_improvement: {len(better)} and {len(worse)} strata, expected equally many")

    def pairs(x: Sequence[Any]) -> Any:
        return zip(x[: len(better)], x[len(better) :], strict=True)

    def statistic(*x: Any, axis: int) -> Any:
        return np.mean([_above(a, b, axis) for a, b in pairs(x)], axis=0)

    def of_few(value: float, samples: list[Any], quantile: float) -> tuple[float, float]:
        p = np.linspace(0.0, 1.0, 10_001)
        variance = sum(_variance(p, a.size, b.size) for a, b in pairs(samples)) / len(better) ** 2
        inside = p[(value - p) ** 2 <= quantile**2 * variance]
        return min(value, inside[0]), max(value, inside[-1])

    return _estimate(statistic, [*better, *worse], resamples, of_few)


def _variance(p: Any, n: int, m: int) -> Any:
    """Of the share of pairs that agree where each does with probability p (Hanley & McNeil, 1982)."""
    k = (n + m) / 2 - 1
    return p * (1 - p) * (1 + k * (1 - p) / (2 - p) + k * p / (1 + p)) / (n * m)


def _above(x: Any, y: Any, axis: int) -> Any:
    difference = np.expand_dims(np.moveaxis(x, axis, -1), -1) - np.expand_dims(np.moveaxis(y, axis, -1), -2)
    return np.mean(np.where(np.isnan(difference), np.nan, (difference > 0) + 0.5 * (difference == 0)), axis=(-2, -1))


def _estimate(
    statistic: Callable[..., Any],
    strata: Sequence[Any],
    resamples: int,
    of_few: Callable[[float, list[Any], float], tuple[float, float]],
) -> Estimate:
    """`of_few(value, samples, quantile)` gives the interval where a stratum has fewer than `FEW` scores."""
    samples = [np.asarray(x, float) for x in strata]
    if not samples or any(x.ndim != 1 or not x.size for x in samples):
        raise InputError("statistics need at least one stratum, each a list of at least one score")
    value = float(statistic(*samples, axis=-1))
    if any(x.size == 1 for x in samples) or not np.all(np.isfinite(np.concatenate(samples))):
        return Estimate(value, float("nan"), float("nan"))
    if any(x.size < FEW for x in samples):
        low, high = of_few(value, samples, stats.t.ppf(0.975, sum(x.size - 1 for x in samples)))
    else:
        low, high = _bootstrap(statistic, samples, resamples).confidence_interval
    return Estimate(value, float(low), float(high))


def _bootstrap(statistic: Callable[..., Any], samples: list[Any], resamples: int) -> Any:
    return stats.bootstrap(samples, statistic, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0))
