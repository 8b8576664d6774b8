"""What a sweep found, as something to think with: tables, rankings, intervals, pictures, and its members."""

import csv
import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from pgjax.core.errors import InputError, nearest
from pgjax.core.parts import subject_name
from pgjax.core.text import html_table
from pgjax.reporting.plotting import label, plot_sweep, value_label
from pgjax.reporting.statistics import Estimate, interquartile_mean, probability_of_improvement
from pgjax.running.checkpoint import from_host
from pgjax.running.directory import write_bytes, write_text
from pgjax.running.result import Result
from pgjax.running.shell import save_run
from pgjax.sweeping.search import best_first, curve_mean, ranked_by
from pgjax.sweeping.space import Setting, ValueDistribution


class Best(NamedTuple):
    """The best setting of a sweep."""

    setting: Setting
    """What a search has changed, as it was in the end: `members` started with other values."""
    score: float
    """The mean over its seeds."""
    members: list[int]
    """One per seed."""


MOST_ROWS = 20
"""Of settings that a notebook shows."""


@dataclass(frozen=True, repr=False)
class SweepResult:
    """A finished sweep. Member `i` has setting `i // len(seeds)` and seed `i % len(seeds)`."""

    axes: dict[str, list[Any] | ValueDistribution]
    settings: list[Setting]
    seeds: list[int]
    algorithms: list[Any]
    """One per member, as it ended: a search may have changed its hyperparameters."""
    curves: dict[str, np.ndarray]
    """`[members, points]`: each point the mean over its part of the run; NaN after a member was pruned."""
    steps: np.ndarray
    """`[members, points]`: environment steps at the end of each point."""
    schedules: dict[str, np.ndarray]
    """`[members, points]`: hyperparameters that a search changed, as they were in force."""
    scores: dict[str, np.ndarray]
    """`[members]`: what the evaluation of the final state found, such as `return_mean`; NaN if pruned."""
    failed: np.ndarray
    """`[members]`: the iteration by whose end a number was no longer finite, or -1."""
    reached: np.ndarray
    """`[members]`: points trained; fewer than there are where a search pruned a member."""
    states: list[Any]
    """Final states as NumPy; `member(i)` makes one ready to use."""
    seconds_compile: float
    seconds_run: float
    """Of this process, with evaluation and checkpoints."""

    def __len__(self) -> int:
        return len(self.states)

    def summary(self) -> dict[str, str]:
        """What there is to say of the sweep in a few words."""
        algorithm, best = self.algorithms[0], self.best()
        return {
            "algorithm": f"{type(algorithm).__name__} on {subject_name(algorithm)}",
            "members": f"{len(self)} ({len(self.settings)} settings, {len(self.seeds)} seeds)",
            "axes": ", ".join(self.axes) or "none",
            "best": f"{label(best.setting)} with {self.judged_by[0]} {best.score:.4g}",
            "failed": str(int(np.sum(self.failed >= 0))),
        }

    def __repr__(self) -> str:
        return f"SweepResult({'; '.join(f'{name}: {text}' for name, text in self.summary().items())})"

    def _repr_html_(self) -> str:
        ranked = self.ranking()
        rows = [[*map(value_label, best.setting.values()), f"{best.score:.4g}"] for best in ranked[:MOST_ROWS]]
        more = f"<p>and {len(ranked) - MOST_ROWS} more</p>" if len(ranked) > MOST_ROWS else ""
        about = html_table([*map(list, self.summary().items())])
        return about + html_table(rows, [*ranked[0].setting, self.judged_by[0]]) + more

    @property
    def judged_by(self) -> tuple[str, Literal["max", "min"]]:
        """The score that ranks members, and which end of it is better."""
        return self.algorithms[0].score

    def member(self, i: int) -> Result:
        """One member with its algorithm and final state, to be evaluated, saved or continued alone.

        Raises:
            InputError: there is no such member.
        """
        if not -len(self) <= i < len(self):
            raise InputError(f"member {i} is not accepted: expected one from 0 to {len(self) - 1}")
        algorithm = self.algorithms[i]
        like = jax.eval_shape(algorithm.init, jax.random.key(0))
        state = jax.tree.map(lambda x: x[0], from_host([self.states[i]], like))
        points = self.reached[i]
        curves = {name: x[i, :points] for name, x in self.curves.items()}
        return Result(algorithm, jax.device_put(state), curves, int(self.steps[i, points - 1]), 0, 0.0, 0.0)

    def save_member(self, i: int, directory: str | Path) -> None:
        """Write one member as a run that `pgjax.resume`, `pgjax.load` and the command line can go on with.

        Raises:
            InputError: the directory already holds something, or cannot be written.
        """
        member = self.member(i)
        points = self.reached[i]
        steps = self.steps[i, :points].tolist()
        per_iteration = member.algorithm.steps_per_iteration
        rows = [
            {"iteration": s // per_iteration, "steps": s} | {name: float(x[p]) for name, x in member.metrics.items()}
            for p, s in enumerate(steps)
        ]
        scores = {name: float(x[i]) for name, x in self.scores.items()}
        save_run(member.algorithm, self.seeds[i % len(self.seeds)], member.state, rows, scores, Path(directory))

    @property
    def table(self) -> dict[str, np.ndarray]:
        """One column per axis, then `seed`, `steps`, `failed`, `score` (evaluated) and, by its own name, what that
        score was in training, such as `return_mean`.

        The last two are NaN for a member that failed or was pruned.
        """
        name = self.judged_by[0]
        which = [i // len(self.seeds) for i in range(len(self))]
        columns = {name: [self.settings[i][name] for i in which] for name in self.axes}
        return (
            {name: _column(values) for name, values in columns.items()}
            | {
                "seed": np.tile(self.seeds, len(self.settings)),
                "steps": self.steps[np.arange(len(self)), self.reached - 1],
                "failed": self.failed >= 0,
                "score": self._values("score", 1),
            }
            | ({name: self._values(name, 5)} if name in self.curves else {})
        )

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame; needs the extra `pandas`.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise InputError("to_pandas needs pandas: pip install 'pgjax[pandas]'") from error
        return pandas.DataFrame(self.table)

    def to_csv(self, path: str | Path) -> None:
        """The table as comma-separated values."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.table)
        writer.writerows(zip(*(column.tolist() for column in self.table.values()), strict=True))
        write_text(Path(path), text.getvalue())

    def save_curves(self, path: str | Path) -> None:
        """Every curve, and under `steps` where its points are, as an `.npz` of arrays `[members, points]`."""
        content = io.BytesIO()
        arrays: dict[str, Any] = self.curves | {"steps": self.steps}
        np.savez(content, **arrays)
        write_bytes(Path(path), content.getvalue())

    def setting_scores(self, metric: str = "score", last: int = 5) -> np.ndarray:
        """`[settings, seeds]`: `"score"`, as evaluated, or the mean of the last points of a curve.

        Raises:
            InputError: a metric that is not known (with the nearest), or `last` below 1.
        """
        return self._values(metric, last).reshape(len(self.settings), len(self.seeds))

    def ranking(self, metric: str = "score", last: int = 5) -> list[Best]:
        """All settings, best first, by their mean over seeds. One with a failed or pruned seed comes last.

        What the algorithms are judged by is ranked in its own direction, any other curve from the highest to the
        lowest.

        Raises:
            InputError: as `setting_scores` does.
        """
        means = self.setting_scores(metric, last).mean(axis=1)
        seeds = len(self.seeds)
        _, sign = ranked_by(metric, self.algorithms[0])
        order = best_first(sign * means)
        return [Best(self._trained_with(i), float(means[i]), list(range(i * seeds, (i + 1) * seeds))) for i in order]

    def _trained_with(self, i: int) -> Setting:
        """A setting, with what a search has changed as it was in the end, in its best member."""
        if not self.schedules:
            return self.settings[i]
        seeds = len(self.seeds)
        _, sign = ranked_by("score", self.algorithms[0])
        member = i * seeds + int(best_first(sign * self.setting_scores()[i])[0])
        return self.settings[i] | {k: float(x[member, self.reached[member] - 1]) for k, x in self.schedules.items()}

    def best(self, metric: str = "score", last: int = 5) -> Best:
        """The setting with the best mean over seeds.

        Raises:
            InputError: as `setting_scores` does.
        """
        return self.ranking(metric, last)[0]

    def select(self, **values: Any) -> list[int]:
        """The settings that have these values.

        Raises:
            InputError: an axis that is not in the sweep (with the nearest), or values that no setting has.
        """
        for name in values.keys() - self.axes.keys():
            raise InputError(f"axis {name} is not in this sweep: {nearest(name, self.axes)}")
        found = [i for i, s in enumerate(self.settings) if all(_same(s[k], v) for k, v in values.items())]
        if not found:
            raise InputError(f"no setting has {label(values)}")
        return found

    def interquartile_mean(self, metric: str = "score", last: int = 5, **values: Any) -> Estimate:
        """Over all seeds of the settings that have `values`, each setting being a stratum; with a 95 % interval.

        Raises:
            InputError: as `setting_scores` and `select` do.
        """
        scores = self.setting_scores(metric, last)
        return interquartile_mean(*(scores[i] for i in self.select(**values)))

    def marginal(self, axis: str, metric: str = "score", last: int = 5) -> dict[Any, Estimate]:
        """For each value of an axis, or the label of an object, the interquartile mean over all settings with it.

        Raises:
            InputError: an axis that is not in the sweep (with the nearest); or as `setting_scores` does.
        """
        if axis not in self.axes:
            raise InputError(f"axis {axis} is not in this sweep: {nearest(axis, self.axes)}")
        values = {_plain(setting[axis]): setting[axis] for setting in self.settings}
        return {name: self.interquartile_mean(metric, last, **{axis: value}) for name, value in values.items()}

    def probability_of_improvement(
        self, better: Setting, worse: Setting, metric: str = "score", last: int = 5
    ) -> Estimate:
        """P(a run with the values `better` scores higher than one with `worse`), with a 95 % interval.

        Settings that agree in all other axes are compared with each other, and each such pair is a stratum.

        Raises:
            InputError: the two share no setting of the other axes; or as `setting_scores` and `select` do.
        """
        scores = self.setting_scores(metric, last)
        others = [name for name in self.axes if name not in better.keys() | worse.keys()]

        def by_others(values: Setting) -> dict[Any, np.ndarray]:
            return {tuple(str(self.settings[i][n]) for n in others): scores[i] for i in self.select(**values)}

        a, b = by_others(better), by_others(worse)
        shared = [other for other in a if other in b]
        if not shared:
            raise InputError(f"{label(better)} and {label(worse)} share no setting of the other axes to be compared at")
        return probability_of_improvement([a[s] for s in shared], [b[s] for s in shared])

    def plot(self, out: str | Path, metric: str | None = None) -> list[Path]:
        """Curves with bands, the effect of each axis, and parallel coordinates, as `out`.png, `out`.svg and `out`.pdf.

        `metric` is the curve that is drawn, by default what the score is in training.

        Raises:
            InputError: a metric that is not among the curves (with the nearest), or matplotlib is not installed.
        """
        return plot_sweep(self, metric or self.judged_by[0], Path(out))

    def _values(self, metric: str, last: int) -> np.ndarray:
        """`[members]`; NaN where a member failed or was pruned before the end."""
        if last < 1:
            raise InputError(f"last = {last} is not accepted: expected at least 1")
        if metric == "score":
            values = self.scores[self.judged_by[0]]
        elif metric in self.curves:
            values = curve_mean(self.curves[metric], last)
        else:
            raise InputError(f"metric = {metric!r} is not known: {nearest(metric, ['score', *self.curves])}")
        whole = self.reached == self.steps.shape[1]
        return np.where(whole & (self.failed < 0), values, np.nan)


def _column(values: list[Any]) -> np.ndarray:
    numeric = all(isinstance(v, (bool, int, float)) for v in values)
    return np.array(values if numeric else [value_label(v) for v in values])


def _same(a: Any, b: Any) -> bool:
    return bool(np.isclose(a, b)) if isinstance(a, float) and isinstance(b, (int, float)) else _plain(a) == _plain(b)


def _plain(value: Any) -> Any:
    """A value that can be compared: objects by their label."""
    return value if isinstance(value, (int, float, str, tuple)) else value_label(value)
