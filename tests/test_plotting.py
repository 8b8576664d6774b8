"""Pictures from files alone, and episodes as GIFs."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import pgjax
from pgjax.plotting import plot_runs, render_episode


def fake_run(directory, seed, gamma=0.99, seeds=None, steps=5):
    directory.mkdir()
    config = {
        "algorithm": "ppo",
        "env": {"id": "CartPole-v1", "constructor": {}, "params": {"length": 0.5}},
        "network": {"name": "mlp"},
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
    written = plot_runs(runs, "return_mean", tmp_path / "curves")
    assert [path.suffix for path in written] == [".png", ".svg"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in written[1].read_bytes()
    assert lines.keys() == {"ppo on CartPole-v1, gamma=0.9", "ppo on CartPole-v1, gamma=0.5"}
    steps, mean = lines["ppo on CartPole-v1, gamma=0.9"]
    np.testing.assert_array_equal(steps, [64, 96, 128, 160])
    np.testing.assert_array_equal(mean, [3, 4, 5, 6])
    ((low, high),) = bands
    np.testing.assert_array_equal(high - low, 2)


def test_a_population_is_one_curve_with_a_band(tmp_path, monkeypatch):
    lines, bands = drawn(monkeypatch)
    plot_runs([fake_run(tmp_path / "a", 0, seeds=3)], "return_mean", tmp_path / "curves")
    ((_, mean),) = lines.values()
    np.testing.assert_array_equal(mean, [3, 4, 5, 6])
    np.testing.assert_array_equal(bands[0][1] - bands[0][0], 2)


def test_an_episode_becomes_a_gif(tiny_ppo, init, tmp_path):
    ppo = tiny_ppo(pgjax.make("Catch-bsuite"))
    state = init(ppo, jax.random.key(0))
    steps, total = render_episode(ppo, state, jax.random.key(0), tmp_path / "episode.gif", max_steps=50)
    assert (steps, abs(total)) == (9, 1.0)
    from PIL import Image

    with Image.open(tmp_path / "episode.gif") as gif:
        assert gif.n_frames == 9


def test_what_gymnax_cannot_draw_is_refused_with_what_it_can(tiny, tmp_path):
    bandit = dataclasses.replace(tiny, env=pgjax.make("SimpleBandit-bsuite"))
    state = jax.jit(bandit.init)(jax.random.key(0))
    with pytest.raises(
        pgjax.InputError, match=r"SimpleBandit-bsuite cannot be drawn; gymnax draws CartPole-v1, .*Pong"
    ):
        render_episode(bandit, state, jax.random.key(0), tmp_path / "episode.gif", max_steps=5)
