"""Runs that stop and go on: the same bits, the same files, and nothing lost to damage."""

import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

import pgjax
from pgjax.algorithms.in_environment import learning_rates
from pgjax.commands import cli
from pgjax.running.checkpoint import Checkpoints
from pgjax.running.config import from_config
from pgjax.running.directory import locked, read_config, read_json, read_rows, status, write_json
from pgjax.running.session import devices_of
from pgjax.running.sinks import JsonLines

run_module = importlib.import_module("pgjax.running.shell")

CASES = {
    "mlp": ({"env": "Pendulum-v1", "normalize_obs": True, "normalize_reward": True}, None),
    "population": ({"env": "CartPole-v1"}, 8),
}
MORE_CASES = {
    "cnn": ({"env": "Freeway-MinAtar", "network": pgjax.CNN(channels=(2,), stride=3, hidden=(8,))}, None),
    "reinforce": ({"algorithm": pgjax.REINFORCE, "env": "Pendulum-v1", "limit": 8, "baseline": "value"}, None),
    "a2c": ({"algorithm": pgjax.A2C, "env": "CartPole-v1", "network": pgjax.GRU(hidden=(8,), memory_size=8)}, 3),
    "trpo": ({"algorithm": pgjax.TRPO, "env": "Pendulum-v1", "network": pgjax.MLP(hidden=(8,), squash=True)}, 3),
    "sac": ({"algorithm": pgjax.SAC, "env": "Pendulum-v1", "normalize_obs": True, "normalize_reward": True}, None),
    "td3": ({"algorithm": pgjax.TD3, "env": "Pendulum-v1", "noise_theta": 0.15}, 3),
    "ppo-kl": ({"env": "CartPole-v1", "objective": "kl_penalty", "adaptive_kl": 1e-3, "advantage": "vtrace"}, None),
}


def case(name, tiny_algorithm):
    fields, seeds = (CASES | MORE_CASES)[name]
    fields = {"algorithm": pgjax.PPO} | fields
    limit = {"max_steps_in_episode": fields.pop("limit")} if "limit" in fields else {}
    env = pgjax.make(fields.pop("env"), **limit)
    algorithm = tiny_algorithm(fields.pop("algorithm"), env, **fields)
    return algorithm, {"seeds": seeds, "checkpoint_every": 2, "episodes": 4}


@pytest.fixture
def one_iteration_chunks(monkeypatch):
    monkeypatch.setattr(run_module, "CHUNK_SECONDS", 0.0)


def stop_at(monkeypatch, iteration, number=signal.SIGTERM):
    """Send this process a signal when the metrics of `iteration` arrive."""
    write = JsonLines.write

    def write_and_stop(self, rows):
        write(self, rows)
        if self.path.name == "metrics.jsonl" and rows and rows[-1]["iteration"] == iteration:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(JsonLines, "write", write_and_stop)


def leaves(state):
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}
    is_key = jax.dtypes.prng_key
    return {k: jax.random.key_data(v) if jax.dtypes.issubdtype(v.dtype, is_key) else v for k, v in named.items()}


def assert_same_run(a, b):
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    states = [leaves(pgjax.load(directory).state) for directory in (a, b)]
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)


def whole_and_stopped(base, cases):
    """Every case, an algorithm of 6 iterations and how it is kept, from start to end, and the same stopped by SIGTERM
    after iteration 3, both on disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "CHUNK_SECONDS", 0.0)
        for name, (algorithm, settings) in cases.items():
            pgjax.run(algorithm, 5, base / name / "whole", progress=False, **settings)
        stop_at(patch, 3)
        for name, (algorithm, settings) in cases.items():
            with pytest.raises(pgjax.Interrupted, match=r"stopped by SIGTERM after iteration 3 of 6 .* pgjax resume"):
                pgjax.run(algorithm, 5, base / name / "stopped", progress=False, **settings)
            assert status(base / name / "stopped") == "interrupted"
    return base


def assert_they_end_alike(base, names):
    code = "import sys, pgjax\nfor directory in sys.argv[1:]: pgjax.resume(directory, progress=False)"
    stopped = [str(base / name / "stopped") for name in names]
    subprocess.run([sys.executable, "-c", code, *stopped], check=True, timeout=300)
    for name in names:
        assert_same_run(base / name / "stopped", base / name / "whole")
        assert status(base / name / "stopped") == "finished"


@pytest.fixture(scope="module")
def undisturbed(tiny_algorithm, tmp_path_factory):
    cases = {name: case(name, tiny_algorithm) for name in CASES}
    return whole_and_stopped(tmp_path_factory.mktemp("resume"), cases)


def test_a_stopped_run_continues_to_the_same_bits_in_a_new_process(undisturbed):
    """Every leaf of the final state, and every line of the files, of a run and of a population."""
    assert_they_end_alike(undisturbed, CASES)


@pytest.mark.slow
def test_every_other_algorithm_and_network_continues_to_the_same_bits_too(tiny_algorithm, tmp_path):
    cases = {name: case(name, tiny_algorithm) for name in MORE_CASES}
    assert_they_end_alike(whole_and_stopped(tmp_path, cases), cases)


def test_members_of_a_population_are_the_runs_of_their_seeds(undisturbed, tiny_algorithm, train):
    population = pgjax.load(undisturbed / "population" / "whole")
    algorithm, _ = case("population", tiny_algorithm)
    solo, metrics = train(algorithm, jax.random.key(5 + 3))
    member = population.member(3)
    for name, leaf in leaves(member.state.params).items():
        np.testing.assert_allclose(leaf, leaves(solo.params)[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(member.metrics["entropy"], metrics["entropy"], atol=1e-4)
    assert member.predict(np.zeros(4)).shape == ()


def test_run_on_the_same_directory_continues_too(tiny, tmp_path, monkeypatch, one_iteration_chunks):
    whole = pgjax.run(tiny, 1, tmp_path / "whole", checkpoint_every=2, episodes=4, progress=False)
    with monkeypatch.context() as patch:
        stop_at(patch, 1, signal.SIGINT)
        with pytest.raises(pgjax.Interrupted, match="stopped by SIGINT after iteration 1 of 6"):
            pgjax.run(tiny, 1, tmp_path / "stopped", checkpoint_every=2, episodes=4, progress=False)
    result = pgjax.run(tiny, 1, tmp_path / "stopped", checkpoint_every=2, episodes=4, progress=False)
    assert (result.steps, result.steps_now) == (6 * 32, 5 * 32)
    np.testing.assert_array_equal(result.metrics["entropy"], whole.metrics["entropy"])
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    again = pgjax.run(tiny, 1, tmp_path / "stopped", progress=False)
    assert again.steps_now == 0, "a finished run has nothing left to train"
    for change in ({"gamma": 0.5}, {"network": pgjax.MLP(hidden=(9,))}):
        with pytest.raises(pgjax.InputError, match="already holds another run"):
            pgjax.run(dataclasses.replace(tiny, **change), 1, tmp_path / "stopped", progress=False)
    with pytest.raises(pgjax.InputError, match=r"another run \(seed is 1, not 2\)"):
        pgjax.run(tiny, 2, tmp_path / "stopped", progress=False)


def copy_of(run, to):
    subprocess.run(["cp", "-r", str(run), str(to)], check=True)
    return to


def damage(checkpoint):
    """Flip bits in the file with the numbers."""
    biggest = max((p for p in (checkpoint / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(biggest.read_bytes())
    for i in range(len(content) // 2, len(content) // 2 + 16):
        content[i] ^= 0xFF
    biggest.write_bytes(content)


def truncate(checkpoint):
    biggest = max((p for p in (checkpoint / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(biggest, biggest.stat().st_size // 2)


def empty(checkpoint):
    subprocess.run(["rm", "-r", str(checkpoint / "state")], check=True)


@pytest.mark.parametrize("harm", [damage, truncate, empty])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(undisturbed, tmp_path, harm):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    harm(run / "checkpoints" / "6")
    with pytest.warns(UserWarning, match=r"checkpoint 6 in .* is damaged: .*; going back to the one before"):
        result = pgjax.resume(run, progress=False)
    assert result.steps_now == 2 * 32
    assert_same_run(run, undisturbed / "mlp" / "whole")


def test_a_checkpoint_that_was_being_written_does_not_count(undisturbed, tmp_path):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    (run / "checkpoints" / "6").rename(run / "checkpoints" / "6.orbax-checkpoint-tmp")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 7, "ste')
    assert pgjax.resume(run, progress=False).steps_now == 2 * 32
    assert_same_run(run, undisturbed / "mlp" / "whole")


def test_the_newest_and_the_best_are_kept_and_the_best_is_the_one_that_was_evaluated(tiny, tmp_path, init):
    checkpoints = Checkpoints(tmp_path, ("return_mean", "max"), keep=2)
    states = {}
    for iteration, mean in ((1, 3.0), (2, 9.0), (3, float("nan")), (4, 5.0), (5, 4.0)):
        states[iteration] = init(tiny, jax.random.key(iteration))
        checkpoints.save(iteration, states[iteration], mean)
    checkpoints.wait()
    assert checkpoints.iterations() == [2, 4, 5]
    checkpoints.close()
    again = Checkpoints(tmp_path, ("return_mean", "max"), keep=2)
    assert again.best() == 2
    state = again.restore(2, lambda: tiny.init(jax.random.key(0)))
    for name, leaf in leaves(state).items():
        np.testing.assert_array_equal(leaf, leaves(states[2])[name], err_msg=name)
    again.close()


def test_best_state_scores_what_was_recorded(undisturbed, tiny_algorithm):
    """Evaluating the loaded best state again gives the recorded return: it is that state and not its successor."""
    run = undisturbed / "mlp" / "whole"
    rows = read_rows(run / "evaluations.jsonl")
    best = max(rows, key=lambda row: (row["return_mean"], row["iteration"]))
    result = pgjax.load(run, "best")
    assert int(result.state.iteration) == best["iteration"]
    again = pgjax.evaluate(result.algorithm, result.state, result.state.key, num_episodes=4)
    assert float(again.mean) == best["return_mean"]


def test_more_steps_train_on_and_the_schedule_is_explained(undisturbed, tmp_path, capsys):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    result = pgjax.resume(run, total_steps=8 * 32)
    assert result.steps_now == 2 * 32
    assert [row["iteration"] for row in read_rows(run / "metrics.jsonl")] == list(range(1, 9))
    shown = capsys.readouterr().err
    assert "total_steps raised from 192 to 256" in shown
    assert "falls to 0 at the new end" in shown
    with pytest.raises(pgjax.InputError, match="total_steps = 96 is not accepted: the run's 256 can only be raised"):
        pgjax.resume(run, total_steps=96, progress=False)


@pytest.mark.parametrize(
    ("schedule", "effect"),
    [
        ("constant", "goes on as it was"),
        ("linear", "falls to 0 at the new end, so it jumps"),
        ("cosine", "falls to 0 at the new end, so it jumps"),
        ("robbins_monro", "goes on as it was"),
    ],
)
def test_what_more_steps_do_to_each_schedule_is_said(undisturbed, capsys, schedule, effect):
    """A cosine and a line end where the run ends; c / (k + offset) does not know the end."""
    stored = read_config(undisturbed / "mlp" / "whole")
    stored["hyperparameters"]["lr_schedule"] = schedule
    longer = stored | {"hyperparameters": stored["hyperparameters"] | {"total_steps": 256}}
    run_module._adopt(undisturbed, longer, True, stored)
    assert f"total_steps raised from 192 to 256: the learning rate {effect}" in capsys.readouterr().err
    rates = [
        float(learning_rates(from_config(c), SimpleNamespace(iteration=jax.numpy.int32(3)), 1.0)[0])
        for c in (stored, longer)
    ]
    assert (rates[0] != pytest.approx(rates[1])) == ("jumps" in effect)


def test_other_versions_and_devices_are_warnings_that_name_them(undisturbed, tmp_path):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    assert config["devices"] == 1
    config["versions"]["jax"] = "0.0.1"
    config["devices"] = 2
    (run / "config.json").write_text(json.dumps(config))
    with (
        pytest.warns(UserWarning, match=r"other versions, numbers may change: jax 0.0.1 -> "),
        pytest.warns(UserWarning, match=r"was trained on devices = 2 and goes on on 1: equal to rounding"),
    ):
        pgjax.resume(run, devices=1, progress=False)


@pytest.mark.parametrize(("before", "asked", "devices"), [(2, None, 2), (2, 1, 1), (99, None, None), ("x", None, None)])
def test_a_run_goes_on_on_as_many_devices_as_before(before, asked, devices):
    assert devices_of({"devices": before}, asked) == devices


def test_a_directory_in_use_is_refused_and_a_stale_lock_is_recognised(tiny, undisturbed, tmp_path):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
            import pathlib, time
            from pgjax.running.directory import locked
            with locked(pathlib.Path({str(run)!r})):
                print("locked", flush=True)
                time.sleep(60)
        """),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "locked\n"
    assert status(run) == "running"
    with pytest.raises(pgjax.InputError, match=f"is in use by process {child.pid}: wait for it, or stop it"):
        pgjax.resume(run, progress=False)
    child.kill()
    child.communicate()
    assert status(run) == "finished"
    with pytest.warns(UserWarning, match=f"process {child.pid} died while it worked on"):
        pgjax.resume(run, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with locked(run) as stale:
            assert stale is None


def test_a_second_signal_ends_the_process_at_once(undisturbed, tmp_path):
    code = textwrap.dedent("""
        import os, signal, time
        from pgjax.running.shell import stop_signals
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGINT)
            print(received[0].name, flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "SIGINT\n"
    assert done.returncode == -signal.SIGINT


def test_non_finite_parameters_are_never_checkpointed(tiny, tmp_path, monkeypatch, one_iteration_chunks):
    keep = run_module._Training.keep

    def poison(self, iteration, stopping):
        if iteration == 4:
            self.state = self.state._replace(params=jax.tree.map(lambda x: x * np.nan, self.state.params))
        keep(self, iteration, stopping)

    monkeypatch.setattr(run_module._Training, "keep", poison)
    with pytest.raises(FloatingPointError, match=r"iteration 4: parameter \['actor'\].* is not finite"):
        pgjax.run(tiny, 0, tmp_path / "run", checkpoint_every=2, episodes=4, progress=False)
    assert status(tmp_path / "run").startswith("failed: iteration 4: parameter")
    assert int(pgjax.load(tmp_path / "run").state.iteration) == 2


def test_predict_runs_the_policy_in_somebody_elses_loop(undisturbed):
    result = pgjax.load(undisturbed / "mlp" / "whole")
    batch = np.random.default_rng(0).normal(size=(5, 3))
    actions = result.predict(batch)
    assert actions.shape == (5, 1)
    np.testing.assert_allclose(actions[2], result.predict(batch[2]), rtol=1e-5)
    assert np.all(np.abs(actions) <= 2.0), "in the environment's own units and bounds"
    sampled = [result.predict(batch, deterministic=False, key=jax.random.key(k)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(sampled[0], sampled[1])
    assert not np.allclose(sampled[0], sampled[2])
    assert result.metrics["entropy"].shape == (6,)

    with pytest.raises(pgjax.InputError, match=r"obs of shape \(4,\) is not accepted: expected \(3,\) or \('N', 3\)"):
        result.predict(np.zeros(4))
    with pytest.raises(pgjax.InputError, match="key = None is not accepted"):
        result.predict(batch, deterministic=False)
    with pytest.raises(pgjax.InputError, match="memory is not that of this network after 5 observations"):
        result.predict(batch, memory=np.zeros((5, 8)))


def test_predict_of_a_network_that_remembers_keeps_and_returns_its_memory(tiny_algorithm, cartpole, init):
    algorithm = tiny_algorithm(pgjax.PPO, cartpole, pgjax.GRU(hidden=(8,), memory_size=8))
    state = init(algorithm, jax.random.key(0))
    result = pgjax.Result(algorithm, state, {}, 0, 0, 0.0, 0.0)
    obs = np.random.default_rng(0).normal(size=(4, 3, 4)).astype(np.float32)
    key = jax.random.key(1)

    def sampled(memory, *episodes):
        """The probabilities and memories that the actor itself gives."""
        found = []
        for t, each in enumerate(episodes):
            memory, output = algorithm.actor(state).act(memory, each, np.full(3, t == 0))
            found.append((memory, output.distribution.sample_and_log_prob(output.distribution.noise(key))[0]))
        return found

    memory = None
    for each, (remembered, action) in zip(obs, sampled(algorithm.actor(state).initial_memory(3), *obs), strict=True):
        found, memory = result.predict(each, deterministic=False, key=key, memory=memory)
        np.testing.assert_array_equal(found, action)
        chex.assert_trees_all_close(memory, remembered, rtol=1e-5)
    alone, one = result.predict(obs[0, 0])
    assert alone.shape == ()
    with pytest.raises(pgjax.InputError, match="memory is not that of this network after 3 observations"):
        result.predict(obs[0], memory=one)


def test_parameters_survive_safetensors(undisturbed, tmp_path):
    result = pgjax.load(undisturbed / "mlp" / "whole")
    pgjax.save_params(result.state.params, tmp_path / "params.safetensors")
    from safetensors.numpy import load_file

    assert "actor.params.Dense_0.kernel" in load_file(tmp_path / "params.safetensors")
    zeros = jax.tree.map(np.zeros_like, result.state.params)
    back = pgjax.load_params(tmp_path / "params.safetensors", like=zeros)
    chex.assert_trees_all_equal(back, result.state.params)
    with pytest.raises(pgjax.InputError, match="is absent, expected"):
        pgjax.load_params(tmp_path / "params.safetensors", like=zeros | {"extra": np.zeros(3)})


@pytest.mark.parametrize(
    ("damage", "lost", "kept"),
    [
        (lambda lines: lines[:4], "those of iterations 5 to 6", [1, 2, 3, 4, 7, 8]),
        (lambda lines: ["nonsense\n", *lines[1:]], "1 lines that cannot be read", [2, 3, 4, 5, 6, 7, 8]),
        (lambda lines: None, "those of iterations 1 to 6", [7, 8]),
    ],
)
def test_a_run_goes_on_without_the_metrics_it_lost(undisturbed, tmp_path, damage, lost, kept):
    """To the bits of the run that lost none; what is lost is named, and the damaged file is kept beside."""
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    metrics = run / "metrics.jsonl"
    damaged = damage(metrics.read_text().splitlines(keepends=True))
    metrics.unlink() if damaged is None else metrics.write_text("".join(damaged))
    with pytest.warns(UserWarning, match=f"metrics.jsonl is damaged: rows are lost, {lost}"):
        result = pgjax.resume(run, total_steps=8 * 32, progress=False)
    assert [row["iteration"] for row in read_rows(metrics)] == kept
    assert (run / "metrics.jsonl.damaged").exists() == (damaged is not None)
    assert damaged is None or (run / "metrics.jsonl.damaged").read_text() == "".join(damaged)
    assert len(result.metrics["episodes"]) == len(kept)


def test_checkpoints_that_cannot_be_restored_are_never_thrown_away(undisturbed, tmp_path):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    before = (run / "metrics.jsonl").read_bytes()
    kept = sorted(p.name for p in (run / "checkpoints").iterdir())
    for name in kept:
        truncate(run / "checkpoints" / name)
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(pgjax.InputError, match=r"none of the checkpoints \[6, 4.*can be restored"),
    ):
        pgjax.resume(run, progress=False)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == kept
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_in_somebodys_own_environment_continues_with_a_new_object(tiny_ppo, tmp_path, monkeypatch):
    """The object has another address in every process; the run is the same."""
    import gymnax

    class Mine(type(gymnax.make("CartPole-v1")[0])):
        pass

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "CHUNK_SECONDS", 0.0)
        stop_at(patch, 2)
        with pytest.raises(pgjax.Interrupted):
            pgjax.run(tiny_ppo(pgjax.make(Mine())), 0, tmp_path / "run", episodes=4, progress=False)
    assert pgjax.run(tiny_ppo(pgjax.make(Mine())), 0, tmp_path / "run", episodes=4, progress=False).steps_now == 4 * 32
    with pytest.raises(pgjax.InputError, match="code of its own"):
        pgjax.load(tmp_path / "run")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"{}", b'{"return_mean": "high"}'])
def test_a_damaged_score_of_a_checkpoint_costs_only_its_rank(undisturbed, tmp_path, content):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    (run / "checkpoints" / "6" / "metrics" / "metrics").write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint 6 in .*: its score is damaged, and counts as the worst"):
        result = pgjax.load(run)
    assert int(result.state.iteration) == 6
    assert int(pgjax.load(run, "best").state.iteration) in (2, 4)


def test_a_checkpoint_of_another_run_in_its_place_is_not_taken(undisturbed, tiny_algorithm, tmp_path):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    algorithm, settings = case("mlp", tiny_algorithm)
    pgjax.run(algorithm, 6, tmp_path / "other", progress=False, **settings)
    shutil.rmtree(run / "checkpoints" / "6")
    copy_of(tmp_path / "other" / "checkpoints" / "6", run / "checkpoints" / "6")
    with pytest.warns(UserWarning, match="is of another run; going back to the one before"):
        result = pgjax.resume(run, progress=False)
    assert result.steps_now == 2 * 32
    assert_same_run(run, undisturbed / "mlp" / "whole")


def test_a_run_whose_checkpoints_are_gone_is_not_trained_over(undisturbed, tmp_path):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(pgjax.InputError, match="was evaluated after iteration 6 and has no checkpoint"):
        pgjax.resume(run, progress=False)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_metric_that_was_changed_is_noticed(undisturbed, tmp_path):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*rows[:2], rows[2].replace('"steps": 96', '"steps": 97'), *rows[3:]]))
    with pytest.warns(UserWarning, match=r"metrics.jsonl is damaged: rows are lost, they are not what was written"):
        pgjax.load(run)
    (run / "metrics.jsonl").write_text("".join([*rows[:2], *rows[3:]]))
    with pytest.warns(UserWarning, match=r"they are not what was written; the damaged file is kept as"):
        pgjax.resume(run, progress=False)


def test_a_run_whose_directory_is_removed_fails_at_its_next_write(tiny, tmp_path, one_iteration_chunks):
    def remove(progress):
        if progress.iteration == 2:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(OSError, match=r"cannot write .*metrics.jsonl: it was removed while the run was writing it"):
        pgjax.run(tiny, 0, tmp_path / "run", checkpoint_every=6, progress=False, callback=remove)


@pytest.mark.parametrize("name", ["lock", "config.json", "metrics.jsonl", "status.json"])
def test_links_and_pipes_in_a_directory_of_somebody_else_are_not_followed(undisturbed, tmp_path, name, capsys):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for kind in ("link", "pipe"):
        run = copy_of(undisturbed / "mlp" / "whole", tmp_path / kind)
        (run / name).unlink()
        (run / name).symlink_to(victim) if kind == "link" else os.mkfifo(run / name)
        with contextlib.suppress(pgjax.InputError, OSError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pgjax.resume(run, progress=False)
        assert victim.read_text() == "precious"
        assert cli.main(["list", str(run.parent / kind)]) in (0, 2), "and nothing waits for the other end"


def test_a_pipe_among_the_files_of_a_checkpoint_is_refused_and_not_waited_for(undisturbed, tmp_path):
    run = copy_of(undisturbed / "mlp" / "whole", tmp_path / "run")
    victim = sorted(run.glob("checkpoints/*/_CHECKPOINT_METADATA"))[0]
    victim.unlink()
    os.mkfifo(victim)
    for call in (pgjax.load, lambda directory: pgjax.resume(directory, progress=False)):
        with pytest.raises(pgjax.InputError, match="_CHECKPOINT_METADATA is not accepted: expected regular files"):
            call(run)


def test_temporary_files_have_names_that_nobody_can_guess(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "config.json.tmp").symlink_to(victim)
    write_json(tmp_path / "config.json", {"a": 1})
    assert victim.read_text() == "precious"
    assert read_json(tmp_path / "config.json") == {"a": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"victim", "config.json", "config.json.tmp"}


def test_one_damaged_run_does_not_hide_the_others(undisturbed, tmp_path, capsys):
    copy_of(undisturbed / "mlp" / "whole", tmp_path / "whole")
    harms = {
        "status-list": ("status.json", b"[]"),
        "status-empty": ("status.json", b"{}"),
        "config-bytes": ("config.json", b"\xff\xfe\x00"),
        "config-list": ("config.json", b"[1]"),
        "config-deep": ("config.json", b"[" * 100_000),
        "metrics-digits": ("metrics.jsonl", b'{"iteration": ' + b"9" * 6000 + b"}\n"),
        "metrics-bytes": ("metrics.jsonl", b"\xff\xfe\n"),
    }
    for name, (file, content) in harms.items():
        (copy_of(undisturbed / "mlp" / "whole", tmp_path / name) / file).write_bytes(content)
    assert cli.main(["list", str(tmp_path)]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["whole"].endswith("finished")
    assert all("damaged" in rows[name] for name in harms)
    for name in harms:
        if name.startswith("config"):
            with pytest.raises(pgjax.InputError, match="is damaged"):
                pgjax.load(tmp_path / name)


def test_an_evaluation_is_written_when_the_checkpoint_before_it_is_complete(tiny, tmp_path, monkeypatch):
    """A run that is killed in between must be able to go on: two evaluations without any checkpoint are refused."""
    monkeypatch.setattr(run_module, "CHUNK_SECONDS", 0.0)
    write, complete = JsonLines.write, []

    def looked_at(self, rows):
        if self.path.name == "evaluations.jsonl":
            before = rows[0]["iteration"] - 1
            complete.append(before == 0 or (tmp_path / "run" / "checkpoints" / str(before)).is_dir())
        write(self, rows)

    monkeypatch.setattr(JsonLines, "write", looked_at)
    pgjax.run(tiny, directory=tmp_path / "run", checkpoint_every=1, episodes=4, progress=False)
    assert complete == [True] * 6
