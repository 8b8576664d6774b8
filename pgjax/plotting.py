"""Pictures of runs: learning curves from their files alone, and episodes as GIFs. Needs the extra `plot`."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from pgjax.errors import InputError
from pgjax.rundir import read_config, read_rows


def plot_runs(runs: list[Path], metric: str, out: Path) -> list[Path]:
    """Draw `metric` over env steps and write `out`.png and `out`.svg.

    Runs that differ only in their seeds, and the members of a population, are one curve: the mean, in a band from the
    lowest to the highest seed.

    Raises:
        InputError: a directory holds no run or no rows, or the metric is not among its rows.
    """
    plt = _pyplot()
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    labels = _labels(runs)
    for run in runs:
        curves.setdefault(labels[run], []).append(_curve(run, metric))
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for label, members in curves.items():
        length = min(len(steps) for steps, _ in members)
        steps = members[0][0][:length]
        values = np.concatenate([values[:length] for _, values in members], axis=1)
        known = ~np.all(np.isnan(values), axis=1)
        line = axes.plot(steps[known], np.nanmean(values[known], axis=1), label=label)[0]
        if values.shape[1] > 1:
            low, high = np.nanmin(values[known], axis=1), np.nanmax(values[known], axis=1)
            axes.fill_between(steps[known], low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel("environment steps")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    written = [out.with_name(out.name + ending) for ending in (".png", ".svg")]
    for path in written:
        figure.savefig(path, dpi=120)
    plt.close(figure)
    return written


def _curve(run: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[n]` and values `[n, members]`, NaN where there were none."""
    rows = read_rows(run / "metrics.jsonl")
    if not rows:
        read_config(run)  # says so if there is no run at all
        raise InputError(f"{run} holds no metrics yet")
    if metric not in rows[0]:
        raise InputError(f"metric = {metric!r} is not in {run}: it has {', '.join(rows[0])}")
    values = np.array([np.atleast_1d(np.array(row[metric], dtype=float)) for row in rows])
    return np.array([row["steps"] for row in rows]), values


def _labels(runs: list[Path]) -> dict[Path, str]:
    """One name per config, seeds aside: environment and algorithm, and what tells it from the other configs."""
    configs = {run: read_config(run) for run in runs}
    flat = {run: _flat(config) for run, config in configs.items()}
    differing = [k for k in flat[runs[0]] if len({json.dumps(f.get(k)) for f in flat.values()}) > 1]
    return {
        run: ", ".join(
            [f"{configs[run]['algorithm']} on {configs[run]['env'].get('id', 'own environment')}"]
            + [f"{k}={flat[run].get(k)}" for k in differing]
        )
        for run in runs
    }


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    env = config["env"]
    problem = {"env": env.get("id", env.get("object"))} | env.get("constructor", {}) | env.get("params", {})
    return problem | config["network"] | config["hyperparameters"]


def render_episode(algorithm: Any, state: Any, key: Any, out: Path, max_steps: int) -> tuple[int, float]:
    """Play one greedy episode and write it as a GIF. Returns its length (in frames, at most `max_steps`) and return.

    Raises:
        InputError: gymnax has no drawing of this environment (with those it has), or needs a package that is missing.
    """
    import jax

    from pgjax.environments.gymnax import draw

    _pyplot()
    env = algorithm.env
    actor = algorithm.actor(state)
    key, reset_key = jax.random.split(key)
    env_state, obs = env.reset(reset_key)
    memory, first = actor.initial_memory(1), True
    states: list[Any] = []
    rewards: list[float] = []
    step = jax.jit(env.step)
    act = jax.jit(lambda memory, obs, reset: _greedy(actor, memory, obs, reset))
    done = False
    while not done and len(states) < max_steps:
        states.append(env_state)
        memory, action = act(memory, obs, np.array([first]))
        after = step(jax.random.fold_in(key, len(states)), env_state, action)
        rewards.append(float(after.reward))
        done = bool(after.terminated | after.truncated)
        env_state, obs, first = after.state, after.obs, False
    draw(env, states, np.cumsum(rewards), out)
    return len(states), float(np.sum(rewards))


def _greedy(actor: Any, memory: Any, obs: Any, reset: Any) -> tuple[Any, Any]:
    memory, output = actor.act(memory, obs[None], reset)
    return memory, output.distribution.mode()[0]


def _pyplot() -> Any:
    try:
        importlib.import_module("matplotlib").use("Agg")
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'pgjax[plot]'") from error
    return importlib.import_module("matplotlib.pyplot")
