"""The command line, as a user meets it."""

import dataclasses
import importlib
import json
import shlex
import subprocess
import sys
import typing

import numpy as np
import pytest

import pgjax
from pgjax import algorithms
from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.commands import cli, flags
from pgjax.core.parts import kinds_of
from pgjax.environments.catalog import CATALOG
from pgjax.networks.registry import NETWORKS
from pgjax.reporting.again import again
from pgjax.running import presets

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
    assert config["parts"]["network"]["options"]["hidden"] == [8]
    assert config["parts"]["env"]["options"]["length"] == 0.7
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
    assert "learning_rate = 0.001" in out
    assert "num_envs = 4" in out
    assert "96/96 env steps" in err
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "command = 'trian' is not known: did you mean train?"),
        (["train"], f"needs an algorithm first, one of: {', '.join(ALGORITHMS)}"),
        (
            ["train", "pppo", "--env", "CartPole-v1"],
            "algorithm = 'pppo' is not known: did you mean ppo or dpo or trpo?",
        ),
        (["train", "ppo"], "needs --env: environment id; pgjax envs lists them"),
        (["train", "ppo", "Pendulum-v1"], "needs --env (--env Pendulum-v1?)"),
        (["train", "PPO", "--env", "CartPole-v1"], "did you mean ppo?"),
        (
            ["train", "ppo", "--env", "CartPole-v1", "--n-epochs=5"],
            "--n-epochs is not a flag of pgjax train ppo: did you",
        ),
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
        (["evaluate", "nowhere", "--episodes", "0"], "evaluate: episodes = 0 is not accepted"),
        (["generate", "nowhere"], "nowhere holds neither a run nor a Hugging Face model"),
        (["generate", "nowhere", "--num", "0"], "generate: num = 0 is not accepted"),
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
    assert out.split() == [str(tmp_path / f"curves.{ending}") for ending in ("png", "svg", "pdf")]
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
    assert [line.split()[0] for line in out.split("\n\n")[0].splitlines()[1:]] == list(CATALOG)
    _, out, _ = run_cli(capsys, "algorithms")
    assert [line.split()[0] for line in out.splitlines()] == list(ALGORITHMS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version"], [f"pgjax {pgjax.__version__}"]),
        (["train", "--help"], [*ALGORITHMS, "needs an algorithm first"]),
        (["sweep", "-h"], [*ALGORITHMS, "pgjax sweep ALGORITHM"]),
        (["train", "ppo", "--help"], ["needs --env", "Schulman", "clip_eps", "with these and --help"]),
        (["train", "sft", "--help"], ["needs --model", "Ouyang", "learning_rate"]),
        (["envs", "--help"], ["lists the environments"]),
        (["algorithms", "-h"], ["lists the algorithms"]),
    ],
)
def test_help_answers_wherever_it_is_asked(capsys, arguments, words):
    code, out, err = run_cli(capsys, *arguments)
    assert (code, err) == (0, "")
    assert all(word in out for word in words)


def test_the_algorithm_may_come_behind_its_flags():
    for arguments in (["--env", "CartPole-v1", "ppo"], ["--no-cache", "ppo", "--env", "CartPole-v1"]):
        what, rest = flags.subject("train", arguments)
        assert (what.name, what.subject) == ("ppo", "CartPole-v1")
        assert "ppo" not in rest


def test_a_listing_in_a_pipe_is_whole_columns_or_json(capsys, run):
    _, out, _ = run_cli(capsys, "list", str(run.parent))
    header, row = out.splitlines()
    assert header.split() == ["run", "on", "algorithm", "steps", "score", "status"]
    assert header.index("status") == row.index("finished")
    _, out, _ = run_cli(capsys, "list", str(run.parent), "--json")
    assert json.loads(out)["status"] == "finished"


def test_output_that_nobody_reads_ends_quietly():
    code = "import sys; from pgjax.commands.cli import main; sys.exit(main(['envs']))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.split() in (["141"], ["0"])


OWN = """
import flax.linen as nn
import pgjax
from pgjax.networks.feedforward import MLP
from pgjax.environments.probes import Recall

@pgjax.pytree
class Wide(MLP):
    '''An MLP of my own.'''

@pgjax.pytree
class MyPPO(pgjax.PPO):
    '''PPO of my own.'''

    bonus: pgjax.Scalar = pgjax.field("something of mine", default=0.5, accepts="[0, 1]")

pgjax.register_network("wide", Wide)
pgjax.register_algorithm("my-ppo", MyPPO)
"""


def test_parts_of_ones_own_are_named_by_a_module_that_is_imported(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_parts.py").write_text(OWN)
    train = ["train", "my-ppo", "--env", "CartPole-v1", "--network", "wide", "--hidden", "8", "--bonus", "0.25"]
    train += [*TINY, "--directory", "run", "--episodes", "4", "--no-cache"]
    code, _, err = run_cli(capsys, *train)
    assert code == 2
    assert "algorithm = 'my-ppo' is not known" in err
    code, _, err = run_cli(capsys, "--import", "no_such_module", *train)
    assert code == 2
    assert "--import no_such_module: ModuleNotFoundError" in err
    try:
        code, out, _ = run_cli(capsys, "--import", "own_parts", *train)
        assert code == 0
        assert "bonus = 0.25" in out
        assert "hyperparameters (no preset for CartPole-v1: defaults and flags)" in out
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert (config["algorithm"], config["parts"]["network"]["name"]) == ("my-ppo", "wide")
        assert run_cli(capsys, "evaluate", "run", "--episodes", "2", "--no-cache", "--import", "own_parts")[0] == 0
        assert again(config, "run").endswith("--import own_parts")
        with pytest.raises(pgjax.InputError, match="name = 'my-ppo' is taken"):
            pgjax.register_algorithm("my-ppo", pgjax.PPO)
        with pytest.raises(pgjax.InputError, match="network = 'wide' is taken"):
            pgjax.register_network("wide", pgjax.MLP)
    finally:
        for table in (ALGORITHMS, algorithms._OWN):
            table.pop("my-ppo", None)
        NETWORKS.table.pop("wide", None)
        sys.modules.pop("own_parts", None)


def test_help_shows_every_field_with_its_sentence(capsys):
    code, out, _ = run_cli(capsys, "train", "ppo", "--env", "CartPole-v1", "--help")
    assert code == 0
    words = " ".join(out.replace("│", " ").split())
    for f in dataclasses.fields(pgjax.PPO):
        if f.name not in ("env", "network"):
            assert f"--{f.name.replace('_', '-')}" in words
            assert f.metadata["help"] in words


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize("name", ["lm", "sft", "reward-model", "rlhf"])
def test_the_flags_of_parts_and_algorithms_do_not_collide(command, name, capsys):
    """Nor with those of the command: of two with one name, only one could be given."""
    parts = {"lm": [], "rlhf": ["--model", "m", "--reward", "r"]}.get(name, ["--model", "m"])
    code, out, err = run_cli(capsys, command, name, *parts, "--help")
    assert code == 0, err
    words = " ".join(out.replace("│", " ").split())
    what, _ = flags.subject(command, [name, *parts])
    for flag, hint, _ in what.option_flags():
        assert f"--{flag.replace('_', '-')}" in words
        assert typing.get_args(hint)[1].help in words


def test_options_that_two_parts_share_have_the_name_of_the_later_one_before_them():
    what, _ = flags.subject("sweep", ["sac", "--env", "Pendulum-v1"])
    names = [name for name, *_ in what.option_flags()]
    assert len(names) == len({*names})
    sac = what.build({"hidden": (8,), "critic_hidden": (4, 4)})
    assert (sac.network.hidden, sac.critic.hidden) == ((8,), (4, 4))
    axes = {"hidden": "network.hidden", "critic_hidden": "critic.hidden", "gamma": "gamma", "squash": "squash"}
    assert {name: what.axis_name(name) for name in axes} == axes


def test_a_tuned_part_of_another_name_keeps_the_defaults_of_its_own_class(monkeypatch):
    """Not those of the part that the algorithm would have: a tuned CNN is relu, as CNN says, and not tanh, as MLP."""
    monkeypatch.setattr(flags, "preset", lambda *_: {"network": {"name": "cnn", "channels": [4]}})
    what, _ = flags.subject("train", ["ppo", "--env", "Breakout-MinAtar"])
    network = what.parts[1]
    assert (network.name, network.tuned) == ("cnn", {"channels": [4]})
    defaults = {name: default for name, _, default in what.option_flags()}
    assert (defaults["channels"], defaults["hidden"], defaults["activation"]) == ((4,), (128,), "relu")


def test_the_help_of_a_sweep_says_what_a_choice_is_between(capsys):
    _, out, _ = run_cli(capsys, "sweep", "ppo", "--env", "CartPole-v1", "--help")
    assert "[clip, cpi, kl_penalty, clip_kl]" in " ".join(out.replace("│", " ").split())


def test_presets_name_known_parts_and_accepted_fields():
    for name, subjects in presets.table().items():
        cls = algorithm_class(name)
        kinds = kinds_of(cls)
        for subject in subjects:
            fields = {next(iter(kinds)): {"name": subject}} | presets.preset(name, subject)
            made = cls(**{k: kinds[k].make(**value) if k in kinds else value for k, value in fields.items()})
            assert made.total_steps % made.steps_per_iteration == 0


def test_sweep_trains_what_the_flags_say_and_keeps_it(capsys, tmp_path):
    directory = tmp_path / "sweep"
    axes = [
        "--learning-rate",
        "1e-3,1e-2",
        "--clip-eps",
        "uniform:0.1,0.4",
        "--env-params",
        "length=0.5,1.0",
        "tau=0.01",
    ]
    size = [
        "--num-samples",
        "2",
        "--seeds",
        "2",
        "--episodes",
        "4",
        "--hidden",
        "8",
        "--gamma",
        "0.9",
        "--devices",
        "1",
    ]
    flags = ["--env", "CartPole-v1", "--directory", str(directory), "--no-cache", *TINY, *axes, *size]
    code, out, err = run_cli(capsys, "sweep", "ppo", *flags)
    assert code == 0, err
    assert "8 settings x 2 seeds = 16 members in 1 program" in err
    assert "best settings" in out
    final = dict(pair.split("=", 1) for pair in out.splitlines()[-1].split(" ", 5))
    assert (final["settings"], final["seeds"], final["members"], final["failed"]) == ("8", "2", "16", "0")
    assert {path.suffix for path in directory.glob("sweep.*")} == {".json", ".png", ".svg", ".pdf"}
    with np.load(directory / "curves.npz") as curves:
        assert curves["return_mean"].shape == curves["steps"].shape == (16, 3)
    rows = (directory / "members.csv").read_text().splitlines()
    assert rows[0] == "learning_rate,clip_eps,length,seed,steps,failed,score,return_mean"
    assert len(rows) == 17
    config = json.loads((directory / "sweep.json").read_text())
    assert config["base"]["hyperparameters"]["gamma"] == 0.9
    assert config["base"]["parts"]["env"]["options"]["tau"] == 0.01

    code, again, _ = run_cli(capsys, "resume", str(directory), "--no-cache")
    assert code == 0
    assert again.splitlines()[-1].partition("best_score")[2] == out.splitlines()[-1].partition("best_score")[2]
    best = out.splitlines()[-1].partition("best_members=")[2].strip("[]").split(", ")
    code, figures, _ = run_cli(capsys, "evaluate", str(directory), "--episodes", "2", "--no-cache")
    assert [line.partition(":")[0] for line in figures.splitlines()] == [*(f"member {i}" for i in best), "all"]
    code, figures, _ = run_cli(capsys, "evaluate", str(directory), "--member", "3", "--episodes", "2", "--no-cache")
    assert [line.partition(":")[0] for line in figures.splitlines()] == ["member 3"]
    _, _, err = run_cli(capsys, "evaluate", str(directory), "--member", "99")
    assert "member 99 is not accepted: expected one from 0 to 15" in err
    code, out, _ = run_cli(capsys, "plot", str(directory), "--out", str(tmp_path / "again"))
    assert out.split() == [str(tmp_path / f"again.{ending}") for ending in ("png", "svg", "pdf")]
    code, listed, _ = run_cli(capsys, "list", str(tmp_path))
    assert "ppo sweep x" in listed
    assert "finished" in listed
    assert f"return_mean {again.partition('best_score=')[2].split()[0]}" in listed
    code, _, err = run_cli(capsys, "resume", str(directory), "--total-steps", "999")
    assert (code, "--total-steps is for runs" in err) == (2, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning-rate", "uniform:0.1"], "--learning-rate 'uniform:0.1' is not accepted"),
        (["--learning-rate", "unifrom:0.1,0.2"], "'unifrom' is not known: did you mean uniform"),
        (["--learning-rate", "fast"], "expected a value, values separated by commas, or a distribution"),
        (["--num-envs", "1.5,2"], "--num-envs '1.5,2' is not accepted"),
        (["--num-envs", "uniform:4,8"], "num_envs = uniform:4,8 is not accepted: num_envs selects the program"),
        (["--normalize-obs", "maybe"], "--normalize-obs 'maybe' is not accepted"),
        (["--lr-schedule", "linear,cosin"], "PPO.lr_schedule = 'cosin' is not accepted"),
        (["--hidden", "8x8,x"], "--hidden '8x8,x' is not accepted"),
        (["--env-params", "lenth=1,2"], "did you mean length"),
        (["--gamma", "0.9,2"], "PPO.gamma = 2.0 is not accepted"),
        (["--seeds", "0"], "seeds = 0 is not accepted"),
        (["--search", "pbtt"], "--search 'pbtt' is not known: did you mean pbt"),
        (["--search", "pbt:evry=3"], "pbt has no option 'evry': did you mean every"),
        (["--mode", "zip", "--gamma", "0.9,0.8", "--gae-lambda", "0.9,0.8,0.7"], "zip needs lists of one length"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(flags, message, capsys):
    code, _, err = run_cli(capsys, "sweep", "ppo", "--env", "CartPole-v1", *flags)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("name", NETWORKS.table)
def test_the_flags_of_a_sweep_read_the_defaults_they_show(name):
    cls = NETWORKS.declaration(name)
    declared = flags.field_flags(cls, {})
    shown = {name: default for name, _, default in flags.axis_flags(declared)}
    assert cls(**{name: flags.axis(name, shown[name], typing.get_args(hint)[0]) for name, hint, _ in declared}) == cls()


def test_several_environments_and_networks_are_axes_too(capsys, tmp_path, monkeypatch):
    swept = {}

    def remember(algorithm, seeds, **arguments):
        swept.update(arguments, algorithm=algorithm)
        raise pgjax.InputError("seen")

    monkeypatch.setattr(importlib.import_module("pgjax.sweeping.shell"), "sweep", remember)
    axes = [
        "--env",
        "CartPole-v1,Acrobot-v1",
        "--network",
        "mlp,gru",
        "--hidden",
        "8x4,16",
        "--normalize-obs",
        "true,false",
        "--activation",
        "relu",
        "--env-params",
        "max_steps_in_episode=20",
    ]
    assert run_cli(capsys, "sweep", "ppo", *axes, "--no-cache", "--search", "pbt:every=3,factor=1.5")[0] == 2
    assert swept["env"] == ["CartPole-v1", "Acrobot-v1"]
    assert swept["network"] == ["mlp", "gru"]
    assert swept["hidden"] == [(8, 4), (16,)]
    assert swept["activation"] == ["relu"], "for both networks"
    assert swept["max_steps_in_episode"] == [20]
    assert swept["normalize_obs"] == [True, False]
    assert swept["search"] == pgjax.PBT(every=3, factor=1.5)
