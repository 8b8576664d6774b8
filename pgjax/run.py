"""The impure shell around the loop: compiles a chunk once, runs it to the end, and keeps what a person wants."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.checkpoint import save_checkpoint, to_config, write_json
from pgjax.errors import InputError
from pgjax.logging import JsonLines, ProgressDisplay
from pgjax.train import Algorithm, budget_note, train_chunk

CHUNK_SECONDS = 1.0
MAX_CHUNK = 256
ABSENT_WITHOUT_EPISODES = ("return_", "length_")


class Result(NamedTuple):
    """A finished run."""

    algorithm: Algorithm
    state: Any
    metrics: dict[str, np.ndarray]
    """`[num_iterations]` each."""
    steps: int
    seconds_compile: float
    seconds_run: float


class Sink(Protocol):
    """Takes the rows of each chunk, one per iteration, as they come."""

    def write(self, rows: list[dict[str, Any]]) -> None: ...

    def close(self) -> None: ...


def run(algorithm: Algorithm, seed: int = 0, directory: str | Path | None = None, progress: bool = True) -> Result:
    """Train like `pgjax.train(algorithm, jax.random.key(seed))`, showing progress and keeping files.

    `directory` receives `config.json` at the start, `metrics.jsonl` on the way, and a checkpoint of the final state in
    `checkpoints/`; without it nothing is written.

    Raises:
        InputError: the directory already holds a run, or cannot be written.
        FloatingPointError: a metric became NaN or infinite; the message names it and the iteration.
        OSError: a file could not be written; what was written before stays readable.
    """
    sinks: list[Sink] = []
    if directory is not None:
        directory = Path(directory)
        _start_directory(directory, to_config(algorithm, seed))
        sinks.append(JsonLines(directory / "metrics.jsonl"))
    note = budget_note(algorithm)
    if progress and note:
        print(note, file=sys.stderr)  # noqa: T201
    with contextlib.ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.close)
        start = time.perf_counter()
        key = jax.random.key(seed)
        init = jax.jit(lambda algorithm, key: algorithm.init(key)).lower(algorithm, key).compile()
        state = init(algorithm, key)
        chunk = jax.jit(train_chunk, static_argnums=3, donate_argnums=1)
        compiled = chunk.lower(algorithm, state, jnp.int32(1), MAX_CHUNK).compile()
        jax.block_until_ready(state)
        seconds_compile = time.perf_counter() - start
        if progress:
            sinks.append(ProgressDisplay(algorithm.num_iterations * algorithm.steps_per_iteration))
            stack.callback(sinks[-1].close)
        start = time.perf_counter()
        state, rows = _run_chunks(algorithm, compiled, state, sinks)
        seconds_run = time.perf_counter() - start
    if directory is not None:
        save_checkpoint(directory / "checkpoints", algorithm.num_iterations, state)
    metrics = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Result(algorithm, state, metrics, rows[-1]["steps"], seconds_compile, seconds_run)


def _run_chunks(algorithm: Algorithm, chunk: Any, state: Any, sinks: list[Sink]) -> tuple[Any, list[dict[str, Any]]]:
    """Chunks of about `CHUNK_SECONDS` to the end. How a run is cut changes nothing, so the clock may decide."""
    rows: list[dict[str, Any]] = []
    size = 1
    while len(rows) < algorithm.num_iterations:
        size = min(size, algorithm.num_iterations - len(rows))
        start = time.perf_counter()
        state, metrics = chunk(algorithm, state, jnp.int32(size))
        metrics = jax.device_get(metrics)
        seconds = time.perf_counter() - start
        new = [
            {"iteration": i + 1, "steps": (i + 1) * algorithm.steps_per_iteration}
            | {name: x[i - len(rows)].item() for name, x in metrics.items()}
            for i in range(len(rows), len(rows) + size)
        ]
        bad = _first_not_finite(new)
        for sink in sinks:
            sink.write(new[:bad])
        if bad is not None:
            names = [k for k, v in new[bad].items() if not np.isfinite(v) and not k.startswith(ABSENT_WITHOUT_EPISODES)]
            raise FloatingPointError(f"iteration {new[bad]['iteration']}: {', '.join(names)} is not finite")
        rows += new
        size = int(np.clip(CHUNK_SECONDS * size / seconds, 1, MAX_CHUNK))
    return state, rows


def _first_not_finite(rows: list[dict[str, Any]]) -> int | None:
    for i, row in enumerate(rows):
        if any(not np.isfinite(v) for k, v in row.items() if not k.startswith(ABSENT_WITHOUT_EPISODES)):
            return i
    return None


def _start_directory(directory: Path, config: dict[str, Any]) -> None:
    if (directory / "config.json").exists():
        raise InputError(f"directory = {str(directory)!r} already holds a run: choose another, or remove it")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", config)
    except OSError as error:
        raise InputError(f"directory = {str(directory)!r} cannot be written: {error.strerror}") from error
