"""The impure shell around the loop: a run that can be stopped at any moment and continues as if it had not been."""

import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core import processes
from pgjax.core.algorithm import Algorithm, Key, not_kept
from pgjax.core.devices import check_memory, count_devices
from pgjax.core.errors import InputError
from pgjax.core.metrics import is_absent, number
from pgjax.learning.optimizers import STRETCHED
from pgjax.running.checkpoint import Checkpoints, load_state, restored_by_first
from pgjax.running.compile import MAX_CHUNK, ROWS, Layout, compile_programs, env_layout, member_layout
from pgjax.running.config import entry, from_config, to_config
from pgjax.running.directory import read_config, readable_rows
from pgjax.running.loop import budget_note
from pgjax.running.population import copies
from pgjax.running.result import Result
from pgjax.running.session import (
    Callback,
    Clock,
    Progress,
    Stopped,
    check_count,
    check_equal,
    check_same,
    check_seeds,
    check_single,
    devices_of,
    drive,
    held,
    said_differences,
    stop_signals,
)
from pgjax.running.sinks import JsonLines, Mark, ProgressDisplay, Row, Sink, check_sinks, open_sink, say

CHUNK_SECONDS = 1.0
KEPT = ("seed", "seeds", "checkpoint_every", "keep", "episodes", "sinks")
"""What a config holds besides the algorithm."""


def run(
    algorithm: Algorithm,
    seed: int = 0,
    directory: str | Path | None = None,
    *,
    seeds: int | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    episodes: int = 128,
    sinks: tuple[str, ...] = (),
    devices: int | None = None,
    shards: int = 1,
    progress: bool = True,
    callback: Callback | None = None,
) -> Result:
    """Train like `pgjax.train(algorithm, jax.random.key(seed))`, showing progress and keeping the run in a directory.

    Without `directory` nothing is written. A directory that holds the same run is continued from its newest whole
    checkpoint, to the same bits as if it had never stopped; a larger `total_steps` trains on. SIGINT and SIGTERM finish
    the chunk, save, and raise `Interrupted`; a second one ends the process at once.

    Several processes (`pgjax.connect`) make the same call; the first one owns the directory, and each gets the result.

    Args:
        seeds: train this many members with the keys of `seed`, `seed + 1`, ... as one program.
        checkpoint_every: iterations between checkpoints, each evaluated; by default about every minute, and so rarely
            that they take at most 2 % of the time.
        keep: how many of the newest checkpoints to keep, beside the best one by evaluated score.
        episodes: episodes, or other cases, of each evaluation.
        sinks: what gets the metrics besides `metrics.jsonl`, names of `SINKS` in `running/sinks.py`.
        devices: over how many devices members are spread, or the environments of a single run that is large enough; by
            default all, and of several processes always. Another number changes results by rounding.
        shards: over how many of these the parameters of a single run and all that has their shape are divided, for
            models that do not fit one device; it divides `devices`.
        callback: called about once a second with the `Progress` so far. If it returns True the run ends there: it is
            evaluated and kept as at its end, returned, and goes on if it is run again. What it raises ends the run as
            well, kept before it is raised. `EarlyStopping` is one.

    Raises:
        InputError: the directory holds another run, is in use, or cannot be written; or an argument is not accepted.
        Interrupted: a signal asked the run to stop; the message says how to go on.
        FloatingPointError: a metric became NaN or infinite, or a parameter that was due for a checkpoint; the newest
            checkpoint is a finite one.
        OSError: a file could not be written; what was written before stays readable.
    """
    check_single("run", algorithm)
    every = {} if checkpoint_every is None else {"checkpoint_every": checkpoint_every}
    if callback is not None and not callable(callback):
        raise InputError(f"run: callback = {callback!r} is not accepted: expected a function of the progress")
    counts = every | {"keep": keep, "episodes": episodes, "shards": shards, "seeds": 1 if seeds is None else seeds}
    for name, value in counts.items():
        check_count(f"run: {name}", value)
    check_seeds("run", seed, seeds or 1)
    check_sinks(sinks)
    count_devices(devices)
    if seeds is None:
        layout = env_layout(algorithm, devices, shards)
    elif shards > 1:
        raise InputError(f"run: shards = {shards} is not accepted with seeds: expected 1, as each member lies whole")
    else:
        layout = member_layout(copies(algorithm, seeds), devices)
    kept = (seed, seeds, checkpoint_every, keep, episodes, list(sinks))
    config = to_config(algorithm) | dict(zip(KEPT, kept, strict=True)) | {"devices": layout.mesh.size, "shards": shards}
    check_equal(config)
    progress = progress and processes.is_first()
    try:
        if directory is None:
            return _train(algorithm, config, None, layout, progress, callback)
        adopt = functools.partial(_adopt, Path(directory), config, progress)
        with held(Path(directory), "config.json", config, adopt) as config:
            if finished := _finished(algorithm, Path(directory)):
                return finished
            return _train(algorithm, config, Path(directory), layout, progress, callback)
    except Stopped as stop:
        return stop.result


def resume(
    directory: str | Path,
    total_steps: int | None = None,
    devices: int | None = None,
    progress: bool = True,
    callback: Callback | None = None,
    algorithm: Algorithm | None = None,
    shards: int | None = None,
) -> Result:
    """Continue the run in `directory`, if asked to up to a larger `total_steps`; to the same bits on equal devices.

    `devices` and `shards` are as many as the run was trained on, devices if there are, unless they are given; a warning
    says where they differ.
    `algorithm` is what the run was made with, if that is code of the user's own.

    Raises:
        InputError: there is no run, its config needs code of the user's own and `algorithm` is not given or another
            one, it is damaged, or `total_steps` is less than the run's own; and where `run` raises it.
    """
    config = read_config(directory)
    if algorithm is not None:
        check_same_algorithm(directory, config, algorithm)
        own: Any = algorithm
        algorithm = dataclasses.replace(own, total_steps=total_steps or algorithm.total_steps)
    if total_steps is not None:
        entry(config, "hyperparameters", str(directory), dict)["total_steps"] = total_steps
    kept = _kept(config, directory)
    sinks = tuple(kept.pop("sinks"))
    how: dict[str, Any] = {
        "sinks": sinks,
        "devices": devices_of(config, devices),
        "shards": config.get("shards", 1) if shards is None else shards,
        "progress": progress,
        "callback": callback,
    }
    return run(algorithm or from_config(config), directory=directory, **how, **kept)


def load(
    directory: str | Path, which: Literal["newest", "best"] = "newest", algorithm: Algorithm | None = None
) -> Result:
    """A run from its directory: algorithm, the newest or the `"best"` state, metrics, ready to predict.

    `algorithm` is what the run was made with, if that is code of the user's own.

    Raises:
        InputError: there is no run or no whole checkpoint, the config needs code of the user's own and `algorithm` is
            not given or another one, or it is damaged.
    """
    directory = Path(directory)
    if which not in ("newest", "best"):
        raise InputError(f"load: which = {which!r} is not accepted: expected 'newest' or 'best'")
    config = read_config(directory)
    if algorithm is None:
        algorithm = from_config(config)
    else:
        check_same_algorithm(directory, config, algorithm)
    kept = _kept(config, directory)
    subject = _subject(algorithm, kept)
    iteration, state, rows = load_state(
        directory,
        lambda: subject.init(_key(kept)),
        algorithm.score,
        which,
        not_kept(algorithm),
        config.get("id"),
    )
    metrics = StoredMetrics(directory / "metrics.jsonl", iteration)
    if not (rows and Mark(*rows).is_of(metrics.path)):
        _, lost = _rows_until(metrics.path, iteration, expects_all=True, was_changed=rows is not None)
        if lost:
            warnings.warn(f"{metrics.path} is damaged: rows are lost, {lost}", stacklevel=2)
    return Result(algorithm, state, metrics, iteration * algorithm.steps_per_iteration, 0, 0.0, 0.0)


class StoredMetrics(Mapping[str, np.ndarray]):
    """The metrics of a run up to an iteration, read from its file when somebody asks for one."""

    def __init__(self, path: Path, iteration: int) -> None:
        self.path, self.iteration = path, iteration

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return _stacked(_rows_until(self.path, self.iteration)[0])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"the metrics in {self.path}"


def check_same_algorithm(directory: str | Path, config: dict[str, Any], algorithm: Algorithm) -> None:
    """Refuse an algorithm that is not the one a run was made with.

    Raises:
        InputError: naming what differs.
    """
    names = ("algorithm", "parts", "hyperparameters")
    steps = entry(config, "hyperparameters", str(directory), dict).get("total_steps")
    given = to_config(algorithm)
    different = said_differences(
        config, given | {"hyperparameters": given["hyperparameters"] | {"total_steps": steps}}, names
    )
    if different:
        raise InputError(f"algorithm is not that of {directory}: {different}")


def save_run(algorithm: Any, seed: int, state: Any, rows: list[Row], scores: dict[str, float], directory: Path) -> None:
    """Write a state and the rows that led to it as a run that can be loaded and trained on.

    Raises:
        InputError: the directory holds a run already, or cannot be written.
    """

    def refuse(stored: dict[str, Any]) -> dict[str, Any]:
        raise InputError(f"directory = {str(directory)!r} already holds a run: choose another")

    config = to_config(algorithm) | dict(zip(KEPT, (seed, None, None, 2, 128, []), strict=True))
    last = {name: rows[-1][name] for name in ("iteration", "steps")}
    marks: dict[str, Mark] = {}
    with held(directory, "config.json", config, refuse) as config, contextlib.ExitStack() as opened:
        for name, content in {"metrics": rows, "evaluations": [last | scores]}.items():
            file = JsonLines(directory / f"{name}.jsonl")
            opened.callback(file.close)
            file.write(content)
            marks[name] = file.mark
        left_out, identity = not_kept(algorithm), config["id"]
        checkpoints = Checkpoints(directory / "checkpoints", algorithm.score, 2, left_out, identity)
        opened.enter_context(contextlib.closing(checkpoints))
        checkpoints.save(last["iteration"], state, scores[algorithm.score[0]], marks["metrics"])
        checkpoints.wait()


def _adopt(directory: Path, config: dict[str, Any], progress: bool, stored: dict[str, Any]) -> dict[str, Any]:
    """The config of the run that is continued; how it is kept may change, what it computes may only get longer."""
    before = entry(entry(stored, "hyperparameters", str(directory), dict), "total_steps", str(directory), int)
    steps = config["hyperparameters"]["total_steps"]
    same_length = stored | {"hyperparameters": stored["hyperparameters"] | {"total_steps": steps}}
    check_same("run", directory, same_length, config, ("algorithm", "parts", "hyperparameters", "seed", "seeds"))
    _check_checkpoints_are_there(directory)
    if steps < before:
        raise InputError(f"total_steps = {steps} is not accepted: the run's {before} can only be raised")
    if steps > before and progress:
        jumps = config["hyperparameters"].get("lr_schedule") in STRETCHED
        effect = "falls to 0 at the new end, so it jumps where the run goes on" if jumps else "goes on as it was"
        say(f"total_steps raised from {before} to {steps}: the learning rate {effect}")
    return stored | config


def _finished(algorithm: Algorithm, directory: Path) -> Result | None:
    """The run as it was kept at its end, for which nothing is compiled; None where there is something to do or to
    mend."""
    if processes.count() > 1 or not (directory / "checkpoints" / str(algorithm.num_iterations)).exists():
        return None
    with warnings.catch_warnings(record=True) as damage:
        warnings.simplefilter("always", UserWarning)
        try:
            result = load(directory, algorithm=algorithm)
        except InputError:
            return None
    evaluations, unreadable = readable_rows(directory / "evaluations.jsonl")
    is_at_end = result.steps == algorithm.num_iterations * algorithm.steps_per_iteration
    return result if is_at_end and evaluations and not (unreadable or damage) else None


def _check_checkpoints_are_there(directory: Path) -> None:
    """Refuse to train from the start over the files of a run that had come further.

    Every evaluation but the last is older than a checkpoint that is complete.
    """
    evaluated = [row["iteration"] for row in readable_rows(directory / "evaluations.jsonl")[0]]
    kept = directory / "checkpoints"
    if len(evaluated) > 1 and not (kept.is_dir() and any(path.name.isdigit() for path in kept.iterdir())):
        raise InputError(
            f"{directory} was evaluated after iteration {evaluated[-1]} and has no checkpoint: they were removed or "
            "moved; put them back, or train in another directory"
        )


def _kept(config: dict[str, Any], directory: str | Path) -> dict[str, Any]:
    """What a stored config holds besides the algorithm.

    Raises:
        InputError: something is not there, or not accepted.
    """
    where = f"the config of {directory}"
    kept = {name: entry(config, name, where, list if name == "sinks" else object) for name in KEPT}
    check_seeds(where, kept["seed"], 1 if kept["seeds"] is None else kept["seeds"])
    return kept


def _subject(algorithm: Any, config: dict[str, Any]) -> Any:
    """What is trained: the algorithm itself or a population of it."""
    return algorithm if config["seeds"] is None else copies(algorithm, config["seeds"])


def _key(config: dict[str, Any]) -> Key:
    """Of a run, or one for each member."""
    if config["seeds"] is None:
        return jax.random.key(config["seed"])
    return jax.vmap(jax.random.key)(jnp.arange(config["seed"], config["seed"] + config["seeds"]))


def _train(
    algorithm: Any,
    config: dict[str, Any],
    directory: Path | None,
    layout: Layout,
    progress: bool,
    callback: Callback | None,
) -> Result:
    """Start or continue, and train to the end."""
    total, iteration_steps = algorithm.num_iterations, algorithm.steps_per_iteration
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(stop_signals()) if directory else []
        if progress:
            say(budget_note(algorithm))
            say("compiling")
        start = time.perf_counter()
        training = _Training(algorithm, config, directory, layout, stack)
        seconds_compile = time.perf_counter() - start
        done_before = training.done
        if progress:
            say(f"continuing after iteration {done_before} of {total}" if done_before else "")
            display = ProgressDisplay(algorithm, done_before)
            training.sinks.append(stack.enter_context(contextlib.closing(display)))
        start = time.perf_counter()
        ended: Stopped | None = None
        try:
            drive(
                done_before,
                total,
                training.advance,
                training.keep,
                lambda done: callback(training.progress(done)) if callback else None,
                stopped,
                lambda done: f"after iteration {done} of {total} and saved; continue with: pgjax resume {directory}",
            )
        except Stopped as stop:
            ended, total = stop, stop.position
        seconds_run = time.perf_counter() - start
    steps, steps_now = total * iteration_steps, (total - done_before) * iteration_steps
    result = Result(
        algorithm, training.own_state(), training.all_metrics(total), steps, steps_now, seconds_compile, seconds_run
    )
    if ended:
        ended.result = result
        raise ended
    return result


class _Training:
    """A run while it trains: its programs and state, and where they are kept."""

    def __init__(
        self,
        algorithm: Any,
        config: dict[str, Any],
        directory: Path | None,
        layout: Layout,
        opened: contextlib.ExitStack,
    ) -> None:
        subject = _subject(algorithm, config)
        self.programs = compile_programs(subject, layout, ROWS, config["episodes"] if directory else None)
        check_memory(self.programs.bytes_needed, layout.mesh)
        self.subject, key = layout.place_algorithm(subject), layout.place(_key(config))
        self.total, self.iteration_steps = algorithm.num_iterations, algorithm.steps_per_iteration
        self.score, self.left_out = algorithm.score, not_kept(algorithm)
        self.clock, self.chunk = Clock(config["checkpoint_every"]), 1
        self.is_single = config["seeds"] is None
        self.columns: list[dict[str, np.ndarray]] = []
        """The metrics of each chunk, of a run that keeps them nowhere else."""
        self.new_rows: list[Row] = []
        self.sinks: list[Sink] = []
        self.failure: OSError | None = None
        """Of a sink beside the run's own files: raised when the run has been kept."""
        self.checkpoints: Checkpoints | None = None
        self.done, self.state = 0, None
        self.path = directory and directory / "metrics.jsonl"
        if directory:
            with processes.together():
                if processes.is_first():
                    self.checkpoints = Checkpoints(
                        directory / "checkpoints", self.score, config["keep"], self.left_out, config.get("id")
                    )
                    opened.enter_context(contextlib.closing(self.checkpoints))
            restored = restored_by_first(self.checkpoints, lambda: subject.init(_key(config)))
            if restored:
                self.done, self.state = restored[0], layout.place(restored[1])
            with processes.together():
                if self.checkpoints:
                    self._open(directory, config, self.checkpoints.rows, opened)
        if self.state is None:
            self.state = self.programs.init(self.subject, key)
        jax.block_until_ready(self.state)

    def _open(
        self, directory: Path, config: dict[str, Any], rows: tuple[int, str] | None, opened: contextlib.ExitStack
    ) -> None:
        """The files of rows, up to where the run stands; `rows` is what its checkpoint says of the metrics."""
        path, mark = directory / "metrics.jsonl", rows and Mark(*rows)
        if not (mark and mark.is_of(path)):
            _mend_rows(path, self.done, expects_all=True, was_changed=mark is not None)
            mark = None
        _mend_rows(directory / "evaluations.jsonl", self.done)
        self.evaluations = JsonLines(directory / "evaluations.jsonl", self.done)
        opened.callback(self.evaluations.close)
        self.metrics = JsonLines(path, self.done, mark)
        self.sinks.append(self.metrics)
        opened.callback(self.metrics.close)
        for name in config["sinks"]:
            self.sinks.append(open_sink(name, directory, self.done, config))
            opened.callback(_tell, self.sinks[-1], "close")

    def advance(self, done: int) -> int:
        """About a second of work, and its rows to the sinks."""
        size = processes.agreed(min(self.chunk, self.total - done, self.clock.left(done) or self.total))
        start = time.perf_counter()
        count = self.programs.layout.place_count(size)
        self.state, report = self.programs.advance(self.subject, self.state, count)
        rows, failure = _rows(processes.on_host(report), done, size, self.iteration_steps)
        self.new_rows = rows
        if self.path is None:
            self.columns.append(_stacked(rows))
        for sink in self.sinks if rows else []:
            self._tell(sink, "write", rows)
        if failure:
            raise FloatingPointError(failure)
        seconds = time.perf_counter() - start
        self.chunk = int(np.clip(CHUNK_SECONDS * size / seconds, 1, MAX_CHUNK))
        return done + size

    def keep(self, done: int, stopping: bool) -> None:
        """A checkpoint if one is due: evaluated, or at once for a run that must stop."""
        last, failed = done == self.total, self.failure is not None
        due, failed = processes.agreed([last or self.clock.is_due(done), failed])
        if self.path is None or not (due or stopping or failed):
            return
        with self.clock.measured():
            state = processes.whole(self.state)
            _check_finite_params(state, done)
            scores = processes.on_host(self.programs.evaluate(self.subject, self.state)) if due else None
            if self.checkpoints:
                score = self._evaluated(done, scores) if scores else float("nan")
                for sink in [*self.sinks, self.evaluations]:
                    self._tell(sink, "flush")  # what a checkpoint builds on must outlive a crash with it
                self.checkpoints.save(done, state, score, self.metrics.mark)
                if last or stopping or self.failure:
                    self.checkpoints.wait()
        if self.failure:
            raise self.failure

    def _tell(self, sink: Sink, method: str, *arguments: Any) -> None:
        try:
            _tell(sink, method, *arguments)
        except OSError as error:
            if self.checkpoints is None or sink in (self.metrics, self.evaluations):
                raise
            self.failure = self.failure or error

    def progress(self, done: int) -> Progress:
        """What a callback is told."""
        copied = functools.partial(jax.tree.map, jnp.copy)
        metrics = {name: x for name, x in _stacked(self.new_rows).items() if name not in ("iteration", "steps")}
        return Progress(done, done * self.iteration_steps, metrics, lambda: copied(self.own_state()))

    def all_metrics(self, done: int) -> Mapping[str, np.ndarray]:
        """Of all iterations: those of a run with a directory stay in their file until somebody asks."""
        if self.path is not None:
            return StoredMetrics(self.path, done)
        first, *_ = self.columns
        return {name: np.concatenate([columns[name] for columns in self.columns]) for name in first}

    def own_state(self) -> Any:
        """The state where a user finds it: that of a single run on one device, which does what he does with it, unless
        it is in shards; and whole in each of several processes."""
        state = processes.whole(self.state)
        is_for_one = self.is_single and self.programs.layout.shards == 1
        return jax.device_put(state, jax.local_devices()[0]) if is_for_one else state

    def _evaluated(self, done: int, scores: dict[str, np.ndarray]) -> float:
        """Write the scores of exactly this state; the mean of the one that ranks."""
        assert self.checkpoints
        self.checkpoints.wait()  # that of the row before, as who goes on expects
        row = {"iteration": done, "steps": done * self.iteration_steps}
        self.evaluations.write([row | {name: x.tolist() for name, x in scores.items()}])
        return float(np.mean(scores[self.score[0]]))


def _rows(report: dict[str, Any], done: int, size: int, iteration_steps: int) -> tuple[list[Row], str]:
    """The rows of these iterations up to the first with a number that is not finite, and what is wrong with that
    one."""
    values = {name: number(metric) for name, metric in report.items()}
    wrong = {name: ~np.isfinite(values[name]) & ~is_absent(metric) for name, metric in report.items()}
    rows: list[Row] = []
    for i in range(size):
        iteration = done + i + 1
        names = [name for name, bad in wrong.items() if np.any(bad[i])]
        if names:
            return rows, f"iteration {iteration}: {', '.join(names)} is not finite"
        row = {"iteration": iteration, "steps": iteration * iteration_steps}
        rows.append(row | {name: x[i].tolist() for name, x in values.items()})
    return rows, ""


def _tell(sink: Sink, method: str, *arguments: Any) -> None:
    """Call a method of a sink.

    Raises:
        OSError: it failed, with the name of the sink.
    """
    try:
        getattr(sink, method)(*arguments)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"the sink {type(sink).__name__} failed in {method}: {error}") from error


def _check_finite_params(state: Any, iteration: int) -> None:
    for path, leaf in jax.tree.leaves_with_path(state.params):
        if not np.all(np.isfinite(leaf)):
            raise FloatingPointError(f"iteration {iteration}: parameter {jax.tree_util.keystr(path)} is not finite")


def _rows_until(
    path: Path, iteration: int, expects_all: bool = False, was_changed: bool = False
) -> tuple[list[Row], str]:
    """The rows up to a checkpoint, and what of them is lost: `expects_all` where a row of every checkpoint is on disk
    before it, and `was_changed` where they are not what was written, whether or not all can be read."""
    readable, unreadable = readable_rows(path)
    rows = [_nan_for_none(row) for row in readable if row["iteration"] <= iteration]
    lost = [f"{unreadable} lines that cannot be read"] if unreadable else []
    last = rows[-1]["iteration"] if rows else 0
    if expects_all and last < iteration:
        lost.append(f"those of iterations {last + 1} to {iteration}")
    return rows, " and ".join(lost) or ("they are not what was written" if was_changed else "")


def _mend_rows(path: Path, iteration: int, expects_all: bool = False, was_changed: bool = False) -> None:
    """Keep a damaged file beside, and replace it by what can be read of it; arguments as of `_rows_until`."""
    rows, lost = _rows_until(path, iteration, expects_all, was_changed)
    if lost:
        kept = f"; the damaged file is kept as {path.name}.damaged" if path.exists() else ""
        warnings.warn(f"{path} is damaged: rows are lost, {lost}{kept}", stacklevel=2)
        if path.exists():
            path.replace(path.with_name(f"{path.name}.damaged"))
        file = JsonLines(path)
        file.write(rows)
        file.close()


def _nan_for_none(row: Row) -> Row:
    def nan(value: Any) -> Any:
        return [nan(v) for v in value] if isinstance(value, list) else float("nan") if value is None else value

    return {name: nan(value) for name, value in row.items()}


def _stacked(rows: list[Row]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}
