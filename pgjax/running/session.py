"""What runs and sweeps do alike: hold a directory, see whose it is, know when a checkpoint is due, stop and go on."""

import contextlib
import json
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from pgjax.core import processes
from pgjax.core.algorithm import check_algorithm
from pgjax.core.errors import InputError, Interrupted
from pgjax.running.config import differences, entry, version_changes, versions
from pgjax.running.directory import locked, read_json, write_json, write_status

CHECKPOINT_SECONDS = 60.0
CHECKPOINT_SHARE = 0.02
"""Checkpoints that are due by the clock take at most this share of the time."""
MOST_DIFFERENCES = 5
"""Of two configs that a message names."""


def check_count(label: str, value: Any, least: int = 1) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        InputError: naming the label, the value and what would be accepted.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{label} = {value!r} is not accepted: expected a whole number of at least {least}")


def check_seeds(label: str, seed: Any, seeds: Any = 1) -> None:
    """Refuse seeds that are not 32-bit ones, which `jax.random.key` would wrap without a word.

    Raises:
        InputError: naming the label, the value and what would be accepted.
    """
    check_count(f"{label}: seed", seed, least=0)
    check_count(f"{label}: seeds", seeds)
    if seed + seeds > 2**32:
        raise InputError(f"{label}: seed = {seed} is not accepted: expected seeds below {2**32}, and there are {seeds}")


def check_single(label: str, algorithm: Any) -> None:
    """Refuse hyperparameters with several values, and parts that do not fit together, before anything compiles.

    Raises:
        InputError: naming the hyperparameter, or what a part needs.
    """
    check_algorithm(label, algorithm)
    for name, leaf in vars(algorithm).items():
        if isinstance(leaf, (np.ndarray, jax.Array)) and leaf.ndim:
            raise InputError(f"{label}: {name} = {leaf} is not accepted: expected one value; sweep several as an axis")
    jax.eval_shape(algorithm.init, jax.random.key(0))


def check_same(
    what: str, directory: Path, stored: dict[str, Any], config: dict[str, Any], names: Iterable[str]
) -> None:
    """Refuse a directory that holds another run or sweep than `config` describes in the entries `names`; warn of other
    versions and numbers of devices and shards.

    Raises:
        InputError: naming what differs.
    """
    different = said_differences(stored, config, names)
    if different:
        raise InputError(f"directory = {str(directory)!r} already holds another {what} ({different}): choose another")
    changed = version_changes(entry(stored, "versions", str(directory), dict))
    if changed:
        warnings.warn(f"{directory} was written with other versions, numbers may change: {changed}", stacklevel=4)
    for name in ("devices", "shards"):
        before, now = stored.get(name, config.get(name)), config.get(name)
        if before != now:
            warnings.warn(
                f"{directory} was trained on {name} = {before} and goes on on {now}: equal to rounding, not bit by bit",
                stacklevel=4,
            )


def devices_of(config: dict[str, Any], devices: int | None) -> int | None:
    """How many devices a stored run or sweep goes on on: `devices`, else as many as before, else all there are."""
    before = config.get("devices")
    known = isinstance(before, int) and 1 <= before <= jax.device_count() and processes.count() == 1
    return before if devices is None and known else devices


def check_equal(config: dict[str, Any]) -> None:
    """Refuse processes of which one has another config, or other versions, than the first.

    Raises:
        InputError: in all of them, naming the process and what differs.
    """
    if processes.count() == 1:
        return
    first, *others = processes.exchanged(config | {"versions": versions()})
    for process, other in enumerate(others, start=1):
        found = said_differences(other, first, first)
        if found:
            raise InputError(f"process {process} does not do what process 0 does: its {found}")


def said_differences(stored: dict[str, Any], config: dict[str, Any], names: Iterable[str]) -> str:
    """Where two configs differ in the entries `names`, for a message; empty if they do not."""
    found = [f"{path} is {old}, not {new}" for path, (old, new) in differences(stored, config, names).items()]
    more = [f"and {len(found) - MOST_DIFFERENCES} more"] if len(found) > MOST_DIFFERENCES else []
    return "; ".join(found[:MOST_DIFFERENCES] + more)


@contextlib.contextmanager
def held(
    directory: Path, name: str, config: dict[str, Any], adopt: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Hold a directory whose config is the file `name`, and write there how the work inside ends; of several processes
    the first one does.

    Yields the config to work with: `adopt(stored)` where there is one already, else `config` with an identity.

    Raises:
        InputError: another process holds the directory, it holds something of another sort, or cannot be written.
        And what `adopt` raises.
    """
    with contextlib.ExitStack() as opened:
        with processes.together():
            if processes.is_first():
                config = opened.enter_context(_held(directory, name, config, adopt))
        yield processes.agreed(config)


@contextlib.contextmanager
def _held(
    directory: Path, name: str, config: dict[str, Any], adopt: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    with locked(directory) as stale:
        if stale:
            warnings.warn(f"process {stale} died while it worked on {directory}: taking over", stacklevel=3)
        others = [other for other in ("config.json", "sweep.json") if other != name and (directory / other).exists()]
        if others:
            what = {"config.json": "run", "sweep.json": "sweep"}[others[0]]
            raise InputError(f"directory = {str(directory)!r} holds a {what}: choose another")
        if (directory / name).exists():
            config = adopt(read_json(directory / name))
        else:
            config = json.loads(json.dumps(config)) | {"id": uuid.uuid4().hex[:8], "versions": versions()}
        try:
            write_json(directory / name, config)
            write_status(directory, "interrupted")  # what it is unless it ends otherwise
        except OSError as error:
            raise InputError(f"directory = {str(directory)!r} cannot be written: {error.strerror}") from error
        try:
            yield config
        except Exception as error:
            if not isinstance(error, Interrupted):
                with contextlib.suppress(OSError):  # a full disk must not hide why the work failed
                    write_status(directory, f"failed: {error}")
            raise
        write_status(directory, "finished")


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Collects the first SIGINT or SIGTERM; the next one ends the process at once."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return

    def receive(number: int, frame: Any) -> None:
        received.append(signal.Signals(number))
        for each in caught:
            signal.signal(each, signal.SIG_DFL)

    caught = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, receive) for number in caught}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Clock:
    """When a checkpoint is due: every so many positions, or about every minute at 2 % of the time at most."""

    def __init__(self, every: int | None) -> None:
        self.every = every
        self.cost, self.last = 0.0, time.perf_counter()

    def left(self, position: int) -> int | None:
        """Positions until the next checkpoint; None where seconds decide."""
        return self.every - position % self.every if self.every else None

    def is_due(self, position: int) -> bool:
        """Whether one is due at `position`, which was just reached."""
        if self.every:
            return position % self.every == 0
        return time.perf_counter() - self.last >= max(CHECKPOINT_SECONDS, self.cost / CHECKPOINT_SHARE)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Around a checkpoint: remembers what it costs."""
        start = time.perf_counter()
        yield
        self.last = time.perf_counter()
        self.cost = self.last - start


class Progress(NamedTuple):
    """What a callback is told of a run or sweep that trains."""

    iteration: int
    """Done so far."""
    steps: int
    """The same in the algorithm's unit."""
    metrics: dict[str, np.ndarray]
    """Of the iterations since the last call, `[iterations]`, with an axis of members behind it where there are several;
    NaN where there was nothing to report. Of a sweep, `[1, members]`: the last point of every curve."""
    state: Callable[[], Any]
    """What was reached, with a leading axis of members where there are several; nothing is computed for who does not
    ask."""


Callback: TypeAlias = Callable[[Progress], bool | None]
"""Called while training; True ends it."""


class Stopped(Interrupted):
    """A callback ended the work at `position`."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message, 0)
        self.position = position
        self.result: Any = None
        """What there is by then."""


def drive(
    position: int,
    end: int,
    advance: Callable[[int], int],
    keep: Callable[[int, bool], None],
    ask: Callable[[int], bool | None],
    stopped: list[signal.Signals],
    how_to_go_on: Callable[[int], str],
) -> None:
    """Work from `position` to `end`: `position = advance(position)`, then `ask(position)` whether to stop there and
    `keep(position, stopping)`. What one of several processes hears, is asked or fails with stops all of them there.

    Raises:
        Interrupted: a signal was heard, or `Stopped`, it was asked to stop, and there is work left; what was kept last
            was told that it is stopping.
        And what `ask` raises, when that was kept as well.
    """
    while position < end:
        with processes.together():
            position = advance(position)
        failure: BaseException | None = None
        try:
            enough = bool(ask(position))
        except BaseException as error:  # whatever it is, what was trained is kept first
            enough, failure = True, error
        # a signal from here on is heard after the next piece of work
        said = processes.exchanged([enough, [signal_.value for signal_ in stopped]])
        enough, heard = any(each for each, _ in said), [signal.Signals(x) for _, each in said for x in each]
        with processes.together():
            keep(position, enough or bool(heard))
        if failure:
            raise failure
        if heard and position < end:
            raise Interrupted(f"stopped by {heard[0].name} {how_to_go_on(position)}", heard[0].value)
        if enough and position < end:
            raise Stopped(f"stopped by the callback {how_to_go_on(position)}", position)
