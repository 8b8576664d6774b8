"""What a long run costs those who look at it: seconds and memory of each command, after 1,000 and 1,000,000 iterations.

    python experiments/benchmarks/long_runs.py       # about five minutes

A tiny PPO trains in a process of its own, once for each length, and what it holds is read after a tenth of the
iterations and at the end. Then each command runs three times on its directory, alternating between the two, and the
medians of wall time and of the largest resident memory stand side by side. Programs come from a compilation cache that
is warm.

Writes long_runs.json and long_runs.md.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from harness import RESULTS, markdown, report

import pgjax

MAIN = "import sys; from pgjax.commands.cli import main; sys.exit(main())"


@dataclasses.dataclass(frozen=True)
class Options:
    iterations: Annotated[tuple[int, int], tyro.conf.arg(help="lengths of the two runs")] = (1_000, 1_000_000)
    repeats: Annotated[int, tyro.conf.arg(help="runs of each command")] = 3
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = RESULTS


def algorithm(iterations: int) -> Any:
    """Iterations that cost next to nothing, so that what is kept of them is what counts."""
    small: Any = {"num_envs": 2, "num_steps": 4, "num_minibatches": 1, "num_epochs": 1}
    return pgjax.PPO(pgjax.make("CartPole-v1"), pgjax.MLP(hidden=(4,)), total_steps=8 * iterations, **small)


def train(iterations: int, directory: str) -> None:
    """In a child: prints what it holds in MB after a tenth, and at the end."""
    held: list[tuple[int, float]] = []

    def look(progress: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        held.append((progress.iteration, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))

    pgjax.run(algorithm(iterations), 0, directory, episodes=4, progress=False, callback=look)
    print(next(mb for iteration, mb in held if iteration >= iterations / 10), held[-1][1])


MEASURE = """
import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6)
"""
"""A small process between: what a child holds counts from its fork on, when it is still a copy of its parent."""


def measured(*arguments: str) -> tuple[float, float]:
    """Seconds and MB of a command in a process of its own."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-c", MAIN, *arguments]
    seconds, mb = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(mb)


def main(options: Options) -> None:
    found: dict[str, Any] = {"runs": {}, "commands": {}}
    with tempfile.TemporaryDirectory() as base:
        os.environ["XDG_CACHE_HOME"] = f"{base}/cache"
        runs = {n: Path(base) / str(n) / "run" for n in options.iterations}
        for n, run in runs.items():
            began = time.perf_counter()
            child = [sys.executable, __file__, "--child", str(n), str(run)]
            first, last = map(float, subprocess.run(child, capture_output=True, text=True, check=True).stdout.split())
            size = (run / "metrics.jsonl").stat().st_size / 1e6
            seconds = time.perf_counter() - began
            found["runs"][n] = {
                "seconds": seconds,
                "mb_after_a_tenth": first,
                "mb_at_the_end": last,
                "metrics_mb": size,
            }
        commands = {
            "list": lambda run: ("list", str(run.parent)),
            "plot": lambda run: ("plot", str(run), "--out", f"{base}/curve"),
            "evaluate": lambda run: ("evaluate", str(run)),
            "resume": lambda run: ("resume", str(run)),
        }
        for name, of in commands.items():
            for run in runs.values():
                measured(*of(run))  # fills the cache
            costs: dict[int, list[tuple[float, float]]] = {n: [] for n in runs}
            for _ in range(options.repeats):
                for n, run in runs.items():
                    costs[n].append(measured(*of(run)))
            found["commands"][name] = {n: np.median(each, axis=0).tolist() for n, each in costs.items()}
    short, long = options.iterations
    rows = []
    for name, each in found["commands"].items():
        (seconds, mb), (long_seconds, long_mb) = each[short], each[long]
        rows.append([name, f"{seconds:.2f}", f"{long_seconds:.2f}", f"{mb:.0f}", f"{long_mb:.0f}"])
    header = ["command", *(f"s, {n:,} iterations" for n in runs), *(f"MB, {n:,} iterations" for n in runs)]
    of_long = found["runs"][long]
    text = (
        f"{markdown(header, rows)}\nThe long run took {of_long['seconds']:.0f} s, wrote {of_long['metrics_mb']:.0f} MB "
        f"of metrics, and held {of_long['mb_after_a_tenth']:.0f} MB after a tenth of it and "
        f"{of_long['mb_at_the_end']:.0f} MB at its end.\n"
    )
    report(options.out, text, {"ppo": algorithm(long)}, found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        train(int(sys.argv[2]), sys.argv[3])
    else:
        main(tyro.cli(Options, description=__doc__))
