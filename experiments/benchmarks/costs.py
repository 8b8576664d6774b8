"""What the parts of a run cost that a loop could do without: normalisers, bootstrapping at time limits, files.

    python experiments/benchmarks/costs.py

PPO on CartPole, 64 environments, 128 steps. `step`: iterations of variants of one algorithm, by the programs of
`pgjax.run`, alternated in one process. `limit counted as death` never asks for the value of an observation that the
next step does not see; CartPole has a limit of 100 steps here, so that episodes are often cut. `run`: whole runs of
2,000,000 steps with and without a directory at default settings, that is with metrics, and with checkpoints and
evaluations when the clock says so and at the end, compiling not counted. Writes costs.json (config and every timing)
and costs.md.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from harness import RESULTS, compiled_iterations, markdown, quartiles, report

import pgjax
from pgjax.core.hyperparameters import TRACED, pytree
from pgjax.environments.base import TimeStep


@dataclasses.dataclass(frozen=True)
class Options:
    repetitions: Annotated[int, tyro.conf.arg(help="timings of each variant, alternated")] = 15
    iterations: Annotated[int, tyro.conf.arg(help="iterations of a timing")] = 16
    runs: Annotated[int, tyro.conf.arg(help="runs with and without a directory, alternated")] = 5
    total_steps: Annotated[int, tyro.conf.arg(help="environment steps of a run")] = 2_000_000
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = RESULTS


@pytree
class LimitAsDeath:
    """An environment whose time limit terminates."""

    inner: Annotated[Any, TRACED]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def step(self, key: Any, state: Any, action: Any) -> TimeStep:
        after = self.inner.step(key, state, action)
        return after._replace(terminated=after.terminated | after.truncated, truncated=after.truncated & False)


def variants() -> dict[str, pgjax.PPO]:
    short = pgjax.make("CartPole-v1", max_steps_in_episode=100)
    base = pgjax.PPO(short)
    return {
        "PPO": base,
        "PPO again": dataclasses.replace(base, normalize_obs=False),
        "normalize_obs": dataclasses.replace(base, normalize_obs=True),
        "normalize_reward": dataclasses.replace(base, normalize_reward=True),
        "limit counted as death": dataclasses.replace(base, env=LimitAsDeath(short)),
    }


def timed_steps(options: Options) -> dict[str, list[float]]:
    programs = {name: compiled_iterations(ppo, 1, options.iterations) for name, ppo in variants().items()}
    states = {name: program.state for name, program in programs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(options.repetitions + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            states[name] = jax.block_until_ready(program.run(states[name])[0])
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def timed_runs(options: Options) -> dict[str, list[float]]:
    ppo = pgjax.PPO(pgjax.make("CartPole-v1"), total_steps=options.total_steps)
    seconds: dict[str, list[float]] = {"without a directory": [], "with a directory": []}
    for _ in range(options.runs):
        seconds["without a directory"].append(pgjax.run(ppo, progress=False).seconds_run)
        with tempfile.TemporaryDirectory() as directory:
            seconds["with a directory"].append(pgjax.run(ppo, 0, directory + "/run", progress=False).seconds_run)
    return seconds


def rows(seconds: dict[str, list[float]]) -> list[list[str]]:
    """Medians, quartiles, and the median of the ratios to what was timed just before."""
    first, *_ = seconds.values()
    found = []
    for name, times in seconds.items():
        middle = quartiles(times)
        ratio = quartiles(a / b for a, b in zip(times, first, strict=True))
        shown = [f"{100 * (x - 1):+.1f} %" for x in (ratio["median"], ratio["low"], ratio["high"])]
        spread = f"{middle['median']:.3f} [{middle['low']:.3f}, {middle['high']:.3f}]"
        found.append([name, spread, f"{shown[0]} [{shown[1]}, {shown[2]}]"])
    return found


def main(options: Options) -> None:
    steps, runs = timed_steps(options), timed_runs(options)
    header = [f"{options.iterations} iterations", "seconds, median [quartiles]", "against the first [quartiles]"]
    tables = [markdown(header, rows(steps))]
    tables.append(markdown([f"runs of {options.total_steps:,} steps", *header[1:]], rows(runs)))
    plain = {"PPO": pgjax.PPO(pgjax.make("CartPole-v1"), total_steps=options.total_steps)}
    report(options.out, "\n".join(tables), plain, {"steps": steps, "runs": runs})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
