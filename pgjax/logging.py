"""Where the metrics of a run go while it trains: a file of JSON lines, and a progress display."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class JsonLines:
    """One JSON object per iteration; NaN (no episode ended) becomes null. The file never holds half a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb", buffering=0)

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append `rows`.

        Raises:
            OSError: they could not be written; what was written before stays readable.
        """
        lines = "".join(json.dumps({k: _json(v) for k, v in row.items()}) + "\n" for row in rows).encode()
        end = self.file.tell()
        try:
            while lines:
                lines = lines[self.file.write(lines) :]
        except OSError as error:
            self.file.truncate(end)
            raise OSError(f"cannot write {self.path}: {error.strerror}; what was written before is intact") from error

    def close(self) -> None:
        self.file.close()


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


class ProgressDisplay:
    """A progress bar on a terminal, a plain line per chunk elsewhere; on standard error."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.start = time.perf_counter()
        self.last_return = math.nan
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.percentage:3.0f}%"),
                BarColumn(),
                TextColumn(
                    "{task.completed:,.0f} steps  {task.fields[speed]:,.0f} steps/s  return {task.fields[ret]:.1f}"
                ),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("", total=total_steps, speed=0.0, ret=math.nan)
            self.bar.start()

    def write(self, rows: list[dict[str, Any]]) -> None:
        returns = [row["return_mean"] for row in rows if math.isfinite(row["return_mean"])]
        self.last_return = returns[-1] if returns else self.last_return
        steps = rows[-1]["steps"]
        speed = steps / (time.perf_counter() - self.start)
        if self.bar:
            self.bar.update(self.task, completed=steps, speed=speed, ret=self.last_return)
        else:
            left = (self.total_steps - steps) / speed
            print(
                f"{steps}/{self.total_steps} steps, {speed:.0f} steps/s, "
                f"return {self.last_return:.1f}, {left:.0f} s left",
                file=sys.stderr,
            )

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
