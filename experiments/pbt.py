"""Does a search beat drawing at random? PBT and successive halving against random search, at equal environment steps.

    python experiments/pbt.py                          # Acrobot-v1, 10 repetitions of each
    python experiments/pbt.py --env CartPole-v1

A repetition is a search of its own, with its own settings and keys. Each method trains within the same number of
environment steps and picks the member with the highest return in training; what counts is that member's greedy
evaluation. Writes pbt.json (config and every repetition's figures), pbt.md (the table) and pbt.png (the best return
against environment steps spent, and what PBT did to the hyperparameters in its first repetition).
"""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from common import band, markdown, pyplot, text_of, write_report
from matplotlib.ticker import EngFormatter

import pgjax
from pgjax.reporting.statistics import interquartile_mean, probability_of_improvement
from pgjax.sweeping.search import curve_mean

AXES = {
    "learning_rate": pgjax.log_uniform(1e-5, 1e-1),
    "ent_coef": pgjax.log_uniform(1e-4, 1e-1),
    "gae_lambda": pgjax.uniform(0.8, 1.0),
    "clip_eps": pgjax.uniform(0.05, 0.5),
}
NAMES = {"random": "random search", "pbt": "population-based training", "halving": "successive halving"}
COLOURS = {"random": "tab:gray", "pbt": "tab:blue", "halving": "tab:orange"}


@dataclasses.dataclass(frozen=True)
class Options:
    env: Annotated[str, tyro.conf.arg(help="environment")] = "Acrobot-v1"
    repetitions: Annotated[int, tyro.conf.arg(help="independent searches per method")] = 10
    population: Annotated[int, tyro.conf.arg(help="members of random search and PBT")] = 16
    total_steps: Annotated[int, tyro.conf.arg(help="environment steps of a whole run")] = 131_072
    num_envs: Annotated[int, tyro.conf.arg(help="environments of each member")] = 16
    num_steps: Annotated[int, tyro.conf.arg(help="steps of each environment per iteration")] = 128
    lr_schedule: Annotated[Literal["linear", "constant"], tyro.conf.arg(help="learning rate over the run")] = "linear"
    every: Annotated[int, tyro.conf.arg(help="PBT: points of the curve between changes")] = 5
    last: Annotated[int, tyro.conf.arg(help="points of the training curve that a member is picked by")] = 4
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes of the member that was picked")] = 128
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


class Method(NamedTuple):
    search: pgjax.PBT | pgjax.SuccessiveHalving | None
    settings: int


class Found(NamedTuple):
    """What one search gave."""

    setting: dict[str, float]
    """Of the member that it picks; of PBT as it ended."""
    training_return: float
    evaluated_return: float
    env_steps: int
    seconds: float
    spent: np.ndarray
    """`[points]`: environment steps of all members together."""
    best: np.ndarray
    """`[points]`: the highest training return so far, a mean over the last points; NaN before there is one."""


def halving_steps(search: pgjax.SuccessiveHalving, settings: int, ppo: pgjax.PPO) -> int:
    """Environment steps that successive halving takes with this many settings."""
    points = min(100, ppo.num_iterations)
    ends = [round(ppo.num_iterations * end / points) for end in search.ends(points)]
    iterations, alive = 0, settings
    for start, end in itertools.pairwise([0, *ends]):
        iterations += alive * (end - start)
        alive = -(-alive // search.eta)
    return iterations * ppo.steps_per_iteration


def methods(ppo: pgjax.PPO, options: Options) -> dict[str, Method]:
    """All within the steps of random search; successive halving with as many settings as that allows."""
    budget = options.population * ppo.num_iterations * ppo.steps_per_iteration
    halving = pgjax.SuccessiveHalving(eta=3, rungs=2, last=options.last)
    settings = next(n for n in itertools.count(1) if halving_steps(halving, n + 1, ppo) > budget)
    return {
        "random": Method(None, options.population),
        "pbt": Method(pgjax.PBT(every=options.every), options.population),
        "halving": Method(halving, settings),
    }


def searched(ppo: pgjax.PPO, method: Method, seed: int, options: Options) -> tuple[Found, Any]:
    start = time.perf_counter()
    result = pgjax.sweep(
        ppo,
        mode="random",
        num_samples=method.settings,
        seed=seed,
        search=method.search,
        episodes=options.episodes,
        progress=False,
        **AXES,
    )
    picked = result.best("return_mean", options.last)
    (member,) = picked.members
    spent, best = best_so_far(result, options.last)
    found = Found(
        setting={name: float(getattr(result.algorithms[member], name)) for name in AXES},
        training_return=picked.score,
        evaluated_return=float(result.scores["return_mean"][member]),
        env_steps=int(spent[-1]),
        seconds=time.perf_counter() - start,
        spent=spent,
        best=best,
    )
    return found, result


def best_so_far(result: Any, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps spent by all members together, and the best trailing training return, `[points]` each."""
    curves = result.curves["return_mean"]
    points = np.arange(1, curves.shape[1] + 1)
    training = points <= result.reached[:, None]
    final = np.take_along_axis(result.steps, result.reached[:, None] - 1, axis=1)
    spent = np.where(training, result.steps, final).sum(axis=0)
    trailing = np.stack([curve_mean(curves[:, max(0, p - last) : p], last) for p in points], axis=1)
    known = training & np.isfinite(trailing) & (result.failed < 0)[:, None]
    best = np.maximum.accumulate(np.where(known, trailing, -np.inf).max(axis=0))
    return spent, np.where(np.isfinite(best), best, np.nan)


def evaluated(found: list[Found]) -> np.ndarray:
    return np.array([each.evaluated_return for each in found])


def make_table(found: dict[str, list[Found]], chosen: dict[str, Method], options: Options) -> str:
    rows = [
        [
            NAMES[name],
            str(chosen[name].settings),
            f"{each[0].env_steps:,}",
            text_of(interquartile_mean(evaluated(each))),
            f"{evaluated(each).min():.2f}",
            f"{evaluated(each).max():.2f}",
            ""
            if name == "random"
            else text_of(probability_of_improvement([evaluated(each)], [evaluated(found["random"])])),
            f"{np.median([f.seconds for f in each[1:] or each]):.1f}",
        ]
        for name, each in found.items()
    ]
    header = ["method", "settings", "env steps", "interquartile mean [95 % interval]", "min", "max"]
    return markdown([*header, "P(better than random search)", "seconds (median)"], rows) + (
        f"\n{options.env}, {options.repetitions} repetitions of each search; the return is that of the member with the "
        f"best training return,\nevaluated greedily over {options.episodes} episodes. Seconds leave out the first "
        "repetition, which compiles.\n"
    )


def plot(found: dict[str, list[Found]], result: Any, options: Options) -> None:
    """How far each method has come, and the hyperparameters of one PBT `result`."""
    figure = pyplot().figure(figsize=(12, 4.8), layout="constrained")
    grid = figure.add_gridspec(2, 4)
    draw_progress(figure.add_subplot(grid[:, :2]), found, options.env)
    last = curve_mean(result.curves["return_mean"], options.last)
    ranks = np.argsort(np.argsort(np.where(np.isfinite(last), last, -np.inf))) / max(1, len(last) - 1)
    for i, (name, schedule) in enumerate(result.schedules.items()):
        panel = figure.add_subplot(grid[i // 2, 2 + i % 2])
        for row in np.argsort(ranks):
            panel.step(result.steps[row], schedule[row], color=pyplot().get_cmap("viridis")(ranks[row]), linewidth=1)
        panel.set_yscale("log" if AXES[name].kind == "log_uniform" else "linear")
        panel.set_title(f"PBT: {name}" + " (yellow: best at the end)" * (i == 0), fontsize=9)
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set_xlabel("env steps of a member", fontsize=8)
    figure.savefig(options.out / "pbt.png", dpi=110)


def draw_progress(panel: Any, found: dict[str, list[Found]], env: str) -> None:
    """Medians and quartiles over repetitions, and on the right the figure of each repetition."""
    right = max(each[0].env_steps for each in found.values())
    for i, (name, each) in enumerate(found.items()):
        steps, spread = each[0].spent, band(np.stack([f.best for f in each]))
        panel.plot(steps, spread.median, color=COLOURS[name], label=NAMES[name])
        panel.fill_between(steps, spread.low, spread.high, color=COLOURS[name], alpha=0.2, linewidth=0)
        panel.plot([right * (1.04 + 0.04 * i)] * len(each), evaluated(each), "o", color=COLOURS[name], markersize=4)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.axvline(right, color="0.8", linewidth=0.8)
    panel.set(xlabel="environment steps of all members together", ylabel="best training return so far")
    panel.set_title(f"{env}: medians and quartiles of {len(each)} searches; dots: evaluated in the end", fontsize=9)
    panel.legend(fontsize=8)


def main(options: Options) -> None:
    ppo = pgjax.tuned(
        "ppo",
        options.env,
        total_steps=options.total_steps,
        num_envs=options.num_envs,
        num_steps=options.num_steps,
        lr_schedule=options.lr_schedule,
    )
    chosen = methods(ppo, options)
    found: dict[str, list[Found]] = {name: [] for name in chosen}
    first: dict[str, Any] = {}
    for seed in range(options.repetitions):
        for name, method in chosen.items():
            one, result = searched(ppo, method, seed, options)
            found[name].append(one)
            first.setdefault(name, result)
            print(
                f"repetition {seed}, {NAMES[name]}: {one.env_steps:,} env steps in {one.seconds:.1f} s, "
                f"training {one.training_return:.2f}, evaluated {one.evaluated_return:.2f}",
                flush=True,
            )
    report = {
        "options": {k: v for k, v in dataclasses.asdict(options).items() if k != "out"},
        "axes": {name: str(axis) for name, axis in AXES.items()},
        "seeds": list(range(options.repetitions)),
        "methods": {
            name: {
                "search": method.search and dataclasses.asdict(method.search),
                "settings": method.settings,
                "env_steps": found[name][0].env_steps,
                "interquartile_mean": interquartile_mean(evaluated(found[name])),
                "probability_of_improvement_over_random": probability_of_improvement(
                    [evaluated(found[name])], [evaluated(found["random"])]
                ),
                "repetitions": [each._asdict() for each in found[name]],
            }
            for name, method in chosen.items()
        },
        "pbt_schedules_of_first_repetition": {"steps": first["pbt"].steps[0]} | first["pbt"].schedules,
    }
    write_report(options.out, make_table(found, chosen, options), ppo, report)
    plot(found, first["pbt"], options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
