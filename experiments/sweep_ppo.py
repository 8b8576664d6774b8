"""How PPO's learning rate and clipping range matter on CartPole: a grid with several seeds each, in one program.

    python experiments/sweep_ppo.py

Writes sweep_ppo.json (config and every seed's figure), sweep_ppo.md (the grid, the effect of each axis, and how likely
the best setting improves on the tuned one) and sweep_ppo.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import markdown, settings_report, text_of, write_report

import pgjax
from pgjax.reporting.plotting import label
from pgjax.reporting.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class Options:
    env: Annotated[str, tyro.conf.arg(help="environment, with its preset")] = "CartPole-v1"
    rates: Annotated[int, tyro.conf.arg(help="learning rates, from 1e-4 to 1e-2")] = 6
    clips: Annotated[tuple[float, ...], tyro.conf.arg(help="values of clip_eps")] = (0.1, 0.2, 0.3)
    seeds: Annotated[int, tyro.conf.arg(help="seeds per setting")] = 8
    total_steps: Annotated[int, tyro.conf.arg(help="environment steps per member")] = 262_144
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes per member")] = 128
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def nearest_setting(settings: list[dict[str, float]], wanted: dict[str, float]) -> dict[str, float]:
    """The setting nearest to `wanted`, by ratios."""
    return min(settings, key=lambda s: sum(abs(np.log(s[name] / value)) for name, value in wanted.items()))


def grid_table(result: Any, rates: list[float], clips: list[float]) -> str:
    """Learning rates down, clipping ranges across."""
    rows = [
        [f"{rate:.2e}", *(text_of(result.interquartile_mean(learning_rate=rate, clip_eps=c), 1) for c in clips)]
        for rate in rates
    ]
    return markdown(["learning_rate", *(f"clip_eps = {clip:g}" for clip in clips)], rows)


def compared(result: Any, best: Any, default: dict[str, float], improvement: Estimate) -> str:
    """The best setting, and how likely it improves on the default."""
    found = f"Best setting by mean: {label(best.setting)} with {best.score:.2f}.\n"
    if best.setting == default:
        return found + "It is the setting nearest to the preset.\n"
    return found + (
        f"Probability that a run with it scores higher than one with the setting nearest to the preset "
        f"({label(default)}): {text_of(improvement)}.\nInterquartile mean of that setting: "
        f"{text_of(result.interquartile_mean(**default))}.\n"
    )


def main(options: Options) -> None:
    rates, clips = np.geomspace(1e-4, 1e-2, options.rates).tolist(), list(options.clips)
    ppo = pgjax.tuned("ppo", options.env, total_steps=options.total_steps)
    result = pgjax.sweep(ppo, options.seeds, episodes=options.episodes, learning_rate=rates, clip_eps=clips)
    best = result.best()
    default = nearest_setting(result.settings, {"learning_rate": ppo.learning_rate, "clip_eps": ppo.clip_eps})
    improvement = result.probability_of_improvement(best.setting, default)
    marginals = {axis: result.marginal(axis) for axis in result.axes}
    rows = [[axis, f"{v:.3g}", text_of(e, 1)] for axis, found in marginals.items() for v, e in found.items()]
    steps = int(result.steps[0, -1])
    table = "\n".join(
        [
            f"Interquartile mean of the evaluated return on {options.env} [95 % interval]:\n",
            grid_table(result, rates, clips),
            "Over all settings that share a value:\n",
            markdown(["axis", "value", "interquartile mean [95 % interval]"], rows, 2),
            compared(result, best, default, improvement),
            f"{len(result)} members ({len(result.settings)} settings x {options.seeds} seeds) of {steps:,} env steps, "
            f"{options.episodes} episodes each:\n{result.seconds_compile:.1f} s to compile, {result.seconds_run:.1f} s "
            "to train and evaluate.\n",
        ]
    )
    report = {
        "axes": result.axes,
        "seeds": result.seeds,
        "env_steps": steps,
        "episodes": options.episodes,
        "marginals": {
            axis: [{"value": value, "interquartile_mean": found} for value, found in marginal.items()]
            for axis, marginal in marginals.items()
        },
        "best": {"setting": best.setting, "mean": best.score},
        "nearest_to_preset": default,
        "probability_of_improvement": improvement,
        "seconds_compile": result.seconds_compile,
        "seconds_run": result.seconds_run,
        "settings": settings_report(result),
    }
    write_report(options.out, table, ppo, report)
    for path in result.plot(options.out / "sweep_ppo"):
        if path.suffix != ".png":
            path.unlink()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
