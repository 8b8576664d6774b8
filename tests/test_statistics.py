"""Interquartile means and probabilities of improvement against the obvious."""

import numpy as np
import pytest
import scipy.stats

import pgjax
from pgjax.reporting.statistics import interquartile_mean, probability_of_improvement

RNG = np.random.default_rng(3)


def test_interquartile_mean_is_that_of_the_middle_half_of_all_scores():
    a, b = RNG.normal(size=12), RNG.normal(size=8) + 3
    scores = np.sort(np.concatenate([a, b]))
    assert np.isclose(interquartile_mean(a, b).value, scores[5:15].mean())
    assert interquartile_mean([1.0, 2.0, 3.0, 100.0]).value == 2.5


def test_its_interval_is_the_percentile_bootstrap_within_strata():
    """Against a plain loop; and resampling across strata, which is wrong here, would give a far wider one."""
    a, b = RNG.normal(size=10), RNG.normal(size=10) + 50
    found = interquartile_mean(a, b, resamples=4000)
    rng = np.random.default_rng(9)

    def middle(x):
        return np.sort(x)[len(x) // 4 : len(x) - len(x) // 4].mean()

    loop = [middle(np.concatenate([rng.choice(a, 10), rng.choice(b, 10)])) for _ in range(4000)]
    np.testing.assert_allclose([found.low, found.high], np.quantile(loop, [0.025, 0.975]), atol=0.1)
    pooled = np.concatenate([a, b])
    wrong = np.quantile([middle(rng.choice(pooled, 20)) for _ in range(4000)], [0.025, 0.975])
    assert wrong[1] - wrong[0] > 5 * (found.high - found.low)


MIDDLE_HALF = np.linspace(0.25, 0.75, 10_001)
DISTRIBUTIONS = {
    "normal": (lambda rng, n: rng.normal(size=n), scipy.stats.norm.ppf(MIDDLE_HALF).mean()),
    "skewed": (lambda rng, n: rng.lognormal(size=n), np.exp(scipy.stats.norm.ppf(MIDDLE_HALF)).mean()),
}
"""Name -> (n draws of it, its interquartile mean)."""


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("sizes", [(3,), (5,), (8,), (20,), (3, 4)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(name, sizes):
    """In 200 experiments; 179 is three standard deviations below 95 %."""
    (draw, truth), rng = DISTRIBUTIONS[name], np.random.default_rng(0)
    found = [interquartile_mean(*(draw(rng, n) for n in sizes), resamples=300) for _ in range(200)]
    assert sum(x.low <= truth <= x.high for x in found) >= 179


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("size", [3, 5, 8])
def test_the_interval_of_a_probability_covers_it_also_where_all_pairs_of_a_few_agree(size, shift):
    truth, rng = scipy.stats.norm.cdf(shift / np.sqrt(2)), np.random.default_rng(0)
    found = [
        probability_of_improvement([rng.normal(size=size) + shift], [rng.normal(size=size)], resamples=300)
        for _ in range(200)
    ]
    assert sum(x.low <= truth <= x.high for x in found) >= 179
    assert all(0.0 <= x.low <= x.value <= x.high <= 1.0 for x in found)


def test_three_against_three_prove_little():
    """All nine pairs agree by chance once in twenty times; more settings of which each says so prove more."""
    one = probability_of_improvement([[3.0, 4.0, 5.0]], [[0.0, 1.0, 2.0]])
    assert (one.value, one.high) == (1.0, 1.0)
    assert one.low < 0.5
    four = probability_of_improvement([[3.0, 4.0, 5.0]] * 4, [[0.0, 1.0, 2.0]] * 4)
    assert 0.7 < four.low < 0.9
    back = probability_of_improvement([[0.0, 1.0, 2.0]], [[3.0, 4.0, 5.0]])
    np.testing.assert_allclose(back, [0.0, 0.0, 1.0 - one.low], atol=1e-9)


def test_probability_of_improvement_counts_pairs_and_ties_half():
    x, y = [3.0, 1.0, 2.0], [2.0, 0.0]
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y]
    assert np.isclose(probability_of_improvement([x], [y]).value, np.mean(pairs))
    two = probability_of_improvement([x, y], [y, x]).value
    assert np.isclose(two, (np.mean(pairs) + 1 - np.mean(pairs)) / 2)
    found = probability_of_improvement([RNG.normal(size=30) + 3], [RNG.normal(size=30)])
    assert found.low > 0.9
    assert np.isnan(probability_of_improvement([[1.0, 2.0]], [[0.0, np.nan]]).value)
    assert found.high <= 1.0


def test_one_score_has_no_interval_and_none_is_refused():
    assert interquartile_mean([4.0]).value == 4.0
    assert np.isnan(interquartile_mean([4.0]).low)
    assert np.isnan(interquartile_mean([4.0, np.nan]).high)
    assert str(interquartile_mean([4.0])) == "4 [nan, nan]"
    with pytest.raises(pgjax.InputError, match="at least one stratum"):
        interquartile_mean()
    with pytest.raises(pgjax.InputError, match="1 and 2 strata, expected equally many"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
