"""Where the metrics of a run go while it trains: sinks behind one small interface, chosen by name, several at once.

A sink takes rows, one dict per iteration, with `iteration`, `steps` and the metrics. A metric of a population is a list
with one number per member. NaN (no episode ended) means absent.
"""

import csv
import io
import json
import math
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pgjax.core.algorithm import Algorithm
from pgjax.core.errors import InputError, nearest
from pgjax.running.directory import open_regular, prefix_hash, row_of

Row: TypeAlias = dict[str, Any]


class Sink(Protocol):
    """Takes the rows of each chunk as they come.

    A run that goes on opens its sinks at the iteration it stands at; rows of later ones, written before it was stopped,
    come again and are to be dropped.
    """

    def write(self, rows: list[Row]) -> None:
        """Raises OSError where rows could not be kept."""
        ...

    def flush(self) -> None:
        """Return when everything written is safe from a crash, as far as this sink can make it."""
        ...

    def close(self) -> None:
        """Give back files and threads; nothing is written after it."""
        ...


class LinesFile:
    """A file of whole lines: a write that fails is undone, so what was written before stays readable.

    Opened at `iteration` > 0 it continues: rows of later iterations, which will be computed again, are dropped.
    """

    def __init__(self, path: Path, lines_kept: Callable[[list[bytes]], int], end: int | None = None) -> None:
        """`end` is the byte behind the lines that are kept, where it is known: nothing is read then."""
        self.path = path
        self.file = open_regular(path, "r+b", buffering=0)
        if end is None:
            lines = self.file.read().split(b"\n")[:-1]
            end = sum(len(line) + 1 for line in lines[: lines_kept(lines)])
        self.file.seek(end)
        self.file.truncate()

    def append(self, content: bytes) -> None:
        """Write whole lines, all of them or none.

        Raises:
            OSError: they could not be written, and the file is as before.
        """
        end = self.file.tell()
        if os.fstat(self.file.fileno()).st_nlink == 0:
            raise OSError(f"cannot write {self.path}: it was removed while the run was writing it")
        try:
            while content:
                content = content[self.file.write(content) :]
        except OSError as error:
            self.file.truncate(end)
            raise OSError(f"cannot write {self.path}: {error.strerror}; what was written before is intact") from error

    def flush(self) -> None:
        """Return when the disk has all lines (`fsync`)."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file; what was not flushed is left to the operating system."""
        self.file.close()


class Mark(NamedTuple):
    """How far a file of rows was written, and the SHA-256 of that: what a checkpoint knows of it."""

    size: int
    digest: str

    def is_of(self, path: Path) -> bool:
        """Whether the file begins with what was written."""
        return path.exists() and prefix_hash(path, self.size).hexdigest() == self.digest


class JsonLines(LinesFile):
    """One JSON object per iteration; absent numbers are null."""

    def __init__(self, path: Path, iteration: int = 0, mark: Mark | None = None) -> None:
        """`mark` is where the rows of `iteration` end, if that is known."""

        def lines_kept(lines: list[bytes]) -> int:
            return sum(row["iteration"] <= iteration for row in map(row_of, lines) if row)

        super().__init__(path, lines_kept, mark.size if mark else None)
        self._digest = prefix_hash(path, self.file.tell())

    def write(self, rows: list[Row]) -> None:
        """One line per row, all of them or none."""
        content = "".join(json.dumps({k: _absent_as_none(v) for k, v in row.items()}) + "\n" for row in rows).encode()
        self.append(content)
        self._digest.update(content)

    @property
    def mark(self) -> Mark:
        """Of all rows that are written."""
        return Mark(self.file.tell(), self._digest.hexdigest())


class Csv(LinesFile):
    """One line per iteration under a header; absent numbers are empty, a population's are separated by semicolons."""

    def __init__(self, path: Path, iteration: int = 0) -> None:
        super().__init__(
            path, lambda lines: sum(i == 0 or int(x.split(b",")[0]) <= iteration for i, x in enumerate(lines))
        )
        self.empty = self.file.tell() == 0

    def write(self, rows: list[Row]) -> None:
        """One line per row, all of them or none, under a header if the file is empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        if self.empty:
            writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
        self.append(text.getvalue().encode())
        self.empty = False


class TensorBoard:
    """Event files for TensorBoard, means over a population; needs the extra `tensorboard`."""

    def __init__(self, directory: Path, iteration: int = 0) -> None:
        tensorboardX = _extra("tensorboardX", "tensorboard")
        self.directory = directory
        self.writer = tensorboardX.SummaryWriter(str(directory), purge_step=iteration + 1)

    def write(self, rows: list[Row]) -> None:
        """One scalar per metric that is not absent, at its iteration."""
        for row in rows:
            for name, value in _means(row).items():
                self.writer.add_scalar(name, value, row["iteration"])

    def flush(self) -> None:
        """Hand everything to the event file.

        Raises:
            OSError: it was removed.
        """
        self.writer.flush()
        if not any(self.directory.glob("events.*")):
            raise OSError(f"cannot write {self.directory}: it was removed while the run was writing it")

    def close(self) -> None:
        """Finish the event file."""
        self.writer.close()


class WandB:
    """Weights & Biases, means over a population; needs the extra `wandb`. Offline unless WANDB_MODE says otherwise."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        wandb = _extra("wandb", "wandb")
        self.run = wandb.init(
            project="pgjax",
            name=directory.name,
            id=config["id"],
            resume="allow",
            dir=str(directory),
            config=config,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True),
        )

    def write(self, rows: list[Row]) -> None:
        """One entry per row, at its iteration, without the metrics that are absent."""
        for row in rows:
            self.run.log(_means(row), step=row["iteration"])

    def flush(self) -> None:
        """Does nothing: wandb writes in a process of its own."""

    def close(self) -> None:
        """Finish the run that wandb records."""
        self.run.finish()


class Background:
    """Another sink on a thread of its own. When it falls behind, training waits for it and a warning says so, once."""

    def __init__(self, name: str, sink: Sink, backlog: int = 64) -> None:
        self.name, self.sink = name, sink
        self.queue: queue.Queue[list[Row] | None] = queue.Queue(backlog)
        self.error: Exception | None = None
        self.warned = False
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (rows := self.queue.get()) is not None:
            try:
                if self.error is None:
                    self.sink.write(rows)
            except Exception as error:
                self.error = error
            finally:
                self.queue.task_done()

    def write(self, rows: list[Row]) -> None:
        """Leave the rows to the thread; waits where the backlog is full.

        Raises:
            OSError: rows before these could not be written.
        """
        self._raise()
        try:
            self.queue.put_nowait(rows)
        except queue.Full:
            if not self.warned:
                warnings.warn(f"the {self.name} sink is slower than training, which now waits for it", stacklevel=2)
                self.warned = True
            self.queue.put(rows)

    def flush(self) -> None:
        """Wait for the backlog, then flush the sink.

        Raises:
            OSError: rows of the backlog could not be written.
        """
        self.queue.join()
        self._raise()
        self.sink.flush()

    def close(self) -> None:
        """Wait for the backlog. An error is only a warning here: what failed before may be on its way up."""
        self.queue.put(None)
        self.thread.join()
        self.sink.close()
        if self.error is not None:
            warnings.warn(f"the {self.name} sink failed: {self.error}", stacklevel=2)

    def _raise(self) -> None:
        if self.error is not None:
            raise OSError(f"the {self.name} sink failed: {self.error}") from self.error


class ProgressDisplay:
    """A progress bar on a terminal, a plain line per chunk elsewhere; on standard error."""

    def __init__(self, algorithm: Algorithm, done: int) -> None:
        self.total_steps, self.first_steps = (
            n * algorithm.steps_per_iteration for n in (algorithm.num_iterations, done)
        )
        self.score, self.unit = algorithm.score[0], algorithm.unit
        self.start = time.perf_counter()
        self.last = math.nan
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.percentage:3.0f}%"),
                BarColumn(),
                TextColumn("{task.completed:,.0f} " + self.unit),
                TextColumn("{task.fields[speed]:,.0f}/s  " + self.score + " {task.fields[last]:.4g}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task(
                "", total=self.total_steps, completed=self.first_steps, speed=0.0, last=math.nan
            )
            self.bar.start()

    def write(self, rows: list[Row]) -> None:
        """Move the bar, or print a line; the score shown is the last one that is not absent."""
        known = [x for row in rows if math.isfinite(x := _means(row).get(self.score, math.nan))]
        self.last = known[-1] if known else self.last
        steps = rows[-1]["steps"]
        speed = (steps - self.first_steps) / (time.perf_counter() - self.start)
        if self.bar:
            self.bar.update(self.task, completed=steps, speed=speed, last=self.last)
        else:
            left = (self.total_steps - steps) / speed
            print(
                f"{steps}/{self.total_steps} {self.unit}, {speed:.0f}/s, "
                f"{self.score} {self.last:.4g}, {left:.0f} s left",
                file=sys.stderr,
            )

    def flush(self) -> None:
        """Does nothing: what is shown is not kept."""

    def close(self) -> None:
        """Leave the bar on the screen as it stands."""
        if self.bar:
            self.bar.stop()


class SweepDisplay:
    """The best settings so far: a live table on a terminal, a line every few seconds elsewhere; on standard error."""

    ROWS = 8

    def __init__(self, shown: bool, score: str) -> None:
        self.shown, self.score, self.last = shown, score, time.perf_counter()
        self.live: Live | None = None
        if shown and sys.stderr.isatty():
            self.live = Live(console=Console(stderr=True), refresh_per_second=2)
            self.live.start()

    def show(self, where: str, ranking: Callable[[], list[tuple[str, float]]]) -> None:
        """`ranking` gives (setting, score in training), best first; it is asked only when it is shown."""
        now = time.perf_counter()
        if not self.shown or now - self.last < (0.5 if self.live else 5.0):
            return
        self.last = now
        best = ranking()
        if self.live:
            table = Table("setting", self.score, title=where)
            for setting, value in best[: self.ROWS]:
                table.add_row(setting, f"{value:.4g}")
            self.live.update(table)
        else:
            say(f"{where}; best so far: {best[0][0]} with {self.score} {best[0][1]:.4g}")

    def close(self) -> None:
        """Leave the table on the screen as it stands."""
        if self.live:
            self.live.stop()


def say(message: str) -> None:
    """A line for a person, on standard error; nothing if it is empty."""
    if message:
        print(message, file=sys.stderr)


class Named(NamedTuple):
    """A sink that can be added by name."""

    open: Callable[[Path, int, dict[str, Any]], Sink]
    """(run directory, iteration it stands at, config) -> sink."""
    module: str | None = None
    """What has to be installed for it, by the extra that has the sink's name."""


SINKS = {
    "csv": Named(lambda run, iteration, config: Csv(run / "metrics.csv", iteration)),
    "tensorboard": Named(lambda run, iteration, config: TensorBoard(run / "tensorboard", iteration), "tensorboardX"),
    "wandb": Named(lambda run, iteration, config: WandB(run, config), "wandb"),
}
"""What can be added by name; `metrics.jsonl` is always written."""


def check_sinks(names: tuple[str, ...]) -> None:
    """Refuse unknown sinks, and those whose package is not installed, before anything starts.

    Raises:
        InputError: naming the sink, and the extra that installs its package.
    """
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise InputError(f"sinks = {names!r} is not accepted: expected a tuple of names, of {', '.join(SINKS)}")
    for name in names:
        if name not in SINKS:
            raise InputError(f"sink = {name!r} is not known: {nearest(name, SINKS)}")
        module = SINKS[name].module
        if module:
            _extra(module, name)


def open_sink(name: str, run: Path, iteration: int, config: dict[str, Any]) -> Sink:
    """A sink by name for a run that stands at `iteration`; one that needs a package works on a thread of its own."""
    sink = SINKS[name].open(run, iteration, config)
    return Background(name, sink) if SINKS[name].module else sink


def _extra(module: str, extra: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise InputError(f"the {extra} sink needs {module}: pip install 'pgjax[{extra}]'") from error


def _absent_as_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_absent_as_none(v) for v in value]
    return value if math.isfinite(value) else None


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ";".join(map(_cell, value))
    return str(value) if math.isfinite(value) else ""


def _means(row: Row) -> dict[str, float]:
    """The numbers of a row, averaged over a population; absent ones are left out."""
    means = {}
    for name, value in row.items():
        numbers = np.atleast_1d(value)
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            means[name] = float(numbers.mean())
    return means
