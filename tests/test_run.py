"""A run on disk: what is written, what is refused, and what survives a failure."""

import dataclasses
import errno
import gc
import importlib
import json
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

import pgjax
from pgjax.environments import probes
from pgjax.running import checkpoint, shell
from pgjax.running import compile as compiling
from pgjax.running import config as configs
from pgjax.running import directory as rundir
from pgjax.running.sinks import JsonLines


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "one"
    return directory, pgjax.run(tiny, seed=3, directory=directory, progress=False)


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_run_is_train_with_files(finished, tiny, train):
    directory, result = finished
    state, metrics = train(tiny, jax.random.key(3))
    chex.assert_trees_all_equal(result.state.params, state.params)
    for name, values in metrics.items():
        np.testing.assert_array_equal(result.metrics[name], values)
    rows = lines(directory)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["steps"] for row in rows] == [32 * i for i in range(1, 7)]
    assert result.steps == 192
    for row, expected in zip(rows, np.asarray(metrics["policy_loss"]), strict=True):
        assert row["policy_loss"] == pytest.approx(float(expected), rel=1e-6)
    absent = [row["return_mean"] is None for row in rows]
    np.testing.assert_array_equal(absent, np.asarray(metrics["episodes"]) == 0)


def test_a_finished_run_is_there_at_once(finished, tiny, monkeypatch):
    directory, result = finished
    monkeypatch.setattr(shell, "compile_programs", None)
    again = pgjax.run(tiny, seed=3, directory=directory, progress=False)
    chex.assert_trees_all_equal(again.state.params, result.state.params)
    assert (again.steps, again.steps_now) == (result.steps, 0)
    np.testing.assert_array_equal(again.metrics["policy_loss"], result.metrics["policy_loss"])


def test_what_is_no_algorithm_is_not_trained(finished):
    for wrong, said in ((finished[1], r"a Result, whose .algorithm is one"), ("ppo", "a str"), (None, "a NoneType")):
        with pytest.raises(pgjax.InputError, match=f"run: algorithm is {said}: expected an algorithm such as"):
            pgjax.run(wrong, "CartPole-v1")


def test_config_makes_the_algorithm_again(finished, tiny):
    config = rundir.read_config(finished[0])
    assert config["seed"] == 3
    assert config["versions"].keys() == {"pgjax", "jax", "jaxlib", "flax", "optax", "gymnax", "backend"}
    assert_same_algorithm(configs.from_config(config), tiny)


@pytest.mark.parametrize(
    "network",
    [
        pgjax.GRU(hidden=(8, 4), memory_size=3, activation="relu"),
        pgjax.CNN(channels=(4,), hidden=(8,), shared_torso=True),
    ],
    ids=["gru", "cnn"],
)
def test_any_config_survives_json(tiny_ppo, network):
    env = pgjax.make("DeepSea-bsuite", size=6, unscaled_move_cost=0.3)
    algorithm = tiny_ppo(env, network=network, target_kl=0.1, max_grad_norm=float("inf"), normalize_obs=True)
    config = json.loads(json.dumps(configs.to_config(algorithm), allow_nan=False))
    assert_same_algorithm(configs.from_config(config), algorithm)


def assert_same_algorithm(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    chex.assert_trees_all_equal(a, b)


def test_config_of_somebodys_own_code_says_so(tiny_ppo):
    config = json.loads(json.dumps(configs.to_config(tiny_ppo(probes.Recall()))))
    with pytest.raises(pgjax.InputError, match=r"code of its own, .*Recall"):
        configs.from_config(config)


def test_missing_or_foreign_checkpoints_are_refused(finished, tiny, tmp_path):
    directory, _ = finished
    with pytest.raises(pgjax.InputError, match="holds no checkpoint"):
        checkpoint.load_state(tmp_path, lambda: tiny.init(jax.random.key(0)), tiny.score)
    wider = dataclasses.replace(tiny, network=pgjax.MLP(hidden=(16,)))
    with pytest.raises(pgjax.InputError, match=r"of another shape: .*float32\[8\], expected float32\[16\].*more"):
        checkpoint.load_state(directory, lambda: wider.init(jax.random.key(0)), tiny.score)


def test_a_directory_out_of_reach_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(pgjax.InputError, match=r"cannot be written: Not a directory"):
        pgjax.run(tiny, directory=tmp_path / "file" / "run", progress=False)


def test_a_run_is_of_one_value_per_field(tiny, tmp_path):
    several = dataclasses.replace(tiny, gamma=np.array([0.5, 0.75]))
    with pytest.raises(pgjax.InputError, match=r"gamma = \[0.5 +0.75\] is not accepted: expected one value"):
        pgjax.run(several, directory=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"algorithm": "pp')
    with pytest.raises(pgjax.InputError, match=r"config.json is damaged"):
        rundir.read_config(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["parts"]["network"].update(name="mpl"), "network = 'mpl' is not known: did you mean mlp?"),
        (lambda c: c.pop("seed"), "is damaged: it has no 'seed'"),
        (lambda c: c.pop("parts"), "it has no parts"),
        (lambda c: c["parts"].pop("env"), "expected the parts env, network of ppo, got network"),
        (lambda c: c["hyperparameters"].update(rate=1), "rate not known"),
        (lambda c: c["hyperparameters"].update(objective=["clip"]), "PPO.objective = .* expected one of 'clip', 'cpi'"),
        (lambda c: c.update(parts=7), r"this config is damaged, or of another version of pgjax \(.*\): restore it"),
        (lambda c: c.update(algorithm=[1]), r"this config is damaged, or of another version"),
        (lambda c: c["parts"]["env"].update(options=None), r"this config is damaged, or of another version"),
        (lambda c: c.update(sinks=7), r"is damaged: its 'sinks' is 7"),
        (lambda c: c.update(seeds="x"), r"the config of .*: seeds = 'x' is not accepted: expected a whole number"),
        (lambda c: c.update(seeds=10**9), "is of another shape: .* expected .*1000000000"),
    ],
)
def test_a_config_that_was_changed_is_refused_in_one_line(finished, tmp_path, damage, message):
    shutil.copytree(finished[0], tmp_path / "run")
    config = rundir.read_config(tmp_path / "run")
    damage(config)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(pgjax.InputError, match=message) as refused:
        pgjax.load(tmp_path / "run")
    assert len(str(refused.value)) < 500
    if "seeds" not in message and config["seeds"] is None:
        with pytest.raises(pgjax.InputError, match=message):
            pgjax.resume(tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (pgjax.PPO, "objective"),
        (pgjax.PPO, "advantage"),
        (pgjax.PPO, "normalize_advantage"),
        (pgjax.PPO, "lr_schedule"),
        (pgjax.A2C, "advantage"),
        (pgjax.NPG, "step_rule"),
        (lambda env, **fields: pgjax.MLP(**fields), "activation"),
    ],
)
@pytest.mark.parametrize("value", [np.array([1.0, 2.0]), ["clip"], True])
def test_a_choice_that_is_an_array_is_refused(cartpole, make, field, value):
    with pytest.raises(pgjax.InputError, match=rf"{field} = .* is not accepted: expected one of "):
        make(cartpole, **{field: value})


def test_a_run_that_turns_non_finite_stops_with_the_metric_named(tiny, tmp_path):
    """A huge value coefficient overflows the loss; the rows before it stay, and no checkpoint of it is written."""
    bad = dataclasses.replace(tiny, vf_coef=3e38, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"iteration \d+: .*(grad_norm|value_loss).* not finite"):
        pgjax.run(bad, directory=tmp_path / "run", progress=False)
    assert all(np.isfinite(row["value_loss"]) for row in lines(tmp_path / "run"))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert rundir.status(tmp_path / "run").startswith("failed: iteration")


def test_half_a_line_is_never_left_behind(tmp_path):
    """A file size limit stands for a full disk: the write that does not fit is undone, the lines before stay."""
    code = f"""
import pathlib, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pgjax.running.sinks import JsonLines
sink = JsonLines(pathlib.Path({str(tmp_path / "metrics.jsonl")!r}))
sink.write([{{"iteration": i, "x": 0.1}} for i in range(10)])
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
try:
    sink.write([{{"iteration": i, "x": 0.1}} for i in range(10, 40)])
except OSError as error:
    print(error)
sink.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "cannot write" in done.stdout
    assert "intact" in done.stdout
    assert [row["iteration"] for row in lines(tmp_path)] == list(range(10))


def test_a_full_disk_stops_the_run_and_what_was_written_stays(tiny, tmp_path, monkeypatch):
    written = []

    def full(self, rows):
        if written and self.path.name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(original(self, rows))

    original = JsonLines.write
    monkeypatch.setattr(JsonLines, "write", full)
    monkeypatch.setattr(importlib.import_module("pgjax.running.shell"), "CHUNK_SECONDS", 0.0)
    with pytest.raises(OSError, match="No space left"):
        pgjax.run(tiny, directory=tmp_path / "run", progress=False)
    assert [row["iteration"] for row in lines(tmp_path / "run")] == [1]
    assert rundir.read_config(tmp_path / "run")["algorithm"] == "ppo"


def test_progress_is_a_plain_line_per_chunk_without_a_terminal(tiny, capsys):
    rounded = dataclasses.replace(tiny, total_steps=200)
    pgjax.run(rounded)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith(
        "total_steps = 200 is not a multiple of one iteration (32 steps): training 6 iterations = 192"
    )
    assert shown[1] == "compiling"
    assert shown[2].startswith("32/192 env steps, ")
    assert shown[-1].startswith("192/192 env steps, ")


def test_train_says_what_it_does_with_an_odd_budget(tiny):
    with pytest.warns(UserWarning, match="training 6 iterations = 192 steps"):
        jax.eval_shape(pgjax.train, dataclasses.replace(tiny, total_steps=200), jax.random.key(0))


@pytest.mark.skipif(not compiling.MAPPINGS.exists(), reason="mappings are counted on Linux")
def test_programs_are_forgotten_before_there_are_too_many_mappings(tiny):
    def mappings():
        return compiling.MAPPINGS.read_text().count("\n")

    pgjax.run(tiny, progress=False)
    before = mappings()
    compiling.forget_programs(before)
    assert mappings() > 0.9 * before
    compiling.forget_programs(500)
    gc.collect()
    assert mappings() < 0.7 * before


@pytest.fixture
def chunks_of_one(monkeypatch):
    monkeypatch.setattr(importlib.import_module("pgjax.running.shell"), "CHUNK_SECONDS", 0.0)


def test_a_callback_hears_of_every_iteration_and_may_end_the_run(finished, tiny, tmp_path, chunks_of_one):
    directory, whole = finished
    heard = []

    def callback(progress):
        heard.append((progress.iteration, progress.steps, progress.metrics["policy_loss"].shape))
        if progress.iteration == 4:
            chex.assert_trees_all_equal_shapes(progress.state(), whole.state)
        return progress.iteration == 4

    stopped = pgjax.run(tiny, seed=3, directory=tmp_path / "run", progress=False, callback=callback)
    assert heard == [(i, 32 * i, (1,)) for i in (1, 2, 3, 4)]
    assert (stopped.steps, int(stopped.state.iteration)) == (128, 4)
    np.testing.assert_array_equal(stopped.metrics["policy_loss"], whole.metrics["policy_loss"][:4])
    assert rundir.status(tmp_path / "run") == "interrupted"

    rest = pgjax.resume(tmp_path / "run", progress=False)
    chex.assert_trees_all_equal(rest.state.params, whole.state.params)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (directory / "metrics.jsonl").read_bytes()


def test_what_a_callback_raises_is_raised_after_a_checkpoint(tiny, tmp_path, chunks_of_one):
    def callback(progress):
        if progress.iteration == 2:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pgjax.run(tiny, seed=3, directory=tmp_path / "run", progress=False, callback=callback)
    assert int(pgjax.load(tmp_path / "run").state.iteration) == 2
    assert rundir.status(tmp_path / "run") == "failed: 'mine'"


def test_a_run_without_a_directory_can_be_ended_as_well(tiny, chunks_of_one):
    stop = pgjax.EarlyStopping("policy_loss", goal=1e9, window=2, better="lower")
    result = pgjax.run(tiny, progress=False, callback=stop)
    assert result.steps == 2 * 32
    assert result.metrics["policy_loss"].shape == (2,)
    with pytest.raises(pgjax.InputError, match="callback = 3 is not accepted"):
        pgjax.run(tiny, callback=3)


class Scaled(pgjax.PPO):
    """Somebody's own algorithm, in the simplest way."""

    def divides_into(self, devices):
        return False


@pgjax.pytree
class Penalised(pgjax.PPO):
    """One with a hyperparameter of its own."""

    penalty: pgjax.Scalar = pgjax.field("weight of the square of log-probabilities", default=0.0, accepts="[0, inf)")


def test_own_algorithms_come_back_to_their_owner(tiny, tmp_path):
    fields = {f.name: getattr(tiny, f.name) for f in dataclasses.fields(tiny)}
    for name, own in {"scaled": Scaled(**fields), "penalised": Penalised(**fields, penalty=0.5)}.items():
        directory = tmp_path / name
        result = pgjax.run(own, 3, directory, progress=False)
        with pytest.raises(pgjax.InputError, match="code of its own"):
            pgjax.load(directory)
        loaded = pgjax.load(directory, algorithm=own)
        chex.assert_trees_all_equal(loaded.state, result.state)
        longer = pgjax.resume(directory, total_steps=7 * 32, progress=False, algorithm=own)
        assert int(longer.state.iteration) == 7
    with pytest.raises(pgjax.InputError, match=r"is not that of .*penalty is 0.5, not 0.25"):
        pgjax.load(directory, algorithm=dataclasses.replace(own, penalty=0.25))


def test_a_class_with_fields_of_its_own_says_that_it_is_no_pytree(tiny):
    class Forgotten(pgjax.PPO):
        penalty: float = 0.0

    class Changed(pgjax.PPO):
        learning_rate = 1e-2

    with pytest.raises(pgjax.InputError, match=r"Forgotten declares penalty: write @pgjax\.pytree above the class"):
        Forgotten(tiny.env)
    with pytest.raises(pgjax.InputError, match="Changed declares learning_rate"):
        Changed(tiny.env)


def test_version_is_that_of_the_package():
    assert pgjax.__version__ == configs.versions()["pgjax"]


@pytest.mark.parametrize(
    ("seed", "seeds", "message"),
    [
        (2**40, None, r"run: seed = 1099511627776 is not accepted: expected seeds below 4294967296"),
        (2**32 - 1, 2, r"seed = 4294967295 is not accepted: expected seeds below 4294967296, and there are 2"),
        (-1, None, "run: seed = -1 is not accepted: expected a whole number of at least 0"),
        (0.5, None, "run: seed = 0.5 is not accepted"),
    ],
)
def test_seeds_that_would_wrap_are_refused(tiny, seed, seeds, message):
    with pytest.raises(pgjax.InputError, match=message):
        pgjax.run(tiny, seed, seeds=seeds)


def test_a_seed_is_no_key(tiny, finished):
    for key in (0, np.int32(0), jax.numpy.int32(0)):
        with pytest.raises(pgjax.InputError, match=r"train: key = .* expected a random key such as jax"):
            pgjax.train(tiny, key)
        with pytest.raises(pgjax.InputError, match="evaluate: key = "):
            pgjax.evaluate(tiny, finished[1].state, key)


LARGE = {
    "counts": ({"num_epochs": 2**40}, r"PPO.num_epochs = 1099511627776 is not accepted: expected .* 2\^31\)"),
    "samples": (
        {"num_envs": 10**9, "total_steps": 10**12},
        r"PPO.steps_per_iteration = 8000000000 is not accepted: expected less than 2147483648",
    ),
    "iterations": (
        {"total_steps": 10**15},
        r"PPO.num_iterations = 31250000000000 is not accepted: expected less than 2147483648",
    ),
    "network": (
        {"network": pgjax.MLP(hidden=(10**6, 10**6))},
        r"does not fit into memory: it takes at least 24,000,180 MB",
    ),
    "environments": (
        {"num_envs": 10**8, "num_steps": 20, "total_steps": 10**10},
        r"does not fit into memory: it takes at least .* expected fewer environments",
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_what_is_too_large_is_refused_before_it_compiles(tiny_ppo, monkeypatch, case):
    fields, message = LARGE[case]
    monkeypatch.setattr(compiling, "_compiled", lambda *lowered: pytest.fail("compiled"))
    with pytest.raises(pgjax.InputError, match=message):
        pgjax.run(tiny_ppo(pgjax.make("CartPole-v1"), **fields), progress=False)


def test_too_many_episodes_and_members_are_refused(tiny):
    state = tiny.init(jax.random.key(0))
    with pytest.raises(pgjax.InputError, match=r"does not fit into memory: it takes at least 32,000,000 MB"):
        pgjax.evaluate(tiny, state, jax.random.key(0), num_episodes=10**12)
    with pytest.raises(pgjax.InputError, match=r"seeds = 10,000,000 is not accepted: they make 10,000,000 members"):
        pgjax.sweep(tiny, seeds=10**7)
