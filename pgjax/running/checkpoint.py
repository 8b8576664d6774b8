"""What makes a run again: the config as JSON, and the states orbax keeps."""

import errno
import hashlib
import importlib
import logging
import math
import operator
import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core import processes
from pgjax.core.algorithm import Params
from pgjax.core.errors import InputError
from pgjax.core.processes import with_keys, words
from pgjax.running.directory import read_json, write_json


class Checkpoints:
    """The newest `keep` states of a run and the best one, under one directory, written beside the training.

    Orbax writes each state to a temporary directory that gets its name only when it is complete. A digest of every leaf
    is stored with it and compared on restoring.
    """

    def __init__(
        self,
        directory: Path,
        score: tuple[str, Literal["max", "min"]] | None,
        keep: int | None,
        left_out: tuple[str, ...] = (),
        identity: str | None = None,
    ) -> None:
        """`score` says which evaluation is the best one, None that none is; `keep` None only reads: what another
        process is writing stays untouched. Fields of a state called as in `left_out` are not kept, and are restored as
        a run starts with them. `identity` is that of the run: a checkpoint of another one counts as damaged."""
        # Orbax costs a second to import, and only runs that are kept need it. It logs whole tracebacks of errors that
        # it raises as well.
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        logging.getLogger("absl").setLevel(logging.CRITICAL)

        name, direction = score or ("score", "max")
        evaluated = operator.itemgetter(name)
        best = [BestN(get_metric_fn=evaluated, reverse=direction == "min", n=1)] if score else []
        kept = AnyPreservationPolicy([LatestN(keep), *best])
        self.ocp, self.name, self.directory = ocp, name, directory.absolute()
        self.worst = float(np.finfo(np.float32).min if direction == "max" else np.finfo(np.float32).max)
        self.pool = ThreadPoolExecutor(1)
        self.rows: tuple[int, str] | None = None
        """Of the metrics that led to the state that was restored last, as `save` was told."""
        self.writing: Future[None] | None = None
        self.read_only, self.left_out, self.identity = keep is None, left_out, identity
        self._mend_scores()
        alone = _first_alone(ocp)
        try:
            if not self.read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
            self.manager = ocp.CheckpointManager(
                self.directory,
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
                    "meta": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
                },
                options=ocp.CheckpointManagerOptions(
                    multiprocessing_options=alone,
                    create=False,
                    preservation_policy=None if self.read_only else kept,
                    best_fn=evaluated,
                    best_mode=direction,
                    read_only=self.read_only,
                    cleanup_tmp_directories=not self.read_only,
                ),
            )
        except Exception as error:  # it reads the metadata of every checkpoint
            raise InputError(f"{self.directory} is damaged: {type(error).__name__}: {str(error)[:200]}") from error

    def save(self, iteration: int, state: Any, score: float, rows: tuple[int, str] | None = None) -> None:
        """Copy `state`, the one that was evaluated to `score`, and digest and write it in the background, with `rows`,
        how far the metrics that led to it were written, and their digest.

        Raises:
            OSError: the one before could not be written; the complete ones are untouched.
        """
        self._finish()
        leaves = {name: np.array(leaf) for name, leaf in _named_leaves(state).items() if self._is_kept(name)}
        self.writing = self.pool.submit(self._write, iteration, leaves, score, {"run": self.identity, "rows": rows})

    def _write(self, iteration: int, leaves: dict[str, np.ndarray], score: float, about: dict[str, Any]) -> None:
        meta = about | {"sha256": {name: _digest(leaf) for name, leaf in leaves.items()}}
        items = self.ocp.args.Composite(state=self.ocp.args.PyTreeSave(leaves), meta=self.ocp.args.JsonSave(meta))
        metrics = {self.name: score if math.isfinite(score) else self.worst}
        self._guard(lambda: self.manager.save(iteration, args=items, metrics=metrics))

    def _finish(self) -> None:
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
            OSError: it could not be written; what is complete is untouched.
        """
        self._finish()
        self._guard(self.manager.wait_until_finished)

    def close(self) -> None:
        """Wait for what is being written. An error is only a warning here: what failed before may be on its way up."""
        try:
            self._finish()
            self._guard(self.manager.close)
        except OSError as error:
            warnings.warn(str(error), stacklevel=2)
        self.pool.shutdown()

    def iterations(self) -> list[int]:
        """Those that are complete."""
        return sorted(self.manager.all_steps())

    def best(self) -> int | None:
        """The iteration of the best evaluation that is kept."""
        return self.manager.best_step()

    def _mend_scores(self) -> None:
        """Write the worst score to checkpoints whose own cannot be read, because orbax opens none without all of them.

        Raises:
            InputError: it cannot be written either, or there is a pipe or device, which orbax would wait for.
        """
        for path in self.directory.rglob("*"):
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise InputError(f"{path} is not accepted: expected regular files and directories in a checkpoint")
        for path in self.directory.glob("*/metrics/metrics"):
            try:
                float(read_json(path)[self.name])
            except (InputError, KeyError, TypeError, ValueError):
                label = self._label(path.parts[-3])
                warnings.warn(f"{label}: its score is damaged, and counts as the worst", stacklevel=3)
                try:
                    write_json(path, {self.name: self.worst})
                except OSError as error:
                    raise InputError(f"{path} is damaged, and cannot be mended: {error.strerror}") from error

    def restore_newest(self, init: Callable[[], Any]) -> tuple[int, Any] | None:
        """(iteration, state) of the newest checkpoint that is whole, or None without any.

        A damaged one is reported by a warning and, once an older one was restored and unless only reading, removed:
        training will write it again.

        Raises:
            InputError: there are checkpoints and none of them can be restored; nothing was changed.
        """
        damaged: list[int] = []
        for iteration in reversed(self.iterations()):
            try:
                state = self.restore(iteration, init)
            except DamagedError as error:
                warnings.warn(f"{error}; going back to the one before", stacklevel=2)
                damaged.append(iteration)
                continue
            for later in damaged if not self.read_only else []:
                self.manager.delete(later)
            return iteration, state
        if damaged:
            raise InputError(f"none of the checkpoints {damaged} in {self.directory} can be restored")
        return None

    def restore(self, iteration: int, init: Callable[[], Any]) -> Any:
        """The state of one checkpoint, with the structure of what `init` would give.

        Raises:
            InputError: its leaves have other names, shapes or types than `init`'s.
            DamagedError: it cannot be read, or is not what was written.
        """
        expected = jax.eval_shape(init)
        wanted = _named_leaves(expected)
        kept = {name: leaf for name, leaf in wanted.items() if self._is_kept(name)}
        _check_same_leaves(self._label(iteration), self._stored(iteration), kept)
        leaves = self._read(iteration, kept)
        if len(kept) < len(wanted):
            leaves = _named_leaves(init()) | leaves
            if not self.read_only:
                warnings.warn(
                    f"{self._label(iteration)} holds no {' or '.join(self.left_out)}, which starts as in a new run: "
                    "what follows is not what the run without a break would have done",
                    stacklevel=2,
                )
        rebuilt = jax.tree.unflatten(jax.tree.structure(expected), [leaves[name] for name in wanted])
        return jax.device_put(with_keys(rebuilt, expected))

    def restore_under(self, iteration: int, prefix: str) -> dict[str, np.ndarray]:
        """The leaves of one checkpoint whose paths begin with `prefix.`, by the rest of the path; nothing else is read.

        Raises:
            InputError: there are none.
            DamagedError: it cannot be read, or is not what was written.
        """
        wanted = [name for name in self._stored(iteration) if name.startswith(f"{prefix}.")]
        if not wanted:
            raise InputError(f"{self._label(iteration)} has no {prefix}")
        return {name.removeprefix(f"{prefix}."): leaf for name, leaf in self._read(iteration, wanted).items()}

    def _is_kept(self, name: str) -> bool:
        return not {*name.split(".")} & {*self.left_out}

    def _label(self, iteration: int | str) -> str:
        return f"checkpoint {iteration} in {self.directory}"

    def _stored(self, iteration: int) -> dict[str, Any]:
        """The shapes and types of all leaves."""
        try:
            return dict(self.manager.item_metadata(iteration)["state"].tree)
        except Exception as error:
            raise DamagedError(f"{self._label(iteration)} is damaged: its metadata cannot be read") from error

    def _read(self, iteration: int, wanted: Iterable[str]) -> dict[str, Any]:
        numpy = {name: self.ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
        state = self.ocp.args.PyTreeRestore(item=dict.fromkeys(numpy, 0), restore_args=numpy, transforms={})
        items = self.ocp.args.Composite(state=state, meta=self.ocp.args.JsonRestore())
        try:
            restored = self.manager.restore(iteration, args=items)
        except Exception as error:
            raise DamagedError(f"{self._label(iteration)} is damaged: it cannot be read") from error
        leaves, meta = restored["state"], restored["meta"]
        if not isinstance(meta, dict):
            raise DamagedError(f"{self._label(iteration)} is damaged: it cannot be read")
        if self.identity is not None and meta.get("run") != self.identity:
            raise DamagedError(f"{self._label(iteration)} is of another run")
        digests, self.rows = meta.get("sha256", {}), meta.get("rows")
        wrong = [name for name in numpy if _digest(leaves[name]) != digests.get(name)]
        if wrong:
            raise DamagedError(f"{self._label(iteration)} is damaged: {wrong[0]} is not what was written")
        return leaves

    def _guard(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:  # tensorstore reports a full disk as ValueError, at great length
            reason = os.strerror(errno.ENOSPC) if "No space left" in str(error) else str(error)[:200]
            raise OSError(f"cannot write a checkpoint to {self.directory}: {reason}") from error


def _first_alone(ocp: Any) -> Any:
    """The first of several processes writes, and waits for no other."""
    return ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="first")


class DamagedError(InputError):
    """A checkpoint that is not what was written."""


def restored_by_first(checkpoints: Checkpoints | None, init: Callable[[], Any]) -> tuple[int, Any] | None:
    """What `restore_newest` gives, in every process; the first one, which alone has the `checkpoints`, reads it."""
    found = None
    with processes.together():
        if checkpoints:
            found = checkpoints.restore_newest(init)
    iteration = processes.agreed(found and found[0])
    return None if iteration is None else (iteration, processes.of_first(found and found[1], jax.eval_shape(init)))


def load_state(
    run: Path,
    init: Callable[[], Any],
    score: tuple[str, Literal["max", "min"]],
    which: Literal["newest", "best"] = "newest",
    left_out: tuple[str, ...] = (),
    identity: str | None = None,
) -> tuple[int, Any, tuple[int, str] | None]:
    """(iteration, state, what `save` was told of its metrics) from a run directory; the best is by `score`, and
    `left_out` and `identity` as in `Checkpoints`.

    Raises:
        InputError: there is no whole checkpoint, or it is of another shape.
    """
    checkpoints = _kept(run, score, left_out, identity)
    try:
        best = checkpoints.best()
        if which == "best" and best is not None:
            return best, checkpoints.restore(best, init), checkpoints.rows
        found = checkpoints.restore_newest(init)
    finally:
        checkpoints.close()
    if found is None:
        raise InputError(f"{run} holds no whole checkpoint")
    return *found, checkpoints.rows


def load_under(
    run: Path, score: tuple[str, Literal["max", "min"]], which: Literal["newest", "best"], prefix: str
) -> dict[str, np.ndarray]:
    """Some leaves of a state in a run directory, as `Checkpoints.restore_under` gives them; the best is by `score`.

    Raises:
        InputError: there is no whole checkpoint, or nothing under that prefix.
    """
    checkpoints = _kept(run, score)
    try:
        best, iterations = checkpoints.best(), checkpoints.iterations()
        if not iterations:
            raise InputError(f"{run} holds no whole checkpoint")
        chosen = best if which == "best" and best is not None else iterations[-1]
        return checkpoints.restore_under(chosen, prefix)
    finally:
        checkpoints.close()


def _kept(
    run: Path,
    score: tuple[str, Literal["max", "min"]],
    left_out: tuple[str, ...] = (),
    identity: str | None = None,
) -> Checkpoints:
    """The checkpoints of a run, to be read."""
    if not (run / "checkpoints").is_dir():
        raise InputError(f"{run} holds no checkpoint: the run has not reached its first one, or its files were moved")
    return Checkpoints(run / "checkpoints", score, None, left_out, identity)


def from_host(states: list[Any], like: Any) -> Any:
    """States that `on_host` gave, stacked, with random keys where `like` has them."""

    return with_keys(jax.tree.map(lambda *leaves: np.stack(leaves), *states), like)


def save_params(params: Params, path: str | Path) -> None:
    """Write parameters as safetensors, named by their place in the tree; needs the extra `safetensors`.

    Raises:
        InputError: safetensors is not installed.
    """
    leaves = {name: np.array(leaf) for name, leaf in _named_leaves(params).items()}
    _safetensors().save_file(leaves, str(path))


def load_params(path: str | Path, like: Params) -> Params:
    """Parameters from a safetensors file, in the structure of `like`.

    Raises:
        InputError: the names, shapes or types in the file are not those of `like`.
    """
    leaves, wanted = _safetensors().load_file(str(path)), _named_leaves(like)
    _check_same_leaves(str(path), leaves, wanted)
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(leaves[name]) for name in wanted])


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.numpy")
    except ImportError as error:
        raise InputError("parameters as safetensors need a package: pip install 'pgjax[safetensors]'") from error


def _check_same_leaves(label: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    def describe(leaf: Any) -> str:
        return "absent" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"

    different = [
        f"{name} is {describe(found.get(name))}, expected {describe(wanted.get(name))}"
        for name in sorted(wanted.keys() | found.keys())
        if describe(wanted.get(name)) != describe(found.get(name))
    ]
    if different:
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise InputError(f"{label} is of another shape: {'; '.join(different[:3])}{more}")


def _named_leaves(state: Any) -> dict[str, Any]:
    """Leaf path -> array, in tree order; random keys as the words they are made of."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): words(leaf) for path, leaf in leaves}


def _digest(leaf: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(leaf).view(np.uint8).data).hexdigest()
