"""A run directory seen from outside: its config, metrics, status and lock. Imports neither jax nor gymnax.

config.json         what makes the algorithm again, the seeds, how the run is kept, versions
metrics.jsonl       one line per iteration
evaluations.jsonl   one line per checkpoint
checkpoints/        the newest states and the best one
status.json         how the run last ended
sweep.json          instead of config.json and the rest, where many settings are trained
lock                held while a process works on the run
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgjax.core.errors import InputError


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` by `content` at once: a reader or a crash sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a run.

    Raises:
        InputError: there is none, or it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path.parent} holds no run: cannot read {path} ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged ({error}): restore it, or start the run in another directory") from error


def read_config(run: str | Path) -> dict[str, Any]:
    """The config a run was started with."""
    return read_json(Path(run) / "config.json")


def title(config: dict[str, Any]) -> tuple[str, str]:
    """What a stored algorithm is trained on, its first part, and what it is called."""
    return part_title(next(iter(config["parts"].values()))), part_title(config["algorithm"])


def part_title(described: Any) -> str:
    """The name in the description of an algorithm or a part, or what stands there for somebody's own code."""
    return str(described.get("name", described.get("own")) if isinstance(described, dict) else described)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that was being written when the process died is left out.

    Raises:
        InputError: a line cannot be read.
    """
    rows, unreadable = readable_rows(path)
    if unreadable:
        raise InputError(f"{path} is damaged: {unreadable} of its lines cannot be read")
    return rows


def readable_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a JSON-lines file that can be read, and how many lines cannot."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = [row for row in map(_row, lines) if row is not None]
    return rows, len(lines) - len(rows)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("iteration"), int) else None


def holds_sweep(directory: Path) -> bool:
    """Whether many settings are trained there."""
    return (directory / "sweep.json").exists()


def status(run: Path) -> str:
    """`running`, `finished`, `failed: reason`, or `interrupted` (stopped, killed, or the machine went down)."""
    if _lock_holder(run) is not None:
        return "running"
    path = run / "status.json"
    return read_json(path)["status"] if path.exists() else "interrupted"


def write_status(run: Path, status: str) -> None:
    """Replace `status.json`, which `status` reads."""
    write_json(run / "status.json", {"status": status})


@contextmanager
def locked(run: Path) -> Iterator[int | None]:
    """Hold the run for this process; yields the id of a dead process that had left it locked, if there was one.

    The operating system drops the lock with the process, however it ends; the id in the file is for people.

    Raises:
        InputError: a live process holds it, or the directory cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / "lock").open("a+")
    except OSError as error:
        raise InputError(f"directory = {str(run)!r} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{run} is in use by process {_read_pid(run)}: wait for it, or stop it") from error
        except OSError as error:
            raise InputError(f"{run} cannot be locked: {error.strerror}") from error
        stale = _read_pid(run)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield stale
        finally:
            file.truncate(0)


def _lock_holder(run: Path) -> int | None:
    try:
        with (run / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(run) or 0
    except OSError:
        pass
    return None


def _read_pid(run: Path) -> int | None:
    text = (run / "lock").read_text()
    return int(text) if text.isdigit() else None
