"""Pruning, exploiting and exploring, against what they are defined to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.algorithms.on_policy import OnPolicyState
from pgjax.running.population import stack
from pgjax.sweeping import space
from pgjax.sweeping.result import SweepResult
from pgjax.sweeping.search import curve_mean

SETTINGS, SEEDS = 8, 10
AXES = {
    "learning_rate": pgjax.log_uniform(1e-4, 1e-1),
    "gamma": [0.9, 0.95, 0.99],
    "clip_eps": pgjax.uniform(0.1, 0.5),
}


@pytest.fixture(scope="module")
def changed(tiny):
    """(population, state, scores) before, and (population, state, source) after one change of 8 x 10 members."""
    pbt = pgjax.PBT(fraction=0.25, factor=1.5, resample=0.5)
    rng = np.random.default_rng(0)
    count = SETTINGS * SEEDS
    members = [
        space.with_setting(
            tiny, {"learning_rate": 10 ** rng.uniform(-4, -1), "gamma": rng.choice([0.9, 0.95, 0.99]), "clip_eps": 0.3}
        )
        for _ in range(count)
    ]
    names = space.leaves_named(tiny, AXES)
    population = stack(members, names)
    state = OnPolicyState(
        key=jax.vmap(jax.random.key)(jnp.arange(count)),
        iteration=jnp.zeros(count, jnp.int32),
        params={"w": jnp.arange(count, dtype=jnp.float32)},
        opt_state=jnp.arange(count),
        rollout=None,
        obs_moments=None,
        reward_scale=None,
    )
    scores = rng.normal(size=(SETTINGS, SEEDS))
    after = pbt.exploit_and_explore(AXES, jax.random.key(1), scores, population, state)
    return population, state, scores, *after


def test_the_worst_take_over_from_the_best_of_their_own_seed(changed):
    _, state, scores, _, after, source = changed
    source = np.asarray(source)
    order = np.argsort(scores, axis=0)
    for i, came_from in enumerate(source):
        setting, seed = divmod(i, SEEDS)
        assert came_from % SEEDS == seed
        if setting in order[:2, seed]:
            assert came_from // SEEDS in order[-2:, seed]
        else:
            assert came_from == i
    np.testing.assert_array_equal(after.params["w"], source)
    np.testing.assert_array_equal(after.opt_state, source)
    np.testing.assert_array_equal(jax.random.key_data(after.key), jax.random.key_data(state.key))


def test_only_those_replaced_explore_and_they_stay_within_their_axes(changed):
    before, _, _, after, _, source = changed
    source = np.asarray(source)
    replaced = source != np.arange(SETTINGS * SEEDS)
    for name, axis in AXES.items():
        old, new = np.asarray(getattr(before.member, name)), np.asarray(getattr(after.member, name))
        np.testing.assert_array_equal(new[~replaced], old[~replaced])
        assert (new[replaced] != old[source][replaced]).sum() >= replaced.sum() - 6
        if isinstance(axis, list):
            assert np.isclose(new[replaced][:, None], axis).any(axis=1).all()
        else:
            low, high = axis.bounds
            assert ((new >= low * 0.999) & (new <= high * 1.001)).all()


def test_members_and_fields_explore_independently(changed):
    """One coin for all would multiply every learning rate and every clip_eps the same way."""
    before, _, _, after, _, source = changed
    source = np.asarray(source)
    replaced = source != np.arange(SETTINGS * SEEDS)
    factors = {
        name: (np.asarray(getattr(after.member, name)) / np.asarray(getattr(before.member, name))[source])[replaced]
        for name in ("learning_rate", "clip_eps")
    }
    assert all(len(set(np.round(f, 3))) >= 3 for f in factors.values())
    up = [f > 1 for f in factors.values()]
    assert (up[0] != up[1]).any()


def test_steps_are_factors_shares_of_the_width_or_neighbours(tiny):
    pbt = pgjax.PBT(fraction=0.5, factor=2.0, resample=0.0)
    members = [space.with_setting(tiny, {"learning_rate": 0.01, "gae_lambda": 0.5, "gamma": 0.95}) for _ in range(40)]
    axes = {
        "learning_rate": pgjax.log_uniform(1e-4, 1.0),
        "gae_lambda": pgjax.uniform(0.4, 0.6),
        "gamma": [0.9, 0.95, 0.99],
    }
    population = stack(members, space.leaves_named(tiny, axes))
    state = OnPolicyState(jax.random.split(jax.random.key(0), 40), *[jnp.zeros(40)] * 6)
    after, _, source = pbt.exploit_and_explore(axes, jax.random.key(0), np.arange(40.0)[:, None], population, state)
    rates = np.round(np.asarray(after.member.learning_rate), 6)
    assert set(rates[:20]) == {np.float32(0.005), np.float32(0.02)}
    assert set(rates[20:]) == {np.float32(0.01)}
    assert set(np.asarray(after.member.gae_lambda)[:20]) == {np.float32(0.4), np.float32(0.6)}
    assert set(np.asarray(after.member.gamma)[:20]) == {np.float32(0.9), np.float32(0.99)}
    assert (np.asarray(source)[20:] == np.arange(20, 40)).all()


@pytest.fixture(scope="module")
def sources(tiny):
    """(scores [settings, seeds], seed) -> the setting that each member goes on from; two of eight are replaced."""

    def sources(scores, seed=0):
        scores = np.asarray(scores, np.float64)
        state = OnPolicyState(jax.random.split(jax.random.key(0), scores.size), *[jnp.zeros(scores.size)] * 6)
        population = stack([tiny] * scores.size, space.leaves_named(tiny, {}))
        *_, source = pgjax.PBT(fraction=0.25).exploit_and_explore({}, jax.random.key(seed), scores, population, state)
        settings, seeds = np.divmod(np.asarray(source).reshape(scores.shape), scores.shape[1])
        assert (seeds == np.arange(scores.shape[1])).all()
        return settings

    return sources


STAYING = np.broadcast_to(np.arange(SETTINGS)[:, None], (SETTINGS, SEEDS))


@pytest.mark.parametrize("score", [np.nan, -np.inf, 0.0, 500.0])
def test_nobody_takes_over_from_a_score_that_is_not_higher(sources, score):
    """Where all scores are equal, all members failed or none has a score."""
    np.testing.assert_array_equal(sources(np.full((SETTINGS, SEEDS), score)), STAYING)


def test_only_strictly_higher_scores_are_taken_over(sources):
    """One member is ahead of seven that are equal: those drawn to be replaced take over from it or stay."""
    scores = np.zeros((SETTINGS, SEEDS))
    scores[3] = 1.0
    source = sources(scores)
    moved = source != STAYING
    assert (source[moved] == 3).all()
    assert 1 <= moved.sum() <= 2 * SEEDS


def test_members_without_a_score_are_neither_replaced_nor_taken_over(sources):
    """The worst and the best quarter are those of the members that have one: two of 8, one of 7 or 2, none of 1."""
    scores = np.random.default_rng(0).normal(size=(SETTINGS, SEEDS))
    unscored = np.zeros(scores.shape, bool)
    for seed, count in enumerate([1, 1, 1, 2, 4, 6, 6, 7, 8, 0]):
        unscored[np.random.default_rng(seed).permutation(SETTINGS)[:count], seed] = True
    scores[unscored] = np.nan
    source = sources(scores)
    replaced = source != STAYING
    assert replaced.sum(axis=0).tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0, 2]
    for seed in range(SEEDS):
        ranked = [i for i in np.argsort(scores[:, seed]) if not unscored[i, seed]]
        count = replaced[:, seed].sum()
        assert set(np.flatnonzero(replaced[:, seed])) == set(ranked[:count])
        assert set(source[replaced[:, seed], seed]) <= set(ranked[len(ranked) - count :])


def test_members_that_failed_are_the_worst(sources):
    scores = np.random.default_rng(1).normal(size=(SETTINGS, SEEDS))
    scores[2], scores[5] = -np.inf, np.nan
    source = sources(scores)
    assert (source[2] == np.argsort(scores, axis=0)[SETTINGS - 2, np.arange(SEEDS)]).all()
    np.testing.assert_array_equal(np.delete(source, 2, axis=0), np.delete(STAYING, 2, axis=0))


def test_ties_break_by_the_key_and_not_by_the_index(sources):
    """Four members at the bottom and four at the top are equal: all of each are replaced or taken over in turn."""
    scores = np.repeat([[0.0], [1.0]], SETTINGS // 2, axis=0) * np.ones(SEEDS)
    found = np.stack([sources(scores, seed) for seed in range(4)])
    assert len({x.tobytes() for x in found}) == 4
    replaced = found != STAYING
    assert (replaced.sum(axis=1) == 2).all()
    assert (replaced.sum(axis=(0, 2))[:4] >= 10).all()  # of 80 takeovers, a quarter each
    assert (np.bincount(found[replaced], minlength=SETTINGS)[4:] >= 10).all()


def test_a_member_of_a_sweep_that_is_not_finite_counts_as_failed(tiny, monkeypatch):
    seen = []

    def remember(self, axes, key, scores, population, state):
        seen.append(scores)
        return population, state, np.arange(population.size)

    monkeypatch.setattr(pgjax.PBT, "exploit_and_explore", remember)
    search = pgjax.PBT(every=3, metric="entropy")
    pgjax.sweep(tiny, learning_rate=[1e-2, 1e38], seeds=2, search=search, episodes=2, devices=1, progress=False)
    (scores,) = seen
    assert np.isfinite(scores[0]).all()
    assert (scores[1] == -np.inf).all()


def test_the_best_setting_has_what_its_best_member_was_trained_with_in_the_end(tiny):
    rates = np.arange(12.0).reshape(4, 3)
    result = SweepResult(
        axes={"learning_rate": [1e-3, 1e-2], "gamma": [0.9]},
        settings=[{"learning_rate": 1e-3, "gamma": 0.9}, {"learning_rate": 1e-2, "gamma": 0.9}],
        seeds=[0, 1],
        algorithms=[tiny] * 4,
        curves={},
        steps=np.ones((4, 3)),
        schedules={"learning_rate": rates},
        scores={"return_mean": np.array([1.0, 5.0, 2.0, 3.0])},
        failed=np.full(4, -1),
        reached=np.full(4, 3),
        states=[None] * 4,
        seconds_compile=0.0,
        seconds_run=0.0,
    )
    assert result.best() == ({"learning_rate": rates[1, 2], "gamma": 0.9}, 3.0, [0, 1])
    assert result.ranking()[1].setting == {"learning_rate": rates[3, 2], "gamma": 0.9}


def test_halving_keeps_the_best_and_puts_those_without_a_score_last():
    halving = pgjax.SuccessiveHalving(eta=3, rungs=2)
    assert halving.ends(90) == [10, 30, 90]
    scores = np.array([5.0, np.nan, 7.0, 1.0, 6.0, 2.0, np.nan])
    assert halving.survivors(scores).tolist() == [0, 2, 4]
    assert pgjax.SuccessiveHalving(eta=2).survivors(np.full(3, np.nan)).tolist() == [0, 1]


def test_curve_means_leave_out_what_is_absent():
    curve = np.array([[1.0, 2.0, np.nan, 4.0], [np.nan] * 4])
    np.testing.assert_allclose(curve_mean(curve, 3), [3.0, np.nan])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pgjax.SuccessiveHalving(eta=1), r"SuccessiveHalving.eta = 1 is not accepted: .* in \[2, 2\^31\)"),
        (lambda: pgjax.PBT(fraction=0.7), r"PBT.fraction = 0.7 is not accepted: expected a number in \(0, 0.5\]"),
        (lambda: pgjax.PBT(factor=1.0), "PBT.factor = 1.0"),
        (lambda: pgjax.PBT(metric=3), "PBT.metric = 3"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(pgjax.InputError, match=message):
        make()
