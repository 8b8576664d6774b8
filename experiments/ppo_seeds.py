"""How much a result depends on its seed: many seeds of a tuned PPO in one program, evaluated greedily.

    python experiments/ppo_seeds.py                                          # CartPole-v1, 64 seeds
    python experiments/ppo_seeds.py --env Acrobot-v1 --seeds 128 --solved -100

Writes ppo_seeds.json (config and every seed's figure), ppo_seeds.md (the table) and ppo_seeds.png (learning curve and
histogram of the evaluated returns).
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import band, draw_band, markdown, pyplot, settings_report, text_of, write_report

import pgjax


@dataclasses.dataclass(frozen=True)
class Options:
    env: Annotated[str, tyro.conf.arg(help="environment, with its preset")] = "CartPole-v1"
    seeds: Annotated[int, tyro.conf.arg(help="seeds, in one program")] = 64
    solved: Annotated[float, tyro.conf.arg(help="evaluated return from which on a seed counts as solved")] = 475.0
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes per seed")] = 128
    total_steps: Annotated[int | None, tyro.conf.arg(help="environment steps per seed; by default the preset's")] = None
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def plot(result: Any, options: Options) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    steps, curves = result.steps[0], result.curves["return_mean"]
    left.plot(steps, curves.T, color="0.8", linewidth=0.5, zorder=1)
    draw_band(left, steps, band(curves), "interquartile mean, quartiles; grey: each seed", color="tab:blue")
    left.set(title=f"PPO on {options.env}, {options.seeds} seeds", xlabel="environment steps")
    left.set_ylabel("return of episodes in training")
    left.legend(fontsize=8)
    returns = result.scores["return_mean"]
    right.hist(returns[np.isfinite(returns)], bins=30, color="tab:blue")
    right.axvline(options.solved, color="tab:red", linestyle=":", label=f"solved: {options.solved:g}")
    right.set(title="after training", xlabel=f"evaluated return ({options.episodes} episodes)", ylabel="seeds")
    right.legend(fontsize=8)
    figure.savefig(options.out / "ppo_seeds.png", dpi=110)


def main(options: Options) -> None:
    changes = {} if options.total_steps is None else {"total_steps": options.total_steps}
    ppo = pgjax.tuned("ppo", options.env, **changes)
    result = pgjax.sweep(ppo, options.seeds, episodes=options.episodes)
    returns = result.scores["return_mean"]
    middle = result.interquartile_mean()
    solved = float(np.mean(returns >= options.solved))
    figures = [
        options.env,
        str(options.seeds),
        f"{result.steps[0, -1]:,}",
        text_of(middle),
        *(f"{statistic(returns):.2f}" for statistic in (np.mean, np.min, np.max)),
        f"{100 * solved:.1f} %",
        f"{result.seconds_compile:.1f} + {result.seconds_run:.1f}",
    ]
    header = ["environment", "seeds", "env steps each", "interquartile mean [95 % interval]", "mean", "min", "max"]
    table = markdown([*header, f"solved (>= {options.solved:g})", "seconds (compile + run)"], [figures])
    report = {
        "seeds": result.seeds,
        "env_steps": int(result.steps[0, -1]),
        "episodes": options.episodes,
        "interquartile_mean": middle,
        "solved": {"threshold": options.solved, "share": solved},
        "seconds_compile": result.seconds_compile,
        "seconds_run": result.seconds_run,
        "seconds_total": result.seconds_compile + result.seconds_run,
        "settings": settings_report(result),
        "curve": {"steps": result.steps[0]} | band(result.curves["return_mean"])._asdict(),
    }
    write_report(options.out, table, ppo, report)
    plot(result, options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
