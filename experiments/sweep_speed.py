"""What one program for a whole population saves, against one run after another and one process per run.

    python experiments/sweep_speed.py
    python experiments/sweep_speed.py --devices 1      # the sweep's members on one core

First 64 members (8 learning rates x 8 seeds of PPO on CartPole), trained and evaluated in three ways, each timed as
whole processes that find their programs in a warm compilation cache: `sweep` is one `pgjax.sweep`; `solo` one process
that jits one run and calls it 64 times; `processes` one process per run, as many at a time as there are cores. Then how
many members per second one sweep trains as the population grows. Writes sweep_speed.json (config and every time),
sweep_speed.md (tables) and sweep_speed.png.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from common import markdown, pyplot, write_report

import pgjax
from pgjax.core.cores import count_cores

CORES = count_cores()
WAYS = {
    "sweep": "one sweep",
    "solo": "one run after another, one program",
    "processes": f"one process per run, {CORES} at a time",
}


@dataclasses.dataclass(frozen=True)
class Options:
    rates: Annotated[int, tyro.conf.arg(help="learning rates, from 1e-4 to 1e-2")] = 8
    seeds: Annotated[int, tyro.conf.arg(help="seeds per learning rate")] = 8
    total_steps: Annotated[int, tyro.conf.arg(help="environment steps of a member")] = 491_520
    repetitions: Annotated[int, tyro.conf.arg(help="how often sweep and solo are timed, alternated")] = 3
    process_repetitions: Annotated[int, tyro.conf.arg(help="how often processes are timed")] = 1
    sizes: Annotated[tuple[int, ...], tyro.conf.arg(help="populations of the second part")] = (
        *(2**k for k in range(9)),
    )
    growth_steps: Annotated[int, tyro.conf.arg(help="environment steps of a member in the second part")] = 65_536
    devices: Annotated[int, tyro.conf.arg(help="host devices that a sweep is spread over")] = CORES
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


# What the child processes do. Each returns JSON values.


def learning_rates(count: int) -> list[float]:
    return np.geomspace(1e-4, 1e-2, count).tolist()


def sweep_child(rates: int, seeds: int, total_steps: int) -> dict[str, Any]:
    ppo = pgjax.tuned("ppo", "CartPole-v1", total_steps=total_steps)
    result = pgjax.sweep(ppo, seeds, progress=False, learning_rate=learning_rates(rates))
    return {
        "returns": result.scores["return_mean"].tolist(),
        "seconds_compile": result.seconds_compile,
        "seconds_run": result.seconds_run,
        "devices": jax.device_count(),
    }


@jax.jit
def trained(ppo: pgjax.PPO, key: jax.Array) -> tuple[jax.Array, Any]:
    """One run as a user would write it: its evaluated return and its metrics."""
    state, metrics = pgjax.train(ppo, key)
    return pgjax.evaluate(ppo, state, key).mean, metrics


def solo_child(runs: list[tuple[float, int]], total_steps: int) -> dict[str, Any]:
    """All runs one after another, of one program."""
    ppo = pgjax.tuned("ppo", "CartPole-v1", total_steps=total_steps)
    returns = []
    for rate, seed in runs:
        run = trained(dataclasses.replace(ppo, learning_rate=rate), jax.random.key(seed))
        returns.append(float(jax.block_until_ready(run)[0]))
    return {"returns": returns}


def growth_child(sizes: list[int], total_steps: int) -> dict[str, Any]:
    """For each population the seconds of a second sweep of the same shapes, which compiles nothing."""
    ppo = pgjax.tuned("ppo", "CartPole-v1", total_steps=total_steps)
    seconds = []
    for size in sizes:
        for seed in (0, size):
            start = time.perf_counter()
            pgjax.sweep(ppo, size, seed=seed, progress=False)
            last = time.perf_counter() - start
        seconds.append(last)
        print(f"{size} members: {last:.2f} s", file=sys.stderr, flush=True)
    return {"sweep_seconds": seconds, "devices": jax.device_count()}


def child(function: str, *arguments: Any, cache: str, devices: int = 1) -> dict[str, Any]:
    """Run one of the functions above in a process of its own; its result with the seconds of the whole process."""
    here = str(Path(__file__).parent)
    settings = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # processes may share an accelerator
        "PGJAX_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
    }
    code = f"import json, sys, sweep_speed; print(json.dumps(sweep_speed.{function}(*json.loads(sys.argv[1]))))"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - start}


# What the parent does with them.


def compare(options: Options, cache: str) -> dict[str, list[dict[str, Any]]]:
    """Every timing of the three ways."""
    runs = [(rate, seed) for rate in learning_rates(options.rates) for seed in range(options.seeds)]

    def sweep() -> dict[str, Any]:
        arguments = (options.rates, options.seeds, options.total_steps)
        return child("sweep_child", *arguments, cache=cache, devices=options.devices)

    def solo() -> dict[str, Any]:
        return child("solo_child", runs, options.total_steps, cache=cache)

    def processes() -> dict[str, Any]:
        start = time.perf_counter()
        with ThreadPoolExecutor(CORES) as pool:
            done = list(pool.map(lambda run: child("solo_child", [run], options.total_steps, cache=cache), runs))
        return {"returns": [each["returns"][0] for each in done], "seconds": time.perf_counter() - start}

    sweep()  # both fill the cache
    child("solo_child", runs[:1], options.total_steps, cache=cache)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.repetitions):
        _time(found, "sweep", sweep)
        _time(found, "solo", solo)
    for _ in range(options.process_repetitions):
        _time(found, "processes", processes)
    return found


def _time(found: dict[str, list[dict[str, Any]]], way: str, run: Callable[[], dict[str, Any]]) -> None:
    found[way].append(run())
    print(f"{way}: {found[way][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)


def median(timings: list[dict[str, Any]], what: str = "seconds") -> float:
    return float(np.median([timing[what] for timing in timings]))


def make_table(ways: dict[str, list[dict[str, Any]]], growth: dict[str, Any], steps: int, options: Options) -> str:
    members = options.rates * options.seeds
    fastest = median(ways["sweep"])
    rows = [
        [
            WAYS[way],
            f"{median(timings):.1f}",
            ", ".join(f"{timing['seconds']:.1f}" for timing in timings),
            f"{median(timings) / fastest:.2f}",
            f"{members * steps / median(timings):,.0f}",
            f"{np.mean(timings[0]['returns']):.1f}",
        ]
        for way, timings in ways.items()
        if timings
    ]
    header = [f"{members} members", "median seconds", "all", "times the sweep", "env steps/s", "mean return"]
    split = f"{median(ways['sweep'], 'seconds_compile'):.1f} s to load its programs from the cache and "
    found = [
        [str(size), f"{seconds:.2f}", f"{size / seconds:.2f}", f"{size * growth['steps'] / seconds:,.0f}"]
        for size, seconds in zip(options.sizes, growth["sweep_seconds"], strict=True)
    ]
    return "\n".join(
        [
            markdown(header, rows),
            f"PPO on CartPole-v1, {steps:,} env steps and 128 evaluation episodes per member. Times are of whole "
            f"processes with a warm\ncompilation cache; the sweep's has {split}"
            f"{median(ways['sweep'], 'seconds_run'):.1f} s to train and evaluate. {CORES} cores; the sweep on "
            f"{ways['sweep'][0]['devices']} device(s).\n",
            markdown(["members in one sweep", "seconds", "members/s", "env steps/s"], found, 0),
            f"{growth['steps']:,} env steps per member, evaluation included, nothing compiled; "
            f"{growth['devices']} device(s).\n",
        ]
    )


def plot(ways: dict[str, list[dict[str, Any]]], growth: dict[str, Any], options: Options) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    shown = [way for way in WAYS if ways[way]]
    times = [median(ways[way]) for way in shown]
    bars = left.barh([WAYS[way].replace(", ", ",\n") for way in shown], times, color="tab:blue")
    left.bar_label(bars, [f" {seconds:.0f} s" for seconds in times])
    left.invert_yaxis()
    left.set_xlim(0, 1.2 * max(times))
    left.set(title=f"{options.rates * options.seeds} members", xlabel="seconds")
    rates = np.array(options.sizes) / np.array(growth["sweep_seconds"])
    right.plot(options.sizes, rates, "o-")
    right.set_xscale("log", base=2)
    right.set_xticks(options.sizes, [str(size) for size in options.sizes])
    right.set_ylim(0)
    right.grid(alpha=0.3)
    right.set(title=f"{growth['steps']:,} env steps per member", xlabel="members in one sweep", ylabel="members/s")
    figure.savefig(options.out / "sweep_speed.png", dpi=110)


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as cache:
        ways = compare(options, cache)
        growth = child("growth_child", options.sizes, options.growth_steps, cache=cache, devices=options.devices)
    ppo = pgjax.tuned("ppo", "CartPole-v1", total_steps=options.total_steps)
    short = pgjax.tuned("ppo", "CartPole-v1", total_steps=options.growth_steps)
    growth["steps"] = short.num_iterations * short.steps_per_iteration
    steps = ppo.num_iterations * ppo.steps_per_iteration
    report = {
        "learning_rates": learning_rates(options.rates),
        "seeds": list(range(options.seeds)),
        "cores": CORES,
        "devices_of_the_sweep": options.devices,
        "ways": ways,
        "times_the_sweep": {way: median(t) / median(ways["sweep"]) for way, t in ways.items() if t},
        "growth": growth | {"members": options.sizes},
    }
    write_report(options.out, make_table(ways, growth, steps, options), ppo, report)
    plot(ways, growth, options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
