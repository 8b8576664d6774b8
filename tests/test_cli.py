"""The command line, as a user meets it."""

import dataclasses
import json

import pytest

import pgjax
from pgjax import cli, presets
from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.environments.catalog import CATALOG
from pgjax.networks import make_network

TINY = ["--total-steps", "96", "--num-envs", "4", "--num-steps", "8", "--num-epochs", "1", "--num-minibatches", "1"]


def run_cli(capsys, *arguments):
    try:
        code = cli.main(list(arguments))
    except SystemExit as stop:  # tyro ends the process itself
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli") / "run"
    flags = ["--learning-rate", "1e-3", "--hidden", "8", "--env-params", "length=0.7", "--episodes", "4", "--no-cache"]
    assert cli.main(["train", "ppo", "--env", "CartPole-v1", "--directory", str(directory), *TINY, *flags]) == 0
    return directory


def test_train_ends_with_one_line_of_figures_and_keeps_the_run(run, capsys):
    config = json.loads((run / "config.json").read_text())
    assert config["hyperparameters"]["learning_rate"] == 1e-3
    assert config["hyperparameters"]["num_envs"] == 4
    assert config["network"]["hidden"] == [8]
    assert config["env"]["params"]["length"] == 0.7
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3

    code, out, _ = run_cli(capsys, "evaluate", str(run), "--episodes", "3", "--no-cache")
    assert code == 0
    figures = dict(pair.split("=") for pair in out.split())
    assert figures.keys() == {"episodes", "return_mean", "return_std", "return_min", "return_max"}
    assert figures["episodes"] == "3"


def test_final_line(capsys, tmp_path, monkeypatch):
    """Keys in order; the preset is used where no flag overrides it, and the config that is used is shown."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli(capsys, "train", "ppo", "--env", "CartPole-v1", *TINY, "--hidden", "8", "--no-cache")
    assert code == 0
    final = dict(pair.split("=") for pair in out.splitlines()[-1].split())
    assert list(final) == ["env", "steps", "seconds_compile", "seconds_run", "steps_per_second", "return_mean"]
    assert (final["env"], final["steps"]) == ("CartPole-v1", "96")
    assert float(final["return_mean"]) > 0
    assert "learning_rate = 0.0025" in out
    assert "num_envs = 4" in out
    assert "96/96 steps" in err
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "command = 'trian' is not known: did you mean train?"),
        (["train"], "needs an algorithm first, one of: ppo"),
        (["train", "pppo", "--env", "CartPole-v1"], "algorithm = 'pppo' is not known: did you mean ppo?"),
        (["train", "ppo"], "needs --env ID"),
        (["train", "ppo", "--env", "CartPole"], "did you mean CartPole-v1"),
        (["train", "ppo", "--env", "CartPole-v1", "--learning-rat", "1"], "--learning-rate"),
        (["train", "ppo", "--env", "CartPole-v1", "--num-envs", "many"], "--num-envs"),
        (["train", "ppo", "--env", "CartPole-v1", "--gamma", "2"], "PPO.gamma = 2.0 is not accepted"),
        (["train", "ppo", "--env", "CartPole-v1", "--network", "mpl"], "did you mean mlp?"),
        (["train", "ppo", "--env", "CartPole-v1", "--env-params", "length"], "expected NAME=NUMBER"),
        (["train", "ppo", "--env", "CartPole-v1", "--env-params", "lenth=1"], "did you mean length"),
        (["train", "ppo", "--env", "CartPole-v1", "--sinks", "tensorbord"], "did you mean tensorboard?"),
        (["train", "ppo", "--env", "CartPole-v1", "--keep", "0"], "keep = 0 is not accepted"),
        (["train", "ppo", "--env", "CartPole-v1", "--network", "cnn"], "CNN needs observations of shape"),
        (["train", "ppo", "--env", "CartPole-v1", "--episodes", "0"], "episodes = 0 is not accepted"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["envs", "all"], "takes no arguments"),
    ],
)
def test_bad_input_is_one_message_and_status_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli(capsys, *arguments)
    assert code == 2
    assert message in out + err
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists(), "refused before anything is written"


def test_a_directory_with_another_run_is_refused(capsys, run):
    code, _, err = run_cli(capsys, "train", "ppo", "--env", "CartPole-v1", *TINY, "--directory", str(run), "--no-cache")
    assert code == 2
    assert "already holds another run" in err
    assert "network.hidden is [8], not [64, 64]" in err


def test_a_finished_run_is_shown_plotted_and_continued(capsys, run, tmp_path):
    code, out, _ = run_cli(capsys, "list", str(run.parent))
    assert code == 0
    assert all(word in out for word in ("CartPole-v1", "ppo", "96 / 96", "finished"))
    code, out, _ = run_cli(capsys, "plot", str(run), "--out", str(tmp_path / "curves"))
    assert code == 0
    assert out.split() == [str(tmp_path / "curves.png"), str(tmp_path / "curves.svg")]
    code, out, _ = run_cli(capsys, "resume", str(run), "--no-cache")
    assert code == 0
    assert "steps=96" in out.splitlines()[-1]


def test_what_cannot_be_looked_at_is_refused(capsys, run, tmp_path):
    for arguments, message in (
        (["list", str(tmp_path)], "holds no runs"),
        (["plot", str(tmp_path)], "holds no run: cannot read"),
        (["plot", str(run), "--metric", "retrun_mean"], "metric = 'retrun_mean' is not in"),
        (["resume", str(tmp_path)], "holds no run"),
        (["render", str(tmp_path)], "holds no run"),
    ):
        code, _, err = run_cli(capsys, *arguments)
        assert code == 2
        assert message in err


def test_listings(capsys):
    _, out, _ = run_cli(capsys, "envs")
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(CATALOG)
    _, out, _ = run_cli(capsys, "algorithms")
    assert [line.split()[0] for line in out.splitlines()] == list(ALGORITHMS)


def test_help_shows_every_field_with_its_sentence(capsys):
    code, out, _ = run_cli(capsys, "train", "ppo", "--env", "CartPole-v1", "--help")
    assert code == 0
    words = " ".join(out.replace("│", " ").split())
    for f in dataclasses.fields(pgjax.PPO):
        if f.name not in ("env", "network"):
            assert f"--{f.name.replace('_', '-')}" in words
            assert f.metadata["help"] in words


def test_presets_name_known_environments_and_accepted_fields():
    for algorithm in ALGORITHMS:
        for env_id in CATALOG:
            fields = presets.preset(algorithm, env_id)
            network = make_network(**fields.pop("network", {"name": "mlp"}))
            if fields:
                made = algorithm_class(algorithm)(env=pgjax.make(env_id), network=network, **fields)
                assert made.total_steps % made.steps_per_iteration == 0
    assert presets.table().keys() <= ALGORITHMS.keys()
    assert set().union(*presets.table().values()) <= CATALOG.keys()
