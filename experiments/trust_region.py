"""How far does one iteration move the policy, and how far may it? KL divergence and return as steps grow bolder.

    python experiments/trust_region.py

On CartPole: PPO with each objective over its number of epochs and its learning rate, the natural gradient over the
radius `max_kl` and over its learning rate, TRPO over `max_kl`. The KL divergence E[KL(pi_old || pi_new)] is exact, over
the states of the iteration's own batch, and computed here from the parameters before and after the iteration. Learning
rates are constant, so that every iteration is as bold as the others.

Writes trust_region.json (configs and every seed's figures), trust_region.md (tables) and trust_region.png.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, text_of, write_report

import pgjax
from pgjax.algorithms.npg import NPG
from pgjax.algorithms.on_policy import collect
from pgjax.algorithms.trpo import TRPO
from pgjax.core.hyperparameters import pytree
from pgjax.networks.distributions import Distribution
from pgjax.reporting.statistics import Estimate, interquartile_mean
from pgjax.running.config import to_config

ENV = "CartPole-v1"
BROKEN = 0.75
"""A setting is broken if its whole interval lies below this share of its method's best."""
COLLECTING = {"num_envs": 16, "num_steps": 128, "lr_schedule": "constant"}
OBJECTIVES = {
    "PPO, no constraint (cpi)": {"objective": "cpi"},
    "PPO, clipped": {"objective": "clip"},
    "PPO, KL penalty": {"objective": "kl_penalty"},
    "PPO, adaptive KL penalty": {"objective": "kl_penalty", "adaptive_kl": 0.01},
}
PANELS = {
    "PPO: epochs": "num_epochs",
    "PPO: learning rate": "learning_rate",
    "NPG and TRPO: radius": "max_kl",
    "NPG: learning rate": "learning_rate",
}
"""What is drawn side by side, and the hyperparameter that grows there."""


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: Annotated[int, tyro.conf.arg(help="seeds per setting")] = 10
    total_steps: Annotated[int, tyro.conf.arg(help="environment steps per member")] = 81_920
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes per member")] = 128
    epochs: Annotated[tuple[int, ...], tyro.conf.arg(help="epochs of PPO")] = (1, 2, 4, 8, 16, 32)
    rates: Annotated[tuple[float, ...], tyro.conf.arg(help="learning rates of PPO")] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    radii: Annotated[tuple[float, ...], tyro.conf.arg(help="values of max_kl")] = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1)
    natural_rates: Annotated[tuple[float, ...], tyro.conf.arg(help="learning rates of NPG")] = (0.1, 0.3, 1, 3, 10)
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


class Measured:
    """An algorithm whose metrics have `policy_kl` as well."""

    def step(self, state: Any) -> Any:
        after, metrics = super().step(state)
        return after, metrics | {"policy_kl": policy_kl(self, state, after.params)}


@pytree
class MeasuredPPO(Measured, pgjax.PPO):
    pass


@pytree
class MeasuredNPG(Measured, NPG):
    pass


@pytree
class MeasuredTRPO(Measured, TRPO):
    pass


def policy_kl(algorithm: Any, before: Any, new_params: Any) -> jax.Array:
    """E[KL(pi_old || pi_new)] over the batch of an iteration, collected once more with the key of that iteration."""
    rollout_key, _ = jax.random.split(jax.random.fold_in(before.key, before.iteration))
    _, batch, _ = collect(algorithm, before, rollout_key)

    def policy(params: Any) -> Distribution:
        return algorithm.network.unroll(params, before.rollout.memory, batch.obs, batch.reset)[1].distribution

    return jnp.mean(policy(before.params).kl(policy(new_params)))


def measured(algorithm: Any) -> Any:
    kind = {pgjax.PPO: MeasuredPPO, NPG: MeasuredNPG, TRPO: MeasuredTRPO}[type(algorithm)]
    return kind(**{f.name: getattr(algorithm, f.name) for f in dataclasses.fields(algorithm)})


@dataclasses.dataclass(frozen=True)
class Line:
    """A method as one hyperparameter grows."""

    method: str
    panel: str
    algorithm: Any
    values: Sequence[float]
    returns: np.ndarray
    """`[values, seeds]`, evaluated."""
    kl: np.ndarray
    """`[values, seeds, iterations]`."""
    failed: np.ndarray
    """`[values, seeds]`: whether a number was no longer finite."""
    difference: float
    """The most by which `kl` differs from what the algorithm says of itself, if it does."""

    @property
    def axis(self) -> str:
        return PANELS[self.panel]

    @cached_property
    def scores(self) -> list[Estimate]:
        return [interquartile_mean(x) for x in self.returns]

    @cached_property
    def median_kl(self) -> list[Estimate]:
        return [quantile(x, 0.5) for x in self.kl]

    @cached_property
    def high_kl(self) -> list[Estimate]:
        return [quantile(x, 0.95) for x in self.kl]

    @property
    def best(self) -> int:
        return int(np.argmax([score.value for score in self.scores]))

    @property
    def broken(self) -> int | None:
        """The first value beyond the best at which the method is broken."""
        limit = BROKEN * self.scores[self.best].value
        return next((i for i, score in enumerate(self.scores) if i > self.best and score.high < limit), None)


def quantile(kl: np.ndarray, q: float, resamples: int = 2000) -> Estimate:
    """A quantile over seeds and iterations `[seeds, iterations]`, with a 95 % bootstrap interval over seeds."""
    seeds = len(kl)
    drawn = np.random.default_rng(0).integers(seeds, size=(resamples, seeds))
    # Without interpolation, which infinities do not survive.
    found = np.quantile(kl[drawn].reshape(resamples, -1), q, axis=1, method="inverted_cdf")
    low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
    return Estimate(float(np.quantile(kl, q, method="inverted_cdf")), float(low), float(high))


def lines(method: str, algorithm: Any, panels: dict[str, Sequence[float]], options: Options) -> list[Line]:
    """One sweep over the values of each panel's hyperparameter, the others being `algorithm`'s."""
    panels = {panel: sorted(values) for panel, values in panels.items()}
    base = {PANELS[panel]: getattr(algorithm, PANELS[panel]) for panel in panels}
    wanted = {panel: [base | {PANELS[panel]: value} for value in values] for panel, values in panels.items()}
    settings = [dict(pairs) for pairs in dict.fromkeys(tuple(s.items()) for each in wanted.values() for s in each)]
    result = pgjax.sweep(
        measured(algorithm),
        options.seeds,
        mode="zip",
        points=algorithm.num_iterations,
        episodes=options.episodes,
        **{name: [setting[name] for setting in settings] for name in base},
    )
    kl, reported = result.curves["policy_kl"], result.curves.get("kl")
    difference = 0.0 if reported is None else float(np.nanmax(np.abs(kl - reported)))
    # What is no longer finite has left every trust region; its greedy policy still has a return.
    kl = np.nan_to_num(kl, nan=np.inf, posinf=np.inf).reshape(len(settings), options.seeds, -1)
    returns, failed = (x.reshape(len(settings), -1) for x in (result.scores["return_mean"], result.failed >= 0))
    rows = {panel: [settings.index(setting) for setting in each] for panel, each in wanted.items()}
    return [
        Line(method, panel, algorithm, panels[panel], returns[chosen], kl[chosen], failed[chosen], difference)
        for panel, chosen in rows.items()
    ]


def all_lines(options: Options) -> list[Line]:
    ppo = pgjax.tuned("ppo", ENV, total_steps=options.total_steps, learning_rate=3e-3, **COLLECTING)
    common = {"total_steps": options.total_steps, **COLLECTING}
    npg = NPG(ppo.env, **common)
    by_rate = dataclasses.replace(npg, step_rule="learning_rate")
    radii = {"NPG and TRPO: radius": options.radii}
    ppo_panels = {"PPO: epochs": options.epochs, "PPO: learning rate": options.rates}
    found = [
        lines(method, dataclasses.replace(ppo, **changes), ppo_panels, options)
        for method, changes in OBJECTIVES.items()
    ] + [
        lines("NPG", npg, radii, options),
        lines("TRPO", TRPO(ppo.env, **common), radii, options),
        lines("NPG, learning rate", by_rate, {"NPG: learning rate": options.natural_rates}, options),
    ]
    return [line for each in found for line in each]


def kl_text(estimate: Estimate) -> str:
    return "{:.2g} [{:.2g}, {:.2g}]".format(*estimate)


def limits(line: Line) -> list[str]:
    """A row of the table of where methods break."""
    best, broken = line.best, line.broken

    def at(i: int) -> list[str]:
        return [f"{line.values[i]:g}", text_of(line.scores[i], 1), kl_text(line.median_kl[i])]

    breaks = [f"not up to {line.values[-1]:g}", "", ""] if broken is None else at(broken)
    return [line.method, line.axis, *at(best), *breaks]


def tables(found: list[Line]) -> str:
    every = [
        [line.method, f"{line.axis} = {value:g}", text_of(score, 1), kl_text(median), kl_text(high)]
        for line in found
        for value, score, median, high in zip(line.values, line.scores, line.median_kl, line.high_kl, strict=True)
    ]
    header = ["return [95 % interval]", "median KL [95 % interval]"]
    return "\n".join(
        [
            f"Where methods break: the first value beyond the best whose whole interval is below {BROKEN:g} times the "
            "best's return:\n",
            markdown(["method", "grows", "best at", *header, "breaks at", *header], list(map(limits, found)), 2),
            "Every setting, with the KL divergence E[KL(pi_old || pi_new)] per iteration:\n",
            markdown(["method", "setting", *header, "95th percentile of KL [95 % interval]"], every, 2),
        ]
    )


def plot(found: list[Line], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(2, len(PANELS), figsize=(13, 6.5), sharex="col", sharey="row", layout="constrained")
    colors = dict(zip(dict.fromkeys(line.method for line in found), plt.get_cmap("tab10").colors, strict=False))
    for (above, below), (panel, axis) in zip(axes.T, PANELS.items(), strict=True):
        shown = [line for line in found if line.panel == panel]
        values = shown[0].values
        for line in shown:
            draw(above, below, line, colors[line.method])
        if axis == "max_kl":
            below.plot(values, values, color="black", linestyle=":", label="max_kl")
        above.set(title=panel, xscale="log")
        below.set(xlabel=axis, yscale="log")
        below.set_ylim(1e-5)
        below.set_xticks(values, [f"{value:g}" for value in values], fontsize=8)
        below.minorticks_off()
        for each in (above, below):
            each.grid(axis="y", alpha=0.3)
    axes[0, 0].set(ylabel="evaluated return", ylim=(0, None))
    axes[1, 0].set_ylabel("KL per iteration\n(line: median, dashes: 95th percentile)")
    named = {label: handle for row in axes.flat for handle, label in zip(*row.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), fontsize=8, frameon=False)
    figure.suptitle(
        f"{ENV}: interquartile means of returns and quantiles of KL over {found[0].returns.shape[1]} seeds, with 95 % "
        "intervals; crosses: broken",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def draw(above: Any, below: Any, line: Line, color: Any) -> None:
    """A method's return, and below it its KL divergence."""
    for panel, estimates, style in [
        (above, line.scores, "-"),
        (below, line.median_kl, "-"),
        (below, line.high_kl, "--"),
    ]:
        value, low, high = np.array(estimates).T
        label = line.method if panel is above else None
        panel.plot(line.values, value, style, color=color, marker="o", markersize=3, label=label)
        panel.fill_between(line.values, low, high, color=color, alpha=0.15, linewidth=0)
    if line.broken is not None:
        above.plot(line.values[line.broken], line.scores[line.broken].value, color=color, marker="X", markersize=9)


def figures(line: Line) -> dict[str, Any]:
    """Everything known of a method, with the figures of every seed."""
    settings = [
        {
            "value": value,
            "return": line.scores[i],
            "median_kl": line.median_kl[i],
            "95th_percentile_of_kl": line.high_kl[i],
            "seeds": {
                "return": line.returns[i],
                "median_kl": np.quantile(line.kl[i], 0.5, axis=1, method="inverted_cdf"),
                "95th_percentile_of_kl": np.quantile(line.kl[i], 0.95, axis=1, method="inverted_cdf"),
                "not_finite": line.failed[i],
            },
        }
        for i, value in enumerate(line.values)
    ]
    return {
        "method": line.method,
        "config": to_config(line.algorithm),
        "axis": line.axis,
        "best_at": line.values[line.best],
        "breaks_at": None if line.broken is None else line.values[line.broken],
        "settings": settings,
    }


def main(options: Options) -> None:
    found = all_lines(options)
    iterations = found[0].kl.shape[2]
    ppo, difference = found[0].algorithm, max(line.difference for line in found)
    failed, runs = sum(line.failed.sum() for line in found), sum(line.failed.size for line in found)
    table = tables(found) + (
        f"\n{ENV}, {options.seeds} seeds of {iterations} iterations of {ppo.num_envs} x {ppo.num_steps} env steps, "
        f"{options.episodes} greedy episodes each; 500 is the most.\nReturns are interquartile means over seeds, "
        "quantiles of KL are over seeds and iterations; intervals resample seeds. PPO\n"
        f"has {ppo.num_epochs} epochs and learning rate {ppo.learning_rate:g} where these do not grow. A policy that "
        "has become deterministic moves no more: its KL is 0. The KL\nthat PPO with a penalty, NPG and TRPO report of "
        f"themselves differs from this one by {difference:.1g} at most. {failed} of {runs} entries came to\n"
        "numbers that are not finite.\n"
    )
    report = {
        "seeds": list(range(options.seeds)),
        "iterations": iterations,
        "episodes": options.episodes,
        "broken_below": BROKEN,
        "largest_difference_from_reported_kl": difference,
        "lines": [figures(line) for line in found],
    }
    write_report(options.out, table, ppo, report)
    plot(found, options.out / "trust_region.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
