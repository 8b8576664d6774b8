"""Sweeps: seeds and hyperparameters in one call.

Settings that differ in numbers only are members of one vmapped program; each distinct value of anything that selects a
program is a group with a program of its own. A group's members train in batches as large as memory allows, one batch
after another, each kept like a run.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core import processes
from pgjax.core.algorithm import SWEEP_STREAM, not_kept
from pgjax.core.devices import count_devices
from pgjax.core.errors import InputError, nearest
from pgjax.core.metrics import is_absent, number
from pgjax.reporting.plotting import label
from pgjax.running.checkpoint import Checkpoints, from_host, restored_by_first
from pgjax.running.compile import Programs, compile_batch, fit, memory_limit
from pgjax.running.config import entry
from pgjax.running.directory import read_json, write_json
from pgjax.running.loop import budget_note
from pgjax.running.population import Population, member_of, stack
from pgjax.running.session import (
    Callback,
    Clock,
    Progress,
    check_count,
    check_equal,
    check_same,
    devices_of,
    drive,
    held,
    stop_signals,
)
from pgjax.running.sinks import SweepDisplay, say
from pgjax.sweeping.plan import Group, Kept, Plan, arguments_from_json, make_plan
from pgjax.sweeping.result import SweepResult
from pgjax.sweeping.search import Search, curve_mean, ranked_by
from pgjax.sweeping.space import Mode


class Batch(NamedTuple):
    """What a checkpoint holds: members that train together, and what is known of them so far."""

    member: Any
    """The algorithm with stacked leaves, which a search may have changed; in a checkpoint these alone."""
    state: Any
    curves: dict[str, np.ndarray]
    """`[points, members]`; NaN where not reached yet."""
    schedules: dict[str, np.ndarray]
    """Hyperparameters that a search changes, `[points, members]`: in force up to that point."""
    failed: np.ndarray
    """`[members]`: the iteration by whose end a member was not finite, or -1."""
    scores: dict[str, np.ndarray]
    """Evaluations at the end of the run, `[members]`; NaN before."""


def sweep(
    algorithm: Any,
    /,
    seeds: int = 1,
    *,
    mode: Mode = "grid",
    num_samples: int | None = None,
    seed: int = 0,
    search: Search | None = None,
    directory: str | Path | None = None,
    points: int = 100,
    episodes: int = 128,
    members_at_once: int | None = None,
    devices: int | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
    callback: Callback | None = None,
    **axes: Any,
) -> SweepResult:
    """Train every setting of `axes` with every seed, and evaluate it.

    An axis is a list or array of values, or a distribution (`uniform`, `log_uniform`, `integers`, `choice`). It may be
    any field of the algorithm, any option of one of its parts (of its network, environment, data ...), a part as a
    whole, or `algorithm`.
    Member `setting * seeds + s` has the key `jax.random.key(seed + s)`, and is the run `pgjax.train` makes with that
    setting and that key, to rounding.

    Args:
        seeds: how many seeds each setting is trained with: `seed`, `seed + 1`, ...
        mode: "grid" (every combination of the lists, times `num_samples` draws of the distributions), "random"
            (`num_samples` draws, a list being a choice) or "zip" (the i-th values of all lists together).
        num_samples: how many values each distribution gives.
        search: `SuccessiveHalving(...)` or `PBT(...)`.
        directory: where the sweep is kept. One that holds the same sweep continues it, to the same bits.
        points: how many points each curve has at most, each the mean over its part of the run: what a sweep keeps does
            not grow with its length.
        episodes: episodes of each member's evaluation at the end.
        members_at_once: how many train together at most; by default as many as fit into memory.
        devices: over how many devices members are spread; by default all, and of several processes always.
        checkpoint_every: points between checkpoints; by default about every minute, and so rarely that they take at
            most 2 % of the time.
        callback: called after every point of members that train together, with their `Progress`. If it returns True the
            sweep ends as if a signal had stopped it; what it raises is raised when the sweep has been kept.

    Raises:
        InputError: an axis that is not known or not accepted, a size that is not positive, members that do not fit into
            memory one by one, or a directory that holds something else or is in use.
        Interrupted: a signal or the callback asked the sweep to stop; with a directory it has been saved.
        OSError: a file could not be written; what was written before stays readable.
    """
    if isinstance(seeds, Mapping):
        raise InputError(
            f"sweep: seeds = {seeds!r} is not accepted: axes are keywords, such as learning_rate=[1e-4, 1e-3]"
        )
    plan = make_plan(algorithm, seeds, mode, num_samples, seed, search or Search(), points, axes)
    kept = Kept(episodes, members_at_once, checkpoint_every)
    for name, value in kept._asdict().items():
        if value is not None:
            check_count(f"sweep: {name}", value)
    there = {"devices": count_devices(devices), "curve_points": plan.points}
    check_equal(plan.config | there)
    progress = progress and processes.is_first()
    if progress:
        say(plan.describe())
        for note in {budget_note(a) for a in plan.algorithms}:
            say(note)
    if directory is None:
        return _Sweep(plan, kept, devices, None, progress, callback).train()
    config = plan.config | {"kept": kept._asdict()}
    adopt = functools.partial(_adopt, Path(directory), config | there, tuple(config))
    with held(Path(directory), "sweep.json", config | there, adopt) as config:
        identity = entry(config, "id", str(directory))
        result = _Sweep(plan, kept, devices, Path(directory), progress, callback, identity).train()
        with processes.together():
            if processes.is_first():
                result.to_csv(Path(directory) / "members.csv")
                result.save_curves(Path(directory) / "curves.npz")
        return result


def _adopt(directory: Path, config: dict[str, Any], names: tuple[str, ...], stored: dict[str, Any]) -> dict[str, Any]:
    """The config of the sweep that is continued, which must be equal in `names`."""
    check_same("sweep", directory, stored, config, names)
    return stored


def resume_sweep(
    directory: str | Path, devices: int | None = None, progress: bool = True, callback: Callback | None = None
) -> SweepResult:
    """Continue the sweep in `directory`, or load it if it is finished.

    `devices` is as many as the sweep was trained on, if there are, unless it is given; a warning says where it differs.

    Raises:
        InputError: there is no sweep, or it used code of the user's own (call `sweep` with the same arguments); and
            where `sweep` raises it.
    """
    config = read_json(Path(directory) / "sweep.json")
    algorithm, arguments = arguments_from_json(config)
    how: dict[str, Any] = {"devices": devices_of(config, devices), "progress": progress, "callback": callback}
    return sweep(algorithm, directory=directory, **how, **arguments)


class _Sweep:
    """A sweep while it runs: what is known of all members, filled in batch by batch."""

    def __init__(
        self,
        plan: Plan,
        kept: Kept,
        devices: int | None,
        directory: Path | None,
        progress: bool,
        callback: Callback | None,
        identity: str = "",
    ) -> None:
        self.identity = identity
        self.plan, self.kept, self.devices, self.callback = plan, kept, devices, callback
        self.score = plan.algorithms[0].score
        self.directory, self.progress = directory, progress
        self.say = say if progress else lambda message: None
        count = len(plan.settings) * len(plan.seeds)
        self.algorithms = [a for a in plan.algorithms for _ in plan.seeds]
        self.curves: dict[str, np.ndarray] = {}
        self.schedules: dict[str, np.ndarray] = {}
        self.scores: dict[str, np.ndarray] = {}
        self.failed = np.full(count, -1, np.int32)
        self.reached = np.zeros(count, int)
        self.states: list[Any] = [None] * count
        self.began, self.seconds_compile = time.perf_counter(), 0.0

    def train(self) -> SweepResult:
        """Whatever is not done yet, stage by stage and batch by batch."""
        plan = self.plan
        with contextlib.ExitStack() as opened:
            self.stopped = opened.enter_context(stop_signals()) if self.directory else []
            self.display = opened.enter_context(contextlib.closing(SweepDisplay(self.progress, self.score[0])))
            alive, start = list(range(len(plan.settings))), 0
            for stage, end in enumerate(plan.ends):
                if stage:
                    alive = [alive[i] for i in plan.search.survivors(self._setting_scores()[alive])]
                    self.say(f"{len(alive)} settings go on to point {end} of {plan.points}")
                for g, group in enumerate(plan.groups):
                    settings = [i for i in group.settings if i in alive]
                    if settings:
                        self._train_group(group, settings, f"stage-{stage}/group-{g}", start, end)
                start = end
        return self._result()

    def _setting_scores(self) -> np.ndarray:
        """`[settings]`: the mean over seeds so far, higher being better; NaN where a seed failed."""
        reached = max(self.reached)
        search = self.plan.search
        metric, sign = ranked_by(search.metric, self.plan.algorithms[0])
        scores = sign * curve_mean(self.curves[metric][:, :reached], search.window())
        return np.where(self.failed < 0, scores, np.nan).reshape(-1, len(self.plan.seeds)).mean(axis=1)

    def _train_group(self, group: Group, settings: list[int], where: str, start: int, end: int) -> None:
        plan = self.plan
        seeds = len(plan.seeds)
        members = [i * seeds + s for i in settings for s in range(seeds)]
        example = plan.algorithms[settings[0]]
        with processes.together():
            sizes = _Sizes(self.directory if processes.is_first() else None)
        began = time.perf_counter()
        known = processes.agreed(sizes.get(where))
        if known:
            size = min(known, len(members) + jax.device_count())
            programs = compile_batch(example, group.stacked, size, self.devices, self.kept.episodes)
        else:
            how = self.devices, self.kept.episodes, self.kept.members_at_once
            programs, size = fit(example, group.stacked, len(members), *how)
            sizes[where] = size
        metrics, _ = programs.report
        if plan.search.exchanges and size < len(members):
            raise InputError(
                f"{type(plan.search).__name__} needs all {len(members)} members in one program, and only {size} fit"
            )
        metric, _ = ranked_by(plan.search.metric, example)
        if type(plan.search) is not Search and metric not in metrics:
            raise InputError(f"metric = {metric!r} is not known: {nearest(metric, metrics)}")
        seconds = time.perf_counter() - began
        self.seconds_compile += seconds
        batches = [members[i : i + size] for i in range(0, len(members), size)]
        self.say(
            f"{group.label}: {len(members)} members, batches x members: {len(batches)} x {size}, "
            f"devices: {programs.layout.mesh.size}, memory: {programs.bytes_needed / 1e6:,.1f} MB of "
            f"{memory_limit(programs.layout.mesh) / 1e6:,.0f} MB, compiled in {seconds:.1f} s"
        )
        for b, batch in enumerate(batches):
            path = self.directory and self.directory / where / f"batch-{b}"
            self._train_batch(programs, group, batch, size, path, start, end)

    def _train_batch(
        self, programs: Programs, group: Group, members: list[int], size: int, path: Path | None, start: int, end: int
    ) -> None:
        plan = self.plan
        padded = members + [members[-1]] * (size - len(members))
        population = programs.layout.place_algorithm(stack([self.algorithms[i] for i in padded], group.stacked))
        seeds = len(plan.seeds)
        keys = jnp.stack([plan.key(i // seeds, plan.seeds[i % seeds]) for i in padded])
        state = programs.init(population, programs.layout.place(keys))
        if start:
            state = programs.layout.place(from_host([self.states[i] for i in padded], state))
        batch, point = _empty(population, state, programs, plan), start
        with contextlib.ExitStack() as opened:
            checkpoints, clock = None, Clock(self.kept.checkpoint_every)
            if path:
                checkpoints, restored = self._restored(path, batch, population, opened)
                if restored:
                    point, batch = restored[0], _placed(_whole(restored[1], population), programs, population)

            def advance(point: int) -> int:
                nonlocal batch
                batch = self._advance(programs, population, batch, point)
                self._show(batch, members, point + 1)
                if point + 1 == plan.points:
                    changed = dataclasses.replace(population, member=batch.member)
                    scores = processes.on_host(programs.evaluate(changed, batch.state))
                    batch = batch._replace(scores=_float32(scores))
                return point + 1

            def keep(point: int, stopping: bool) -> None:
                if path and processes.agreed(stopping or point == end or clock.is_due(point)):
                    with clock.measured():
                        kept = processes.whole(_kept_of(batch, population))
                        if checkpoints:
                            checkpoints.save(point, kept, float("nan"))
                            if stopping or point == end:
                                checkpoints.wait()

            def ask(point: int) -> bool | None:
                if self.callback is None:
                    return None
                iteration, state = plan.iteration(batch.member, point), batch.state
                metrics = {name: curve[point - 1 : point, : len(members)] for name, curve in batch.curves.items()}
                steps = iteration * self.algorithms[members[0]].steps_per_iteration
                return self.callback(Progress(iteration, steps, metrics, lambda: jax.tree.map(jnp.copy, state)))

            saved = f" of {path} and saved; continue with: pgjax resume {self.directory}" if path else ""
            drive(point, end, advance, keep, ask, self.stopped, f"at point {{}} of {plan.points}{saved}".format)
        self._store(batch, population, members, start, end)

    def _restored(
        self, path: Path, batch: Batch, population: Population, opened: contextlib.ExitStack
    ) -> tuple[Checkpoints | None, tuple[int, Batch] | None]:
        """The checkpoints of a batch, which the first process has, and where it stood if it goes on."""
        checkpoints = None
        with processes.together():
            if processes.is_first():
                identity = f"{self.identity}/{path.relative_to(self.directory)}" if self.directory else None
                checkpoints = Checkpoints(path, None, 1, not_kept(population.member), identity)
                opened.enter_context(contextlib.closing(checkpoints))
        return checkpoints, restored_by_first(checkpoints, lambda: _kept_of(batch, population))

    def _advance(self, programs: Programs, population: Population, batch: Batch, point: int) -> Batch:
        """One more point of every curve, and what the search does after it."""
        plan, search = self.plan, self.plan.search
        population = dataclasses.replace(population, member=batch.member)
        member, state = batch.member, batch.state
        iteration = plan.iteration(member, point + 1)
        count = programs.layout.place_count(iteration - plan.iteration(member, point))
        state, report = programs.advance(population, state, count)
        metrics, finite = processes.on_host(report)
        for name, metric in metrics.items():
            batch.curves[name][point] = number(metric)
            finite = finite & (is_absent(metric) | np.isfinite(batch.curves[name][point]))
        failed = np.where((batch.failed < 0) & ~finite, np.int32(iteration), batch.failed)
        for name, schedule in batch.schedules.items():
            schedule[point] = processes.on_host(getattr(member, name))
        if search.changes_after(point + 1) and point + 1 < plan.points:
            metric, sign = ranked_by(search.metric, member)
            scores = sign * curve_mean(batch.curves[metric][: point + 1].T, search.window())
            scores = np.where(failed < 0, scores, -np.inf)[: len(plan.settings) * len(plan.seeds)]
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(plan.seeds[0]), SWEEP_STREAM), point)
            population, state, source = search.exploit_and_explore(
                plan.axes, key, scores.reshape(len(plan.settings), -1), population, state
            )
            population, state = programs.layout.place_algorithm(population), programs.layout.place(state)
            member, failed = population.member, failed[processes.on_host(source)]
        return batch._replace(member=member, state=state, failed=failed)

    def _store(self, batch: Batch, population: Population, members: list[int], start: int, end: int) -> None:
        """What a batch says of its members, in the order of all members."""
        count = len(self.states)
        for curves, found in ((self.curves, batch.curves), (self.schedules, batch.schedules)):
            for name, curve in found.items():
                rows = curves.setdefault(name, np.full((count, self.plan.points), np.nan, np.float32))
                rows[members, start:end] = curve[start:end, : len(members)].T
        for name, scores in batch.scores.items():
            known = self.scores.setdefault(name, np.full(count, np.nan, np.float32))
            known[members] = scores[: len(members)]
        self.failed[members] = batch.failed[: len(members)]
        self.reached[members] = end
        host = processes.on_host(batch.state)
        changed = dataclasses.replace(population, member=processes.on_host(batch.member)) if batch.schedules else None
        for row, i in enumerate(members):
            self.states[i] = jax.tree.map(lambda x, row=row: x[row], host)
            if changed:
                self.algorithms[i] = member_of(changed, row)

    def _show(self, batch: Batch, members: list[int], point: int) -> None:
        """The best settings of this batch."""

        def ranking() -> list[tuple[str, float]]:
            seeds = len(self.plan.seeds)
            sign = 1.0 if self.score[1] == "max" else -1.0
            latest = curve_mean(batch.curves[self.score[0]][:point, : len(members)].T, 3)
            found: dict[int, list[float]] = {}
            for i, value in zip(members, latest, strict=True):
                found.setdefault(i // seeds, []).append(value)
            means = [(label(self.plan.settings[i]), float(np.mean(values))) for i, values in found.items()]
            return sorted(means, key=lambda x: -np.inf if np.isnan(x[1]) else sign * x[1], reverse=True)

        if self.score[0] not in batch.curves:
            return
        self.display.show(f"point {point} of {self.plan.points}, {len(members)} members", ranking)

    def _result(self) -> SweepResult:
        plan = self.plan
        steps = [
            [plan.iteration(a, p + 1) * a.steps_per_iteration for p in range(plan.points)] for a in self.algorithms
        ]
        return SweepResult(
            axes=plan.axes,
            settings=plan.settings,
            seeds=plan.seeds,
            algorithms=self.algorithms,
            curves=self.curves,
            steps=np.array(steps),
            schedules=self.schedules,
            scores=self.scores,
            failed=self.failed,
            reached=self.reached,
            states=self.states,
            seconds_compile=self.seconds_compile,
            seconds_run=time.perf_counter() - self.began - self.seconds_compile,
        )


class _Sizes(dict[str, int]):
    """How many members each batch has, kept in a file: a sweep goes on with the same ones, whatever memory is free."""

    def __init__(self, directory: Path | None) -> None:
        self.path = directory and directory / "batches.json"
        found = read_json(self.path) if self.path and self.path.exists() else {}
        for where, size in found.items():
            check_count(f"{self.path} is damaged: {where}", size)
        super().__init__(found)

    def __setitem__(self, where: str, size: int) -> None:
        super().__setitem__(where, size)
        if self.path:
            write_json(self.path, self)


def _empty(population: Population, state: Any, programs: Programs, plan: Plan) -> Batch:
    size = population.size
    nothing = np.full((plan.points, size), np.nan, np.float32)
    changing = plan.axes if plan.search.exchanges else ()
    return Batch(
        member=population.member,
        state=state,
        curves={name: nothing.copy() for name in programs.report[0]},
        schedules={name: nothing.copy() for name in changing},
        failed=np.full(size, -1, np.int32),
        scores={name: np.full(size, np.nan, np.float32) for name in programs.scores},
    )


def _kept_of(batch: Batch, population: Population) -> Batch:
    """A batch for a checkpoint: of the algorithm its stacked leaves only. What all members share, such as data and the
    models they start from, is made again from the config."""
    leaves = jax.tree.leaves(batch.member)
    return batch._replace(member=[x for x, s in zip(leaves, population.stacked, strict=True) if s])


def _whole(batch: Batch, population: Population) -> Batch:
    """What `_kept_of` was given."""
    leaves, structure = jax.tree.flatten(population.member)
    own = iter(batch.member)
    leaves = [next(own) if s else x for x, s in zip(leaves, population.stacked, strict=True)]
    return batch._replace(member=jax.tree.unflatten(structure, leaves))


def _float32(scores: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(x, np.float32) for name, x in scores.items()}


def _placed(batch: Batch, programs: Programs, population: Population) -> Batch:
    """A restored batch where it belongs: members on their devices, records as NumPy."""
    records = jax.tree.map(np.array, (batch.curves, batch.schedules, batch.failed, batch.scores))
    changed = dataclasses.replace(population, member=batch.member)
    return Batch(programs.layout.place_algorithm(changed).member, programs.layout.place(batch.state), *records)
