"""The ladder of policy gradients, from REINFORCE to PPO: every rung on three environments with equal env steps.

    python experiments/ladder.py                               # all rungs on all environments
    python experiments/ladder.py --envs CartPole-v1            # one of them

Each rung is its algorithm's preset (tuned on seeds from 1000 on), the REINFORCE rungs differing in nothing but their
expression of the gradient. Writes ladder.json (configs and every seed's figures), ladder.md (the table) and ladder.png
(learning curves with bands).
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import band, draw_band, markdown, pyplot, text_of, write_report

import pgjax
from pgjax.algorithms import algorithm_class
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config

GOALS = {"CartPole-v1": 475.0, "Acrobot-v1": -100.0, "Pendulum-v1": -300.0}
RUNGS: dict[str, tuple[str, dict[str, Any]]] = {
    "REINFORCE, total return": ("reinforce", {"credit": "total_return", "baseline": "none"}),
    "REINFORCE, reward-to-go": ("reinforce", {"baseline": "none"}),
    "REINFORCE, mean baseline": ("reinforce", {"baseline": "mean"}),
    "REINFORCE, value baseline": ("reinforce", {"baseline": "value"}),
    "VPG": ("vpg", {}),
    "A2C": ("a2c", {}),
    "NPG": ("npg", {}),
    "TRPO": ("trpo", {}),
    "PPO, KL penalty": ("ppo", {"objective": "kl_penalty", "adaptive_kl": 0.001}),
    "PPO, clip": ("ppo", {}),
}


@dataclasses.dataclass(frozen=True)
class Options:
    envs: Annotated[tuple[str, ...], tyro.conf.arg(help=f"of: {', '.join(GOALS)}")] = tuple(GOALS)
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each rung")] = 20
    first_seed: Annotated[int, tyro.conf.arg(help="the first of them; presets were tuned from 1000 on")] = 0
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes of each run")] = 128
    total_steps: Annotated[int, tyro.conf.arg(help="environment steps of each run")] = 500_000
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def budgeted(name: str, env_id: str, total_steps: int, changes: dict[str, Any]) -> Any:
    """A rung with as many whole iterations as `total_steps` holds."""
    algorithm = pgjax.tuned(name, env_id, **changes)
    iteration = algorithm.steps_per_iteration
    return dataclasses.replace(algorithm, total_steps=total_steps // iteration * iteration)


def first_reached(steps: np.ndarray, curves: np.ndarray, goal: float) -> int | None:
    """Env steps after which the interquartile mean of the training return has reached the goal."""
    reached = np.flatnonzero(band(curves).interquartile_mean >= goal)
    return int(steps[reached[0]]) if reached.size else None


def climb(rung: str, env_id: str, options: Options) -> dict[str, Any]:
    name, changes = RUNGS[rung]
    algorithm = budgeted(name, env_id, options.total_steps, changes)
    result = pgjax.sweep(algorithm, options.seeds, seed=options.first_seed, episodes=options.episodes, progress=False)
    curves, returns = result.curves["return_mean"], result.setting_scores()[0]
    found = {
        "rung": rung,
        "env": env_id,
        "env_steps": algorithm.total_steps,
        "interquartile_mean": interquartile_mean(returns),
        "area_under_curve": interquartile_mean(np.nanmean(curves, axis=1)),
        "first_reached": first_reached(result.steps[0], curves, GOALS[env_id]),
        "goal": GOALS[env_id],
        "returns": returns,
        "curves": curves,
        "steps": result.steps[0],
        "seconds_run": result.seconds_run,
        "seconds_compile": result.seconds_compile,
        "config": to_config(algorithm) | {"seeds": result.seeds},
    }
    print(f"{env_id}, {rung}: {text_of(found['interquartile_mean'])}, {result.seconds_run:.0f} s", flush=True)
    return found


def make_table(rows: list[dict[str, Any]], options: Options) -> str:
    lines = [
        [
            row["env"],
            row["rung"],
            f"{row['env_steps']:,}",
            text_of(row["interquartile_mean"], 1),
            f"{np.min(row['returns']):.1f}",
            text_of(row["area_under_curve"], 1),
            f"{row['first_reached']:,}" if row["first_reached"] else "",
        ]
        for row in rows
    ]
    header = ["environment", "rung", "env steps", "evaluated return", "lowest seed", "mean training return"]
    goals = ", ".join(f"{goal:g} on {env}" for env, goal in GOALS.items())
    return markdown([*header, "steps to the goal"], lines, 2) + (
        f"\nInterquartile means over {options.seeds} seeds with bootstrap 95 % intervals. The evaluated return is that "
        f"of the greedy policy\nover {options.episodes} complete episodes, the mean training return the area under the "
        f"learning curve divided by its length. The goals\nare {goals}; the last column says when the interquartile "
        "mean of training\nwas there first.\n"
    )


def plot(rows: list[dict[str, Any]], envs: tuple[str, ...], out: Path) -> None:
    figure, panels = pyplot().subplots(
        1, len(envs), figsize=(4.6 * len(envs) + 2.4, 4), layout="constrained", squeeze=False
    )
    colours = pyplot().get_cmap("tab10")
    for panel, env_id in zip(panels[0], envs, strict=True):
        for i, row in enumerate(row for row in rows if row["env"] == env_id):
            draw_band(panel, row["steps"], band(row["curves"]), row["rung"], color=colours(i))
        panel.axhline(GOALS[env_id], color="tab:gray", linestyle=":", label="goal (evaluated)")
        panel.set(title=env_id, xlabel="environment steps")
        panel.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    panels[0][0].set_ylabel("return of episodes in training")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(out / "ladder.png", dpi=110)


def main(options: Options) -> None:
    rows = [climb(rung, env_id, options) for env_id in options.envs for rung in RUNGS]
    first = algorithm_class("ppo")(pgjax.make(options.envs[0]))
    kept = [{name: value for name, value in row.items() if name not in ("curves", "steps")} for row in rows]
    write_report(options.out, make_table(rows, options), first, {"rows": kept})
    plot(rows, options.envs, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
