"""The score function has mean zero, so a baseline that depends on the state adds no bias; it changes the variance.

    python experiments/score_function.py

For a table policy in a small MDP and an MLP on CartPole-v1, from many fresh batches of episodes: the mean of
grad log pi(a|s), and how the mean and the variance of the policy gradient change when something is subtracted from the
reward-to-go. A baseline that depends on the action is the control that the test must find out. Writes
score_function.json (config and every figure), score_function.md (table) and score_function.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, text_of, write_report
from scipy import integrate, stats
from tabular import (
    Setting,
    cartpole,
    credited,
    interval,
    moments,
    random_logits,
    random_mdp,
    resampled,
    sample_gradients,
    tabular,
    values,
)

from pgjax.learning.rollout import Transition
from pgjax.reporting.statistics import Estimate
from pgjax.running.config import to_config

SCORE = "score alone"
NONE = "no baseline"
NOTES = """\
Mean of the score, and of the gradient with a baseline less the gradient without, batch by batch: its largest coordinate
in standard errors; beside it the same with a random sign for every batch, on average and in 95 of 100 cases, and the
average for as many independent standard normal numbers. Where a baseline is the same number in every sample of a
coordinate (a constant, or for a table any function of the state), the change is that number times the score, and so are
its standard errors.
"""
CONTROL = "V(s) where the action is 0 (control)"


@dataclasses.dataclass(frozen=True)
class Options:
    episodes: Annotated[int, tyro.conf.arg(help="episodes per batch")] = 16
    tabular_batches: Annotated[int, tyro.conf.arg(help="batches in the tabular MDP")] = 16_000
    batches: Annotated[int, tyro.conf.arg(help="batches on CartPole-v1")] = 4000
    limit: Annotated[int, tyro.conf.arg(help="most steps of an episode of CartPole-v1")] = 100
    iterations: Annotated[int, tyro.conf.arg(help="iterations of PPO that train the policy on CartPole-v1")] = 3
    fit_iterations: Annotated[int, tyro.conf.arg(help="iterations of the regression of its value")] = 60
    resamples: Annotated[int, tyro.conf.arg(help="bootstrap samples of the batches")] = 500
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def baselines(constant: float, batch: Transition) -> dict[str, jnp.ndarray]:
    """All but the last are independent of the action, given the state."""
    value = batch.value
    return {
        NONE: jnp.zeros_like(value),
        "constant": jnp.full_like(value, constant),
        "V(s)": value,
        "-V(s)": -value,
        CONTROL: jnp.where(batch.action == 0, value, 0.0),
    }


def weights(setting: Setting, constant: float, batch: Transition) -> jnp.ndarray:
    """Of the score alone, and of the reward-to-go less each baseline."""
    found = [
        credited(setting, batch._replace(value=baseline), baseline="value")
        for baseline in baselines(constant, batch).values()
    ]
    _, counted = found[0]
    return jnp.stack([counted, *(weight for weight, _ in found)])


NAMES = [SCORE, NONE, "constant", "V(s)", "-V(s)", CONTROL]


class Deviation(NamedTuple):
    """The largest of all coordinates of |mean| over its standard error, and what chance alone gives."""

    worst: float
    coordinates: int
    independent: float
    """The mean of the largest of so many independent standard normal numbers."""
    by_chance: float
    """The mean of the largest where every batch has a random sign: as dependent as the coordinates are."""
    limit: float
    """Which that exceeds with probability 0.05."""


def deviation(rows: np.ndarray, flips: int = 200) -> Deviation:
    """Of `rows` [batches, parameters], from zero, in the coordinates that vary."""
    mean, spread = rows.mean(0, dtype=np.float64), rows.std(0, ddof=1, dtype=np.float64)
    varies = spread > 0
    unit = ((rows - mean.astype(np.float32))[:, varies] / spread[varies]).astype(np.float32) / np.sqrt(len(rows))
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (flips, len(rows)))
    chance = np.abs(signs @ unit).max(1)
    n = int(varies.sum())
    independent, _ = integrate.quad(lambda x: 1.0 - (2.0 * stats.norm.cdf(x) - 1.0) ** n, 0.0, 10.0)
    worst = np.max(np.abs(mean[varies]) / spread[varies]) * np.sqrt(len(rows))
    return Deviation(float(worst), n, independent, float(chance.mean()), float(np.quantile(chance, 0.95)))


class Found(NamedTuple):
    """In one setting, by the names of baselines."""

    setting: Setting
    batches: int
    deviations: dict[str, Deviation]
    """Of the score from zero, and of the gradient with each baseline from that without, batch by batch."""
    variances: dict[str, Estimate]
    ratios: dict[str, Estimate]
    """Of the variance with each baseline to that without."""


def examine(setting: Setting, batches: int, resamples: int, chunk: int) -> Found:
    start = setting.state.rollout
    _, output = setting.algorithm.actor(setting.state).act((), start.obs, start.reset)
    constant = float(jnp.mean(output.value))
    rows = dict(
        zip(
            NAMES,
            sample_gradients(setting, lambda batch: weights(setting, constant, batch), batches, seed=7, chunk=chunk),
            strict=True,
        )
    )
    score, gradients = rows.pop(SCORE), rows
    drawn = resampled(batches, resamples)
    spread = {name: moments(drawn, each).variance for name, each in gradients.items()}
    return Found(
        setting,
        batches,
        {SCORE: deviation(score)}
        | {name: deviation(each - gradients[NONE]) for name, each in gradients.items() if name != NONE},
        {name: interval(each) for name, each in spread.items()},
        {name: interval(each / spread[NONE]) for name, each in spread.items()},
    )


def deviations_table(found: list[Found]) -> str:
    rows = [
        [
            result.setting.name,
            name,
            "biased" if off.worst > off.limit else "zero",
            *(f"{x:.2f}" for x in (off.worst, off.by_chance, off.limit, off.independent)),
            str(off.coordinates),
        ]
        for result in found
        for name, off in result.deviations.items()
    ]
    header = ["policy", "mean of", "verdict", "worst coordinate", "by chance", "95 % by chance below", "independent"]
    return markdown([*header, "coordinates"], rows, text_columns=3)


def variances_table(found: list[Found]) -> str:
    rows = [
        [result.setting.name, name, str(result.variances[name]), text_of(result.ratios[name], 3)]
        for result in found
        for name in result.variances
    ]
    return markdown(["policy", "baseline", "variance", "ratio to none"], rows, text_columns=2)


def plot(found: list[Found], path: Path) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(13, 4), layout="constrained")
    for i, (result, color) in enumerate(zip(found, ("tab:blue", "tab:orange"), strict=True)):
        names = list(result.deviations)
        worst = [result.deviations[name].worst for name in names]
        at = np.arange(len(names)) + 0.2 * (i - 0.5)
        left.plot(worst, at, "o", color=color, label=result.setting.name)
        limits = [result.deviations[name].limit for name in names]
        left.plot(limits, at, "|", color=color, markersize=12, label="95 % by chance below")
        names = list(result.ratios)
        value, low, high = np.array([result.ratios[name] for name in names]).T
        at = np.arange(len(names)) + 0.2 * (i - 0.5)
        right.errorbar(
            value, at, xerr=[value - low, high - value], fmt="o", color=color, capsize=3, label=result.setting.name
        )
    changes = [name if name == SCORE else f"change by {name}" for name in found[0].deviations]
    left.set_yticks(range(len(changes)), changes)
    left.set(xscale="log", xlabel="largest coordinate of the mean, in standard errors", title="Is the mean zero?")
    left.set_xticks([1, 3, 10, 30, 100, 300], ["1", "3", "10", "30", "100", "300"])
    right.set_yticks(range(len(found[0].ratios)), list(found[0].ratios))
    right.axvline(1.0, color="black", linewidth=0.8)
    right.set(xscale="log", xlabel="relative to no baseline", title="Variance of the gradient")
    right.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["1/4", "1/2", "1", "2", "4", "8"])
    for panel in (left, right):
        panel.xaxis.set_minor_formatter("")
        panel.invert_yaxis()
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def report_of(result: Found) -> dict[str, Any]:
    return {
        "config": to_config(result.setting.algorithm),
        "about": result.setting.about,
        "batches": result.batches,
        "deviations": {name: off._asdict() for name, off in result.deviations.items()},
        "variances": result.variances,
        "ratios": result.ratios,
    }


def main(options: Options) -> None:
    mdp, logits = random_mdp(0), random_logits(1)
    table_policy = tabular(options.episodes, mdp, logits, values(mdp, logits))
    mlp = cartpole(options.episodes, options.limit, options.iterations, options.fit_iterations)
    found = [
        examine(table_policy, options.tabular_batches, options.resamples, chunk=64),
        examine(mlp, options.batches, options.resamples, chunk=8),
    ]
    batches = "\n".join(
        f"{result.setting.name}: {result.batches:,} batches of {options.episodes} episodes; {result.setting.about}.\n"
        for result in found
    )
    table = "\n".join(
        [
            batches,
            NOTES,
            deviations_table(found),
            "Variance of the gradient (trace of the covariance over batches), with 95 % bootstrap intervals:\n",
            variances_table(found),
        ]
    )
    report = {
        "options": {key: value for key, value in dataclasses.asdict(options).items() if key != "out"},
        "settings": {result.setting.name: report_of(result) for result in found},
    }
    write_report(options.out, table, mlp.algorithm, report)
    plot(found, options.out / "score_function.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
