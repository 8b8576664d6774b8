"""Pictures from files alone, and episodes as GIFs."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.reporting.plotting import plot_sweep
from pgjax.sweeping.result import SweepResult


def fake_run(directory, seed, gamma=0.99, seeds=None, steps=5, env="CartPole-v1"):
    directory.mkdir()
    config = {
        "algorithm": "ppo",
        "parts": {
            "env": {"name": env, "options": {"length": 0.5}},
            "network": {"name": "mlp", "options": {}},
        },
        "unit": "env steps",
        "score": ["return_mean", "max"],
        "hyperparameters": {"gamma": gamma, "total_steps": 160},
        "seed": seed,
        "seeds": seeds,
    }
    (directory / "config.json").write_text(json.dumps(config))
    rows = []
    for i in range(1, steps + 1):
        value = None if i == 1 else [float(i + k) for k in range(seeds)] if seeds else float(i + seed)
        rows.append({"iteration": i, "steps": 32 * i, "return_mean": [None] * seeds if seeds and i == 1 else value})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_a_plot_says_what_of_a_run_is_damaged(tmp_path):
    run = fake_run(tmp_path / "run", 0)
    whole = (run / "config.json").read_text()
    for edited in ({}, json.loads(whole) | {"score": []}, json.loads(whole) | {"parts": {}}):
        (run / "config.json").write_text(json.dumps(edited))
        with pytest.raises(pgjax.InputError, match=r"config\.json is damaged"):
            pgjax.plot(run, out=tmp_path / "curves")
    (run / "config.json").write_text(whole)
    rows = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(rows.replace("return_mean", "seturn_mean", 1))
    assert pgjax.plot(run, out=tmp_path / "curves")


def drawn(monkeypatch):
    """What reaches the axes: the label, the line, and whether there is a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.axes import Axes

    lines, bands = {}, []
    plot, fill = Axes.plot, Axes.fill_between

    def record_plot(self, x, y, label):
        lines[label] = (np.array(x), np.array(y))
        return plot(self, x, y, label=label)

    def record_fill(self, x, low, high, **style):
        bands.append((low, high))
        return fill(self, x, low, high, **style)

    monkeypatch.setattr(Axes, "plot", record_plot)
    monkeypatch.setattr(Axes, "fill_between", record_fill)
    return lines, bands


def test_seeds_are_one_curve_with_a_band_and_other_settings_another(tmp_path, monkeypatch):
    lines, bands = drawn(monkeypatch)
    runs = [
        fake_run(tmp_path / name, seed, gamma) for name, seed, gamma in (("a", 0, 0.9), ("b", 2, 0.9), ("c", 0, 0.5))
    ]
    written = pgjax.plot(*runs, out=tmp_path / "curves.pdf")
    assert [path.name for path in written] == ["curves.png", "curves.svg", "curves.pdf"]
    png, svg, pdf = (path.read_bytes() for path in written)
    assert png.startswith(b"\x89PNG")
    assert b">env steps</text>" in svg
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert lines.keys() == {"gamma=0.9", "gamma=0.5"}
    steps, mean = lines["gamma=0.9"]
    np.testing.assert_array_equal(steps, [64, 96, 128, 160])
    np.testing.assert_array_equal(mean, [3, 4, 5, 6])
    ((low, high),) = bands
    np.testing.assert_array_equal(high - low, 2)


def test_a_population_is_one_curve_with_a_band(tmp_path, monkeypatch):
    lines, bands = drawn(monkeypatch)
    pgjax.plot(fake_run(tmp_path / "a", 0, seeds=3), out=tmp_path / "curves")
    ((_, mean),) = lines.values()
    np.testing.assert_array_equal(mean, [3, 4, 5, 6])
    np.testing.assert_array_equal(bands[0][1] - bands[0][0], 2)


def test_environments_have_panels_and_evaluations_are_dots(tmp_path, monkeypatch):
    import matplotlib

    figures = []
    savefig = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *x, **k: (figures.append(self), savefig(self, *x, **k))
    )
    runs = [fake_run(tmp_path / env, 0, env=env) for env in ("CartPole-v1", "Acrobot-v1")]
    (runs[0] / "evaluations.jsonl").write_text('{"iteration": 3, "steps": 96, "return_mean": 9.5}\n')
    pgjax.plot(*runs, out=tmp_path / "curves")
    first, second = figures[0].axes
    assert [axes.get_title() for axes in (first, second)] == ["CartPole-v1", "Acrobot-v1"]
    assert first.get_xlabel() == "env steps"
    assert first.get_ylabel() == "return of an episode, undiscounted"
    assert [len(axes.get_lines()) for axes in (first, second)] == [2, 1]
    np.testing.assert_array_equal(first.get_lines()[1].get_xydata(), [[96, 9.5]])
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (first, second)]
    assert legends == [["ppo", "evaluated, greedy (lines: training, sampled)"], ["ppo"]]
    with pytest.raises(pgjax.InputError, match="plot needs at least one run"):
        pgjax.plot()


def fake_sweep(points=12, seeds=4, **axes):
    """A grid in which no episode ended at first, one member failed and the last setting was pruned."""
    settings = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    members = len(settings) * seeds
    level = np.arange(members, dtype=float) ** 2
    curve = level[:, None] + np.arange(points)
    curve[:, :2] = np.nan
    failed, reached = np.full(members, -1), np.full(members, points)
    failed[1], curve[1, 5:] = 5, np.nan
    reached[-seeds:], curve[-seeds:, 4:] = 4, np.nan
    score = np.where(reached == points, level, np.nan)
    steps = np.tile(1000 * np.arange(1, points + 1), (members, 1))
    nothing = [None] * members
    scores = {"return_mean": score}
    return SweepResult(
        axes,
        settings,
        list(range(seeds)),
        [SimpleNamespace(score=("return_mean", "max"), unit="env steps")] * members,
        {"return_mean": curve},
        steps,
        {},
        scores,
        failed,
        reached,
        nothing,
        0.0,
        0.0,
    )


@pytest.mark.parametrize(
    "axes",
    [
        {
            "learning_rate": [1e-4, 3e-4, 1e-3, 3e-3],
            "clip_eps": [0.01 * 1.3**k for k in range(16)],
            "n": ["mlp", "gru"],
        },
        {"gamma": [0.9, 0.99, 0.999]},
        {"network": [pgjax.MLP(hidden=(8,)), pgjax.MLP(hidden=(16, 16))]},
        {},
    ],
    ids=["three", "one", "none_scored", "no"],
)
def test_sweeps_of_any_number_of_axes_are_drawn(axes, tmp_path):
    written = plot_sweep(fake_sweep(**axes), "return_mean", tmp_path / "sweep")
    assert [path.suffix for path in written] == [".png", ".svg", ".pdf"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in written[1].read_bytes()


def test_the_curve_of_a_value_is_the_interquartile_mean_of_its_members(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    plot_sweep(fake_sweep(gamma=[0.9, 0.99, 0.999]), "return_mean", tmp_path / "sweep")
    curves, effect, parallel = figures[0].axes
    lines = {line.get_label(): line for line in curves.get_lines()}
    assert lines.keys() == {"0.9", "0.99", "0.999"}
    np.testing.assert_array_equal(lines["0.9"].get_xdata(), 1000 * np.arange(3, 13))
    without_failed = (0 + 4 + 9) / 3 + np.arange(2, 12)
    np.testing.assert_allclose(lines["0.9"].get_ydata(), without_failed)
    np.testing.assert_allclose(lines["0.99"].get_ydata(), (25 + 36) / 2 + np.arange(2, 12))
    np.testing.assert_array_equal(lines["0.999"].get_xdata(), [3000, 4000])
    assert [line.get_ydata() for line in effect.get_lines() if line.get_marker() == "o"] == [[13 / 3], [30.5]]
    assert figures[0].get_suptitle() == "best score 31.5 (mean of 4 seeds): gamma=0.99"
    assert [label.get_text() for label in parallel.get_xticklabels()] == ["gamma", "score"]


def test_an_unknown_metric_of_a_sweep_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(pgjax.InputError, match=r"metric = 'return_men' is not known: did you mean return_mean\?"):
        plot_sweep(fake_sweep(gamma=[0.9, 0.99]), "return_men", tmp_path / "sweep")


def test_episodes_become_a_gif_and_a_film(tiny_ppo, init, tmp_path):
    ppo = tiny_ppo(pgjax.make("Catch-bsuite"))
    result = pgjax.Result(ppo, init(ppo, jax.random.key(0)), {}, 0, 0, 0.0, 0.0)
    played = pgjax.render(result, tmp_path / "episodes.gif", episodes=2)
    assert [steps for steps, _ in played] == [9, 9]
    assert all(abs(total) == 1.0 for _, total in played)
    from PIL import Image

    with Image.open(tmp_path / "episodes.gif") as gif:
        assert gif.n_frames == 18
    assert pgjax.render(result, tmp_path / "short.mp4", max_steps=3) == [(3, 0.0)]
    assert (tmp_path / "short.mp4").read_bytes()[4:8] == b"ftyp"
    for arguments, message in (
        (("episode.avi",), r"out = 'episode.avi' is not accepted: expected an ending of .gif or .mp4"),
        (("episode.gif", 0), "render: episodes = 0 is not accepted"),
    ):
        with pytest.raises(pgjax.InputError, match=message):
            pgjax.render(result, *arguments)


def test_what_gymnax_cannot_draw_is_refused_with_what_it_can(tiny, tmp_path):
    bandit = dataclasses.replace(tiny, env=pgjax.make("SimpleBandit-bsuite"))
    state = jax.jit(bandit.init)(jax.random.key(0))
    with pytest.raises(
        pgjax.InputError, match=r"SimpleBandit-bsuite cannot be drawn; gymnax draws CartPole-v1, .*Pong"
    ):
        pgjax.render(pgjax.Result(bandit, state, {}, 0, 0, 0.0, 0.0), tmp_path / "episode.gif")


def test_an_environment_of_ones_own_is_drawn_by_its_render(tiny, tmp_path):
    class Drawn(Counter):
        picture = np.zeros((4, 6, 3), np.uint8)

        def render(self, state, params):
            return self.picture + np.uint8(params.max_steps_in_episode + state)

    own = dataclasses.replace(tiny, env=pgjax.make(Drawn()))
    result = pgjax.Result(own, jax.jit(own.init)(jax.random.key(0)), {}, 0, 0, 0.0, 0.0)
    assert pgjax.render(result, tmp_path / "episode.gif") == [(2, 2.0)]
    from PIL import Image

    with Image.open(tmp_path / "episode.gif") as gif:
        assert gif.n_frames == 2

    Drawn.picture = np.zeros((4, 6), np.uint8)
    with pytest.raises(pgjax.InputError, match=r"Drawn.render gives uint8\[4, 6\]: expected uint8\[H, W, 3\]"):
        pgjax.render(result, tmp_path / "episode.gif")
    Drawn.render = lambda self, state, params: 1 / 0
    with pytest.raises(pgjax.InputError, match=r"Drawn: render raised ZeroDivisionError: division by zero"):
        pgjax.render(result, tmp_path / "episode.gif")


class Counter:
    """A gymnax-style environment of two steps, whose state is their number."""

    default_params = gymnax.EnvParams(max_steps_in_episode=2)

    def action_space(self, params):
        return gymnax.environments.spaces.Discrete(2)

    def observation_space(self, params):
        return gymnax.environments.spaces.Box(0, 9, (1,))

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        obs = jnp.ones(1)
        end = state + 1 >= params.max_steps_in_episode
        return obs, state + 1, jnp.float32(1.0), jnp.bool_(False), end, {"final_observation": obs}
