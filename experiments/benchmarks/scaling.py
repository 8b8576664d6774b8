"""How speed, compiling and memory change as environments, seeds and devices grow, and where growing stops paying.

    python experiments/benchmarks/scaling.py
    python experiments/benchmarks/scaling.py --series envs --repetitions 3

PPO on CartPole with 128 steps per iteration. Each point has a process of its own, which compiles (timed apart) and
warms up; then the processes of a series take turns, one repetition each. Growing stops paying at the first size from
which a doubling gains less than 10 % of throughput; between sizes further apart the gain of a doubling is taken to be
the same. The devices are host devices, on which the same members are spread. Writes scaling.json (config and every
repetition), scaling.md and scaling.png.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Annotated, Any

import tyro
from harness import CORES, RESULTS, Worker, markdown, pyplot, quartiles, report, take_turns

import pgjax
from pgjax.running.config import to_config

WORTH = 0.1
"""The gain of a doubling that still pays."""
POWERS = [2**k for k in range(CORES.bit_length())]
SIZES = {"envs": [4**k for k in range(7)], "seeds": [4**k for k in range(5)], "devices": sorted({*POWERS, CORES})}


@dataclasses.dataclass(frozen=True)
class Options:
    series: Annotated[tuple[str, ...], tyro.conf.arg(help=f"of: {', '.join(SIZES)}")] = tuple(SIZES)
    largest: Annotated[int, tyro.conf.arg(help="leave out larger sizes")] = 4096
    num_envs: Annotated[int, tyro.conf.arg(help="environments where seeds or devices grow")] = 64
    seeds: Annotated[int, tyro.conf.arg(help="members where devices grow")] = 32
    repetitions: Annotated[int, tyro.conf.arg(help="timings of each point, alternated")] = 5
    seconds: Annotated[float, tyro.conf.arg(help="about how long a repetition takes")] = 1.0
    devices: Annotated[
        int | None, tyro.conf.arg(help="host devices where envs or seeds grow; default what jax makes")
    ] = None
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = RESULTS


def make_ppo(num_envs: int) -> pgjax.PPO:
    return pgjax.PPO(pgjax.make("CartPole-v1"), num_envs=num_envs, num_steps=128)


def measure(series: str, options: Options) -> list[dict[str, Any]]:
    workers = {}
    for size in [size for size in SIZES[series] if size <= options.largest]:
        others = {"envs": options.num_envs, "seeds": 1 if series == "envs" else options.seeds}
        chosen = others | {"devices": options.devices} | {series: size}
        config = to_config(make_ppo(chosen["envs"]))
        workers[size] = Worker("harness", config, chosen["seeds"], options.seconds, devices=chosen["devices"])
    take_turns({f"{series} = {size}": each for size, each in workers.items()}, options.repetitions)
    return [
        {
            "size": size,
            "steps_per_second": quartiles(x["steps_per_second"] for x in each.repetitions),
            "cores_busy": quartiles(x["cores_busy"] for x in each.repetitions)["median"],
            "repetitions": each.repetitions,
        }
        | each.facts
        for size, each in workers.items()
    ]


def gains(points: list[dict[str, Any]]) -> list[float]:
    """Of a doubling, from each size to the next."""

    def gain(x: dict[str, Any], y: dict[str, Any]) -> float:
        ratio = y["steps_per_second"]["median"] / x["steps_per_second"]["median"]
        return ratio ** (1.0 / math.log2(y["size"] / x["size"])) - 1.0

    return [gain(x, y) for x, y in itertools.pairwise(points)]


def stops_paying(points: list[dict[str, Any]]) -> int | None:
    """The first size from which a doubling gains less than `WORTH`; None if they all gain more."""
    return next((x["size"] for x, gain in zip(points, gains(points), strict=False) if gain < WORTH), None)


def make_table(found: dict[str, list[dict[str, Any]]]) -> str:
    rows, notes = [], []
    for series, points in found.items():
        for x, gain in zip(points, [None, *gains(points)], strict=True):
            speed = x["steps_per_second"]
            row = [series, str(x["size"]), f"{speed['median']:,.0f} [{speed['low']:,.0f}, {speed['high']:,.0f}]"]
            row += ["" if gain is None else f"{100 * gain:+.0f} %", f"{x['cores_busy']:.2f}"]
            row += [f"{x['seconds_compile']:.1f}"]
            rows.append([*row, f"{x['process_bytes'] / 1e6:,.0f} ({x['program_bytes'] / 1e6:,.1f})"])
        last = stops_paying(points)
        notes.append(
            f"{series}: every doubling gains {100 * WORTH:.0f} % or more up to {points[-1]['size']}."
            if last is None
            else f"{series}: from {last} on a doubling gains less than {100 * WORTH:.0f} %."
        )
    header = ["growing", "size", "env steps/s [quartiles]", "gain of a doubling", "cores busy", "seconds to compile"]
    return "\n".join([markdown([*header, "MB of the process (program)"], rows), "\n".join(notes), ""])


def plot(found: dict[str, list[dict[str, Any]]], out: Path) -> None:
    figure, panels = pyplot().subplots(
        2, len(found), figsize=(3.6 * len(found), 5), layout="constrained", sharex="col", squeeze=False
    )
    for (series, points), (above, below) in zip(found.items(), panels.T, strict=True):
        sizes, speed = [x["size"] for x in points], [x["steps_per_second"] for x in points]
        above.plot(sizes, [x["median"] for x in speed], "o-")
        above.fill_between(sizes, [x["low"] for x in speed], [x["high"] for x in speed], alpha=0.2, linewidth=0)
        last = stops_paying(points)
        if last is not None:
            above.axvline(last, color="tab:gray", linestyle=":", label=f"doubling gains < {100 * WORTH:.0f} %")
            above.legend()
        above.set(title=series, ylabel="env steps per second")
        above.set_ylim(0)
        compiling = below.plot(sizes, [x["seconds_compile"] for x in points], "s-")
        memory = below.twinx()
        memory.set_yscale("log")
        needed = memory.plot(sizes, [x["program_bytes"] / 1e6 for x in points], "^-", color="tab:red")
        below.legend([*compiling, *needed], ["seconds to compile", "MB of the program"])
        below.set(xlabel=series, ylabel="seconds")
        below.set_ylim(0)
        memory.set_ylabel("MB")
        below.set_xscale("log", base=2)
        below.set_xticks(sizes, [str(size) for size in sizes])
    figure.savefig(out / "scaling.png", dpi=110)


def main(options: Options) -> None:
    found = {series: measure(series, options) for series in options.series}
    algorithms = {f"{n} environments": make_ppo(n) for n in sorted({options.num_envs, *SIZES["envs"]})}
    figures = {"series": found, "stops_paying": {series: stops_paying(points) for series, points in found.items()}}
    report(options.out, make_table(found), algorithms, figures)
    plot(found, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
