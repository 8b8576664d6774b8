"""Pruning, exploiting and exploring, against what they are defined to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.algorithms.on_policy import OnPolicyState
from pgjax.running.population import stack
from pgjax.sweeping import space
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
    scores[0, 0] = np.nan  # without a score: as bad as can be
    after = pbt.exploit_and_explore(AXES, jax.random.key(1), scores, population, state)
    return population, state, scores, *after


def test_the_worst_take_over_from_the_best_of_their_own_seed(changed):
    _, state, scores, _, after, source = changed
    source = np.asarray(source)
    order = np.argsort(np.where(np.isnan(scores), -np.inf, scores), axis=0)
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
        (lambda: pgjax.SuccessiveHalving(eta=1), r"SuccessiveHalving.eta = 1 is not accepted: .* in \[2, inf\)"),
        (lambda: pgjax.PBT(fraction=0.7), r"PBT.fraction = 0.7 is not accepted: expected a number in \(0, 0.5\]"),
        (lambda: pgjax.PBT(factor=1.0), "PBT.factor = 1.0"),
        (lambda: pgjax.PBT(metric=3), "PBT.metric = 3"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(pgjax.InputError, match=message):
        make()
