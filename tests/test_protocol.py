"""An algorithm without environment, network or return runs, sweeps and is kept like any other.

It fits a file of points, a part too large to be described by its values, and is judged by a loss: the lower the better.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.algorithms import ALGORITHMS
from pgjax.commands import cli
from pgjax.core import devices
from pgjax.core.algorithm import EVALUATION_STREAM
from pgjax.core.hyperparameters import TRACED, Scalar, check_fields, field, pytree
from pgjax.core.metrics import Count, Mean
from pgjax.running.checkpoint import Checkpoints
from pgjax.running.directory import read_rows
from pgjax.running.population import stack
from pgjax.sweeping.space import check_axes, leaves_named


@pytree
class Points:
    """points of a file"""

    x: Annotated[Any, TRACED]
    y: Annotated[Any, TRACED]
    path: str
    sha256: str


class PointFiles:
    sentence = "a file of points"

    def make(self, name, **options):
        content = Path(name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if options.get("sha256", digest) != digest:
            raise pgjax.InputError(f"data = {name!r} is not the file it was: its digest is {digest}")
        x, y = np.loadtxt(name, dtype=np.float32)
        return Points(jnp.asarray(x), jnp.asarray(y), name, digest)

    def describe(self, part):
        return {"name": part.path, "options": {"sha256": part.sha256}} if isinstance(part, Points) else None

    def with_options(self, part, **options):
        return self.make(part.path, **options)

    def options(self, part):
        return {"sha256": False}

    def declaration(self, name):
        return None


class RegressionState(NamedTuple):
    key: jax.Array
    iteration: jax.Array
    params: Any


@pytree
class Regression:
    data: Annotated[Points, TRACED] = field("what is fitted", part=PointFiles())
    total_steps: int = field("pairs to learn from", default=96, accepts="[1, inf)")
    batch: int = field("pairs per step", default=16, accepts="[1, inf)")
    learning_rate: Scalar = field("step size", default=0.1, accepts="[0, inf)")

    unit = "pairs"
    score = ("loss", "min")

    def __post_init__(self):
        check_fields(self)

    @property
    def steps_per_iteration(self):
        return self.batch

    @property
    def num_iterations(self):
        return self.total_steps // self.batch

    def divides_into(self, devices):
        return devices == 1

    def init(self, key):
        return RegressionState(key, jnp.int32(0), {"slope": jnp.float32(0.0)})

    def step(self, state):
        index = jax.random.randint(jax.random.fold_in(state.key, state.iteration), (self.batch,), 0, self.data.x.size)
        x, y = self.data.x[index], self.data.y[index]
        loss, slope = jax.value_and_grad(lambda slope: jnp.mean((slope * x - y) ** 2))(state.params["slope"])
        params = {"slope": state.params["slope"] - self.learning_rate * slope}
        positive = x > 0
        metrics = {
            "loss": loss,
            "positive": Count(jnp.sum(positive)),
            "y_where_positive": Mean(jnp.sum(jnp.where(positive, y, 0.0)), jnp.sum(positive)),
        }
        return RegressionState(state.key, state.iteration + 1, params), metrics

    def evaluate(self, state, key, num):
        key = jax.random.fold_in(key, EVALUATION_STREAM)
        index = jax.random.randint(key, (num,), 0, self.data.x.size)
        return {"loss": jnp.mean((state.params["slope"] * self.data.x[index] - self.data.y[index]) ** 2)}


@pytest.fixture
def regression(tmp_path, monkeypatch):
    """Registered like the library's own, on 1000 points with slope 2."""
    monkeypatch.setitem(ALGORITHMS, "regression", ("algorithms.regression", "Regression", "least squares"))
    monkeypatch.setitem(sys.modules, "pgjax.algorithms.regression", sys.modules[__name__])
    monkeypatch.setattr(Regression, "__module__", "pgjax.algorithms.regression")
    x = np.random.default_rng(0).normal(size=1000)
    np.savetxt(tmp_path / "points.txt", [x, 2 * x])
    return Regression(PointFiles().make(str(tmp_path / "points.txt")))


def test_a_run_is_kept_judged_and_continued(regression, tmp_path):
    run = {"checkpoint_every": 1, "keep": 1, "progress": False}
    result = pgjax.run(regression, 0, tmp_path / "run", **run)
    assert float(result.state.params["slope"]) == pytest.approx(2.0, abs=0.7)
    assert result.steps == 96
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert {"loss", "positive", "y_where_positive"} <= rows[0].keys()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["parts"]["data"]["options"].keys() == {"sha256"}
    assert (tmp_path / "run" / "config.json").stat().st_size < 1500, "no data in it"
    further = pgjax.resume(tmp_path / "run", total_steps=160, progress=False)
    straight = pgjax.run(dataclasses.replace(regression, total_steps=160), 0, progress=False)
    assert further.steps_now == 64
    np.testing.assert_array_equal(further.state.params["slope"], straight.state.params["slope"])
    with pytest.raises(pgjax.InputError, match="Regression has no policy in an environment"):
        further.predict(np.zeros(1))
    with pytest.raises(
        pgjax.InputError, match="evaluate: Regression has no policy in an environment: expected its own"
    ):
        pgjax.evaluate(regression, further.state, jax.random.key(0))


def test_the_best_checkpoint_is_the_one_with_the_lowest_loss(regression, tmp_path):
    """With a step size that diverges, the first one is."""
    diverging = dataclasses.replace(regression, learning_rate=1.5)
    pgjax.run(diverging, 0, tmp_path / "run", checkpoint_every=1, keep=1, progress=False)
    losses = [row["loss"] for row in read_rows(tmp_path / "run" / "evaluations.jsonl")]
    assert np.argmin(losses) == 0 < np.argmax(losses)
    assert int(pgjax.load(tmp_path / "run", "best").state.iteration) == 1
    assert int(pgjax.load(tmp_path / "run").state.iteration) == 6


def test_a_data_file_that_has_changed_is_refused(regression, tmp_path):
    pgjax.run(regression, 0, tmp_path / "run", progress=False)
    with (tmp_path / "points.txt").open("a") as file:
        file.write(" ")
    with pytest.raises(pgjax.InputError, match=r"points.txt' is not the file it was"):
        pgjax.resume(tmp_path / "run", progress=False)


def test_sweeps_rank_from_the_lowest_and_share_the_data(regression):
    rates = [0.001, 0.1, 1.5]
    result = pgjax.sweep(regression, seeds=2, learning_rate=rates, progress=False)
    assert result.best().setting == {"learning_rate": 0.1}
    assert result.ranking()[-1].setting == {"learning_rate": 1.5}
    assert result.best("positive").score == result.setting_scores("positive").mean(axis=1).max()
    assert result.table["loss"].shape == (6,)
    assert result.curves["positive"].sum(axis=1).max() <= 96
    stacked = leaves_named(regression, check_axes(regression, {"learning_rate": rates}))
    population = stack([regression] * 3, stacked)
    assert population.member.data.x is regression.data.x
    with pytest.raises(pgjax.InputError, match="the study does not minimize score"):
        optuna = pytest.importorskip("optuna")
        pgjax.optuna_search(regression, optuna.create_study(direction="maximize"), 1, learning_rate=pgjax.uniform(0, 1))


def test_checkpoints_of_a_sweep_hold_no_data(regression, tmp_path):
    pgjax.sweep(regression, directory=tmp_path, learning_rate=[0.1, 0.2], progress=False)
    (batch,) = tmp_path.rglob("batch-0")
    checkpoints = Checkpoints(batch, score=None, keep=None)
    shapes = {name: leaf.shape for name, leaf in checkpoints._stored(checkpoints.iterations()[-1]).items()}
    checkpoints.close()
    assert shapes["member.0"] == (2,)
    assert not [name for name, shape in shapes.items() if regression.data.x.size in shape]


def test_searches_keep_the_lowest(regression):
    rates = [0.0, 0.001, 0.2, 1.5]
    halving = pgjax.SuccessiveHalving(eta=2, rungs=1, last=1)
    result = pgjax.sweep(regression, search=halving, learning_rate=rates, progress=False)
    assert 0.2 in [rates[i] for i in np.flatnonzero(result.reached == result.steps.shape[1])]
    assert 1.5 not in [rates[i] for i in np.flatnonzero(result.reached == result.steps.shape[1])]
    alone = pgjax.sweep(regression, learning_rate=rates, progress=False)
    pbt = pgjax.PBT(every=1, fraction=0.25, resample=0.0)
    result = pgjax.sweep(regression, search=pbt, learning_rate=rates, progress=False)
    assert result.curves["loss"][:, -1].max() < 100 < alone.curves["loss"][:, -1].max()


def test_the_command_line_makes_its_flags_from_what_is_declared(regression, tmp_path, capsys):
    directory = tmp_path / "run"
    points = str(tmp_path / "points.txt")
    flags = ["--learning-rate", "0.2", "--directory", str(directory), "--no-cache"]
    assert cli.main(["train", "regression", "--data", points, *flags]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith(f"data={points} steps=96 ")
    assert out.splitlines()[-1].split()[-1].startswith("loss=")
    assert "96/96 pairs" in err
    assert cli.main(["evaluate", str(directory), "--no-cache"]) == 0
    assert capsys.readouterr().out.startswith("loss=")
    assert cli.main(["list", str(tmp_path)]) == 0
    assert "regression" in capsys.readouterr().out
    assert cli.main(["plot", str(directory), "--out", str(tmp_path / "curves")]) == 0
    assert cli.main(["train", "regression"]) == 2
    assert "pgjax train needs --data: a file of points" in capsys.readouterr().err


def test_a_program_that_cannot_fit_is_refused_in_one_line(regression, monkeypatch):
    monkeypatch.setattr(devices, "host_memory", lambda: 1e6)
    with pytest.raises(pgjax.InputError) as refused:
        pgjax.run(regression, seeds=10**6, progress=False)
    assert "does not fit into memory" in str(refused.value)
    assert len(str(refused.value)) < 300
