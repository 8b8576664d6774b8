"""What stands in the directories of runs and sweeps, at a glance: read from configs and the ends of files alone."""

import csv
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pgjax.core.errors import InputError
from pgjax.running.directory import (
    holds_sweep,
    last_rows,
    number_of,
    open_regular,
    read_config,
    read_json,
    status,
    title,
)


class Seen(NamedTuple):
    """A run or sweep from outside; what is not known is empty, 0 or NaN."""

    run: str
    on: str = ""
    algorithm: str = ""
    is_sweep: bool = False
    steps: float = 0
    """So far; of a sweep over all its members."""
    total_steps: float = 0
    score: str = ""
    """What ranks it."""
    newest: float = math.nan
    """The score in training, the mean over members."""
    best: float = math.nan
    """The best evaluated score of the states that are kept; of a sweep that of the best setting."""
    speed: float = math.nan
    """Steps per second of the process that works on it, since it started or since the oldest state that is kept."""
    status: str = ""
    """As `directory.status` says it, or `damaged: reason`."""

    @property
    def progress(self) -> float:
        """The part of the steps that is done."""
        return min(1.0, self.steps / self.total_steps) if self.total_steps else math.nan

    @property
    def seconds_left(self) -> float:
        """At the speed so far."""
        return (self.total_steps - self.steps) / self.speed if self.speed > 0 else math.nan


def directories_under(directory: str | Path) -> list[Path]:
    """Those of runs and sweeps, at any depth."""
    found = (Path(directory).rglob(f"{name}.json") for name in ("config", "sweep"))
    return sorted({path.parent for paths in found for path in paths})


def seen_under(directory: str | Path) -> list[Seen]:
    """All of them, by their places under it."""
    return [seen(run, str(run.relative_to(directory))) for run in directories_under(directory)]


def seen(run: Path, name: str) -> Seen:
    """What there is to say of the run or sweep in a directory; whatever is wrong with it becomes its status."""
    try:
        return _seen_sweep(run, name) if holds_sweep(run) else _seen_run(run, name)
    except Exception as error:  # others are looked at all the same
        return Seen(name, status=said_damage(error))


def said_damage(error: Exception) -> str:
    """The status of what could not be read."""
    return f"damaged: {error if isinstance(error, InputError) else repr(error)}"


def _seen_run(run: Path, name: str) -> Seen:
    config = read_config(run)
    subject, what = title(config)
    rows = last_rows(run / "metrics.jsonl", 100)
    score, direction = config["score"]
    known = [m for m in (mean_of(row.get(score)) for row in rows) if m == m]
    steps, now = (rows[-1]["steps"], (run / "metrics.jsonl").stat().st_mtime) if rows else (0, math.nan)
    per_iteration = steps / rows[-1]["iteration"] if rows else 0
    said, kept = status(run), _checkpoints(run / "checkpoints")
    points = [(point * per_iteration, written) for point, written in kept]
    return Seen(
        run=name,
        on=subject,
        algorithm=what + (f" x {config['seeds']}" if config["seeds"] else ""),
        steps=steps,
        total_steps=config["hyperparameters"]["total_steps"],
        score=score,
        newest=known[-1] if known else math.nan,
        best=_best([run / "checkpoints" / str(point) for point, _ in kept], score, direction),
        speed=_speed(run, points, steps, now) if said == "running" else math.nan,
        status=said,
    )


def _seen_sweep(run: Path, name: str) -> Seen:
    config = read_json(run / "sweep.json")
    subject, what = title(config["base"])
    score, direction = config["base"]["score"]
    said, members = status(run), config["members"]
    total = members * config["base"]["hyperparameters"]["total_steps"]
    per_point = total / members / config.get("curve_points", config["arguments"]["points"])
    sizes = read_json(run / "batches.json") if (run / "batches.json").exists() else {}
    reached: list[tuple[float, float]] = []
    began: dict[str, float] = {}
    for batch in sorted(run.glob("stage-*/group-*/batch-*")):
        size = min(sizes.get(f"{batch.parts[-3]}/{batch.parts[-2]}", 0), members)
        points = _checkpoints(batch)
        if points:
            place = f"{batch.parts[-2]}/{batch.name}"
            reached.append((size * per_point * (points[-1][0] - began.get(place, 0)), points[-1][1]))
            began[place] = points[-1][0]
    steps = total if said == "finished" else min(total, sum(part for part, _ in reached))
    sums = [(sum(part for part, at in reached if at <= written), written) for _, written in reached]
    members_csv = run / "members.csv"
    return Seen(
        run=name,
        on=subject,
        algorithm=f"{what} sweep x {members}",
        is_sweep=True,
        steps=steps,
        total_steps=total,
        score=score,
        best=_best_setting(members_csv, members_csv.stat().st_mtime_ns, config["arguments"]["seeds"], direction)
        if members_csv.exists()
        else math.nan,
        speed=_speed(run, sums, steps, time.time()) if said == "running" else math.nan,
        status=said,
    )


def _checkpoints(directory: Path) -> list[tuple[int, float]]:
    """(iteration or point, when it was written) of those that are kept, ascending."""
    found = [path for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []
    return sorted((int(path.name), path.stat().st_mtime) for path in found)


def _speed(run: Path, kept: Sequence[tuple[float, float]], steps: float, now: float) -> float:
    """From the oldest kept state of the process that works on it, or else from its start, to `steps` at `now`."""
    start = (run / "lock").stat().st_mtime  # a process writes its id there as it begins
    earlier = max((at for at, written in kept if written < start), default=0.0)
    at, since = min(
        ((at, written) for at, written in kept if written >= start and at < steps), default=(earlier, start)
    )
    return (steps - at) / (now - since) if now > since and steps > at else math.nan


def _best(checkpoints: list[Path], score: str, direction: str) -> float:
    files = [path / "metrics" / "metrics" for path in checkpoints]
    scores = [number_of(read_json(path).get(score)) for path in files if path.exists()]
    known = [x for x in scores if abs(x) < 1e38]  # what had no finite score is kept as the worst number
    return (min if direction == "min" else max)(known) if known else math.nan


@functools.lru_cache(maxsize=1024)
def _best_setting(members: Path, written: int, seeds: int, direction: str) -> float:
    """`written` is when, so that a file is read again only after it has changed."""
    with open_regular(members, "r") as file:
        scores = [number_of(row["score"]) for row in csv.DictReader(file)]
    means = [sum(scores[i : i + seeds]) / seeds for i in range(0, len(scores), seeds)]
    known = [x for x in means if x == x]
    return (min if direction == "min" else max)(known) if known else math.nan


def mean_of(value: Any) -> float:
    """Over the members of a population, or of one run."""
    values = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
    return sum(values) / len(values) if values else math.nan
