"""The scoreboard: every environment that has a preset, its seeds in one program, beside published figures and chance.

    python experiments/scoreboard.py                                # what is not in the results yet
    python experiments/scoreboard.py --envs CartPole-v1 Catch-bsuite --again
    python experiments/scoreboard.py --algorithm sac

Presets are tuned on seeds from 1000 on; the seeds reported are 0, 1, 2, ... Each row is kept when it is done, so a run
that was cut goes on with the next. Published figures are those of gymnax's README for its agents, of versions 0.x.
`random` is what uniform actions return.

Writes scoreboard.json (every seed, curve, config), scoreboard.md and scoreboard.png.
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import band, draw_band, markdown, pyplot, text_of, write_report

import pgjax
from pgjax.environments.base import Discrete
from pgjax.learning.acting import Actor
from pgjax.networks.network import Output
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config, versions
from pgjax.running.presets import table


class Known(NamedTuple):
    """What is known of an environment beforehand."""

    published: float | None = None
    best: float | None = None
    """The largest mean return that is possible, where it can be told: by optimal_returns.py, by the exact recursion
    over beliefs (the Bernoulli bandit) or states (FrozenLake), or by thinking."""
    episodes: int = 0
    """Of an evaluation, at least: many where the returns of a good policy spread more than those of seeds."""


KNOWN = {
    "CartPole-v1": Known(500.0, 500.0),
    "Acrobot-v1": Known(-80.0),
    "Pendulum-v1": Known(-130.0, -135.8, 1024),
    "MountainCar-v0": Known(-118.0, -98.0),
    "MountainCarContinuous-v0": Known(92.0),
    "Asterix-MinAtar": Known(15.0),
    "Breakout-MinAtar": Known(28.0),
    "Freeway-MinAtar": Known(58.0),
    "SpaceInvaders-MinAtar": Known(131.0),
    "Catch-bsuite": Known(1.0, 1.0),
    "DeepSea-bsuite": Known(None, 0.99),
    "UmbrellaChain-bsuite": Known(1.0, 1.0, 4096),
    "DiscountingChain-bsuite": Known(1.1, 1.1),
    "FourRooms-misc": Known(1.0, 1.0),
    "MetaMaze-misc": Known(32.0),
    "PointRobot-misc": Known(10.0),
    "BernoulliBandit-misc": Known(90.0, 89.4),
    "FrozenLake-misc": Known(None, 0.74),
    "MemoryChain-bsuite": Known(None, 1.0),
    "SimpleBandit-bsuite": Known(None, 0.5, 4096),
    "navix:Navix-Empty-5x5-v0": Known(None, 1.0),
}


@dataclasses.dataclass(frozen=True)
class Options:
    envs: Annotated[tuple[str, ...], tyro.conf.arg(help="some environments; default all that have a preset")] = ()
    algorithm: Annotated[str, tyro.conf.arg(help="whose presets")] = "ppo"
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each, in one program")] = 10
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes per seed; more where returns spread")] = 128
    again: Annotated[bool, tyro.conf.arg(help="also what is in the results already")] = False
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


class Uniform(NamedTuple):
    """Actions at random: choices, or numbers in [-1, 1]."""

    shape: Any
    choices: int
    """0 for numbers."""

    def noise(self, key: jax.Array) -> jax.Array:
        if self.choices:
            return jax.random.randint(key, self.shape.shape, 0, self.choices)
        return jax.random.uniform(key, self.shape.shape, minval=-1.0, maxval=1.0)

    def sample_and_log_prob(self, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        return noise, jnp.zeros(noise.shape[0])

    def env_action(self, action: jax.Array) -> jax.Array:
        return action


@dataclasses.dataclass(frozen=True, eq=False)
class Chance:
    """An algorithm without anything to learn: what `evaluate` needs of one."""

    env: Any

    def actor(self, state: Any) -> Actor:
        space = self.env.action_space
        choices, shape = (space.n, ()) if isinstance(space, Discrete) else (0, space.shape)

        def act(memory: Any, obs: jax.Array, reset: jax.Array) -> tuple[Any, Output]:
            policy: Any = Uniform(jnp.zeros((obs.shape[0], *shape)), choices)
            return memory, Output(policy, jnp.zeros(obs.shape[0]))

        return Actor(lambda batch: (), act)


jax.tree_util.register_dataclass(Chance, data_fields=["env"], meta_fields=[])


def of_chance(env: Any, episodes: int) -> float:
    evaluated = pgjax.evaluate(Chance(env), (), jax.random.key(0), episodes, deterministic=False)  # type: ignore[arg-type]
    return float(evaluated.mean)


def trained(env_id: str, options: Options) -> dict[str, Any]:
    """The row of an environment."""
    algorithm = pgjax.tuned(options.algorithm, env_id)
    episodes = max(options.episodes, KNOWN.get(env_id, Known()).episodes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # budgets that are no whole number of iterations
        result = pgjax.sweep(algorithm, seeds=options.seeds, episodes=episodes, progress=False)
        chance = of_chance(algorithm.env, episodes)
    steps = algorithm.num_iterations * algorithm.steps_per_iteration
    return {
        "env": env_id,
        "algorithm": options.algorithm,
        "steps": steps,
        "returns": np.asarray(result.scores["return_mean"]),
        "random": chance,
        "curve_steps": result.steps[0],
        "curves": result.curves["return_mean"],
        "steps_per_second": steps * options.seeds / result.seconds_run,
        "seconds_compile": result.seconds_compile,
        "seconds_run": result.seconds_run,
        "episodes": episodes,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions(),
        "config": to_config(algorithm),
    }


def line(row: dict[str, Any]) -> list[str]:
    returns, known = np.asarray(row["returns"]), KNOWN.get(row["env"], Known())
    shown = [f"{x:g}" if x is not None else "" for x in (known.published, known.best)]
    return [
        *(
            row["env"],
            row["algorithm"],
            f"{row['steps']:,}",
            text_of(interquartile_mean(returns)),
            f"{returns.min():.2f}",
        ),
        *(*shown, f"{row['random']:.2f}", f"{row['steps_per_second']:,.0f}"),
        *(f"{row['seconds_compile']:.1f}", f"{row['seconds_run']:.1f}"),
    ]


HEADER = [
    *("environment", "algorithm", "env steps", "return", "lowest seed", "published", "best possible", "random"),
    *("steps/s", "compile s", "run s"),
]


def write(options: Options, rows: dict[str, Any]) -> None:
    text = (
        f"{options.seeds} seeds in one program, greedy episodes after the last step: interquartile means with 95 % "
        "intervals. Steps per second are of all seeds together.\n\n"
        + markdown(HEADER, [line(row) for row in rows.values()], 2)
    )
    write_report(options.out, text, None, {"rows": rows})
    columns = min(4, len(rows))
    shape = -(-len(rows) // columns), columns
    figure, panels = pyplot().subplots(
        *shape, figsize=(3.3 * columns, 2.6 * shape[0]), layout="constrained", squeeze=False
    )
    for panel in list(panels.flat)[len(rows) :]:
        panel.remove()
    for row, panel in zip(rows.values(), panels.flat, strict=False):
        curves, steps = np.asarray(row["curves"], float), np.asarray(row["curve_steps"])
        known = np.isfinite(curves).any(axis=0)
        draw_band(panel, steps[known], band(curves[:, known]), row["algorithm"], linewidth=1)
        panel.axhline(row["random"], color="grey", linestyle=":", linewidth=1)
        published = KNOWN.get(row["env"], Known()).published
        if published is not None:
            panel.axhline(published, color="black", linestyle="--", linewidth=1)
        panel.set_title(f"{row['env']}, {row['algorithm']}", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_formatter(pyplot().matplotlib.ticker.EngFormatter(sep=""))
    figure.supxlabel("env steps (dashed: published; dotted: random)", fontsize=9)
    figure.supylabel("return in training", fontsize=9)
    figure.savefig(options.out / "scoreboard.png", dpi=100)


def main(options: Options) -> None:
    kept = options.out / "scoreboard.json"
    rows: dict[str, Any] = json.loads(kept.read_text())["rows"] if kept.exists() else {}
    order = {f"{name} on {env_id}": None for name, of_name in table().items() for env_id in of_name}
    for env_id in options.envs or tuple(table()[options.algorithm]):
        key = f"{options.algorithm} on {env_id}"
        if key not in rows or options.again:
            rows[key] = trained(env_id, options)
            rows = {name: rows[name] for name in order if name in rows}
            write(options, rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
