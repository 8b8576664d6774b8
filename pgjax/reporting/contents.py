"""What a report shows of runs and sweeps, from their files: members, curves, evaluations, the effects of axes.

Files are read to a bounded amount, however long they are, and what comes of it has a bounded number of points. Whatever
is wrong with a directory is said as its damage; what could be read before is kept.
"""

import csv
import dataclasses
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pgjax.core.errors import InputError
from pgjax.reporting.again import again
from pgjax.reporting.listing import Seen, said_damage, seen
from pgjax.reporting.plotting import Axis, axis_of, flat_fields, label
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.directory import (
    holds_sweep,
    last_rows,
    number_of,
    open_regular,
    read_config,
    read_json,
    some_rows,
    title,
)

MOST_BYTES = 32 << 20
"""Of a metrics file; of a longer one rows at equal distances are read."""
MOST_POINTS = 200
"""Of a curve: each is the mean over its part of the run."""
MOST_METRICS = 40
MOST_MEMBERS = 1_000_000
FEW_RESAMPLES = 200
"""Of a bootstrap over more than `MANY` members, whose interval is narrow anyway."""
MANY = 1000


@dataclasses.dataclass
class Source:
    """A run or sweep, as far as it could be read."""

    directory: Path
    seen: Seen
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    """As it is stored."""
    subject: str = ""
    score: tuple[str, str] = ("score", "max")
    unit: str = "steps"
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What can differ between runs, by the name an axis would have."""
    axes: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    """Of a sweep, `[members]` each."""
    seeds: list[int] = dataclasses.field(default_factory=list)
    """`[members]`, as are the next three."""
    reached: list[float] = dataclasses.field(default_factory=list)
    """Steps."""
    scores: list[float] = dataclasses.field(default_factory=list)
    """Evaluated; NaN where there is none."""
    ends: list[str] = dataclasses.field(default_factory=list)
    """What a member came to, if it did not finish."""
    steps: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((1, 0)))
    """`[1 or members, points]`."""
    curves: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """`[members, points]` each."""
    evaluated: tuple[np.ndarray, np.ndarray] = (np.zeros(0), np.zeros((0, 0)))
    """Steps `[n]` and scores `[members, n]` of the states that were kept."""
    evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The newest row of evaluations, or of a sweep its best settings."""
    again: str = ""
    """What makes it again, or why nothing does."""
    damage: str = ""
    note: str = ""
    """What is missing though nothing is damaged."""

    @property
    def base(self) -> dict[str, Any]:
        """The config of the algorithm."""
        return dict(self.config.get("base", self.config))


def read_source(directory: Path) -> Source:
    """Everything there is to show of a directory; what is wrong with it becomes its `damage`."""
    source = Source(directory, seen(directory, str(directory)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing are NaN
            _read_config(source)
            _read_sweep(source) if holds_sweep(directory) else _read_run(source)
    except Exception as error:  # the others are shown all the same
        source.damage = said_damage(error)
    if source.seen.status.startswith("damaged"):
        source.damage = source.seen.status
    return source


def _read_config(source: Source) -> None:
    is_sweep = holds_sweep(source.directory)
    source.config = read_json(source.directory / "sweep.json") if is_sweep else read_config(source.directory)
    source.subject, what = title(source.base)
    name, direction = source.base["score"]
    source.score, source.unit = (str(name), str(direction)), str(source.base["unit"])
    source.fields = {"algorithm": what} | flat_fields(source.base)
    try:
        source.again = again(source.config, str(source.directory))
    except Exception as error:  # a version that is not ours, or code of its own
        source.again = str(error) if isinstance(error, InputError) else repr(error)


def _read_run(source: Source) -> None:
    count, first = source.config["seeds"] or 1, source.config["seed"]
    if not 0 < count <= MOST_MEMBERS:
        raise InputError(f"{source.directory / 'config.json'} is damaged: seeds is {count}")
    source.seeds, source.reached = [first + i for i in range(count)], [source.seen.steps] * count
    source.scores, source.ends = [np.nan] * count, [""] * count
    steps, source.curves = _columns(source.directory / "metrics.jsonl", count)
    source.steps = steps[None]
    path = source.directory / "evaluations.jsonl"
    at, evaluated = _columns(path, count)
    if source.score[0] in evaluated:
        source.evaluated = at, evaluated[source.score[0]]
        newest = last_rows(path, 1)[-1]
        source.evaluation = {name: x for name, x in newest.items() if name not in ("iteration",)}
        source.scores = np.broadcast_to(np.array(newest[source.score[0]], float), count).tolist()


def _columns(path: Path, members: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steps `[points]` and metrics `[members, points]` of a file of rows."""
    if not path.exists():
        return np.zeros(0), {}
    with open_regular(path, "rb") as file:
        first = len(file.readline())
    rows = some_rows(path, min(20_000, max(MOST_POINTS // 10, MOST_BYTES // max(1, first))))
    if not rows:
        return np.zeros(0), {}
    names = [name for name in rows[0] if name not in ("iteration", "steps")][:MOST_METRICS]
    found = {name: np.array([np.broadcast_to(np.array(row[name], float), members) for row in rows]).T for name in names}
    return binned_steps(np.array([row["steps"] for row in rows], float)), {k: binned(x) for k, x in found.items()}


def binned(curves: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Curves `[members, n]` as at most `most` means over parts of them that are as long as each other."""
    n = curves.shape[1]
    if n <= most:
        return curves.astype(np.float32)
    parts = np.array_split(np.arange(n), most)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a part without a number
        return np.stack([np.nanmean(curves[:, part], axis=1) for part in parts], axis=1).astype(np.float32)


def binned_steps(steps: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """The middle of each part that `binned` takes the mean of."""
    n = steps.shape[-1]
    if n <= most:
        return steps
    return np.stack([steps[..., part].mean(axis=-1) for part in np.array_split(np.arange(n), most)], axis=-1)


def _read_sweep(source: Source) -> None:
    path = source.directory / "members.csv"
    if not path.exists():
        source.note = "its members are listed when it has finished"
        return
    with open_regular(path, "r") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        rows = [[row[name] for name in names] for row in reader]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    if len(rows) != source.config["members"]:
        raise InputError(f"{path} is damaged: it has {len(rows)} members, not {source.config['members']}")
    source.axes = {name: _values(columns[name]) for name in source.config["axes"]}
    source.seeds = [int(seed) for seed in columns["seed"]]
    source.reached = [number_of(x) for x in columns["steps"]]
    source.scores = [number_of(x) for x in columns["score"]]
    longest = max(source.reached)
    source.ends = [
        "failed" if failed == "True" else "pruned" if steps < longest and score != score else ""
        for failed, steps, score in zip(columns["failed"], source.reached, source.scores, strict=True)
    ]
    source.evaluation = _best_settings(source)
    curves = source.directory / "curves.npz"
    if curves.exists():
        _read_curves(source, curves)
    else:
        source.note = f"no curves were kept; they are written by: pgjax resume {source.directory}"


def _values(texts: list[str]) -> list[Any]:
    """Numbers where all of them are."""
    numbers = [number_of(text) for text in texts]
    return texts if any(x != x for x in numbers) else numbers


def _read_curves(source: Source, path: Path) -> None:
    """Of arrays that are stored as they are: what is smaller in the file than in memory is refused."""
    with open_regular(path, "rb") as file:
        with zipfile.ZipFile(file) as members:
            if any(each.compress_type != zipfile.ZIP_STORED for each in members.infolist()):
                raise InputError(f"{path} is damaged: its arrays are compressed")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            steps = arrays["steps"].astype(float)
            names = [source.score[0], *(name for name in arrays.files if name not in ("steps", source.score[0]))]
            kept = [name for name in names if name in arrays.files][:MOST_METRICS]
            found = {name: binned(np.asarray(arrays[name], float)) for name in kept}
    if len(steps) != len(source.seeds) or any(len(x) != len(steps) for x in found.values()):
        raise InputError(f"{path} is damaged: it has not {len(source.seeds)} members")
    steps = steps[:1] if np.all(steps == steps[:1]) else steps
    source.steps, source.curves = binned_steps(steps), found
    known = np.array(source.scores)[:, None]
    if len(steps) == 1:
        source.evaluated = steps[0, -1:], known


def settings_of(source: Source) -> list[dict[str, Any]]:
    """Those of a sweep, each with as many members behind it as there are seeds."""
    seeds = source.config["arguments"]["seeds"]
    return [{name: values[i] for name, values in source.axes.items()} for i in range(0, len(source.seeds), seeds)]


def setting_scores(source: Source) -> np.ndarray:
    """`[settings, seeds]`."""
    return np.array(source.scores, float).reshape(-1, source.config["arguments"]["seeds"])


def _best_settings(source: Source, most: int = 10) -> dict[str, Any]:
    means = setting_scores(source).mean(axis=1)
    worst = np.where(np.isfinite(means), means if source.score[1] == "max" else -means, -np.inf)
    settings = settings_of(source)
    ranked = [int(i) for i in np.argsort(-worst, kind="stable")[:most] if np.isfinite(means[i])]
    return {label(settings[i]): float(means[i]) for i in ranked}


def effects(source: Source) -> list[dict[str, Any]]:
    """Of each axis of a sweep on the evaluated score: for each value, or where there are too many for each of four
    parts of them, the interquartile mean over its settings with a 95 % interval, beside dots of settings."""
    found, scores = [], setting_scores(source) if source.axes else np.zeros((0, 1))
    for name in source.axes:
        axis = axis_of(name, [setting[name] for setting in settings_of(source)])
        if len(axis.values) < 2 or not np.isfinite(scores).any():
            continue
        means = np.nanmean(scores, axis=1) if np.isfinite(scores).any(axis=1).all() else scores.mean(axis=1)
        shown = np.unique(np.linspace(0, len(means) - 1, min(len(means), 500)).astype(int))
        estimates = [_effect(axis, scores, part) for part in axis.bins(8)]
        found.append(
            {
                "name": name,
                "log": axis.log,
                "ticks": None if axis.numeric else [text.replace("\n", " ") for text in axis.labels],
                "dots": [[axis.positions[axis.which[i]], means[i]] for i in shown if np.isfinite(means[i])],
                "estimates": [each for each in estimates if each],
            }
        )
    return found


def _effect(axis: Axis, scores: np.ndarray, part: np.ndarray) -> list[float]:
    """Position, value, low, high, members of the values with the indices `part`."""
    strata = [seeds[np.isfinite(seeds)] for seeds in scores[np.isin(axis.which, part)]]
    strata = [seeds for seeds in strata if seeds.size]
    if not strata:
        return []
    members = sum(seeds.size for seeds in strata)
    estimate = interquartile_mean(*strata, resamples=FEW_RESAMPLES if scores.size > MANY else 2000)
    return [float(np.median(axis.positions[part])), *estimate, members]
