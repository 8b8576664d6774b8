"""What do checkpoints cost? The same run with a checkpoint about every ten seconds and without, alternated.

    python experiments/checkpoint_overhead.py

Each checkpoint copies the whole state, evaluates it over complete episodes, and is written while training goes on.
Writes checkpoint_overhead.json and checkpoint_overhead.md.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from common import markdown, preset_ppo, write_report

import pgjax
from pgjax.running.directory import read_rows


@dataclasses.dataclass(frozen=True)
class Options:
    repeats: Annotated[int, tyro.conf.arg(help="runs of each kind, alternated")] = 5
    seconds: Annotated[float, tyro.conf.arg(help="length of one run")] = 30.0
    every: Annotated[float, tyro.conf.arg(help="seconds between checkpoints")] = 10.0
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def timed(ppo: pgjax.PPO, directory: Path, checkpoint_every: int) -> tuple[float, int]:
    """Seconds of training, and how many checkpoints were made in them."""
    result = pgjax.run(ppo, 0, directory, checkpoint_every=checkpoint_every, progress=False)
    return result.seconds_run, len(read_rows(directory / "evaluations.jsonl"))


def main(options: Options) -> None:
    ppo = preset_ppo("CartPole-v1")
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        for i in range(2):  # the first run also warms caches up
            seconds, _ = timed(ppo, base / f"warm-up-{i}", ppo.num_iterations)
        rate = ppo.num_iterations / seconds
        iterations = round(rate * options.seconds)
        every = round(rate * options.every)
        ppo = dataclasses.replace(ppo, total_steps=iterations * ppo.steps_per_iteration)
        times: dict[str, list[float]] = {"with": [], "without": []}
        for i in range(options.repeats):
            for kind, interval in (("with", every), ("without", iterations)):
                seconds, checkpoints = timed(ppo, base / f"{kind}-{i}", interval)
                times[kind].append(seconds)
                print(f"{kind}: {seconds:.2f} s, {checkpoints} checkpoints", flush=True)
    medians = {kind: float(np.median(values)) for kind, values in times.items()}
    overhead = medians["with"] / medians["without"] - 1.0
    rows = [
        [f"{kind} checkpoints", f"{medians[kind]:.2f}", ", ".join(f"{s:.2f}" for s in values)]
        for kind, values in times.items()
    ]
    table = markdown(["", "median seconds", "all"], rows) + (
        f"\nOverhead of checkpoints every {every} iterations (about {options.every:g} s): {100 * overhead:.2f} %.\n"
    )
    write_report(options.out, table, ppo, {"checkpoint_every": every, "seconds": times, "overhead": overhead})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
