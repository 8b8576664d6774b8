"""A report of runs and sweeps as one HTML file that asks for nothing from a network. Needs the extra `report`.

Its plots are drawn by plotly.js, which comes inside the Python package plotly and is written into the file. Of the
libraries that embed themselves it is the one with parallel coordinates that can be brushed: a range on an axis, or
several, and an event that says which. Bokeh has no such plot, and Vega would need one built from signals. plotly.js
draws the lines by WebGL, which bears ten thousand of them; where a browser has none, the filter above the table selects
the same members by the same ranges. It costs 4.8 MB in each file.

What the files of a run say is somebody else's: in the page it is text, escaped, and in the data JSON without `<`. The
policy in the head of the page lets nothing run but the scripts it came with, by their digests, and nothing be fetched.
"""

import base64
import hashlib
import html
import importlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgjax.core.errors import InputError
from pgjax.reporting.contents import Source, binned, binned_steps, effects, read_source
from pgjax.reporting.listing import directories_under, mean_of
from pgjax.reporting.plotting import WORDS, differing, value_label
from pgjax.running.directory import write_text

MOST_NUMBERS = 500_000
"""Of all curves in a page; of many members there are fewer points, and then fewer metrics."""
FEWEST_POINTS = 20
MOST_MEMBERS = 20_000
MOST_SHOWN = 200
"""Runs that are listed one by one outside of the table of members."""
HERE = Path(__file__).parent


def report(
    *directories: str | Path,
    out: str | Path = "report.html",
    examples: Mapping[str, str | Path | Sequence[str]] | None = None,
) -> Path:
    """Write a page about runs and sweeps, or all under a directory that holds none itself, as one HTML file.

    Args:
        examples: what shows what was learned, by its title: the path of a GIF such as `pgjax.render` writes, or texts.

    Raises:
        InputError: no directory is given, there is neither a run nor a sweep in one, or plotly is not installed.
        OSError: the file cannot be written, or a GIF not be read.
    """
    if not directories:
        raise InputError("report needs at least one directory of a run or sweep")
    script = _plotly()
    found: list[Path] = []
    for directory in map(Path, directories):
        under = [directory] if _holds_either(directory) else directories_under(directory)
        if not under:
            raise InputError(f"{directory} holds no run: it has neither config.json nor sweep.json, nor has one below")
        found += [path for path in under if path not in found]
    sources = [read_source(path) for path in found]
    write_text(Path(out), _page(sources, examples or {}, script))
    return Path(out)


def _holds_either(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("config.json", "sweep.json"))


def _plotly() -> str:
    try:
        return str(importlib.import_module("plotly.offline").get_plotlyjs())
    except ImportError as error:
        raise InputError("a report needs plotly: pip install 'pgjax[report]'") from error


def _page(sources: list[Source], examples: Mapping[str, Any], plotly: str) -> str:
    data = _data(sources)
    style, own = ((HERE / f"page.{ending}").read_text() for ending in ("css", "js"))
    scripts = [plotly, own]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )  # plotly.js compiles the shaders' bindings of its parallel coordinates with Function
    names = ", ".join(source.seen.run for source in sources[:3]) + (" …" if len(sources) > 3 else "")
    sections = [
        _overview(sources, len(data["seeds"])),
        _configuration(sources),
        _curves_section(data),
        _effects_section(data),
        _parallel_section(data),
        _members_section(data),
        _evaluations(sources),
        _examples(examples),
        _versions(sources),
        _commands(sources),
    ]
    filled = {
        "policy": html.escape(policy, quote=True),
        "title": html.escape(f"pgjax report: {names}"),
        "style": style,
        "sections": "\n".join(filter(None, sections)),
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).translate(UNSAFE),
        "plotly": plotly,
        "own": own,
    }
    template = (HERE / "page.html").read_text()
    return "".join(filled[part] if i % 2 else part for i, part in enumerate(template.split("@@")))


UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
"""What must not stand in JSON inside a page."""


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _data(sources: list[Source]) -> dict[str, Any]:
    """What the page's script works with, as JSON: columns `[members]`, and curves as float32 in base64."""
    count = sum(len(source.seeds) for source in sources)
    kept = np.unique(np.linspace(0, count - 1, min(count, MOST_MEMBERS)).astype(int)) if count else np.zeros(0, int)
    which = np.repeat(np.arange(len(sources)), [len(source.seeds) for source in sources])[kept]
    columns = {name: _numbers_or_text(_pick(values, kept)) for name, values in _columns(sources).items()}
    panels = list(dict.fromkeys(source.subject for source in sources if source.seeds))
    return {
        "sources": [
            {
                "name": source.seen.run,
                "panel": panels.index(source.subject) if source.seeds else -1,
                "unit": source.unit,
                "score": source.score[0],
                "least": source.score[1] == "min",
                "evaluated": _evaluated(source, max(1, MOST_NUMBERS // (10 * max(1, count)))),
            }
            for source in sources
        ],
        "panels": panels,
        "words": WORDS,
        "source": which.tolist(),
        "first": _pick([i for source in sources for i in range(len(source.seeds))], kept),
        "columns": columns,
        "seeds": _pick([seed for source in sources for seed in source.seeds], kept),
        "steps": [_number(x) for x in _pick([x for source in sources for x in source.reached], kept)],
        "scores": [_number(x) for x in _pick([x for source in sources for x in source.scores], kept)],
        "ends": _pick([end for source in sources for end in source.ends], kept),
        "members": count,
        "curves": _curves(sources, kept),
        "effects": [{"source": i} | each for i, source in enumerate(sources) for each in effects(source)],
    }


def _evaluated(source: Source, most: int) -> list[Any]:
    steps, scores = source.evaluated
    return [[_number(x) for x in binned_steps(steps, most)], _encoded(binned(scores, most))]


def _pick(values: list[Any], kept: np.ndarray) -> list[Any]:
    return [values[i] for i in kept]


def _number(value: Any) -> float | None:
    """Six digits, as plots and tables need; None where there is no number."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _numbers_or_text(values: list[Any]) -> list[Any]:
    numeric = all(x is None or (isinstance(x, (int, float)) and not isinstance(x, bool)) for x in values)
    if numeric:
        return [None if x is None else _number(x) for x in values]
    return ["" if x is None else value_label(x) for x in values]


def _columns(sources: list[Source]) -> dict[str, list[Any]]:
    """`[members]` of every axis, and of what differs between runs that have it."""
    names = [*dict.fromkeys([name for source in sources for name in source.axes] + list(_differences(sources)))]
    return {
        name: [
            value for source in sources for value in source.axes.get(name) or [_field(source, name)] * len(source.seeds)
        ]
        for name in names
    }


def _differences(sources: Iterable[Source]) -> dict[str, list[Any]]:
    """Fields of which there are several values among the sources that have them, with the values of all."""
    sources = [source for source in sources if source.fields]
    names = differing([source.fields for source in sources])
    return {name: [_swept_or(x, name) for x in sources] for name in names}


def _swept_or(source: Source, name: str) -> Any:
    return "swept" if name in source.config.get("axes", ()) else source.fields.get(name)


def _field(source: Source, name: str) -> Any:
    value = source.fields.get(name, source.fields.get(name.rpartition(".")[2]))
    return value if value is None or isinstance(value, (int, float, str)) else str(value)


def _curves(sources: list[Source], kept: np.ndarray) -> dict[str, Any]:
    """Of as many metrics and points as the numbers in a page allow, the scores first."""
    scores = [source.score[0] for source in sources if source.score[0] in source.curves]
    metrics = [*dict.fromkeys([*scores, *(name for source in sources for name in source.curves)])]
    members = max(1, len(kept))
    metrics = metrics[: max(1, MOST_NUMBERS // (FEWEST_POINTS * members))]
    most = max(FEWEST_POINTS, MOST_NUMBERS // (members * max(1, len(metrics))))
    points = min(most, max((source.steps.shape[1] for source in sources), default=0))
    steps: list[list[float | None]] = []
    which: list[int] = []
    found: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    offset = 0
    for source in sources:
        count = len(source.seeds)
        rows = kept[(kept >= offset) & (kept < offset + count)] - offset
        own = source.steps if len(source.steps) == 1 else source.steps[rows]
        which += [len(steps) + (0 if len(own) == 1 else i) for i in range(len(rows))]
        steps += [[_number(x) for x in each] for each in binned_steps(own, points)] if len(rows) else []
        for name in metrics:
            found[name].append(_padded(source.curves.get(name), rows, points))
        offset += count
    values = {name: _encoded(np.concatenate(each)) if each else "" for name, each in found.items()}
    return {"points": points, "steps": steps, "which": which, "values": values}


def _padded(curves: np.ndarray | None, rows: np.ndarray, points: int) -> np.ndarray:
    """`[rows, points]`, NaN behind the end."""
    found = np.full((len(rows), points), np.nan, np.float32)
    if curves is not None and curves.size:
        short = binned(curves[rows], points) if points else found
        found[:, : short.shape[1]] = short
    return found


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _text(value: Any) -> str:
    return html.escape(value_label(value), quote=True)


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Any]], label: str) -> str:
    """With the first cell of a row as its heading, in a region that can be scrolled by keys."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="Table: {_text(label)}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _section(name: str, title: str, *content: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{"".join(content)}</section>'


def _more(sources: Sequence[Any]) -> str:
    return f"<p>The first {MOST_SHOWN} of {len(sources):,} are listed.</p>" if len(sources) > MOST_SHOWN else ""


def _overview(sources: list[Source], shown: int) -> str:
    rows = [
        [
            source.seen.run,
            source.subject,
            source.seen.algorithm,
            f"{source.seen.steps:,.0f} / {source.seen.total_steps:,.0f}" if source.seen.total_steps else "",
            f"{source.score[0]} {source.seen.best:.4g}" if math.isfinite(source.seen.best) else "",
            source.damage or source.seen.status,
        ]
        for source in sources[:MOST_SHOWN]
    ]
    header = ["run or sweep", "on", "algorithm x members", "steps", "best evaluation", "status"]
    members = sum(len(source.seeds) for source in sources)
    some = f"<p>Of {members:,} members {shown:,} at equal distances are in this page.</p>" if shown < members else ""
    notes = "".join(f"<li>{_text(x.seen.run)}: {_text(x.note)}</li>" for x in sources[:MOST_SHOWN] if x.note)
    table = _table("What this page shows", header, rows, "runs and sweeps")
    return _section("runs", "Runs and sweeps", table, _more(sources), some, f"<ul>{notes}</ul>" if notes else "")


def _configuration(sources: list[Source]) -> str:
    known = [source for source in sources if source.config]
    different = _differences(known)
    swept = [[x.seen.run, name, _swept(x.config["axes"][name])] for x in known for name in x.axes]
    rows = [
        [source.seen.run, *("—" if values[i] is None else values[i] for values in different.values())]
        for i, source in enumerate(x for x in known if x.fields)
    ]
    content = []
    if different:
        content.append(_table("Where they differ", ["run or sweep", *different], rows[:MOST_SHOWN], "differences"))
    elif len(known) > 1:
        content.append("<p>They differ in nothing but seeds and axes.</p>")
    if swept:
        content.append(_table("What sweeps vary", ["sweep", "axis", "values"], swept[:MOST_SHOWN], "axes"))
    content += [
        f"<details><summary>All of {_text(source.seen.run)}</summary>"
        f'<pre tabindex="0">{html.escape(json.dumps(source.config, indent=1))}</pre></details>'
        for source in known[:MOST_SHOWN]
    ]
    return _section("configuration", "Configuration", *content, _more(known)) if known else ""


def _swept(axis: Any) -> str:
    if isinstance(axis, dict):
        return f"{axis.get('kind')}: {axis.get('arguments')}"
    texts = [value_label(value) for value in axis]
    return ", ".join(texts if len(texts) <= 12 else [*texts[:6], "…", *texts[-3:]])


def _plot(name: str, label: str, caption: str) -> str:
    return (
        f'<figure><div id="{name}" class="plot" role="group" aria-label="{_text(label)}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _curves_section(data: dict[str, Any]) -> str:
    if not any(data["curves"]["values"].values()):
        return ""
    controls = (
        '<p class="controls"><label for="metric">Metric</label> <select id="metric"></select> '
        '<label for="group">A curve for each</label> <select id="group"></select></p>'
    )
    plots = [
        (f"<h3>{_text(panel)}</h3>" if len(data["panels"]) > 1 else "")
        + _plot(
            f"curves-{i}",
            f"Learning curves on {panel}",
            "Lines: the interquartile mean over the selected members, in bands from the lower to the upper quartile. "
            "Diamonds: evaluations of kept states, with the same quartiles.",
        )
        for i, panel in enumerate(data["panels"])
    ]
    return _section("curves", "Learning curves", controls, *plots, '<p id="curves-note" role="status"></p>')


def _effects_section(data: dict[str, Any]) -> str:
    plots = []
    for i, each in enumerate(data["effects"]):
        name, sweep = each["name"], data["sources"][each["source"]]["name"]
        heading = f"{_text(name)} in {_text(sweep)}" if len(data["sources"]) > 1 else _text(name)
        plots.append(f"<div><h3>{heading}</h3>{_plot(f'effect-{i}', f'Effect of {name}', '')}</div>")
    caption = (
        "<p>Evaluated score: the interquartile mean over the settings with a value, or with a quarter of the values "
        "where there are more than eight, with its 95 % interval; dots are the means of settings over their seeds.</p>"
    )
    plots = [plot.replace("<figcaption></figcaption>", "") for plot in plots]
    return (
        _section("effects", "Effects of the axes", caption, f'<div class="grid">{"".join(plots)}</div>')
        if plots
        else ""
    )


def _parallel_section(data: dict[str, Any]) -> str:
    if not data["columns"] or len(data["seeds"]) < 2:
        return ""
    text = (
        "<p>A line for each member, coloured by its score. Drag along an axis to select a range, click beside it to "
        "give it up; the curves and the table follow. By keys the same is done in the filter of the table.</p>"
    )
    plot = _plot("parallel", "Parallel coordinates of the members", '<span id="parallel-note"></span>')
    return _section("parallel-heading", "Parallel coordinates", text, f'<div class="wide">{plot}</div>')


def _members_section(data: dict[str, Any]) -> str:
    if not data["seeds"]:
        return ""
    controls = (
        '<p class="controls"><label for="filter">Filter</label> <input id="filter" type="search" autocomplete="off" '
        'spellcheck="false" aria-describedby="filter-help"> <button type="button" id="clear">Select all</button></p>'
        '<p id="filter-help" class="help">Words that a row holds, and ranges of its columns, such as '
        "<code>seed=0 score&gt;=100</code>.</p>"
        '<p id="count" role="status"></p>'
    )
    table = (
        '<div class="scroll" role="region" tabindex="0" aria-label="Table: members"><table id="members"><caption>'
        "Members, sorted by what the buttons in its head say</caption><thead></thead><tbody></tbody></table></div>"
    )
    pages = (
        '<p class="controls pages"><button type="button" id="before">Previous</button> <span id="page"></span> '
        '<button type="button" id="after">Next</button></p>'
    )
    return _section("members-heading", "Members", controls, table, pages)


def _evaluations(sources: list[Source]) -> str:
    tables = []
    evaluated = [source for source in sources if source.evaluation]
    for names in dict.fromkeys(tuple(x.evaluation) for x in evaluated if not x.seen.is_sweep):
        rows = [
            [source.seen.run, *(_over_members(source.evaluation[name]) for name in names)]
            for source in evaluated
            if not source.seen.is_sweep and tuple(source.evaluation) == names
        ]
        caption = "The newest evaluation of each run: the mean over its members, and the lowest and highest of them"
        tables.append(_table(caption, ["run", *names], rows[:MOST_SHOWN], f"evaluations, {', '.join(names)}"))
    for source in [x for x in evaluated if x.seen.is_sweep][:MOST_SHOWN]:
        caption = f"The best settings of {source.seen.run}: the mean over seeds"
        tables.append(
            _table(
                caption, ["setting", source.score[0]], source.evaluation.items(), f"best settings of {source.seen.run}"
            )
        )
    return _section("evaluations", "Evaluations", *tables) if tables else ""


def _over_members(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    mean = value_label(float(mean_of(value)))
    known = [x for x in value if x is not None] if isinstance(value, list) else []
    return f"{mean} ({min(known):.4g} to {max(known):.4g})" if len(known) > 1 and min(known) < max(known) else mean


def _examples(examples: Mapping[str, Any]) -> str:
    shown = []
    for title, example in examples.items():
        heading = f"<h3>{_text(title)}</h3>"
        if isinstance(example, (str, Path)):
            gif = base64.b64encode(Path(example).read_bytes()).decode()
            shown.append(f'{heading}<img alt="An episode of {_text(title)}" src="data:image/gif;base64,{gif}">')
        else:
            shown.append(f"{heading}<ol>{''.join(f'<li><q>{html.escape(text)}</q></li>' for text in example)}</ol>")
    return _section("examples", "Examples", *shown) if shown else ""


def _versions(sources: list[Source]) -> str:
    known = [(source.seen.run, source.config["versions"]) for source in sources if source.config.get("versions")]
    known = [(name, versions) for name, versions in known if isinstance(versions, dict)]
    names = [*dict.fromkeys(name for _, versions in known for name in versions)]
    alike: dict[tuple[Any, ...], list[str]] = {}
    for run, versions in known:
        alike.setdefault(tuple(str(versions.get(name, "")) for name in names), []).append(run)
    rows = [[", ".join(runs[:5]) + (" …" if len(runs) > 5 else ""), *each] for each, runs in alike.items()]
    table = _table("What they were trained with", ["run or sweep", *names], rows[:MOST_SHOWN], "versions")
    return _section("versions", "Versions", table) if rows else ""


def _commands(sources: list[Source]) -> str:
    known = [source for source in sources if source.again][:MOST_SHOWN]
    content = [f'<h3>{_text(x.seen.run)}</h3><pre tabindex="0">{html.escape(x.again)}</pre>' for x in known]
    return _section("again", "Again", *content) if known else ""
