"""What do checkpoints cost? The same run with frequent checkpoints and without, alternated.

    python experiments/checkpoint_overhead.py

Each checkpoint copies the whole state, evaluates it over complete episodes, and is written while training goes on.
PPO's state is small; SAC's holds a buffer of four million transitions, unless it is left out.

Writes checkpoint_overhead.json and checkpoint_overhead.md.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import markdown, write_report

import pgjax
from pgjax.learning.replay import replay_bytes
from pgjax.running.config import to_config
from pgjax.running.directory import read_rows

BUFFER = 2**22


@dataclasses.dataclass(frozen=True)
class Options:
    repeats: Annotated[int, tyro.conf.arg(help="runs of each kind, alternated")] = 5
    seconds: Annotated[float, tyro.conf.arg(help="length of one run")] = 20.0
    every: Annotated[float, tyro.conf.arg(help="seconds between checkpoints")] = 5.0
    buffer: Annotated[int, tyro.conf.arg(help="transitions that SAC's buffer holds")] = BUFFER
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def timed(algorithm: Any, directory: Path, checkpoint_every: int) -> tuple[float, int]:
    """Seconds of training, and how many checkpoints were made in them."""
    result = pgjax.run(algorithm, 0, directory, checkpoint_every=checkpoint_every, progress=False)
    return result.seconds_run, len(read_rows(directory / "evaluations.jsonl"))


def measured(algorithm: Any, options: Options, base: Path) -> dict[str, Any]:
    """The times of runs of both kinds, which last about as long as asked for."""
    for i in range(2):  # the first run also warms caches up
        seconds, _ = timed(algorithm, base / f"warm-up-{i}", algorithm.num_iterations)
    rate = algorithm.num_iterations / seconds
    iterations, every = round(rate * options.seconds), round(rate * options.every)
    algorithm = dataclasses.replace(algorithm, total_steps=iterations * algorithm.steps_per_iteration)
    times: dict[str, list[float]] = {"with": [], "without": []}
    for i in range(options.repeats):
        for kind, interval in (("with", every), ("without", iterations)):
            seconds, checkpoints = timed(algorithm, base / f"{kind}-{i}", interval)
            times[kind].append(seconds)
            print(f"{kind}: {seconds:.2f} s, {checkpoints} checkpoints", flush=True)
    newest = max((base / "with-0" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    overhead = float(np.median(np.array(times["with"]) / np.array(times["without"]))) - 1.0
    found = {"seconds": times, "overhead": overhead, "checkpoint_bytes": size, "checkpoint_every": every}
    return found | {"config": to_config(algorithm)}


def main(options: Options) -> None:
    sac = pgjax.tuned(
        "sac",
        "Pendulum-v1",
        num_envs=64,
        num_rounds=250,
        buffer_size=options.buffer,
        total_steps=100 * 64 * 250,
    )
    replay = f"{options.buffer:,} transitions, {replay_bytes(sac.env, options.buffer) / 1e6:,.0f} MB"
    algorithms = {
        "PPO on CartPole-v1": pgjax.tuned("ppo", "CartPole-v1"),
        f"SAC on Pendulum-v1, {replay}": sac,
        "the same, `keep_replay=False`": dataclasses.replace(sac, keep_replay=False),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, algorithm in algorithms.items():
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as directory:
            found[name] = measured(algorithm, options, Path(directory))
    rows = [
        [
            name,
            *(f"{np.median(each['seconds'][kind]):.2f}" for kind in ("with", "without")),
            f"{100 * each['overhead']:.1f}",
            f"{each['checkpoint_bytes'] / 1e6:,.1f}",
        ]
        for name, each in found.items()
    ]
    header = ["", "with checkpoints, s", "without, s", "overhead in turns, %", "MB on disk"]
    text = (
        f"Medians of {options.repeats} turns; a checkpoint about every {options.every:g} s, each evaluated over 128 "
        f"episodes.\n\n{markdown(header, rows)}"
    )
    write_report(options.out, text, None, {"found": found})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
