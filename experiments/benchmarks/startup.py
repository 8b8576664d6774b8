"""From the start of a process to its first finished iteration, and the whole `pgjax train`, cold and warm.

    python experiments/benchmarks/startup.py

Every timing is of a new process that does what `pgjax train ppo --env CartPole-v1` does, with the command line's own
settings of the compilation cache, which is empty (cold) or holds these programs (warm); cold and warm alternate. First
the way to the first iteration, split; its programs are `init` and one `step`. Then the whole command, seconds until it
exits and the figures that it printed. Writes startup.json (config and every timing), startup.md and startup.png.
"""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from harness import RESULTS, markdown, pyplot, quartiles, report

import pgjax

PHASES = ("imports", "algorithm", "tracing", "compiling", "first iteration")
CACHES = {"cold": "empty cache", "warm": "warm cache"}


@dataclasses.dataclass(frozen=True)
class Options:
    repetitions: Annotated[int, tyro.conf.arg(help="processes to the first iteration, cold and warm each")] = 5
    commands: Annotated[int, tyro.conf.arg(help="whole commands, cold and warm each")] = 5
    flags: Annotated[tuple[str, ...], tyro.conf.arg(help="more flags of the whole command, such as --seeds=8")] = ()
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = RESULTS


def output(command: list[str], cache: str) -> str:
    settings = os.environ | {"XDG_CACHE_HOME": cache}
    return subprocess.run(command, env=settings, stdout=subprocess.PIPE, text=True, check=True).stdout


def to_first_iteration(cache: str) -> dict[str, float]:
    """Seconds of each phase and of all."""
    script = str(Path(__file__).with_name("first_iteration.py"))
    seconds = json.loads(output([sys.executable, script, repr(time.time())], cache))
    return dict(zip(PHASES, seconds, strict=True)) | {"seconds": sum(seconds)}


def whole_command(flags: tuple[str, ...], cache: str) -> dict[str, float]:
    """Seconds from the start of the process to its exit, and its last line."""
    program = str(Path(sysconfig.get_path("scripts")) / "pgjax")
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "train", "ppo", "--env", "CartPole-v1", *flags, "--directory", f"{directory}/run"]
        start = time.time()
        printed = output(command, cache)
        seconds = time.time() - start
    last = dict(pair.split("=") for pair in printed.splitlines()[-1].split())
    return {"seconds": seconds} | {name: float(x) for name, x in last.items() if name != "env"}


def timings(run: Callable[[str], dict[str, float]], repetitions: int, what: str) -> dict[str, list[dict[str, float]]]:
    """Of `run(cache)`, cold and warm."""
    found: dict[str, list[dict[str, float]]] = {state: [] for state in CACHES}
    with tempfile.TemporaryDirectory() as warm:
        for i in range(repetitions):
            with tempfile.TemporaryDirectory() as cold:
                found["cold"].append(run(cold if i else warm))  # the first one fills what the others find
            found["warm"].append(run(warm))
            seconds = ", ".join(f"{state} {found[state][-1]['seconds']:.1f} s" for state in CACHES)
            print(f"{what} {i + 1} of {repetitions}: {seconds}", file=sys.stderr, flush=True)
    return found


def median(found: list[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in found)


def make_table(first: dict[str, Any], whole: dict[str, Any]) -> str:
    def spread(found: list[dict[str, float]], name: str) -> str:
        digits = 0 if name == "steps_per_second" else 2
        median, low, high = (f"{x:,.{digits}f}" for x in quartiles(each[name] for each in found).values())
        return f"{median} [{low}, {high}]"

    names = [*PHASES, "seconds"]
    rows = [[CACHES[state], *(spread(found, name) for name in names)] for state, found in first.items()]
    figures = ["seconds", "seconds_compile", "seconds_run", "steps_per_second", "return_mean"]
    commands = [[CACHES[state], *(spread(found, name) for name in figures)] for state, found in whole.items()]
    return "\n".join(
        [
            markdown(["seconds to the first iteration", *PHASES, "all"], rows),
            markdown(["`pgjax train ppo --env CartPole-v1`", *figures], commands),
            "Medians and quartiles over processes. With a warm cache, compiling is loading what the cache keeps.\n",
        ]
    )


def plot(first: dict[str, Any], whole: dict[str, Any], out: Path) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 2.6), layout="constrained")
    parts = {"compiling": "seconds_compile", "training": "seconds_run"}
    phases = {name: [median(found, name) for found in first.values()] for name in PHASES}
    spent = {part: [median(found, name) for found in whole.values()] for part, name in parts.items()}
    spent["the rest"] = [
        median(found, "seconds") - sum(median(found, name) for name in parts.values()) for found in whole.values()
    ]
    titles = "to the first iteration", "pgjax train ppo --env CartPole-v1"
    for panel, shown, title in zip((left, right), (phases, spent), titles, strict=True):
        start = [0.0] * len(CACHES)
        for part, seconds in shown.items():
            panel.barh(list(CACHES.values()), seconds, left=start, label=part)
            start = [before + more for before, more in zip(start, seconds, strict=True)]
        panel.invert_yaxis()
        panel.set(title=title, xlabel="seconds, medians")
        panel.legend(fontsize="small")
    figure.savefig(out / "startup.png", dpi=110)


def main(options: Options) -> None:
    first = timings(to_first_iteration, options.repetitions, "first iteration")
    whole = timings(functools.partial(whole_command, options.flags), options.commands, "whole command")
    figures = {"first_iteration": first, "whole_command": whole}
    report(options.out, make_table(first, whole), {"CartPole-v1": pgjax.tuned("ppo", "CartPole-v1")}, figures)
    plot(first, whole, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
