"""How much a result depends on its seed: many seeds of a tuned PPO in one program, evaluated greedily.

    python experiments/ppo_seeds.py                              # 100 seeds of each classic-control environment
    python experiments/ppo_seeds.py --envs CartPole-v1 --seeds 1000

An environment is kept when it is done, and done anew only where it is named. Writes ppo_seeds.json (config and every
seed's figure), ppo_seeds.md (the table) and ppo_seeds.png (learning curves and histograms of the evaluated returns).
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import Band, band, draw_band, markdown, pyplot, text_of, write_report

import pgjax
from pgjax.running.config import to_config

SOLVED = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
    "Pendulum-v1": -200.0,
}
"""The evaluated return from which on a seed counts as solved; Gymnasium's `reward_threshold` where it has one."""


@dataclasses.dataclass(frozen=True)
class Options:
    envs: Annotated[tuple[str, ...], tyro.conf.arg(help="some, which are done anew; default those not done yet")] = ()
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each, in one program")] = 100
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes per seed")] = 128
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def trained(env_id: str, options: Options) -> dict[str, Any]:
    """What the seeds came to."""
    ppo = pgjax.tuned("ppo", env_id)
    result = pgjax.sweep(ppo, options.seeds, episodes=options.episodes)
    returns = result.scores["return_mean"]
    return {
        "seeds": result.seeds,
        "env_steps": int(result.steps[0, -1]),
        "episodes": options.episodes,
        "returns": returns,
        "interquartile_mean": result.interquartile_mean(),
        "solved": {"threshold": SOLVED[env_id], "seeds": int(np.sum(returns >= SOLVED[env_id]))},
        "seconds_compile": result.seconds_compile,
        "seconds_run": result.seconds_run,
        "curve": {"steps": result.steps[0]} | band(result.curves["return_mean"])._asdict(),
        "config": to_config(ppo),
    }


def line(env_id: str, row: dict[str, Any]) -> list[str]:
    returns, solved = np.asarray(row["returns"], float), row["solved"]
    return [
        *(env_id, str(len(returns)), f"{row['env_steps']:,}"),
        text_of(row["interquartile_mean"]),
        *(f"{statistic(returns):.2f}" for statistic in (np.mean, np.min, np.max)),
        f"{solved['seeds']} (>= {solved['threshold']:g})",
        f"{row['seconds_compile']:.1f} + {row['seconds_run']:.1f}",
    ]


def plot(rows: dict[str, Any], out: Path) -> None:
    figure, panels = pyplot().subplots(len(rows), 2, figsize=(10, 3.0 * len(rows)), layout="constrained", squeeze=False)
    for (left, right), (env_id, row) in zip(panels, rows.items(), strict=True):
        curve, returns = row["curve"], np.asarray(row["returns"], float)
        shown = Band(*(np.asarray(curve[name], float) for name in Band._fields))
        draw_band(left, curve["steps"], shown, "", color="tab:blue")
        left.set(title=f"PPO on {env_id}, {len(returns)} seeds", xlabel="environment steps")
        left.set_ylabel("return in training\n(interquartile mean, quartiles)")
        left.xaxis.set_major_formatter(pyplot().matplotlib.ticker.EngFormatter(sep=""))
        threshold, known = row["solved"]["threshold"], returns[np.isfinite(returns)]
        # From the threshold on where all are above it: of equal returns alone the bars would be lines.
        right.hist(known, np.linspace(min(threshold, known.min()), max(threshold, known.max()), 31), color="tab:blue")
        right.axvline(threshold, color="tab:red", linestyle=":", label="solved")
        right.set(title="after training", xlabel=f"evaluated return ({row['episodes']} episodes)", ylabel="seeds")
        right.legend(fontsize=8)
    figure.savefig(out / "ppo_seeds.png", dpi=100)


def main(options: Options) -> None:
    kept = options.out / "ppo_seeds.json"
    rows: dict[str, Any] = json.loads(kept.read_text())["rows"] if kept.exists() else {}
    for env_id in options.envs or [name for name in SOLVED if name not in rows]:
        rows[env_id] = trained(env_id, options)
        rows = {name: rows[name] for name in SOLVED if name in rows}
        header = ["environment", "seeds", "env steps each", "interquartile mean [95 % interval]", "mean", "min", "max"]
        table = markdown([*header, "solved", "seconds (compile + run)"], [line(*each) for each in rows.items()])
        write_report(options.out, table, None, {"rows": rows})
        plot(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
