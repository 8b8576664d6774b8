"""What a sweep varies: names, values, modes, and the keys values are drawn with."""

import dataclasses
from types import SimpleNamespace
from typing import Annotated

import jax
import numpy as np
import pytest

import pgjax
from pgjax.core.algorithm import EVALUATION_STREAM, INIT_STREAM
from pgjax.core.hyperparameters import TRACED, Scalar, field, pytree
from pgjax.sweeping.space import axis_key, check_axes, is_traced, leaves_named, settings, with_setting

KEY = jax.random.key(0)


def drawn(mode="grid", num_samples=None, **axes):
    return settings(axes, mode, num_samples, KEY)


def test_grid_is_every_combination_with_the_last_axis_fastest():
    assert drawn(a=[1, 2], b=["x", "y"]) == [{"a": a, "b": b} for a in (1, 2) for b in ("x", "y")]
    assert drawn() == [{}]


def test_in_a_grid_distributions_give_joint_samples_that_every_combination_meets():
    found = drawn(a=[1, 2], b=pgjax.uniform(0.0, 1.0), c=pgjax.integers(0, 9), num_samples=3)
    assert [s["a"] for s in found] == [1, 1, 1, 2, 2, 2]
    assert [(s["b"], s["c"]) for s in found[:3]] == [(s["b"], s["c"]) for s in found[3:]]
    assert len({s["b"] for s in found}) == 3


def test_random_takes_lists_as_choices():
    found = drawn("random", 200, a=[1, 2, 3], b=pgjax.log_uniform(1e-4, 1e-2))
    assert len(found) == 200
    assert {s["a"] for s in found} == {1, 2, 3}
    assert all(1e-4 <= s["b"] <= 1e-2 for s in found)


def test_zip_takes_the_ith_values_together():
    found = drawn("zip", a=[1, 2, 3], b=[4, 5, 6], c=pgjax.uniform(0, 1))
    assert [(s["a"], s["b"]) for s in found] == [(1, 4), (2, 5), (3, 6)]
    assert len({s["c"] for s in found}) == 3
    assert len(drawn("zip", 4, c=pgjax.uniform(0, 1))) == 4


def test_distributions_have_the_range_and_shape_they_say():
    n = 4000
    u = np.array(pgjax.uniform(-1, 3).sample(KEY, n))
    assert u.min() >= -1
    assert u.max() <= 3
    assert abs(u.mean() - 1) < 0.08
    logs = np.log10(pgjax.log_uniform(1e-4, 1e-2).sample(KEY, n))
    assert abs(logs.mean() + 3) < 0.04
    assert set(pgjax.integers(2, 4).sample(KEY, n)) == {2, 3, 4}
    assert set(pgjax.choice(["a", (1, 2)]).sample(KEY, 50)) == {"a", (1, 2)}
    assert pgjax.uniform(0.1, 0.4).bounds == (0.1, 0.4)


def test_every_axis_draws_from_a_key_of_its_own():
    """Equal distributions give other values, and an axis more changes none of the others."""
    one = drawn("random", 5, a=pgjax.uniform(0, 1), b=pgjax.uniform(0, 1))
    assert not {s["a"] for s in one} & {s["b"] for s in one}
    two = drawn("random", 5, c=pgjax.uniform(0, 1), a=pgjax.uniform(0, 1))
    assert [s["a"] for s in one] == [s["a"] for s in two]


def test_axis_keys_are_none_that_training_uses():
    used = [jax.random.fold_in(KEY, i) for i in (*range(100), INIT_STREAM, EVALUATION_STREAM)]
    words = {tuple(jax.random.key_data(k).tolist()) for k in used}
    assert tuple(jax.random.key_data(axis_key(KEY, "learning_rate")).tolist()) not in words


def test_a_setting_reaches_algorithm_network_and_environment(tiny):
    changed = with_setting(tiny, {"learning_rate": 0.5, "hidden": (3, 4), "length": 2.0, "num_steps": 4})
    assert (changed.learning_rate, changed.network.hidden, changed.num_steps) == (0.5, (3, 4), 4)
    assert (float(changed.env.params.length), float(changed.env.params.polemass_length)) == (2.0, np.float32(0.2))
    assert with_setting(tiny, {}) is tiny


def test_whole_parts_can_be_set_by_name_or_object(tiny):
    acrobot = with_setting(tiny, {"env": "Acrobot-v1", "network": "gru", "link_length_1": 2.0, "memory_size": 5})
    assert (acrobot.env.id, type(acrobot.network), acrobot.network.memory_size) == ("Acrobot-v1", pgjax.GRU, 5)
    assert float(acrobot.env.params.link_length_1) == 2.0
    assert with_setting(tiny, {"network": pgjax.MLP(hidden=(5,))}).network.hidden == (5,)
    assert with_setting(tiny, {"env": pgjax.make("CartPole-v1", length=3.0)}).env.params.length == 3.0
    other = dataclasses.replace(tiny, num_envs=8)
    assert with_setting(tiny, {"algorithm": other, "gamma": 0.5}) == dataclasses.replace(other, gamma=0.5)
    assert with_setting(tiny, {"algorithm": "ppo"}) == tiny


def test_constructor_options_and_parameters_of_environments_keep_each_other(tiny_ppo):
    base = tiny_ppo(pgjax.make("MemoryChain-bsuite", memory_length=7))
    assert {"num_bits", "memory_length"} <= {*vars(base.env.params), "num_bits"}
    changed = with_setting(base, {"num_bits": 3})
    assert changed.env.observation_space != base.env.observation_space
    assert int(changed.env.params.memory_length) == 7


def test_what_is_traced_and_which_leaves_an_axis_sets(tiny):
    assert is_traced(tiny, "gamma")
    assert is_traced(tiny, "length")
    assert not any(is_traced(tiny, name) for name in ("num_envs", "hidden", "env", "lr_schedule"))
    named = leaves_named(tiny, ["gamma", "env.length", "num_envs"])
    assert sum(named) == 2
    marked = jax.tree.unflatten(jax.tree.structure(tiny), named)
    assert (marked.gamma, marked.env.params.length) == (True, True)


@pytree
class Pairs:
    """An algorithm, as far as axes know one, whose data has a leaf called like a hyperparameter."""

    data: Annotated[dict, TRACED] = field("pairs", part=SimpleNamespace(options=lambda part: {"share": True}))
    margin: Scalar = field("between two of a pair", default=1.0)


def test_a_leaf_that_only_has_the_name_of_an_axis_is_no_axis():
    """It would be copied for every member, which for data is a lot."""
    algorithm = Pairs({"rows": {"margin": np.zeros(3)}, "share": np.float32(0.1)})
    for axis, path in (("margin", ".margin"), ("share", ".data['share']"), ("data.share", ".data['share']")):
        named = leaves_named(algorithm, [axis])
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(algorithm)]
        assert [p for p, is_named in zip(paths, named, strict=True) if is_named] == [path]


def test_settings_share_the_parts_that_names_stand_for(tiny):
    made = {}
    a, b = (with_setting(tiny, {"env": "Acrobot-v1", "gamma": gamma}, made) for gamma in (0.9, 0.99))
    assert a.env is b.env
    assert with_setting(tiny, {"env": "Pendulum-v1"}, made).env.id == "Pendulum-v1"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"learning_rat": [1e-3]}, "axis learning_rat is not known to PPO: did you mean learning_rate"),
        ({"env.lenght": [1.0]}, "axis env.lenght is not known to PPO"),
        ({"num_envs": pgjax.uniform(1, 9)}, "num_envs = uniform:1,9 is not accepted: num_envs selects the program"),
        ({"gamma": []}, "axis gamma has no values"),
        ({"gamma": 0.9}, r"axis gamma = 0.9 is not accepted: expected a list"),
        ({"gamma": np.zeros((2, 2))}, "expected a list, a one-dimensional array or a distribution"),
        ({"network": ["mpl"]}, "network = 'mpl' is not known: did you mean mlp"),
        ({"algorithm": ["pppo"]}, "algorithm = 'pppo' is not known: did you mean ppo"),
        ({"env": ["CartPole-v2"]}, "did you mean CartPole-v1"),
    ],
)
def test_bad_axes_are_refused(axes, message, tiny):
    with pytest.raises(pgjax.InputError, match=message):
        check_axes(tiny, axes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "gird", "a": [1]}, "mode = 'gird' is not accepted"),
        ({"mode": "zip", "a": [1, 2], "b": [1]}, "zip needs lists of one length, got a: 2, b: 1"),
        ({"a": pgjax.uniform(0, 1)}, "num_samples = None is not accepted: expected at least 1"),
        ({"mode": "random", "a": [1]}, "num_samples = None"),
        ({"mode": "random", "num_samples": 0, "a": [1]}, "num_samples = 0"),
        ({"a": [1], "num_samples": 3}, "num_samples = 3 is not accepted: nothing is drawn"),
    ],
)
def test_bad_modes_are_refused(arguments, message):
    with pytest.raises(pgjax.InputError, match=message):
        drawn(**arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pgjax.uniform(1, 1),
        lambda: pgjax.uniform(0, float("inf")),
        lambda: pgjax.log_uniform(0, 1),
        lambda: pgjax.integers(0.5, 2),
        lambda: pgjax.choice([]),
    ],
)
def test_bad_distributions_are_refused(make):
    with pytest.raises(pgjax.InputError, match="expected"):
        make()


def test_a_name_that_two_parts_share_needs_its_prefix(tiny):
    @pytree
    class Rival(pgjax.MLP):
        gamma: float = 0.5

    both = dataclasses.replace(tiny, network=Rival(hidden=(4,)))
    with pytest.raises(pgjax.InputError, match=r"axis gamma is ambiguous: expected algorithm.gamma or network.gamma"):
        check_axes(both, {"gamma": [0.1]})
    assert with_setting(both, {"network.gamma": 0.25}).network.gamma == 0.25


def test_more_settings_than_can_be_listed_are_refused_at_once():
    axes = {name: [0.5] * 200 for name in "abc"}
    with pytest.raises(pgjax.InputError, match="these axes make 8,000,000 settings: expected at most 1,000,000"):
        settings(axes, "grid", None, jax.random.key(0))
    with pytest.raises(pgjax.InputError, match="these axes make 100,000,000 settings"):
        settings({"a": pgjax.uniform(0, 1)}, "random", 10**8, jax.random.key(0))
