"""What PPO reaches with its presets: ten seeds of each environment in one compiled program, evaluated greedily.

    python experiments/ppo_learning.py                         # every environment of the table
    python experiments/ppo_learning.py --envs CartPole-v1      # one of them

Writes ppo_learning.json (configs and every seed's figure), ppo_learning.md (the table) and ppo_learning.png (the
learning curves). The presets were tuned on seeds from 1000 on; the seeds reported here are 0, 1, 2, ...
"""

import dataclasses
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, text_of, write_report

import pgjax
from pgjax.reporting.statistics import Estimate, interquartile_mean
from pgjax.running.config import to_config

GOALS = {
    "CartPole-v1": 495.0,
    "Acrobot-v1": -90.0,
    "Pendulum-v1": -200.0,
    "MountainCarContinuous-v0": 90.0,
    "Catch-bsuite": 0.95,
    "MemoryChain-bsuite": 0.95,
}
ENV_PARAMS = {"MemoryChain-bsuite": {"memory_length": 10}}


@dataclasses.dataclass(frozen=True)
class Options:
    envs: Annotated[tuple[str, ...], tyro.conf.arg(help="environments to train on")] = tuple(GOALS)
    seeds: Annotated[int, tyro.conf.arg(help="seeds per environment, in one vmap")] = 10
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes per seed")] = 128
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def from_preset(env_id: str, **changes: Any) -> pgjax.PPO:
    """PPO as the command line would make it, with some fields changed, on the environment of the table."""
    return pgjax.tuned("ppo", env_id, env=pgjax.make(env_id, **ENV_PARAMS.get(env_id, {})), **changes)


def train_seeds(ppo: pgjax.PPO, seeds: int, episodes: int) -> dict[str, Any]:
    """One vmap over seeds: evaluated returns `[seeds]`, learning curves `[seeds, iterations]`, and the time it took."""

    def train_and_evaluate(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, metrics = pgjax.train(ppo, key)
        return pgjax.evaluate(ppo, state, key, episodes).mean, metrics["return_mean"]

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    start = time.perf_counter()
    program = jax.jit(jax.vmap(train_and_evaluate)).lower(keys).compile()
    compiled = time.perf_counter()
    returns, curves = jax.block_until_ready(program(keys))
    return {
        "returns": np.asarray(returns).tolist(),
        "curves": np.asarray(curves),
        "seconds_compile": round(compiled - start, 1),
        "seconds_run": round(time.perf_counter() - compiled, 1),
    }


def row(name: str, ppo: pgjax.PPO, goal: float | None, options: Options) -> dict[str, Any]:
    result = train_seeds(ppo, options.seeds, options.episodes)
    middle = interquartile_mean(result["returns"], resamples=10_000)
    found = {
        "name": name,
        "steps": ppo.num_iterations * ppo.steps_per_iteration,
        "interquartile_mean": middle.value,
        "interval_95": [middle.low, middle.high],
        "goal": goal,
        "config": to_config(ppo) | {"seed": list(range(options.seeds))},
    } | result
    print(f"{name}: interquartile mean {text_of(middle)}, goal {goal}, {found['seconds_run']} s", flush=True)
    return found


def table(rows: list[dict[str, Any]], options: Options) -> str:
    lines = [
        [
            r["name"],
            f"{r['steps']:,}",
            text_of(Estimate(r["interquartile_mean"], *r["interval_95"])),
            f"{min(r['returns']):.2f}",
            f"{max(r['returns']):.2f}",
            "chance: 0" if r["goal"] is None else f">= {r['goal']:g}",
        ]
        for r in rows
    ]
    header = ["environment", "env steps", "interquartile mean [95 % interval]", "min", "max", "goal"]
    return markdown(header, lines) + (
        f"\n{options.seeds} seeds, each evaluated greedily over {options.episodes} complete episodes.\n"
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    columns = min(4, len(rows))
    height = -(-len(rows) // columns)
    figure, axes = pyplot().subplots(height, columns, figsize=(3.4 * columns, 2.6 * height), squeeze=False)
    for ax in axes.flat[len(rows) :]:
        ax.axis("off")
    for ax, r in zip(axes.flat, rows, strict=False):
        steps = np.arange(1, r["curves"].shape[1] + 1) * r["steps"] / r["curves"].shape[1]
        ended = ~np.all(np.isnan(r["curves"]), axis=0)
        low, middle, high = np.nanquantile(r["curves"][:, ended], [0.25, 0.5, 0.75], axis=0)
        ax.plot(steps[ended], middle, color="tab:blue", label="median of seeds")
        ax.fill_between(steps[ended], low, high, color="tab:blue", alpha=0.25, label="quartiles")
        if r["goal"] is not None:
            ax.axhline(r["goal"], color="tab:red", linestyle=":", label="goal (greedy policy)")
        ax.set_title(r["name"], fontsize=9)
        ax.tick_params(labelsize=7)
        ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    axes[0, 0].legend(fontsize=7)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("return of episodes in training", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    warnings.simplefilter("error")
    rows = []
    for env_id in options.envs:
        params = "".join(f" {k}={v}" for k, v in ENV_PARAMS.get(env_id, {}).items())
        if env_id == "MemoryChain-bsuite":
            rows.append(row(f"{env_id}{params}, GRU", from_preset(env_id), GOALS[env_id], options))
            rows.append(row(f"{env_id}{params}, MLP", from_preset(env_id, network=pgjax.MLP()), None, options))
        else:
            rows.append(row(env_id + params, from_preset(env_id), GOALS.get(env_id), options))
    kept = [{name: value for name, value in r.items() if name != "curves"} for r in rows]
    write_report(options.out, table(rows, options), from_preset(options.envs[0]), {"rows": kept})
    plot(rows, options.out / "ppo_learning.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
