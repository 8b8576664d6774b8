"""What the tricks of PPO are worth one by one: each switched on or off, the others as the preset has them.

    python experiments/normalisation_ablation.py

Gradient clipping, normalisation of advantages, observations and rewards, reward clipping, orthogonal initialisation,
value clipping and the schedule of the learning rate, on Acrobot and Pendulum with shorter runs than their presets'.
Writes normalisation_ablation.json (configs and every seed's figures), normalisation_ablation.md (tables) and
normalisation_ablation.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from common import markdown, pyplot, text_of, write_report

import pgjax
from pgjax.reporting.statistics import Estimate, interquartile_mean, probability_of_improvement
from pgjax.running.config import to_config

MEASURES = {"final": "final return", "area": "mean return in training"}
"""The greedy return at the end, and the area under the learning curve divided by its length."""


@dataclasses.dataclass(frozen=True)
class Options:
    envs: Annotated[tuple[str, ...], tyro.conf.arg(help="environments, with presets")] = ("Acrobot-v1", "Pendulum-v1")
    total_steps: Annotated[tuple[int, ...], tyro.conf.arg(help="steps per member in each of envs")] = (262_144, 200_704)
    seeds: Annotated[int, tyro.conf.arg(help="seeds per setting")] = 10
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes per member")] = 128
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def changes(base: pgjax.PPO) -> list[dict[str, Any]]:
    """The base itself, then one change at a time."""
    found: list[dict[str, Any]] = [
        {},
        {"max_grad_norm": float("inf")},
        {"normalize_advantage": "batch"},
        {"normalize_advantage": "none"},
        {"normalize_obs": not base.normalize_obs},
        {"normalize_reward": not base.normalize_reward},
        {"orthogonal_init": False},
        {"clip_value": True},
        {"lr_schedule": "constant"},
        {"lr_schedule": "cosine"},
    ]
    # Where the preset leaves rewards alone nearly all are the same, and clipping would only scale them.
    return found + ([{"reward_clip": 1.0}, {"reward_clip": 0.1}] if base.normalize_reward else [])


class Ablation(NamedTuple):
    """One environment; the first change is none."""

    base: pgjax.PPO
    changes: list[dict[str, Any]]
    scores: dict[str, np.ndarray]
    """Of each measure `[changes, seeds]`; NaN where a run was not finite."""
    result: Any

    @property
    def names(self) -> list[str]:
        return [", ".join(f"{k} = {v}" for k, v in change.items()) or "base" for change in self.changes]

    def returns(self, measure: str) -> list[Estimate]:
        return [interquartile_mean(x) for x in self.scores[measure]]

    def improvements(self, measure: str) -> list[Estimate]:
        """Over the base, of each change."""
        base, *others = self.scores[measure]
        return [probability_of_improvement([x], [base]) for x in others]


def ablation(base: pgjax.PPO, seeds: int, episodes: int) -> Ablation:
    """Every change with every seed, in one sweep."""
    chosen = changes(base)
    unchanged = vars(base.network) | vars(base)
    axes = {name: [change.get(name, unchanged[name]) for change in chosen] for each in chosen for name in each}
    result = pgjax.sweep(base, seeds, mode="zip", episodes=episodes, **axes)
    area = result.setting_scores("return_mean", last=result.steps.shape[1])
    return Ablation(base, chosen, {"final": result.setting_scores(), "area": area}, result)


def verdict(improvement: Estimate) -> str:
    if np.isnan(improvement.low):
        return "no interval"
    if improvement.low > 0.5:
        return "better"
    return "worse" if improvement.high < 0.5 else "no difference found"


def table(found: Ablation) -> str:
    header, columns = ["change"], [found.names]
    for measure, name in MEASURES.items():
        improvements = found.improvements(measure)
        header += [f"{name} [95 % interval]", "P(improvement) [95 % interval]", "finding"]
        columns += [
            [text_of(x, 1) for x in found.returns(measure)],
            ["", *(text_of(x) for x in improvements)],
            ["", *(verdict(x) for x in improvements)],
        ]
    base = ", ".join(f"{name} = {getattr(found.base, name)}" for name in ("normalize_obs", "normalize_reward"))
    rows = [list(row) for row in zip(*columns, strict=True)]
    return f"{found.base.env.name}, base: its preset, with {base}\n\n{markdown(header, rows)}"


def plot(found: list[Ablation], path: Path) -> None:
    heights = [len(each.changes) for each in found]
    figure, axes = pyplot().subplots(
        *(len(found), 3),
        figsize=(12, 1.2 + 0.3 * sum(heights)),
        sharey="row",
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for row, each in zip(axes, found, strict=True):
        for panel, (measure, name) in zip(row, MEASURES.items(), strict=False):
            base, *_ = estimates = each.returns(measure)
            draw(panel, range(len(estimates)), estimates, "tab:blue", 0.0)
            panel.axvspan(base.low, base.high, color="tab:blue", alpha=0.15, linewidth=0)
            panel.set_xlabel(name)
        for measure, color, shift in zip(MEASURES, ("tab:blue", "tab:orange"), (-0.15, 0.15), strict=True):
            improvements = each.improvements(measure)
            draw(row[2], range(1, len(each.changes)), improvements, color, shift, MEASURES[measure])
        row[2].axvline(0.5, color="black", linestyle=":")
        row[2].set(xlim=(-0.05, 1.05), xlabel="probability of improvement over the base")
        row[0].set_yticks(range(len(each.names)), each.names)
        row[0].invert_yaxis()
        row[0].set_title(each.base.env.name, loc="left", fontsize=10)
    axes[0, 2].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    figure.suptitle(
        f"PPO with one change at a time: interquartile means of {found[0].scores['final'].shape[1]} seeds "
        "with 95 % intervals; bands: the base",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def draw(panel: Any, rows: range, estimates: list[Estimate], color: str, shift: float, label: str = "") -> None:
    """Figures as dots on the bars of their intervals."""
    value, low, high = np.array(estimates).T
    y = np.array(rows) + shift
    panel.hlines(y, low, high, color=color)
    panel.plot(value, y, "o", color=color, markersize=4, label=label)


def figures(found: Ablation) -> dict[str, Any]:
    estimates = {
        measure: list(
            zip(found.returns(measure), [None, *found.improvements(measure)], found.scores[measure], strict=True)
        )
        for measure in MEASURES
    }
    keys = ("interquartile_mean", "probability_of_improvement", "seeds")
    settings = [
        {"change": name, "config": to_config(found.result.algorithms[i * len(found.result.seeds)])}
        | {MEASURES[measure]: dict(zip(keys, rows[i], strict=True)) for measure, rows in estimates.items()}
        for i, name in enumerate(found.names)
    ]
    return {
        "env": found.base.env.name,
        "env_steps": int(found.result.steps[0, -1]),
        "seconds_compile": found.result.seconds_compile,
        "seconds_run": found.result.seconds_run,
        "settings": settings,
    }


def main(options: Options) -> None:
    found = [
        ablation(pgjax.tuned("ppo", env_id, total_steps=steps), options.seeds, options.episodes)
        for env_id, steps in zip(options.envs, options.total_steps, strict=True)
    ]
    compared = len(MEASURES) * sum(len(each.changes) - 1 for each in found)
    steps = ", ".join(f"{each.result.steps[0, -1]:,} env steps on {each.base.env.name}" for each in found)
    text = "\n".join(table(each) for each in found) + (
        f"\nInterquartile means over {options.seeds} seeds of {steps}; {options.episodes} greedy episodes at the end.\n"
        "The mean return in training is that of all iterations in which an episode ended: the area under the learning "
        "curve by its length.\nP(improvement) is the probability that a run with the change scores higher than one of "
        "the base; no difference is found where its\ninterval includes 0.5. "
        f"Of {compared} such intervals of 95 % about {round(0.05 * compared)} would exclude 0.5 if no change made a "
        "difference. Rewards are clipped only\nwhere the preset scales them: elsewhere nearly all are the same.\n"
    )
    report = {
        "seeds": list(range(options.seeds)),
        "episodes": options.episodes,
        "ablations": [figures(each) for each in found],
    }
    write_report(options.out, text, found[0].base, report)
    plot(found, options.out / "normalisation_ablation.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
