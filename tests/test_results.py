"""Tables, rankings and comparisons of a sweep whose numbers are known."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

import pgjax

RATES, WIDTHS, SEEDS = [0.1, 0.2], [(4,), (8,)], [7, 8, 9]
ALGORITHM = SimpleNamespace(score=("return_mean", "max"), unit="env steps")
SCORES = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [90.0, 91.0, 92.0]])


@pytest.fixture
def result():
    """Four settings with three seeds; the last one's second seed failed."""
    settings = [{"learning_rate": r, "hidden": h} for r in RATES for h in WIDTHS]
    count, points = 12, 4
    failed = np.full(count, -1)
    failed[10] = 3
    curve = np.repeat(np.arange(count, dtype=float)[:, None], points, axis=1)
    curve[:, 1] = np.nan
    return pgjax.SweepResult(
        axes={"learning_rate": RATES, "hidden": WIDTHS},
        settings=settings,
        seeds=SEEDS,
        algorithms=[ALGORITHM] * count,
        curves={"return_mean": curve},
        steps=np.tile(np.arange(1, points + 1) * 32, (count, 1)),
        schedules={},
        scores={"return_mean": SCORES.reshape(-1), "return_std": np.zeros(count), "episodes": np.full(count, 4)},
        failed=failed,
        reached=np.full(count, points),
        states=[None] * count,
        seconds_compile=0.0,
        seconds_run=0.0,
    )


def test_the_table_has_a_row_per_member(result, tmp_path):
    table = result.table
    assert list(table) == ["learning_rate", "hidden", "seed", "steps", "failed", "score", "return_mean"]
    assert table["learning_rate"].tolist() == [0.1] * 6 + [0.2] * 6
    assert table["seed"].tolist() == SEEDS * 4
    assert table["hidden"][3] == "(8,)"
    assert table["failed"].tolist() == [False] * 10 + [True, False]
    result.to_csv(tmp_path / "members.csv")
    rows = list(csv.DictReader((tmp_path / "members.csv").read_text().splitlines()))
    known = [float(row["score"]) for row in rows if row["failed"] == "False"]
    assert known == np.delete(SCORES.reshape(-1), 10).tolist()
    assert rows[10]["score"] == "nan"
    frame = result.to_pandas()
    assert frame.shape == (12, 7)
    assert frame.groupby("learning_rate").score.mean().tolist() == [3.5, np.delete(SCORES.reshape(-1), 10)[6:].mean()]


def test_ranking_is_by_the_mean_over_seeds_and_a_failed_seed_comes_last(result):
    ranking = result.ranking()
    assert [b.score for b in ranking[:3]] == [8.0, 5.0, 2.0]
    assert np.isnan(ranking[3].score)
    best = result.best()
    assert (best.setting, best.members) == ({"learning_rate": 0.2, "hidden": (4,)}, [6, 7, 8])
    assert result.best("return_mean", last=3).score == 7.0
    assert len(result) == 12


def test_estimates_take_every_setting_as_a_stratum(result):
    low = result.interquartile_mean(learning_rate=0.1)
    assert low.value == 3.5
    assert 1.0 <= low.low < low.value < low.high <= 6.0
    marginal = result.marginal("hidden")
    assert marginal[(4,)].value == np.mean([2.0, 3.0, 7.0, 8.0])
    assert np.isnan(marginal[(8,)].low)


def test_improvement_compares_settings_that_agree_in_the_other_axes(result):
    wide, narrow = ({"hidden": h, "learning_rate": 0.1} for h in ((8,), (4,)))
    assert result.probability_of_improvement(wide, narrow).value == 1.0
    scores = SCORES.copy()
    scores[3] = [0.0, 5.0, 5.5]
    result.failed[:] = -1
    result.scores["return_mean"][:] = scores.reshape(-1)
    found = result.probability_of_improvement({"learning_rate": 0.2}, {"learning_rate": 0.1})
    wins = [np.mean([(a > b) + (a == b) / 2 for a in scores[i + 2] for b in scores[i]]) for i in (0, 1)]
    assert np.isclose(found.value, np.mean(wins))
    assert 0 < wins[1] < wins[0] == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.best("scroe"), "metric = 'scroe' is not known: did you mean score"),
        (lambda r: r.best(last=0), "last = 0 is not accepted"),
        (lambda r: r.marginal("gamma"), "axis gamma is not in this sweep: known: hidden, learning_rate"),
        (lambda r: r.interquartile_mean(learning_rate=0.3), "no setting has learning_rate=0.3"),
    ],
)
def test_bad_questions_are_refused(ask, message, result):
    with pytest.raises(pgjax.InputError, match=message):
        ask(result)
