"""Pictures: learning curves of runs from their files alone, sweeps, and episodes as GIFs. Needs the extra `plot`."""

import importlib
import json
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pgjax.core.errors import InputError, nearest
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import reading
from pgjax.running.directory import part_title, read_config, some_rows, title

MOST_POINTS = 20_000
"""Rows of a run that are drawn; of longer ones some at equal distances."""
WORDS = {"return_mean": "return of an episode, undiscounted", "length_mean": "steps of an episode"}
"""Of metrics whose names do not say enough."""


def plot(*runs: str | Path, out: str | Path = "curves", metric: str | None = None) -> list[Path]:
    """Draw a metric of runs over their steps, a panel for each environment, and write `out`.png, `out`.svg and
    `out`.pdf.

    By default that is what the first run's score is in training, drawn beside the evaluations of the kept states. Runs
    that differ only in their seeds, and the members of a population, are one curve: the mean, in a band from the lowest
    to the highest seed.

    Raises:
        InputError: no run is given, a directory holds no run or no rows, or the metric is not among its rows.
    """
    if not runs:
        raise InputError("plot needs at least one run")
    configs = {Path(run): _config(Path(run)) for run in runs}
    metric = metric or configs[Path(runs[0])]["score"][0]
    subjects = list(dict.fromkeys(title(config)[0] for config in configs.values()))
    columns = min(3, len(subjects))
    rows = -(-len(subjects) // columns)
    figure = matplotlib().figure.Figure(figsize=(max(7.0, 4.5 * columns), 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel in list(panels)[len(subjects) :]:
        panel.remove()
    for subject, panel in zip(subjects, figure.axes, strict=True):
        of_subject = {run: config for run, config in configs.items() if title(config)[0] == subject}
        _draw_runs(panel, of_subject, metric)
        panel.set_title(subject, fontsize=10)
    return _save(figure, Path(out))


def _config(run: Path) -> dict[str, Any]:
    """With what a plot needs of it."""
    config = read_config(run)
    with reading(str(run / "config.json")):
        title(config), flat_fields(config), config["score"][0], config["unit"]
    return config


def _draw_runs(axes: Any, configs: dict[Path, dict[str, Any]], metric: str) -> None:
    """The curves of runs on one environment."""
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    evaluated: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    labels = _labels(configs)
    for run, config in configs.items():
        curves.setdefault(labels[run], []).append(_curve(run / "metrics.jsonl", metric))
        if config["score"][0] == metric and (run / "evaluations.jsonl").exists():
            evaluated.setdefault(labels[run], []).append(_curve(run / "evaluations.jsonl", metric))
    has_band = False
    for label, members in curves.items():
        length = min(len(steps) for steps, _ in members)
        steps = members[0][0][:length]
        values = np.concatenate([values[:length] for _, values in members], axis=1)
        known = ~np.all(np.isnan(values), axis=1)
        line = axes.plot(steps[known], np.nanmean(values[known], axis=1), label=label)[0]
        if values.shape[1] > 1:
            has_band = True
            low, high = np.nanmin(values[known], axis=1), np.nanmax(values[known], axis=1)
            axes.fill_between(steps[known], low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        for steps, values in evaluated.get(label, []):
            axes.plot(steps, np.nanmean(values, axis=1), "o", color=line.get_color(), markersize=4)
    package = matplotlib()
    handles, _ = axes.get_legend_handles_labels()
    if evaluated:
        label = "evaluated, greedy (lines: training, sampled)"
        handles.append(package.lines.Line2D([], [], color="grey", marker="o", markersize=4, linewidth=0, label=label))
    if has_band:
        handles.append(package.patches.Patch(color="grey", alpha=0.2, label="lowest to highest seed"))
    axes.set_xlabel(" or ".join(dict.fromkeys(config["unit"] for config in configs.values())))
    axes.set_ylabel(in_words(metric))
    axes.xaxis.set_major_formatter(package.ticker.EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    for handle in handles:
        handle.set_label("\n".join(textwrap.wrap(handle.get_label(), 70, max_lines=3, placeholder=" …")))
    is_long = max(len(handle.get_label()) for handle in handles) > 46 or len(handles) > 8
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "frameon": False}
    axes.legend(handles=handles, fontsize=8, **(below if is_long else {}))


def in_words(metric: str) -> str:
    """What the axis of a metric says."""
    return WORDS.get(metric, metric.replace("_", " "))


def _save(figure: Any, out: Path) -> list[Path]:
    out.parent.mkdir(parents=True, exist_ok=True)
    out = out.with_suffix("") if out.suffix in (".png", ".svg", ".pdf") else out
    written = [out.with_name(out.name + ending) for ending in (".png", ".svg", ".pdf")]
    with matplotlib().rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):  # text stays text
        for path in written:
            figure.savefig(path, dpi=200)
    return written


def _curve(path: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[n]` and values `[n, members]`, NaN where there were none."""
    rows = some_rows(path, MOST_POINTS)
    if not rows:
        raise InputError(f"{path.parent} holds no metrics yet")
    have = [row for row in rows if metric in row and "steps" in row]
    if not have:
        raise InputError(f"metric = {metric!r} is not in {path.parent}: it has {', '.join(rows[0])}")
    values = np.array([np.atleast_1d(np.array(row[metric], dtype=float)) for row in have])
    return np.array([row["steps"] for row in have]), values


def _labels(configs: dict[Path, dict[str, Any]]) -> dict[Path, str]:
    """One name per config of a panel, seeds aside: what tells it from the others, or the algorithm if nothing does."""
    flat = {run: flat_fields(config) for run, config in configs.items()}
    different = differing(list(flat.values()))
    names = {run: title(config)[1] for run, config in configs.items()}
    is_named = len({*names.values()}) > 1 or not different
    said = {run: [f"{k}={flat[run][k]}" for k in different if k in flat[run]] for run in configs}
    return {run: ", ".join([names[run]] * is_named + said[run]) for run in configs}


def differing(fields: list[dict[str, Any]]) -> list[str]:
    """The names that have several values among those that have them at all."""
    names = dict.fromkeys(name for each in fields for name in each)
    return [k for k in names if len({json.dumps(each[k], default=str) for each in fields if k in each}) > 1]


def flat_fields(config: dict[str, Any]) -> dict[str, Any]:
    """What can differ between runs, by the name an axis would have."""
    found = dict(config["hyperparameters"])
    for part, described in config["parts"].items():
        found |= {part: part_title(described)} | described.get("options", {})
    return found


def plot_sweep(result: Any, metric: str, out: Path) -> list[Path]:
    """Draw a `SweepResult` and write `out`.png, `out`.svg and `out`.pdf.

    For each axis the curves of `metric` (interquartile means over all members with a value, in bands from the lower to
    the upper quartile) and the effect on the score (interquartile means with 95 % intervals over the dots of the
    members, or where there are too many values the dots of the settings and their means in four bins); below, every
    setting as a line through its values to its score, grey with crosses if it has none, the best one outlined.

    Raises:
        InputError: the metric is not among the curves.
    """
    if metric not in result.curves:
        raise InputError(f"metric = {metric!r} is not known: {nearest(metric, result.curves)}")
    axes = [axis_of(name, [setting[name] for setting in result.settings]) for name in result.axes]
    scores = result.setting_scores("score")
    scores = np.where(np.isfinite(scores), scores, np.nan)
    width = max(7.0, 3.6 * len(axes))
    figure = matplotlib().figure.Figure(figsize=(width, 11 if axes else 4.2), layout="constrained")
    figure.suptitle(textwrap.fill(_best_text(result), int(11 * width)), fontsize=11)
    if not axes:
        _draw_curves(figure.subplots(), result, metric, None)
        return _save(figure, out)
    grid = figure.add_gridspec(3, len(axes), hspace=0.06)
    rows: list[list[Any]] = [[], []]
    for column, axis in enumerate(axes):
        for row, panels in enumerate(rows):
            panels.append(figure.add_subplot(grid[row, column], sharey=panels[0] if panels else None))
            panels[-1].tick_params(labelleft=column == 0, labelsize=8)
        _draw_curves(rows[0][-1], result, metric, axis)
        _draw_effect(rows[1][-1], scores, axis)
    rows[0][0].set_ylabel(in_words(metric))
    rows[1][0].set_ylabel(f"evaluated {result.judged_by[0]}".replace("_", " "))
    _draw_parallel(figure.add_subplot(grid[2, :]), axes, scores.mean(axis=1))
    return _save(figure, out)


def value_label(value: Any) -> str:
    """A value of an axis as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(getattr(value, "name", value))


def label(setting: dict[str, Any]) -> str:
    """A setting of a sweep as text."""
    return ", ".join(f"{name}={value_label(value)}" for name, value in setting.items()) or "as given"


class Axis(NamedTuple):
    """An axis of a sweep as something to draw."""

    name: str
    numeric: bool
    values: list[Any]
    """The distinct ones; numbers ascend."""
    which: np.ndarray
    """`[settings]`: indices of their values."""

    @property
    def log(self) -> bool:
        """Whether a logarithmic scale suits it: positive numbers that span a factor of 20."""
        return self.numeric and self.values[0] > 0 and self.values[-1] / self.values[0] >= 20

    @property
    def positions(self) -> np.ndarray:
        """Where its values stand: numbers at themselves, others at 0, 1, 2, ..."""
        return np.array(self.values if self.numeric else range(len(self.values)), dtype=float)

    @property
    def labels(self) -> list[str]:
        """Its values as text, in at most three lines of 24 characters."""
        return ["\n".join(textwrap.wrap(value_label(v), 24, max_lines=3, placeholder=" …")) for v in self.values]

    @property
    def shown(self) -> list[int]:
        """Indices of the values that get a label beside each other."""
        count = len(self.values)
        return [0, count - 1] if self.numeric else list(range(0, count, 1 + count // 20))

    @property
    def longest(self) -> int:
        """Characters of the longest line of its labels."""
        return max(len(line) for text in self.labels for line in text.split("\n"))

    def bins(self, most: int) -> list[np.ndarray]:
        """Indices of the values that are drawn together: more than `most` numbers in four bins, others one by one."""
        count = 4 if self.numeric and len(self.values) > most else len(self.values)
        return np.array_split(np.arange(len(self.values)), count)


def axis_of(name: str, values: list[Any]) -> Axis:
    """The axis with these values `[settings]`."""
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    found = {v if numeric else repr(v): v for v in values}
    keys = sorted(found) if numeric else list(found)
    which = np.array([keys.index(v if numeric else repr(v)) for v in values])
    return Axis(name, numeric, [found[key] for key in keys], which)


def _best_text(result: Any) -> str:
    best = result.best()
    if not np.isfinite(best.score):
        return "no setting has a score from every seed"
    seeds = f"mean of {len(best.members)} seeds" if len(best.members) > 1 else "1 seed"
    return f"best score {best.score:.4g} ({seeds}): {label(best.setting)}"


def _colours(axis: Axis, count: int) -> Any:
    maps = matplotlib().colormaps
    return maps["viridis"](np.linspace(0, 0.9, count)) if axis.numeric else maps["tab10"](np.arange(count) % 10)


def _draw_curves(panel: Any, result: Any, metric: str, axis: Axis | None) -> None:
    """One curve per value or bin of an axis; without an axis one of all members."""
    curves = np.where(result.failed[:, None] < 0, result.curves[metric], np.nan)
    panel.set_xlabel(result.algorithms[0].unit, fontsize=9)
    panel.xaxis.set_major_formatter(importlib.import_module("matplotlib.ticker").EngFormatter(sep=""))
    panel.grid(alpha=0.3)
    if axis is None:
        panel.set_ylabel(in_words(metric))
        _draw_curve(panel, result.steps, curves, "all members", "C0")
        return
    bins = axis.bins(5)
    for values, colour in zip(bins, _colours(axis, len(bins)), strict=True):
        members = np.repeat(np.isin(axis.which, values), len(result.seeds))
        text = " to ".join(dict.fromkeys(axis.labels[i] for i in (values[0], values[-1])))
        _draw_curve(panel, result.steps[members], curves[members], text, colour)
    style = {"ncols": 2 if axis.longest <= 18 else 1, "frameon": False, "fontsize": 8, "columnspacing": 1.2}
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1), title=axis.name, **style)


def _draw_curve(panel: Any, steps: np.ndarray, curves: np.ndarray, text: str, colour: Any) -> None:
    known = np.isfinite(curves).any(axis=0)
    columns = [np.sort(column[np.isfinite(column)]) for column in curves[:, known].T]
    middle = [column[len(column) // 4 : len(column) - len(column) // 4].mean() for column in columns]
    quartiles = np.array([np.quantile(column, (0.25, 0.75)) for column in columns]).reshape(-1, 2)
    x = steps.mean(axis=0)[known]
    panel.plot(x, middle, label=text, color=colour)
    panel.fill_between(x, quartiles[:, 0], quartiles[:, 1], color=colour, alpha=0.15, linewidth=0)


def _draw_effect(panel: Any, scores: np.ndarray, axis: Axis) -> None:
    """Scores `[settings, seeds]` against the values of an axis."""
    bins, positions = axis.bins(8), axis.positions
    if len(bins) < len(axis.values):
        means = scores.mean(axis=1)
        panel.plot(positions[axis.which], means, ".", color="C0", alpha=0.5)
        known = [means[np.isin(axis.which, values) & np.isfinite(means)] for values in bins]
        heights = [found.mean() if found.size else np.nan for found in known]
        panel.plot([np.median(positions[values]) for values in bins], heights, "o-", color="0.2")
    else:
        panel.plot(positions[axis.which], scores, ".", color="0.7", markersize=4, zorder=3)
        for i, colour in enumerate(_colours(axis, len(bins))):
            strata = [seeds[np.isfinite(seeds)] for seeds in scores[axis.which == i]]
            strata = [seeds for seeds in strata if seeds.size]
            if strata:
                value, low, high = interquartile_mean(*strata)
                panel.plot(positions[i], value, "o", color=colour, markersize=5, zorder=4)
                panel.plot([positions[i]] * 2, [low, high], "_-", color=colour, markersize=10, linewidth=2, zorder=2.5)
    _scale(panel, axis, ticks=len(bins) == len(axis.values))
    panel.set_xlabel(axis.name)
    panel.grid(alpha=0.3)


def _scale(panel: Any, axis: Axis, ticks: bool) -> None:
    """The x axis for the values of an axis, with a tick at each one if wanted and if they are far enough apart."""
    if axis.log:
        panel.set_xscale("log")
    panel.update_datalim([(x, 0.0) for x in axis.positions], updatey=False)
    panel.autoscale_view()
    if not axis.numeric:
        crowded = len(axis.values) * axis.longest > 46
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        labels = [textwrap.shorten(text, 20, placeholder=" …") for text in axis.labels] if crowded else axis.labels
        panel.set_xlim(-0.5, len(labels) - 0.5)
        panel.set_xticks(axis.positions[axis.shown], [labels[i] for i in axis.shown], **turned)
    elif ticks and np.all(np.diff(_unit(axis.positions, axis.log)) > 0.12):
        panel.set_xticks(axis.positions, axis.labels)
        panel.minorticks_off()


def _unit(values: np.ndarray, log: bool) -> np.ndarray:
    """From 0, the lowest, to 1, the highest; 0.5 if all are equal."""
    values = np.log(values) if log else values
    known = values[np.isfinite(values)]
    span = np.ptp(known) if known.size else 0.0
    return (values - known.min()) / span if span > 0 else 0.5 + 0 * values


def _draw_parallel(panel: Any, axes: list[Axis], means: np.ndarray) -> None:
    """Each setting as a line through its values, to its score `[settings]`."""
    lines = np.stack([*(_unit(axis.positions, axis.log)[axis.which] for axis in axes), _unit(means, False)], axis=1)
    known = np.isfinite(means)
    colours = matplotlib().colormaps["viridis"](np.where(known, lines[:, -1], 0))
    unscored = {"color": "0.8", "marker": "x", "markersize": 4, "markeredgecolor": "0.4"}
    for i in np.argsort(np.where(known, means, -np.inf)):
        style = {"color": colours[i]} if known[i] else unscored
        panel.plot(lines[i], linewidth=1, alpha=0.8, **style)
    if known.any():
        best = np.nanargmax(means)
        panel.plot(lines[best], color="black", linewidth=4.5, zorder=3)
        panel.plot(lines[best], color=colours[best], linewidth=2.5, zorder=3)
    for x, axis in enumerate(axes):
        heights = _unit(axis.positions, axis.log)
        _draw_vertical(panel, x, {float(heights[i]): axis.labels[i] for i in axis.shown})
    ends = [i for i in np.argsort(means) if known[i]]
    _draw_vertical(panel, len(axes), {float(lines[i, -1]): f"{means[i]:.4g}" for i in (*ends[:1], *ends[-1:])})
    panel.set_xticks(range(len(axes) + 1), [*(axis.name for axis in axes), "score"])
    panel.set_yticks([])
    panel.tick_params(length=0, pad=8 + 10 * max(text.count("\n") + 1 for axis in axes for text in axis.labels))
    panel.set_xlim(-0.3, len(axes) + 0.3)
    panel.set_ylim(-0.03, 1.03)
    panel.spines[:].set_visible(False)


def _draw_vertical(panel: Any, x: int, labels: dict[float, str]) -> None:
    panel.plot([x, x], [0, 1], color="0.3", linewidth=1.2, zorder=1)
    for y, text in labels.items():
        where = {0.0: (0, -6, "center", "top"), 1.0: (0, 6, "center", "bottom")}.get(y, (5, 4, "left", "bottom"))
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        style = {"ha": where[2], "va": where[3], "fontsize": 8, "bbox": box, "zorder": 5, "annotation_clip": False}
        panel.annotate(text, (x, y), where[:2], textcoords="offset points", **style)


def matplotlib() -> Any:
    """The package matplotlib, without pyplot, whose figures and backend belong to the user.

    Raises:
        InputError: it is not installed.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'pgjax[plot]'") from error
    return importlib.import_module("matplotlib")
