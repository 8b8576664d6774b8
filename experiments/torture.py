"""Can a run be trusted? Kills it again and again, damages it, fills its disk, and compares with the undisturbed run.

    python experiments/torture.py                # 30 kills and the other cases, some minutes
    python experiments/torture.py --kills 3

SIGKILL at random moments, SIGTERM, SIGINT, a damaged newest checkpoint, and a disk that fills (a small tmpfs, which
needs root; otherwise a file-size limit). After each the run is resumed, and at the end every leaf of its final state
and every line of its metrics must equal those of a run that nobody disturbed. Writes torture.json and torture.md.
"""

import dataclasses
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import markdown, write_report
from kills import same

import pgjax
from pgjax.running.directory import read_rows

FLAGS = [
    "--env",
    "CartPole-v1",
    "--num-envs",
    "16",
    "--num-steps",
    "32",
    "--checkpoint-every",
    "25",
    "--episodes",
    "16",
]


@dataclasses.dataclass(frozen=True)
class Options:
    kills: Annotated[int, tyro.conf.arg(help="how often the run is killed before it may finish")] = 30
    iterations: Annotated[int, tyro.conf.arg(help="length of the run")] = 4000
    seed: Annotated[int, tyro.conf.arg(help="seed of the random moments")] = 0
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def start(directory: Path, options: Options, **how: Any) -> subprocess.Popen:
    """The run in a child process; the same command starts and continues it."""
    steps = ["--total-steps", str(options.iterations * 16 * 32), "--directory", str(directory)]
    main = "import sys; from pgjax.commands.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "train", "ppo"]
    return subprocess.Popen(
        [*command, *FLAGS, *steps], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how
    )


def finish(directory: Path, options: Options) -> str:
    child = start(directory, options)
    shown = child.communicate()[0]
    assert child.returncode == 0, shown
    return shown


def iterations_done(directory: Path) -> int:
    """By the metrics, which are ahead of the newest checkpoint."""
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def newest_checkpoint(directory: Path) -> int:
    return max((int(p.name) for p in (directory / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def wait_for(directory: Path, iteration: int, child: subprocess.Popen) -> None:
    while iterations_done(directory) < iteration and child.poll() is None:
        time.sleep(0.02)


def killed(base: Path, whole: Path, options: Options, rng: random.Random) -> dict[str, Any]:
    """SIGKILL at random moments, from start-up on."""
    run, lost, kills = base / "killed", [], 0
    while kills < options.kills:
        before = iterations_done(run)
        child = start(run, options)
        goal = before + rng.randint(0, max(1, 2 * options.iterations // options.kills))
        wait_for(run, min(goal, options.iterations - 1), child)
        time.sleep(rng.uniform(0, 0.5))
        if child.poll() is not None:
            break
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += 1
        lost.append(iterations_done(run) - newest_checkpoint(run))
    finish(run, options)
    return {"case": f"SIGKILL x {kills}", "survived": kills, "lost": lost, "wrong": same(run, whole)}


def signalled(base: Path, whole: Path, options: Options, number: signal.Signals) -> dict[str, Any]:
    run = base / number.name
    child = start(run, options)
    wait_for(run, options.iterations // 2, child)
    child.send_signal(number)
    shown = child.communicate()[0]
    assert child.returncode == 128 + number, shown
    assert f"pgjax resume {run}" in shown, shown
    lost = [iterations_done(run) - newest_checkpoint(run)]
    finish(run, options)
    return {"case": number.name, "survived": 1, "lost": lost, "wrong": same(run, whole)}


def damaged(base: Path, whole: Path, options: Options) -> dict[str, Any]:
    run = base / "damaged"
    shutil.copytree(whole, run)
    newest = newest_checkpoint(run)
    files = [p for p in (run / "checkpoints" / str(newest) / "state").rglob("*") if p.is_file()]
    biggest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 1
    biggest.write_bytes(content)
    shown = finish(run, options)
    assert f"checkpoint {newest} in" in shown and "is damaged" in shown, shown
    return {
        "case": "one bit flipped in the newest checkpoint",
        "survived": 1,
        "lost": [],
        "wrong": same(run, whole),
    }


def full_disk(base: Path, whole: Path, options: Options) -> dict[str, Any]:
    """The disk fills in the middle; with room again the run goes on."""
    run = base / "full" / "run"
    run.parent.mkdir()
    half = sum(f.stat().st_size for f in whole.rglob("*") if f.is_file()) // 2
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={half}", "tmpfs", str(run.parent)], check=True)
        child = start(run, options)
    else:
        limit = len((whole / "metrics.jsonl").read_bytes()) // 2
        child = start(run, options, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    shown = child.communicate()[0]
    try:
        assert child.returncode == 1, shown
        assert "cannot write" in shown, shown
        lost = [iterations_done(run) - newest_checkpoint(run)]
        read_rows(run / "metrics.jsonl")
        freed = base / "freed"
        shutil.copytree(run, freed)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(run.parent)], check=True)
    finish(freed, options)
    return {"case": "disk full", "survived": 1, "lost": lost, "wrong": same(freed, whole)}


def main(options: Options) -> None:
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        whole = base / "whole"
        finish(whole, options)
        algorithm = pgjax.load(whole).algorithm
        cases = [
            killed(base, whole, options, rng),
            signalled(base, whole, options, signal.SIGTERM),
            signalled(base, whole, options, signal.SIGINT),
            damaged(base, whole, options),
            full_disk(base, whole, options),
        ]
    rows = [
        [
            case["case"],
            str(case["survived"]),
            f"{np.median(case['lost']):.0f} ({max(case['lost'])})" if case["lost"] else "",
            ", ".join(case["wrong"]) or "nothing",
        ]
        for case in cases
    ]
    header = ["case", "survived", "recorded iterations lost, median (max)", "wrong at the end"]
    table = markdown(header, rows) + f"\nA run of {options.iterations} iterations with a checkpoint every 25.\n"
    write_report(options.out, table, algorithm, {"flags": FLAGS, "cases": cases})
    if any(case["wrong"] for case in cases):
        sys.exit("the run did not survive")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
