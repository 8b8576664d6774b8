"""Sweeps: every member is its solo run, however the population is cut, spread, stopped or searched."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.core.hyperparameters import Scalar, field_types
from pgjax.environments.base import Box, Discrete, TimeStep
from pgjax.running.compile import _compile
from pgjax.running.directory import status
from pgjax.sweeping.plan import make_plan
from pgjax.sweeping.search import Search

sweep_module = importlib.import_module("pgjax.sweeping.shell")
programs_module = importlib.import_module("pgjax.running.compile")
devices_module = importlib.import_module("pgjax.core.devices")

PLAIN = {"episodes": 4, "progress": False}
AXES = {"learning_rate": [1e-2, 3e-3, 1e-3], "gamma": [0.9, 0.99, 0.95]}
NINE = PLAIN | {"seeds": 3, "mode": "zip", "devices": 1} | AXES
"""Three settings with three seeds: one program that many tests share."""


def assert_close(a, b, rtol=2e-4, atol=2e-4):
    a, b = ({jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(x)} for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=atol, err_msg=name)


def assert_same_result(a, b):
    """Bit by bit: curves, scores and every leaf of every state."""
    for name in ("curves", "schedules", "scores", "failed", "reached"):
        jax.tree.map(np.testing.assert_array_equal, getattr(a, name), getattr(b, name))
    jax.tree.map(np.testing.assert_array_equal, a.states, b.states)
    for x, y in zip(a.algorithms, b.algorithms, strict=True):
        jax.tree.map(np.testing.assert_array_equal, x, y)


@pytest.fixture(scope="module")
def nine(tiny):
    return pgjax.sweep(tiny, **NINE)


GRU = pytest.param(pgjax.GRU(hidden=(8,), memory_size=8), marks=pytest.mark.slow)


@pytest.mark.parametrize("network", [None, GRU], ids=["mlp", "gru"])
def test_members_of_a_sweep_over_every_scalar_field_are_their_solo_runs(network, cartpole, tiny_ppo, train):
    algorithm = tiny_ppo(cartpole, network)
    axes = {
        name: pgjax.uniform(0.6 * float(value), 0.9 * float(value)) if 0 < value < np.inf else pgjax.uniform(0.1, 0.9)
        for name, hint in field_types(pgjax.PPO).items()
        if hint == Scalar and (value := getattr(algorithm, name)) is not None
    }
    axes |= {"length": pgjax.uniform(0.3, 1.0), "gravity": [5.0, 9.8]}
    result = pgjax.sweep(algorithm, 2, mode="random", num_samples=3, seed=5, devices=1, **PLAIN, **axes)
    for i in (0, 3, 5):
        member = result.member(i)
        assert all(float(getattr(member.algorithm, k)) == np.float32(result.table[k][i]) for k in ("gamma", "clip_eps"))
        state, metrics = train(member.algorithm, jax.random.key(5 + i % 2))
        assert jnp.array_equal(jax.random.key_data(member.state.key), jax.random.key_data(state.key))
        assert_close(member.state.params, state.params)
        known = {name: x for name, x in metrics.items() if name != "explained_variance"}
        assert_close({name: member.metrics[name] for name in known}, known, rtol=2e-3, atol=2e-3)
    assert len({float(a.learning_rate) for a in result.algorithms}) == 3


def test_cut_into_batches_members_keep_their_numbers(nine, tiny, capsys):
    cut = pgjax.sweep(tiny, **(NINE | {"members_at_once": 3, "progress": True}))
    assert "3 x 3" in capsys.readouterr().err
    assert_close(cut.curves, nine.curves)
    assert_close([s.params for s in cut.states], [s.params for s in nine.states])
    np.testing.assert_allclose(cut.scores["return_mean"], nine.scores["return_mean"])


@pytest.mark.slow
def test_spread_over_eight_devices_members_keep_their_numbers(nine, tiny):
    """Nine members fill nineteen places: what stands in the other seven nobody sees."""
    assert len(jax.local_devices()) == 8
    spread = pgjax.sweep(tiny, **(NINE | {"devices": None}))
    assert len(spread) == 9
    assert_close(spread.curves, nine.curves)
    assert_close([s.params for s in spread.states], [s.params for s in nine.states])
    with pytest.raises(pgjax.InputError, match="devices = 9 is not accepted: expected from 1 to the 8"):
        pgjax.sweep(tiny, **(NINE | {"devices": 9}))


def test_the_memory_a_compiled_program_says_it_needs_decides_the_batches(tiny, nine, monkeypatch, capsys):
    needed = []
    fit = programs_module.fit

    def remember(*args):
        needed.append(fit(*args)[0].bytes_needed)
        return fit(*args)

    monkeypatch.setattr(sweep_module, "fit", remember)
    pgjax.sweep(tiny, **NINE)
    monkeypatch.setattr(devices_module, "host_memory", lambda: 0.7 / devices_module.MEMORY_SHARE * needed[0])
    cut = pgjax.sweep(tiny, **(NINE | {"progress": True}))
    assert "members: 1 x 9" not in capsys.readouterr().err
    assert_close(cut.curves, nine.curves)
    monkeypatch.setattr(devices_module, "host_memory", lambda: 10.0)
    with pytest.raises(pgjax.InputError, match=r"does not fit into memory: .* expected fewer environments"):
        pgjax.sweep(tiny, **NINE)


def test_what_can_never_fit_is_refused_before_anything_compiles(tiny, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(devices_module, "host_memory", lambda: 2.5e9)
    huge = dataclasses.replace(tiny, num_envs=2**17, num_steps=2**10, total_steps=2**30)
    with pytest.raises(pgjax.InputError, match=r"does not fit into memory: it takes at least [\d,]+ MB of 2,000"):
        pgjax.sweep(huge, gamma=[0.9, 0.99], **PLAIN)


def test_static_axes_are_grouped_into_one_program_per_value(tiny, train, capsys):
    settings = {"num_steps": [8, 16], "gamma": [0.9, 0.99]}
    result = pgjax.sweep(tiny, **settings, episodes=4, devices=1)
    said = capsys.readouterr().err
    assert "4 settings x 1 seeds = 4 members in 2 programs" in said
    assert "PPO on CartPole-v1 num_steps=8 x 2" in said
    assert result.table["num_steps"].tolist() == [8, 8, 16, 16]
    assert result.table["steps"].tolist() == [192] * 4
    assert result.steps.shape == (4, 3)
    state, _ = train(result.algorithms[3], jax.random.key(0))
    assert (result.algorithms[3].num_steps, float(result.algorithms[3].gamma)) == (16, 0.99)
    assert_close(result.member(3).state.params, state.params)


def test_a_member_that_is_not_finite_is_marked_and_the_others_go_on(nine, tiny):
    rates = [1e-2, 1e38, 1e-3]
    result = pgjax.sweep(tiny, **(NINE | {"learning_rate": rates}))
    assert result.table["failed"].tolist() == [False] * 3 + [True] * 3 + [False] * 3
    assert (result.failed[3:6] >= 1).all()
    assert np.isnan(result.setting_scores()[1]).all()
    assert result.ranking()[-1].setting["learning_rate"] == 1e38
    healthy = [0, 1, 2, 6, 7, 8]
    assert_close([result.states[i].params for i in healthy], [nine.states[i].params for i in healthy])


def test_points_bound_what_is_kept_and_weigh_episodes_not_iterations(nine, tiny):
    coarse = pgjax.sweep(tiny, **(NINE | {"points": 3}))
    assert coarse.curves["entropy"].shape == (9, 3)
    assert coarse.steps[0].tolist() == [64, 128, 192]
    expected = nine.curves["entropy"].reshape(9, 3, 2).mean(axis=2)
    np.testing.assert_allclose(coarse.curves["entropy"], expected, rtol=1e-4)
    returns, episodes = (nine.curves[name].reshape(9, 3, 2) for name in ("return_mean", "episodes"))
    assert episodes.min() == 0.0 < episodes.max()
    np.testing.assert_array_equal(coarse.curves["episodes"], episodes.sum(axis=2))
    total = np.where(episodes > 0, returns * episodes, 0.0).sum(axis=2)
    means = total / np.where(episodes.any(axis=2), episodes.sum(axis=2), np.nan)
    np.testing.assert_allclose(coarse.curves["return_mean"], means, rtol=1e-4)
    longest = np.where(episodes > 0, nine.curves["length_max"].reshape(9, 3, 2), -np.inf).max(axis=2)
    np.testing.assert_array_equal(coarse.curves["length_max"], np.where(np.isinf(longest), np.nan, longest))
    assert_close([s.params for s in coarse.states], [s.params for s in nine.states])


def test_new_values_of_the_same_axes_compile_nothing(nine, tiny):
    misses = _compile.cache_info().misses
    pgjax.sweep(tiny, **(NINE | {"learning_rate": [1e-4] * 3}))
    assert _compile.cache_info().misses == misses


HALVING = {"search": pgjax.SuccessiveHalving(eta=2, rungs=1, metric="entropy", last=1)}
PBT = {"search": pgjax.PBT(every=2, fraction=0.34, metric="entropy")}


def test_successive_halving_prunes_and_survivors_are_their_solo_runs(nine, tiny):
    result = pgjax.sweep(tiny, **(NINE | HALVING))
    at_rung = nine.curves["entropy"][:, 2].reshape(3, 3).mean(axis=1)
    worst = int(np.argmin(at_rung))
    pruned = [3 * worst, 3 * worst + 1, 3 * worst + 2]
    alive = [i for i in range(9) if i not in pruned]
    assert result.reached[pruned].tolist() == [3, 3, 3]
    assert np.isnan(result.curves["entropy"][pruned, 3:]).all()
    assert np.isnan(result.setting_scores()[worst]).all()
    assert result.table["steps"][pruned].tolist() == [96, 96, 96]
    assert_close([result.states[i].params for i in alive], [nine.states[i].params for i in alive])
    assert_close(result.curves["entropy"][alive], nine.curves["entropy"][alive])


def test_population_based_training_changes_hyperparameters_and_members_keep_their_keys(tiny):
    result = pgjax.sweep(tiny, **(NINE | PBT))
    assert result.schedules.keys() == AXES.keys()
    rates = result.schedules["learning_rate"]
    assert (rates[:, 0] == rates[:, 1]).all()
    assert 1 <= (rates[:, 2] != rates[:, 0]).sum() <= 3  # one member of each seed's population is replaced
    for i, algorithm in enumerate(result.algorithms):
        assert float(algorithm.learning_rate) == rates[i, -1]
    keys = {tuple(state.key.tolist()) for state in result.states}
    assert len(keys) == 9


@pytest.fixture
def undisturbed(tiny):
    return {name: pgjax.sweep(tiny, **(NINE | more)) for name, more in KINDS.items()}


KINDS = {"batches": {"members_at_once": 3}, "halving": HALVING, "pbt": PBT}


def test_a_sweep_that_was_stopped_ends_as_if_it_had_not_been(tiny, undisturbed, tmp_path, monkeypatch):
    show = sweep_module._Sweep._show

    def stop(self, batch, members, point):
        show(self, batch, members, point)
        if point == 4 and members[-1] >= 4:
            os.kill(os.getpid(), signal.SIGTERM)

    for name, more in KINDS.items():
        directory = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(sweep_module._Sweep, "_show", stop)
            with pytest.raises(pgjax.Interrupted, match=r"stopped by SIGTERM at point 4 of 6 .* pgjax resume"):
                pgjax.sweep(tiny, directory=directory, checkpoint_every=2, **(NINE | more))
        assert status(directory) == "interrupted"
        resumed = pgjax.resume_sweep(directory, devices=1, progress=False)
        assert_same_result(resumed, undisturbed[name])
        assert status(directory) == "finished"
        assert (directory / "members.csv").read_text().splitlines()[0].startswith("learning_rate,gamma,seed,steps")
        loaded = pgjax.resume_sweep(directory, devices=1, progress=False)
        assert_same_result(loaded, undisturbed[name])


def test_a_callback_of_a_sweep_hears_of_every_point_and_may_stop_it(tiny, nine, undisturbed, tmp_path):
    heard = []

    def callback(progress):
        heard.append(progress)
        chex.assert_tree_shape_prefix(progress.state().params, (3,))
        return len(heard) == 8

    how = {"directory": tmp_path / "sweep", "callback": callback}
    with pytest.raises(pgjax.Interrupted, match=r"stopped by the callback at point 2 of 6 of .*batch-1 and saved"):
        pgjax.sweep(tiny, **how, **(NINE | KINDS["batches"]))
    assert [p.iteration for p in heard] == [1, 2, 3, 4, 5, 6, 1, 2]
    assert heard[7].steps == 64
    np.testing.assert_array_equal(heard[7].metrics["entropy"], undisturbed["batches"].curves["entropy"][3:6, 1][None])
    heard.clear()
    resumed = pgjax.resume_sweep(tmp_path / "sweep", devices=1, progress=False, callback=lambda p: heard.append(p))
    assert len(heard) == 4 + 6
    assert_same_result(resumed, undisturbed["batches"])


def test_a_sweep_shows_itself_in_a_few_words(nine):
    assert repr(nine).startswith("SweepResult(algorithm: PPO on ")
    assert "members: 9 (3 settings, 3 seeds); axes: learning_rate, gamma; best: learning_rate=" in repr(nine)
    assert len(repr(nine)) < 400
    table = nine._repr_html_()
    assert table.count("<tr>") == 5 + 1 + 3
    assert repr(nine.member(0)).startswith("Result(algorithm: PPO on ")
    assert "<table>" in nine.member(0)._repr_html_()


def test_a_killed_sweep_ends_as_if_it_had_not_been(tiny, undisturbed, tmp_path):
    """SIGKILL in a process of its own, in the middle of the second of three batches."""
    code = textwrap.dedent("""
        import importlib, os, signal, sys, pgjax
        from pgjax.running.config import from_config
        sweep_module = importlib.import_module("pgjax.sweeping.shell")
        show = sweep_module._Sweep._show
        def kill(self, batch, members, point):
            if members[-1] == 5 and point == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        sweep_module._Sweep._show = kill
        pgjax.resume_sweep(sys.argv[1], devices=1, progress=False)
    """)
    directory = tmp_path / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module._Sweep, "train", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pgjax.sweep(tiny, directory=directory, checkpoint_every=2, **(NINE | KINDS["batches"]))
    done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.warns(UserWarning, match="died while it worked on"):
        resumed = pgjax.resume_sweep(directory, devices=1, progress=False)
    assert_same_result(resumed, undisturbed["batches"])


def test_a_directory_keeps_to_its_sweep(tiny, tmp_path):
    directory = tmp_path / "sweep"
    pgjax.sweep(tiny, directory=directory, **NINE)
    with pytest.raises(pgjax.InputError, match="already holds another sweep"):
        pgjax.sweep(tiny, directory=directory, **(NINE | {"gamma": [0.5, 0.6, 0.7]}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(pgjax.InputError, match="holds a run"):
        pgjax.sweep(tiny, directory=tmp_path / "run", **NINE)
    with pytest.raises(pgjax.InputError, match="holds no run"):
        pgjax.resume_sweep(tmp_path / "nothing")


def test_a_member_goes_on_alone(nine, tiny, tmp_path, train):
    nine.save_member(3, tmp_path / "member")
    loaded = pgjax.load(tmp_path / "member")
    assert_close(loaded.state.params, nine.states[3].params, rtol=0, atol=0)
    assert loaded.steps == 192
    further = pgjax.resume(tmp_path / "member", total_steps=2 * 192, progress=False)
    assert (further.steps, further.steps_now) == (384, 192)
    assert int(further.state.iteration) == 12
    assert float(further.algorithm.learning_rate) == np.float32(3e-3)
    assert nine.member(3).predict(np.zeros(4)).shape == ()
    evaluation = pgjax.evaluate(nine.member(3).algorithm, nine.member(3).state, jax.random.key(1), num_episodes=4)
    assert int(evaluation.num_episodes) == 4
    with pytest.raises(pgjax.InputError, match="already holds a run"):
        nine.save_member(3, tmp_path / "member")
    with pytest.raises(pgjax.InputError, match="member 9 is not accepted: expected one from 0 to 8"):
        nine.member(9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds = 0 is not accepted: expected a whole number of at least 1"),
        ({"seeds": {"gamma": [0.9]}}, r"axes are keywords, such as learning_rate=\[1e-4, 1e-3\]"),
        ({"search": "halving"}, r"expected a Search: pgjax.SuccessiveHalving\(\) or pgjax.PBT\(\)"),
        ({"points": 0}, "points = 0"),
        ({"episodes": 0}, "episodes = 0"),
        ({"members_at_once": 0}, "members_at_once = 0"),
        ({"gamma": [0.9, 2.0, 0.5]}, r"PPO.gamma = 2.0 is not accepted: expected a number in \[0, 1\]"),
        ({"gamma": [0.9]}, "zip needs lists of one length"),
        ({"search": pgjax.SuccessiveHalving(rungs=5)}, "rungs = 5 with eta = 3 is not accepted: a curve of 6 points"),
        ({"search": pgjax.PBT(), "length": [0.1, 0.2, 0.3]}, "PBT cannot change length while a member trains"),
        ({"search": pgjax.PBT(), "num_envs": [4, 8, 2]}, "PBT cannot change num_envs"),
        ({"search": pgjax.PBT(metric="retrun_mean")}, "metric = 'retrun_mean' is not known: did you mean return_mean"),
    ],
)
def test_bad_input_is_refused(arguments, message, tiny, nine):
    with pytest.raises(pgjax.InputError, match=message):
        pgjax.sweep(tiny, **(NINE | arguments))


def test_an_algorithm_that_is_already_stacked_is_refused(tiny):
    with pytest.raises(pgjax.InputError, match=r"learning_rate = .* expected one value; sweep several as an axis"):
        pgjax.sweep(dataclasses.replace(tiny, learning_rate=jnp.ones(3)), **PLAIN)


@pytest.mark.slow
def test_optuna_proposes_a_population_and_is_told_all_of_it(tiny, tmp_path, capsys):
    """Two batches share one program; stopped after the first, the study goes on from its file."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    axes = {"learning_rate": pgjax.log_uniform(1e-4, 1e38), "gamma": pgjax.choice([0.9, 0.99])}
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log")))

    def study():
        sampler = optuna.samplers.TPESampler(seed=0)
        return optuna.create_study(
            storage=storage, study_name="x", direction="maximize", load_if_exists=True, sampler=sampler
        )

    pgjax.optuna_search(tiny, study(), 4, 4, metric="return_mean", progress=False, **axes)
    study().ask()  # as a killed process leaves it
    misses = _compile.cache_info().misses
    found = pgjax.optuna_search(tiny, study(), 8, 4, metric="return_mean", progress=False, **axes)
    assert _compile.cache_info().misses == misses
    states = [trial.state.name for trial in found.trials]
    assert len(states) == 9
    assert states.count("FAIL") >= 2  # the one left running, and learning rates that end in NaN
    assert {t.params["gamma"] for t in found.trials if t.params} == {0.9, 0.99}
    done = [t for t in found.trials if t.state.name == "COMPLETE"]
    values = [t.params["learning_rate"] for t in done], [t.params["gamma"] for t in done]
    again = pgjax.sweep(tiny, mode="zip", learning_rate=values[0], gamma=values[1], progress=False, episodes=4)
    np.testing.assert_allclose([t.value for t in done], again.setting_scores("return_mean")[:, 0], rtol=1e-4)


def test_optuna_is_given_only_what_it_can_do(tiny):
    optuna = pytest.importorskip("optuna")
    maximising = optuna.create_study(direction="maximize")
    with pytest.raises(pgjax.InputError, match="Optuna proposes values, expected a distribution"):
        pgjax.optuna_search(tiny, maximising, 4, gamma=[0.9])
    with pytest.raises(pgjax.InputError, match="needs at least one axis"):
        pgjax.optuna_search(tiny, maximising, 4)
    with pytest.raises(pgjax.InputError, match=r"study = 'mine' is not accepted: expected an optuna.Study"):
        pgjax.optuna_search(tiny, "mine", 4, gamma=pgjax.uniform(0, 1))
    with pytest.raises(pgjax.InputError, match="num_trials = 0 is not accepted"):
        pgjax.optuna_search(tiny, maximising, 0, gamma=pgjax.uniform(0, 1))
    with pytest.raises(pgjax.InputError, match="the study does not maximize"):
        pgjax.optuna_search(tiny, optuna.create_study(), 4, gamma=pgjax.uniform(0, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.update(base=3), r"this config is damaged, or of another version of pgjax \(.*\)"),
        (lambda c: c.update(axes=[1]), r"the config of this sweep is damaged, or of another version of pgjax"),
        (lambda c: c.update(search="pbt"), r"the config of this sweep is damaged, or of another version of pgjax"),
        (lambda c: c.pop("arguments"), r"the config of this sweep is damaged: it has no 'arguments'"),
        (lambda c: c["arguments"].update(directory="x"), r"is damaged: directory are no arguments of it"),
        (lambda c: c["arguments"].update(seeds=None), r"sweep: seeds = None is not accepted"),
        (lambda c: c["kept"].update(episodes=-1), r"sweep: episodes = -1 is not accepted"),
        (lambda c: c.pop("versions"), r"is damaged: it has no 'versions'"),
        (lambda c: c.update(versions=1), r"is damaged: its 'versions' is 1"),
        (lambda c: c.pop("id"), r"is damaged: it has no 'id'"),
    ],
)
def test_a_sweep_whose_config_was_changed_is_refused(tiny, tmp_path, damage, message):
    kept = {"episodes": 4, "members_at_once": None, "checkpoint_every": None}
    plan = make_plan(tiny, 1, "grid", None, 0, Search(), 6, {"gamma": [0.9]})
    config = json.loads(json.dumps(plan.config | {"kept": kept, "id": "1", "versions": {}}))
    damage(config)
    (tmp_path / "sweep.json").write_text(json.dumps(config))
    with warnings.catch_warnings(), pytest.raises(pgjax.InputError, match=message):
        warnings.simplefilter("ignore")  # about versions, of which there are none
        pgjax.resume_sweep(tmp_path, progress=False)


@pytest.mark.parametrize("size", ["x", 0, -1, [1], None])
def test_sizes_of_batches_that_were_changed_are_refused(tiny, tmp_path, size):
    (tmp_path / "batches.json").write_text(json.dumps({"stage-0/group-0": size}))
    with pytest.raises(pgjax.InputError, match=r"batches.json is damaged: stage-0/group-0 = .* is not accepted"):
        pgjax.sweep(tiny, directory=tmp_path, points=2, progress=False)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_the_table_of_a_sweep_replaces_what_is_in_its_place(nine, tmp_path, kind):
    victim, table = tmp_path / "victim", tmp_path / "members.csv"
    victim.write_text("precious")
    if kind == "link":
        table.symlink_to(victim)
    else:
        os.mkfifo(table)
    nine.to_csv(table)
    assert victim.read_text() == "precious"
    assert len(table.read_text().splitlines()) == 10


@pgjax.pytree
class WithNothing:
    """An environment of whose state a part is empty, as that of physics engines is."""

    name, observation_space, action_space, time_limit = "WithNothing", Box((2,)), Discrete(2), 10

    def reset(self, key):
        return (jnp.zeros((0, 3)), jnp.int32(0)), jnp.zeros(2)

    def step(self, key, state, action):
        nothing, time = state
        ends = jnp.bool_(False), time + 1 >= 10
        return TimeStep((nothing, time + 1), jnp.zeros(2), action.astype(jnp.float32), *ends)

    def received(self, action):
        return action


def test_states_with_an_empty_part_are_divided_too(tiny):
    ppo = dataclasses.replace(tiny, env=WithNothing())
    swept = pgjax.sweep(ppo, seeds=2, devices=2, points=2, episodes=2, progress=False)
    assert np.all(np.isfinite(swept.scores["return_mean"]))
