"""What DDPG, TD3 and SAC reach with their presets, and PPO after as many steps: ten seeds each, evaluated greedily.

    python experiments/off_policy_learning.py                       # every row
    python experiments/off_policy_learning.py --envs Pendulum-v1    # those of some environments

PPO has its preset, cut to the steps of the longest of the others where that is shorter. The presets were tuned on seeds
from 1000 on; the seeds reported here are 0, 1, 2, ...

Writes off_policy_learning.json (configs, every seed's figures and curves), off_policy_learning.md and
off_policy_learning.png.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import Band, band, draw_band, markdown, preset_algorithm, pyplot, text_of, write_report

import pgjax
from pgjax.commands.presets import table
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config

GOALS = {
    ("ddpg", "Pendulum-v1"): -180.0,
    ("td3", "Pendulum-v1"): -150.0,
    ("sac", "Pendulum-v1"): -150.0,
    ("ddpg", "MountainCarContinuous-v0"): 90.0,
    ("td3", "MountainCarContinuous-v0"): 90.0,
}
METHODS = ("ddpg", "td3", "sac", "discrete-sac")
ENVS = tuple(dict.fromkeys(env_id for name in METHODS for env_id in table()[name]))


@dataclasses.dataclass(frozen=True)
class Options:
    envs: Annotated[tuple[str, ...], tyro.conf.arg(help="environments to train on")] = ENVS
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each")] = 10
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes per seed")] = 128
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def trained(algorithm: Any, options: Options) -> dict[str, Any]:
    """The returns of all seeds, their curves in training, and what it took."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # budgets that are no whole number of iterations
        result = pgjax.sweep(algorithm, seeds=options.seeds, episodes=options.episodes, progress=False)
    return {
        "returns": np.asarray(result.scores["return_mean"]),
        "curves": result.curves["return_mean"],
        "steps": result.steps[0],
        "seconds_compile": round(result.seconds_compile, 1),
        "seconds_run": round(result.seconds_run, 1),
        "config": to_config(algorithm),
    }


def main(options: Options) -> None:
    found: dict[str, dict[str, Any]] = {}
    rows = []
    for env_id in options.envs:
        of_env = {name: preset_algorithm(name, env_id) for name in METHODS if env_id in table()[name]}
        longest = max(algorithm.total_steps for algorithm in of_env.values())
        ppo = preset_algorithm("ppo", env_id)
        for name, algorithm in (of_env | {"ppo": dataclasses.replace(ppo, total_steps=longest)}).items():
            each = found[f"{name} on {env_id}"] = trained(algorithm, options)
            goal = GOALS.get((name, env_id))
            rows.append(
                [
                    env_id,
                    name,
                    f"{each['steps'][-1]:,}",
                    text_of(interquartile_mean(each["returns"]), 1),
                    f"{each['returns'].min():.1f}",
                    "" if goal is None else f"{goal:g}",
                    f"{each['seconds_compile']:.0f}",
                    f"{options.seeds * each['steps'][-1] / each['seconds_run']:,.0f}",
                ]
            )
            print(rows[-1], flush=True)
    header = [
        "environment",
        "algorithm",
        "env steps",
        "return",
        "lowest seed",
        "goal",
        "compile, s",
        "steps/s, all seeds",
    ]
    text = (
        f"{options.seeds} seeds each, {options.episodes} greedy episodes per seed after the last step; interquartile "
        f"means with 95 % intervals.\n\n{markdown(header, rows, 2)}"
    )
    write_report(options.out, text, None, {"found": found})
    plot(options, found)


def plot(options: Options, found: dict[str, dict[str, Any]]) -> None:
    columns = min(3, len(options.envs))
    shape = -(-len(options.envs) // columns), columns
    size = 4.0 * columns, 3.0 * shape[0]
    figure, panels = pyplot().subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for env_id, panel in zip(options.envs, panels.flat, strict=False):
        for i, name in enumerate((*METHODS, "ppo")):
            each = found.get(f"{name} on {env_id}")
            if each:
                curves = band(each["curves"])
                known = np.isfinite(curves.interquartile_mean)  # points in which an episode ended
                style = {"color": "black" if name == "ppo" else f"C{i}", "linewidth": 1}
                draw_band(panel, each["steps"][known], Band(*(x[known] for x in curves)), name, **style)
        panel.set(title=env_id, xlabel="env steps", ylabel="return in training")
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(options.out / "off_policy_learning.png", dpi=100)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
