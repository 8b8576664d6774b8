"""Do policies carry over to other physics? CartPole over pole lengths and masses, every policy tried in every world.

    python experiments/physics_sweep.py

One sweep trains PPO in every combination of `length` and `masspole`, one program evaluates every policy everywhere.
Writes physics_sweep.json (config and every seed's figure), physics_sweep.md (tables) and physics_sweep.png (heat map
[trained on, evaluated on]).
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, settings_report, text_of, write_report
from scipy import stats

import pgjax
from pgjax.reporting.statistics import interquartile_mean

EVALUATION_SEED = 1_000_000
"""Not one that anything was trained with."""


@dataclasses.dataclass(frozen=True)
class Options:
    lengths: Annotated[tuple[float, ...], tyro.conf.arg(help="half the pole's length, in metres")] = (0.25, 0.5, 1, 2)
    masses: Annotated[tuple[float, ...], tyro.conf.arg(help="the pole's mass; the cart has 1")] = (0.05, 0.1, 0.5, 1)
    seeds: Annotated[int, tyro.conf.arg(help="seeds per setting")] = 4
    total_steps: Annotated[int, tyro.conf.arg(help="environment steps per member")] = 262_144
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes per policy and world")] = 128
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@functools.partial(jax.jit, static_argnums=4)
def evaluated(ppo: pgjax.PPO, states: Any, envs: Any, key: jax.Array, episodes: int) -> jax.Array:
    """`[worlds, members]`: the mean return of each policy in each world, all facing the same episodes of it."""

    def one(env: Any, state: Any) -> jax.Array:
        return pgjax.evaluate(dataclasses.replace(ppo, env=env), state, key, episodes).mean

    return jax.lax.map(lambda env: jax.vmap(one, (None, 0))(env, states), envs)


def transfer(ppo: pgjax.PPO, result: Any, episodes: int) -> np.ndarray:
    """`[trained on, evaluated on, seeds]`."""
    seeds = len(result.seeds)
    states = stacked([result.member(i).state for i in range(len(result))])
    envs = stacked([result.algorithms[i].env for i in range(0, len(result), seeds)])
    found = np.asarray(evaluated(ppo, states, envs, jax.random.key(EVALUATION_SEED), episodes))
    return np.moveaxis(found.reshape(len(result.settings), len(result.settings), seeds), 0, 1)


def name(setting: dict[str, float]) -> str:
    return f"{setting['length']:g} m, {setting['masspole']:g} kg"


def tables(result: Any, returns: np.ndarray) -> str:
    """One row per training world, then the whole matrix."""
    names = [name(setting) for setting in result.settings]
    middle = stats.trim_mean(returns, 0.25, axis=2)
    rows = [
        [
            names[i],
            text_of(interquartile_mean(returns[i, i]), 1),
            f"{middle[i].mean():.1f}",
            f"{middle[i].min():.1f} ({names[middle[i].argmin()]})",
            f"{np.delete(middle[:, i], i).mean() if len(names) > 1 else np.nan:.1f}",
        ]
        for i in range(len(names))
    ]
    header = ["trained on (length, masspole)", "there [95 % interval]", "mean over worlds", "worst world"]
    matrix = [[names[i], *(f"{x:.0f}" for x in middle[i])] for i in range(len(names))]
    return "\n".join(
        [
            markdown([*header, "other policies there, mean"], rows),
            "Trained on (down), evaluated on (across):\n",
            markdown(["", *names], matrix),
        ]
    )


def plot(result: Any, returns: np.ndarray, path: Path) -> None:
    middle, names = stats.trim_mean(returns, 0.25, axis=2), [name(setting) for setting in result.settings]
    size = 2.4 + 0.45 * len(names)
    figure, panel = pyplot().subplots(figsize=(size + 1, size), layout="constrained")
    image = panel.imshow(middle, cmap="viridis", vmin=0, vmax=500)
    for i, j in np.ndindex(middle.shape):
        panel.text(j, i, f"{middle[i, j]:.0f}", ha="center", va="center", fontsize=7, color=_ink(middle[i, j]))
    panel.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set(
        xlabel="evaluated on (half length, mass of the pole)", ylabel="trained on (half length, mass of the pole)"
    )
    panel.set_title(f"evaluated return, interquartile mean of {returns.shape[2]} seeds", fontsize=10)
    figure.colorbar(image, shrink=0.8)
    figure.savefig(path, dpi=110)


def _ink(value: float) -> str:
    return "black" if value > 300 else "white"


def main(options: Options) -> None:
    ppo = pgjax.tuned("ppo", "CartPole-v1", total_steps=options.total_steps)
    axes = {"length": list(map(float, options.lengths)), "masspole": list(map(float, options.masses))}
    result = pgjax.sweep(ppo, options.seeds, episodes=options.episodes, **axes)
    start = time.perf_counter()
    returns = transfer(ppo, result, options.episodes)
    seconds = time.perf_counter() - start
    diagonal = np.arange(len(result.settings))
    away = returns[~np.eye(len(diagonal), dtype=bool)]
    table = tables(result, returns) + (
        f"\nInterquartile means over {options.seeds} seeds, {options.episodes} greedy episodes each; 500 is the most. "
        f"Mean where trained: {returns[diagonal, diagonal].mean():.1f},\nelsewhere: "
        f"{away.mean() if away.size else np.nan:.1f}. {len(result)} policies of {result.steps[0, -1]:,} env steps: "
        f"{result.seconds_compile:.1f} s to compile, {result.seconds_run:.1f} s to train;\n"
        f"{returns.size:,} evaluations: {seconds:.1f} s.\n"
    )
    report = {
        "axes": result.axes,
        "seeds": result.seeds,
        "env_steps": int(result.steps[0, -1]),
        "episodes": options.episodes,
        "evaluation_seed": EVALUATION_SEED,
        "seconds_compile": result.seconds_compile,
        "seconds_train": result.seconds_run,
        "seconds_evaluate": seconds,
        "settings": settings_report(result),
        "returns [trained on, evaluated on, seeds]": returns,
    }
    write_report(options.out, table, ppo, report)
    plot(result, returns, options.out / "physics_sweep.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
