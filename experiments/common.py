"""What the experiments share: tuned algorithms, the bands of many curves, and the files of a report."""

import dataclasses
import datetime
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from pgjax.reporting.statistics import Estimate
from pgjax.running.config import to_config, versions


def with_rows(algorithm: Any, rows: Any) -> Any:
    """The algorithm with other rows to learn from, of the same data."""
    return dataclasses.replace(algorithm, data=dataclasses.replace(algorithm.data, train=rows))


class Band(NamedTuple):
    """Many curves as one, each array `[points]`; NaN where no curve has a value."""

    interquartile_mean: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray


def band(curves: np.ndarray) -> Band:
    """Of curves `[members, points]`, leaving out what is NaN at a point."""
    columns = [column[np.isfinite(column)] for column in curves.T]
    known = [
        (stats.trim_mean(c, 0.25), *np.quantile(c, [0.25, 0.5, 0.75])) if c.size else (np.nan,) * 4 for c in columns
    ]
    return Band(*np.array(known).T)


def draw_band(panel: Any, steps: np.ndarray, found: Band, label: str, **style: Any) -> None:
    """The interquartile mean as a line in the band of the quartiles."""
    line = panel.plot(steps, found.interquartile_mean, label=label, **style)[0]
    panel.fill_between(steps, found.low, found.high, color=line.get_color(), alpha=0.2, linewidth=0)


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def text_of(estimate: Estimate, digits: int = 2) -> str:
    """A figure with its interval, for a table."""
    value, low, high = (f"{x:.{digits}f}" for x in estimate)
    return f"{value} [{low}, {high}]"


def markdown(header: list[str], rows: list[list[str]], text_columns: int = 1) -> str:
    """A table whose first columns are text and whose others are numbers."""
    rule = "|" + "---|" * text_columns + "---:|" * (len(header) - text_columns)
    first, *others = ("| " + " | ".join(line) + " |" for line in [header, *rows])
    return "\n".join([first, rule, *others]) + "\n"


def settings_report(result: Any) -> list[dict[str, Any]]:
    """Every figure of a sweep: per setting its seeds' evaluated returns and last training returns."""
    last = result.setting_scores("return_mean")
    return [
        {"setting": setting, "returns": scores, "training_returns": training}
        for setting, scores, training in zip(result.settings, result.setting_scores(), last, strict=True)
    ]


def write_report(out: Path, table: str, algorithm: Any, figures: dict[str, Any]) -> None:
    """Print the table and write it and the figures to `out`, under the name of the running script. Without an algorithm
    the configs are among the figures."""
    name = Path(sys.argv[0]).stem
    report = {
        "command": f"python experiments/{name}.py {' '.join(sys.argv[1:])}".rstrip(),
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind} ({platform.machine()})",
        "versions": versions(),
    }
    report |= {"config": to_config(algorithm)} if algorithm else {}
    report |= figures
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(table)
    (out / f"{name}.json").write_text(dumps(report) + "\n")
    print(table)


def dumps(report: dict[str, Any]) -> str:
    """JSON with each list of numbers on one line."""
    text = json.dumps(_plain(report), indent=1, allow_nan=False)
    return re.sub(
        r"\[\n([^\[\]{}]*)\n\s*\]", lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]).strip() + "]", text
    )


def _plain(value: Any) -> Any:
    """JSON values; what is not finite as null, float32 in its shortest decimal form."""
    if isinstance(value, Estimate):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        return _plain((array.astype(str).astype(float) if array.dtype.kind == "f" else array).tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
