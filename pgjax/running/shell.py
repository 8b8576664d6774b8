"""The impure shell around the loop: a run that can be stopped at any moment and continues as if it had not been."""

import contextlib
import functools
import itertools
import json
import math
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core.algorithm import Algorithm, Key
from pgjax.core.devices import local_devices
from pgjax.core.errors import InputError, Interrupted
from pgjax.learning.rollout import absent_without_episodes
from pgjax.running.checkpoint import Checkpoints, load_state
from pgjax.running.compile import MAX_CHUNK, compile_run
from pgjax.running.config import from_config, to_config, version_changes, versions
from pgjax.running.directory import holds_run, locked, read_config, read_rows, write_json, write_status
from pgjax.running.loop import budget_note
from pgjax.running.population import copies
from pgjax.running.sinks import JsonLines, ProgressDisplay, Sink, check_sinks, open_sink, say

CHUNK_SECONDS = 1.0
CHECKPOINT_STEPS = 500_000
SAME_RUN = ("algorithm", "env", "network", "hyperparameters", "seed", "seeds")


class Result(NamedTuple):
    """A finished run."""

    algorithm: Any
    """As it was given, or rebuilt from the config."""
    state: Any
    """With a leading axis of members for several seeds."""
    metrics: dict[str, np.ndarray]
    """`[num_iterations]` each, `[num_iterations, members]` for several seeds."""
    steps: int
    """Environment steps of the whole run."""
    steps_now: int
    """Of them, those trained in this process."""
    seconds_compile: float
    seconds_run: float

    def predict(self, obs: Any, deterministic: bool = True, key: Key | None = None) -> np.ndarray:
        """The action for one observation, or one per observation of a batch, as NumPy; for networks without memory.

        `deterministic` plays the mode of the policy; otherwise the action is sampled with `key`. A continuous action is
        what the environment would receive, in its own bounds.
        """
        network_memory = self.algorithm.actor(self.state).initial_memory(1)
        if jax.tree.leaves(network_memory):
            raise InputError(
                "predict is for networks without memory: step algorithm.actor(state), which keeps its memory"
            )
        if not deterministic and key is None:
            raise InputError("predict: key = None is not accepted: expected a random key to sample the action with")
        obs = jnp.asarray(obs, jnp.float32)
        shape = self.algorithm.env.observation_space.shape
        if obs.shape not in (shape, (*obs.shape[:1], *shape)):
            raise InputError(f"predict: obs of shape {obs.shape} is not accepted: expected {shape} or {('N', *shape)}")
        action = np.asarray(_predict(self.algorithm, self.state, obs.reshape(-1, *shape), deterministic, key))
        return np.asarray(action[0]) if obs.shape == shape else action

    def member(self, i: int) -> "Result":
        """One member of a run with several seeds, to be evaluated or used alone."""
        state = jax.tree.map(lambda x: x[i], self.state)
        metrics = {name: x[:, i] if x.ndim == 2 else x for name, x in self.metrics.items()}
        return self._replace(state=state, metrics=metrics)


@functools.partial(jax.jit, static_argnums=3)
def _predict(algorithm: Any, state: Any, obs: Any, deterministic: bool, key: Key | None) -> Any:
    start = jnp.ones(obs.shape[0], bool)
    policy = algorithm.actor(state).act((), obs, start)[1].distribution
    action = policy.mode() if deterministic else policy.sample_and_log_prob(policy.noise(key))[0]
    return jax.vmap(algorithm.env.received)(action)


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
    progress: bool = True,
) -> Result:
    """Train like `pgjax.train(algorithm, jax.random.key(seed))`, showing progress and keeping the run in a directory.

    Without `directory` nothing is written. A directory that holds the same run is continued from its newest whole
    checkpoint, to the same bits as if it had never stopped; a larger `total_steps` trains on. SIGINT and SIGTERM finish
    the chunk, save, and raise `Interrupted`; a second one ends the process at once.

    Args:
        seeds: train this many members with the keys of `seed`, `seed + 1`, ... as one program.
        checkpoint_every: iterations between checkpoints, each evaluated; by default a tenth of the run, but at least
            500,000 environment steps, so that checkpoints do not slow training.
        keep: how many of the newest checkpoints to keep, beside the best one by evaluated return.
        episodes: episodes of each evaluation.
        sinks: what gets the metrics besides `metrics.jsonl`, of "csv", "tensorboard" and "wandb".
        devices: over how many local devices members are spread, or the environments of a single run that is large
            enough; by default all. Another number changes results by rounding.

    Raises:
        InputError: the directory holds another run, is in use, or cannot be written; or an argument is not accepted.
        Interrupted: a signal asked the run to stop; the message says how to go on.
        FloatingPointError: a metric became NaN or infinite, or a parameter that was due for a checkpoint; the newest
            checkpoint is a finite one.
        OSError: a file could not be written; what was written before stays readable.
    """
    every = _default_interval(algorithm) if checkpoint_every is None else checkpoint_every
    sizes = {"checkpoint_every": every, "keep": keep, "episodes": episodes, "seeds": 1 if seeds is None else seeds}
    for name, value in sizes.items():
        if value < 1:
            raise InputError(f"run: {name} = {value} is not accepted: expected at least 1")
    check_sinks(sinks)
    local_devices(devices)
    config = to_config(algorithm) | {
        "seed": seed,
        "seeds": seeds,
        "checkpoint_every": every,
        "keep": keep,
        "episodes": episodes,
        "sinks": list(sinks),
    }
    for name, leaf in vars(algorithm).items():
        if isinstance(leaf, (np.ndarray, jax.Array)) and leaf.ndim:
            raise InputError(f"run: {name} = {leaf} is not accepted: expected one value; train vmaps over several")
    jax.eval_shape(algorithm.init, jax.random.key(seed))  # a network that does not fit is refused before files appear
    if directory is None:
        return _drive(algorithm, config, None, devices, progress)
    directory = Path(directory)
    with locked(directory) as stale:
        if stale:
            warnings.warn(f"process {stale} died while it worked on {directory}: taking over", stacklevel=2)
        config = _same_run(directory, config, progress) if holds_run(directory) else config | _identity()
        with kept_status(directory, "config.json", config):
            return _drive(algorithm, config, directory, devices, progress)


def resume(
    directory: str | Path, total_steps: int | None = None, devices: int | None = None, progress: bool = True
) -> Result:
    """Continue the run in `directory`, if asked to up to a larger `total_steps`; to the same bits on equal devices.

    Raises:
        InputError: there is no run, its config needs code of the user's own (call `run` with the same arguments), or
            `total_steps` is less than the run's own.
        And what `run` raises.
    """
    config = read_config(directory)
    if total_steps is not None:
        config["hyperparameters"]["total_steps"] = total_steps
    settings = {name: config[name] for name in ("seeds", "checkpoint_every", "keep", "episodes")}
    sinks = tuple(config["sinks"])
    return run(
        from_config(config), config["seed"], directory, sinks=sinks, devices=devices, progress=progress, **settings
    )


def load(directory: str | Path, which: Literal["newest", "best"] = "newest") -> Result:
    """A run from its directory: algorithm, the newest or the `"best"` state, metrics, ready to predict.

    Raises:
        InputError: there is no run or no whole checkpoint, or the config needs code of the user's own.
    """
    directory = Path(directory)
    if which not in ("newest", "best"):
        raise InputError(f"load: which = {which!r} is not accepted: expected 'newest' or 'best'")
    config = read_config(directory)
    algorithm = from_config(config)
    subject, key = _subject(algorithm, config)
    iteration, state = load_state(directory, lambda: subject.init(key), which)
    rows = _metric_rows(directory, iteration)
    return Result(algorithm, state, _stacked(rows), iteration * algorithm.steps_per_iteration, 0, 0.0, 0.0)


def save_run(
    algorithm: Any, seed: int, state: Any, rows: list[dict[str, Any]], scores: dict[str, float], directory: Path
) -> None:
    """Write a state and the rows that led to it as a run that can be loaded and trained on.

    Raises:
        InputError: the directory holds a run already, or cannot be written.
    """
    every = _default_interval(algorithm)
    kept: dict[str, Any] = {
        "seed": seed,
        "seeds": None,
        "checkpoint_every": every,
        "keep": 2,
        "episodes": 128,
        "sinks": [],
    }
    last = {name: rows[-1][name] for name in ("iteration", "steps")}
    with locked(directory):
        if holds_run(directory):
            raise InputError(f"directory = {str(directory)!r} already holds a run: choose another")
        with (
            kept_status(directory, "config.json", to_config(algorithm) | kept | _identity()),
            contextlib.ExitStack() as opened,
        ):
            for name, content in {"metrics": rows, "evaluations": [last | scores]}.items():
                file = JsonLines(directory / f"{name}.jsonl")
                opened.callback(file.close)
                file.write(content)
            checkpoints = opened.enter_context(contextlib.closing(Checkpoints(directory / "checkpoints", keep=2)))
            checkpoints.save(last["iteration"], state, scores["return_mean"])
            checkpoints.wait()


@contextlib.contextmanager
def kept_status(directory: Path, name: str, config: dict[str, Any]) -> Iterator[None]:
    """Write the config and, when the work inside ends, how it ended."""
    try:
        write_json(directory / name, config)
        write_status(directory, "interrupted")  # what it is unless it ends otherwise
    except OSError as error:
        raise InputError(f"directory = {str(directory)!r} cannot be written: {error.strerror}") from error
    try:
        yield
    except Exception as error:
        if not isinstance(error, Interrupted):
            with contextlib.suppress(OSError):  # a full disk must not hide why the run failed
                write_status(directory, f"failed: {error}")
        raise
    write_status(directory, "finished")


def _default_interval(algorithm: Any) -> int:
    """Iterations between checkpoints."""
    steps = max(algorithm.total_steps / 10, CHECKPOINT_STEPS)
    return math.ceil(steps / algorithm.steps_per_iteration)


def _identity() -> dict[str, Any]:
    return {"id": uuid.uuid4().hex[:8], "versions": versions()}


def _same_run(directory: Path, config: dict[str, Any], progress: bool) -> dict[str, Any]:
    """The config of the run that is continued; how it is kept may change, what it computes may only get longer."""
    stored = read_config(directory)
    old, new = (_without_budget(c) for c in (stored, json.loads(json.dumps(config))))
    different = [f"{name} is {old.get(name)}, not {new[name]}" for name in new if old.get(name) != new[name]]
    if different:
        raise InputError(
            f"directory = {str(directory)!r} already holds another run ({'; '.join(different)}): choose another"
        )
    before, steps = (c["hyperparameters"]["total_steps"] for c in (stored, config))
    if steps < before:
        raise InputError(f"total_steps = {steps} is not accepted: the run's {before} can only be raised")
    if steps > before and progress:
        linear = config["hyperparameters"].get("lr_schedule") == "linear"
        effect = "now falls to 0 at the new end, so it jumps where the run goes on" if linear else "stays as it is"
        say(f"total_steps raised from {before} to {steps}: the learning rate {effect}")
    changed = version_changes(stored["versions"])
    if changed:
        warnings.warn(f"{directory} was written with other versions, numbers may change: {changed}", stacklevel=3)
    return stored | config


def _without_budget(config: dict[str, Any]) -> dict[str, Any]:
    """What must be equal, flat, so that a message can name the field."""
    flat: dict[str, Any] = {}
    for part in SAME_RUN:
        if isinstance(config[part], dict):
            flat |= {f"{part}.{k}": v for k, v in config[part].items()}
        else:
            flat[part] = config[part]
    return {name: value for name, value in flat.items() if name != "hyperparameters.total_steps"}


def _subject(algorithm: Any, config: dict[str, Any]) -> tuple[Any, Key]:
    """What is trained, and its key: the algorithm itself or a population of it."""
    if config["seeds"] is None:
        return algorithm, jax.random.key(config["seed"])
    keys = jax.vmap(jax.random.key)(jnp.arange(config["seed"], config["seed"] + config["seeds"]))
    return copies(algorithm, config["seeds"]), keys


def _drive(
    algorithm: Any, config: dict[str, Any], directory: Path | None, devices: int | None, progress: bool
) -> Result:
    """Start or continue, and train to the end."""
    subject, key = _subject(algorithm, config)
    total, iteration_steps = algorithm.num_iterations, algorithm.steps_per_iteration
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(stop_signals()) if directory else []
        start = time.perf_counter()
        programs = compile_run(subject, config["episodes"] if directory else None, devices)
        subject, key = jax.device_put((subject, key), (programs.algorithm_sharding, programs.sharding))
        files = None
        if directory:
            scores = functools.partial(programs.scores, subject)
            files = stack.enter_context(contextlib.closing(_Files(subject, key, config, directory, scores)))
        if files and files.rows:
            state, rows = jax.device_put(files.state, programs.sharding), files.rows
        else:
            state, rows = programs.init(subject, key), []
        done = done_before = rows[-1]["iteration"] if rows else 0
        jax.block_until_ready(state)
        seconds_compile = time.perf_counter() - start
        sinks = files.sinks if files else []
        if progress:
            say(budget_note(algorithm))
            say(f"continuing after iteration {done_before} of {total}" if rows else "")
            display = stack.enter_context(contextlib.closing(ProgressDisplay(total, done_before, iteration_steps)))
            sinks = [*sinks, display]
        start = time.perf_counter()
        size = 1
        while done < total:
            size = min(size, total - done, files.until_checkpoint(done) if files else total)
            began = time.perf_counter()
            state, metrics = programs.chunk(subject, state, np.int32(size))
            rows += _rows(jax.device_get(metrics), done, size, iteration_steps)
            done += size
            seconds = time.perf_counter() - began
            _log(rows[-size:], sinks)
            size = int(np.clip(CHUNK_SECONDS * size / seconds, 1, MAX_CHUNK))
            stopping = bool(stopped)  # a signal from here on is heard after the next chunk
            if files:
                files.keep(state, done, last=done == total, stopped=stopping)
            if stopping and done < total:
                raise Interrupted(
                    f"stopped by {stopped[0].name} after iteration {done} of {total} and saved; "
                    f"continue with: pgjax resume {directory}",
                    stopped[0].value,
                )
        seconds_run = time.perf_counter() - start
    if config["seeds"] is None:
        state = jax.device_put(state, jax.local_devices()[0])  # what a user does with it, one device does
    steps_now = (total - done_before) * iteration_steps
    return Result(algorithm, state, _stacked(rows), total * iteration_steps, steps_now, seconds_compile, seconds_run)


class _Files:
    """The run on disk while it trains: where it stood, its sinks, and its checkpoints."""

    def __init__(self, subject: Any, key: Key, config: dict[str, Any], directory: Path, scores: Any) -> None:
        self.every, self.iteration_steps, self.scores = config["checkpoint_every"], subject.steps_per_iteration, scores
        with contextlib.ExitStack() as opened:
            self.checkpoints = opened.enter_context(
                contextlib.closing(Checkpoints(directory / "checkpoints", config["keep"]))
            )
            restored = self.checkpoints.restore_newest(lambda: subject.init(key))
            iteration: int = restored[0] if restored else 0
            self.state: Any = restored[1] if restored else None
            self.rows = _metric_rows(directory, iteration)
            self.evaluations = JsonLines(directory / "evaluations.jsonl", iteration)
            opened.callback(self.evaluations.close)
            self.sinks: list[Sink] = [JsonLines(directory / "metrics.jsonl", iteration)]
            opened.callback(self.sinks[0].close)
            for name in config["sinks"]:
                self.sinks.append(open_sink(name, directory, iteration, config))
                opened.callback(self.sinks[-1].close)
            self.opened = opened.pop_all()

    def until_checkpoint(self, iteration: int) -> int:
        return self.every - iteration % self.every

    def keep(self, state: Any, iteration: int, *, last: bool, stopped: bool) -> None:
        """A checkpoint if one is due: evaluated, or at once for a run that must stop."""
        due = last or iteration % self.every == 0
        if not due and not stopped:
            return
        _check_finite_params(state, iteration)
        return_mean = self._evaluate(state, iteration) if due else float("nan")
        for sink in [*self.sinks, self.evaluations]:
            sink.flush()  # what a checkpoint builds on must outlive a crash with it
        self.checkpoints.save(iteration, state, return_mean)
        if last or stopped:
            self.checkpoints.wait()

    def _evaluate(self, state: Any, iteration: int) -> float:
        """Write the scores of exactly this state; their mean."""
        scores = jax.device_get(self.scores(state))
        row = {"iteration": iteration, "steps": iteration * self.iteration_steps}
        self.evaluations.write([row | {name: x.tolist() for name, x in scores.items()}])
        return float(np.mean(scores["return_mean"]))

    def close(self) -> None:
        self.opened.close()


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Collects the first SIGINT or SIGTERM; the next one ends the process at once."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return

    def receive(number: int, frame: Any) -> None:
        received.append(signal.Signals(number))
        for each in handled:
            signal.signal(each, signal.SIG_DFL)

    handled = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, receive) for number in handled}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _rows(metrics: dict[str, np.ndarray], done: int, size: int, iteration_steps: int) -> list[dict[str, Any]]:
    return [
        {"iteration": done + i + 1, "steps": (done + i + 1) * iteration_steps}
        | {name: x[i].tolist() for name, x in metrics.items()}
        for i in range(size)
    ]


def _log(rows: list[dict[str, Any]], sinks: list[Sink]) -> None:
    """Give the sinks the rows up to the first with a number that is not finite, and stop at that one."""

    def not_finite(row: dict[str, Any]) -> list[str]:
        return [k for k, v in row.items() if not np.all(np.isfinite(v)) and not absent_without_episodes(k)]

    finite = list(itertools.takewhile(lambda row: not not_finite(row), rows))
    if finite:
        for sink in sinks:
            sink.write(finite)
    if len(finite) < len(rows):
        bad = rows[len(finite)]
        raise FloatingPointError(f"iteration {bad['iteration']}: {', '.join(not_finite(bad))} is not finite")


def _check_finite_params(state: Any, iteration: int) -> None:
    for path, leaf in jax.tree.leaves_with_path(state.params):
        if not np.all(np.isfinite(leaf)):
            raise FloatingPointError(f"iteration {iteration}: parameter {jax.tree_util.keystr(path)} is not finite")


def _metric_rows(directory: Path, iteration: int) -> list[dict[str, Any]]:
    """The rows up to a checkpoint, which were on disk before it."""
    path = directory / "metrics.jsonl"
    rows = [row for row in read_rows(path) if row["iteration"] <= iteration]
    last = rows[-1]["iteration"] if rows else 0
    if last < iteration:
        raise InputError(f"{path} is damaged: it ends at iteration {last}, and the checkpoint is of {iteration}")
    return [_nan_for_none(row) for row in rows]


def _nan_for_none(row: dict[str, Any]) -> dict[str, Any]:
    def number(value: Any) -> Any:
        return [number(v) for v in value] if isinstance(value, list) else float("nan") if value is None else value

    return {name: number(value) for name, value in row.items()}


def _stacked(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}
