"""A run directory seen from outside: its config, metrics, status and lock. Imports neither jax nor gymnax.

config.json         what makes the algorithm again, the seeds, how the run is kept, versions
metrics.jsonl       one line per iteration
evaluations.jsonl   one line per checkpoint
checkpoints/        the newest states and the best one
status.json         how the run last ended
sweep.json          instead of config.json and the rest, where many settings are trained
lock                held while a process works on the run
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pgjax.core.errors import InputError

BLOCK = 1 << 20
"""Bytes that are read at once of a file that may be long."""


def open_regular(path: Path, mode: str, buffering: int = -1) -> IO[Any]:
    """Open a regular file of a run, which somebody else may have made: no link is followed, and nothing waits for the
    other end of a pipe. `mode` is `r`, `r+` (made if it is not there), or `x`, with `b` for bytes.

    Raises:
        OSError: it is something else, is not there (`r`), or is there already (`x`).
    """
    flags = {"r": os.O_RDONLY, "r+": os.O_RDWR | os.O_CREAT, "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL}
    opened = os.open(path, flags[mode.replace("b", "")] | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return os.fdopen(opened, mode.replace("x", "w"), buffering)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` by `content` at once, as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a text at once, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` at once, whatever it is: a reader or a crash sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with open_regular(temporary, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a run.

    Raises:
        InputError: there is none, or it is not a JSON object.
    """
    damaged = "restore it, or start the run in another directory"
    try:
        with open_regular(path, "rb") as file:
            content = json.loads(file.read())
    except OSError as error:
        is_sweep = path.name == "config.json" and (path.parent / "sweep.json").exists()
        sweep = "a sweep, which pgjax.resume_sweep opens, and " if is_sweep else ""
        raise InputError(f"{path.parent} holds {sweep}no run: cannot read {path} ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): {damaged}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged (it holds no JSON object): {damaged}")
    return content


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
    lines = whole_lines(path)
    rows = [row for row in map(row_of, lines) if row is not None]
    return rows, len(lines) - len(rows)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that is there, without one that is being written."""
    if not path.exists():
        return []
    with open_regular(path, "rb") as file:
        return file.read().split(b"\n")[:-1]


def last_rows(path: Path, most: int) -> list[dict[str, Any]]:
    """The last rows of a JSON-lines file, however long it is; lines that cannot be read are left out.

    Raises:
        InputError: there are lines, and none of them can be read.
    """
    if not path.exists():
        return []
    with open_regular(path, "rb") as file:
        start, tail = file.seek(0, os.SEEK_END), b""
        while start > 0 and tail.count(b"\n") <= most:
            start, end = max(0, start - BLOCK), start
            file.seek(start)
            tail = file.read(end - start) + tail
    lines = tail.split(b"\n")[1 if start else 0 : -1][-most:]
    rows = [row for row in map(row_of, lines) if row is not None]
    if lines and not rows:
        raise InputError(f"{path} is damaged: none of its last lines can be read")
    return rows


def some_rows(path: Path, most: int) -> list[dict[str, Any]]:
    """All rows of a JSON-lines file, or of a long one about `most` at equal distances, and its last one.

    Raises:
        InputError: a line cannot be read.
    """
    if not path.exists():
        return []
    with open_regular(path, "rb") as file:
        first = file.readline()
        size = file.seek(0, os.SEEK_END)
        if size <= most * len(first):
            return read_rows(path)
        lines = [first]
        for i in range(1, most):
            file.seek(i * size // most)
            file.readline()  # the rest of a line
            line = file.readline()
            if line.endswith(b"\n") and line != lines[-1]:
                lines.append(line)
    rows = [row for row in map(row_of, lines) if row is not None]
    if len(rows) < len(lines):
        raise InputError(f"{path} is damaged: some of its lines cannot be read")
    return [*rows, *(row for row in last_rows(path, 1) if row["iteration"] != rows[-1]["iteration"])]


def prefix_hash(path: Path, size: int) -> Any:
    """The SHA-256 of the first bytes of a file, to be gone on with."""
    digest = hashlib.sha256()
    with open_regular(path, "rb") as file:
        while size and (block := file.read(min(size, BLOCK))):
            digest.update(block)
            size -= len(block)
    return digest


def number_of(value: Any) -> float:
    """What a file holds where a number should be; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def row_of(line: bytes) -> dict[str, Any] | None:
    """The row in a line of a JSON-lines file; None if it cannot be read."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
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
    if not path.exists():
        return "interrupted"
    found = read_json(path).get("status")
    if not isinstance(found, str):
        raise InputError(f"{path} is damaged (it has no status): remove it")
    return found


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
        file = open_regular(run / "lock", "r+")
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
        with open_regular(run / "lock", "r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(run) or 0
    except OSError:
        pass
    return None


def _read_pid(run: Path) -> int | None:
    with open_regular(run / "lock", "rb") as file:
        text = file.read(20)
    return int(text) if text.isdigit() else None
