"""The command line. Help and listings import neither jax nor gymnax; flags are generated from the dataclasses."""

import contextlib
import dataclasses
import datetime
import importlib
import importlib.util
import json
import math
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
import typing
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pgjax.algorithms import ALGORITHMS
from pgjax.commands.flags import (
    Flag,
    Subject,
    axis,
    axis_flags,
    cache_flag,
    enable_compilation_cache,
    flag,
    named_values,
    number,
    parse,
    positional,
    subject,
)
from pgjax.commands.launch import COMMANDS, launch
from pgjax.core.errors import InputError, Interrupted, nearest
from pgjax.core.place import place_of
from pgjax.environments.catalog import CATALOG, SUITE_MODULES
from pgjax.reporting.listing import Seen, mean_of, seen_under
from pgjax.running.directory import holds_sweep, read_config, read_rows, status
from pgjax.running.presets import preset

USAGE = """\
usage: pgjax COMMAND ...

  pgjax train ALGORITHM --env ID [flags]   train, evaluate, and keep the run in a directory
  pgjax train ALGORITHM --env ID --help    every flag, with the values used for that environment
  pgjax sweep ALGORITHM --env ID [flags]   train many settings and seeds; any flag takes several values
  pgjax resume RUN [--total-steps N]       continue a run or sweep that was stopped, or train on
  pgjax launch --processes N COMMAND ...   train, sweep or resume over several processes of this machine
  pgjax evaluate RUN [--best]              evaluate a run's newest state, or its best
  pgjax list [DIR] [--json]                the runs under a directory
  pgjax watch [DIR] [--every S] [--once]   the same as a table that follows them while they train
  pgjax plot RUN ... [--out PATH]          learning curves of runs, as PNG, SVG and PDF
  pgjax report RUN ... [--out FILE]        a page of runs and sweeps, one HTML file that needs no network
  pgjax render RUN [--out PATH]            episodes of a run as a GIF or MP4
  pgjax generate RUN --prompt TEXT         completions by a language model, of a run or a Hugging Face folder
  pgjax envs [SUITE]                       the environments, or those of another suite
  pgjax algorithms                         the algorithms
  pgjax docs [--out DIR]                   build this version's documentation and serve it on this machine
  pgjax --version

RUN may be a sweep: evaluate and render take its best setting, or a member by --member I.
--import MODULE, before anything else is done, for parts of your own that the module registers.

for example:

  pgjax train ppo --env CartPole-v1
"""


def main(argv: list[str] | None = None) -> int:
    """The console script: 0 on success, 2 for input that was refused, 1 for a run that failed."""
    arguments = sys.argv[1:] if argv is None else argv
    commands: dict[str, Callable[[list[str]], int | None]] = {
        "train": _train,
        "sweep": _sweep,
        "resume": _resume,
        "launch": launch,
        "evaluate": _evaluate,
        "list": _list,
        "watch": _watch,
        "plot": _plot,
        "report": _write_report,
        "render": _render,
        "generate": _generate,
        "envs": _envs,
        "algorithms": _algorithms,
        "docs": _docs,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    try:
        arguments = _import_own(arguments)
        if arguments[0] == "--version":
            print(f"pgjax {metadata.version('pgjax')}")
            return 0
        if arguments[0] not in commands:
            raise InputError(f"command = {arguments[0]!r} is not known: {nearest(arguments[0], commands)}")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            with _early_signals(), _joined(arguments):
                status = commands[arguments[0]](arguments[1:])
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("stopped by SIGINT; nothing was being trained", file=sys.stderr)
        return 128 + signal.SIGINT
    return status or 0


@contextlib.contextmanager
def _joined(arguments: list[str]) -> Iterator[None]:
    """Among several processes, if the environment says so: all but the first one print nothing but errors."""
    if arguments[0] not in COMMANDS or _asks_for_help(arguments) or place_of(os.environ) is None:
        yield
        return
    from pgjax.core import processes

    processes.connect()
    with contextlib.ExitStack() as quiet:
        if not processes.is_first():
            quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(Path(os.devnull).open("w"))))
        yield


@contextlib.contextmanager
def _early_signals() -> Iterator[None]:
    """SIGTERM says that it was heard also where no run listens yet or any more."""

    def stop(*_: Any) -> None:
        raise Interrupted("stopped by SIGTERM; nothing was being trained", signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _import_own(arguments: list[str]) -> list[str]:
    """Import the modules that `--import` names, from the working directory too; the arguments without them.

    Raises:
        InputError: there is no such module, or it raises something.
    """
    rest: list[str] = []
    found = iter(arguments)
    for argument in found:
        if argument != "--import":
            rest.append(argument)
            continue
        name = next(found, "").removesuffix(".py")
        sys.path.insert(0, "")
        try:
            importlib.import_module(name)
        except Exception as error:
            raise InputError(f"--import {name}: {type(error).__name__}: {error}") from error
        finally:
            sys.path.remove("")
    return rest


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _algorithms(arguments: list[str]) -> None:
    _no_arguments("algorithms", arguments)
    for name, (*_, sentence) in ALGORITHMS.items():
        print(f"{name:12} {sentence}")


def _envs(arguments: list[str]) -> None:
    if arguments and arguments[0] in SUITE_MODULES:
        _no_arguments(f"envs {arguments[0]}", arguments[1:])
        from pgjax.environments.registry import names_of

        for name in names_of(arguments[0]):
            print(" ".join([f"{name:50}", *(each for each in ALGORITHMS if preset(each, name))]).rstrip())
        return
    _no_arguments("envs", arguments)
    print(f"{'environment':26} {'observation':14} {'actions':12} tuned presets")
    for env_id, (shape, actions) in CATALOG.items():
        tuned = [name for name in ALGORITHMS if preset(name, env_id)]
        print(f"{env_id:26} {'x'.join(map(str, shape)):14} {actions:12} {' '.join(tuned)}".rstrip())
    print("\nand of other suites, as SUITE:NAME:")
    for suite, module in SUITE_MODULES.items():
        there = importlib.util.find_spec(module) is not None
        how = f"pgjax envs {suite}" if there else f"pip install 'pgjax[{suite}]'"
        print(f"{suite:26} {how}")


def _asks_for_help(arguments: list[str]) -> bool:
    return not {"-h", "--help"}.isdisjoint(arguments)


def _no_arguments(command: str, arguments: list[str]) -> None:
    if _asks_for_help(arguments):
        print(f"pgjax {command} lists the {command.replace('envs', 'environments')}, and takes no arguments")
        raise SystemExit(0)
    if arguments:
        raise InputError(f"pgjax {command} takes no arguments, got {' '.join(arguments)}")


def _train(arguments: list[str]) -> None:
    what, arguments = _subject("train", arguments)
    from pgjax.running.sinks import SINKS, check_sinks

    flags = parse(
        f"pgjax train {what.name}",
        arguments,
        [
            *what.part_flags(),
            flag("seed", int, "seed of the run's random key", 0),
            flag("directory", str | None, "where to keep the run; default runs/<subject>-<algorithm>-<time>", None),
            flag("seeds", int | None, "train that many members, with seed, seed + 1, ...", None),
            flag("checkpoint_every", int | None, "iterations between checkpoints; default about a minute", None),
            flag("keep", int, "how many of the newest checkpoints to keep, beside the best", 2),
            flag("episodes", int, "episodes, or other cases, of each evaluation", 128),
            flag("sinks", tuple[str, ...], f"where else metrics go: {', '.join(SINKS)}", ()),
            flag("devices", int | None, "over how many devices the run may be spread; default all", None),
            flag("shards", int, "over how many of them parameters are divided, of a model that one cannot hold", 1),
            cache_flag(),
            *what.option_flags(),
        ],
    )
    check_sinks(flags.sinks)
    if flags.cache:
        enable_compilation_cache()
    from pgjax.running.config import to_config
    from pgjax.running.shell import run

    algorithm = what.build(vars(flags) | _params(what, flags))
    directory = Path(flags.directory or _new_directory(f"{what.subject}-{what.name}"))
    _print_config(to_config(algorithm), flags.seed)
    names = ("seeds", "checkpoint_every", "keep", "episodes", "sinks", "devices", "shards")
    _report(run(algorithm, flags.seed, directory, **{name: getattr(flags, name) for name in names}), directory)


def _new_directory(name: str) -> str:
    """With the time, and what tells apart those that start in the same second; the same one for all processes."""
    from pgjax.core.processes import agreed

    return agreed(f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")


def _subject(command: str, arguments: list[str]) -> tuple[Subject, list[str]]:
    """What is trained; help where too little is said to know all flags."""
    try:
        return subject(command, arguments)
    except InputError as missing:
        if not _asks_for_help(arguments):
            raise
        algorithm = next((argument for argument in arguments if argument in ALGORITHMS), None)
        print(f"usage: pgjax {command} {algorithm or 'ALGORITHM'} ... [flags]\n\n{missing}\n")
        if algorithm is None:
            _algorithms([])
            print()
        else:
            from pgjax.algorithms import algorithm_class

            print(f"{algorithm_class(algorithm).__doc__}\n")
        print(f"pgjax {command} {algorithm or 'ALGORITHM'} with these and --help shows every flag and its value.")
        raise SystemExit(0) from None


def _params(what: Subject, flags: Any) -> dict[str, dict[str, Any]]:
    """What the flags `--PART-params` say, by the name of the flag."""
    names = [part.params for part in what.parts if part.declaration is None]
    return {name: named_values(name, getattr(flags, name)) for name in names}


def _sweep(arguments: list[str]) -> None:
    what, arguments = _subject("sweep", arguments)
    from pgjax.sweeping.search import SEARCHES

    fields = what.option_flags()
    flags = parse(
        f"pgjax sweep {what.name}",
        arguments,
        [
            *what.part_flags(),
            flag("seeds", int, "seeds of each setting", 1),
            flag("seed", int, "the first seed", 0),
            flag("mode", Literal["grid", "random", "zip"], "how the axes combine", "grid"),
            flag("num_samples", int | None, "how many values each distribution gives", None),
            flag("search", str | None, f"{' or '.join(SEARCHES)}, with options such as pbt:every=5,factor=1.2", None),
            flag("directory", str | None, "where to keep it; default runs/<subject>-<algorithm>-sweep-<time>", None),
            flag("points", int, "points of each curve", 100),
            flag("episodes", int, "episodes, or other cases, of each member's evaluation", 128),
            flag("members_at_once", int | None, "how many train together at most; default what fits into memory", None),
            flag("devices", int | None, "over how many devices members are spread; default all", None),
            flag("checkpoint_every", int | None, "points between checkpoints; default about a minute", None),
            cache_flag(),
            *axis_flags(fields),
        ],
    )
    if flags.cache:
        enable_compilation_cache()
    from pgjax.sweeping.shell import sweep
    from pgjax.sweeping.space import ValueDistribution

    values = {name: axis(name, getattr(flags, name), typing.get_args(hint)[0]) for name, hint, _ in fields}
    params = _params(what, flags)
    options = {name: value for each in params.values() for name, value in each.items()}
    names = {part.field: getattr(flags, part.field).split(",") for part in what.parts}
    several = {field: parts for field, parts in names.items() if len(parts) > 1}
    given = values | options | several
    axes: dict[str, Any] = {k: value for k, value in given.items() if isinstance(value, (list, ValueDistribution))}
    changed = {name for name, _, default in axis_flags(fields) if getattr(flags, name) != default}
    for part in [part for part in what.parts if part.field in several]:
        options_set = {*what.options_of(part).values()} & changed if part.declaration else params[part.params].keys()
        times = len(several[part.field]) if flags.mode == "zip" else 1
        axes |= {name: [given[name]] * times for name in sorted(options_set - axes.keys())}  # for each of them alike
    fixed = {flag: {k: v for k, v in each.items() if k not in axes} for flag, each in params.items()}
    algorithm = what.build({name: value for name, value in values.items() if name not in axes} | fixed)
    directory = Path(flags.directory or _new_directory(f"{what.subject}-{what.name}-sweep"))
    passed = ("mode", "num_samples", "seed", "points", "episodes", "members_at_once", "devices", "checkpoint_every")
    kept = {name: getattr(flags, name) for name in passed}
    axes = {what.axis_name(name): values for name, values in axes.items()}
    result = sweep(algorithm, flags.seeds, search=_search(flags.search), directory=directory, **kept, **axes)
    _report_sweep(result, directory)


def _search(text: str | None) -> Any:
    """`pbt:every=5,factor=1.2` as the search it names."""
    from pgjax.sweeping.search import SEARCHES

    if text is None:
        return None
    name, _, options = text.partition(":")
    if name not in SEARCHES:
        raise InputError(f"--search {name!r} is not known: {nearest(name, SEARCHES)}")
    fields = {field.name: field for field in dataclasses.fields(SEARCHES[name])}
    values = {}
    for pair in filter(None, options.split(",")):
        field, _, value = pair.partition("=")
        if field not in fields:
            raise InputError(f"--search {text!r}: {name} has no option {field!r}: {nearest(field, fields)}")
        try:
            values[field] = value if isinstance(fields[field].default, str) else number(value)
        except ValueError as error:
            raise InputError(f"--search {text!r}: {field} = {value!r} is not accepted: expected a number") from error
    return SEARCHES[name](**values)


def _report_sweep(result: Any, directory: Path) -> None:
    """The best settings, the picture, and the line of figures."""
    from rich.console import Console
    from rich.table import Table

    from pgjax.core.processes import is_first
    from pgjax.sweeping.result import value_label

    if not is_first():
        return
    table = Table(
        *result.axes, "score", "members", title=f"best settings, mean over seeds of the evaluated {result.judged_by[0]}"
    )
    for setting, score, members in result.ranking()[:10]:
        table.add_row(*map(value_label, setting.values()), f"{score:.2f}", ", ".join(map(str, members)))
    Console().print(table)
    try:
        pictures = result.plot(directory / "sweep")
    except InputError as error:
        pictures = []
        print(error, file=sys.stderr)
    print("sweep kept in", directory, *(f"({path.name})" for path in [Path("members.csv"), *pictures]))
    best = result.best()
    print(
        f"settings={len(result.settings)} seeds={len(result.seeds)} members={len(result)} "
        f"failed={int((result.failed >= 0).sum())} seconds_compile={result.seconds_compile:.2f} "
        f"seconds_run={result.seconds_run:.2f} best_score={best.score:.2f} best_members={best.members}"
    )


def _resume(arguments: list[str]) -> None:
    flags = parse(
        "pgjax resume",
        arguments,
        [
            positional("run", str, "RUN", "directory of a run"),
            flag("total_steps", int | None, "train on to this many steps; default the run's own", None),
            cache_flag(),
        ],
    )
    if flags.cache:
        enable_compilation_cache()
    if holds_sweep(Path(flags.run)):
        if flags.total_steps is not None:
            raise InputError("--total-steps is for runs: save a member of the sweep as a run to train it on")
        from pgjax.sweeping.shell import resume_sweep

        _report_sweep(resume_sweep(flags.run), Path(flags.run))
        return
    from pgjax.running.shell import resume

    _report(resume(flags.run, flags.total_steps), Path(flags.run))


def _report(result: Any, directory: Path) -> None:
    """Where the run is, how good it is, and the line of figures."""
    from pgjax.core.parts import kinds_of, subject_name
    from pgjax.core.processes import is_first

    if not is_first():
        return
    last = read_rows(directory / "evaluations.jsonl")[-1]
    name, _ = result.algorithm.score
    print(f"run kept in {directory}")
    print(_figures({key: value for key, value in last.items() if key not in ("iteration", "steps")}))
    speed = result.steps_now / result.seconds_run if result.steps_now else 0.0
    print(
        f"{next(iter(kinds_of(result.algorithm)))}={subject_name(result.algorithm)} steps={result.steps} "
        f"seconds_compile={result.seconds_compile:.2f} seconds_run={result.seconds_run:.2f} "
        f"steps_per_second={speed:.0f} {name}={mean_of(last[name]):.2f}"
    )


def _figures(scores: dict[str, Any]) -> str:
    """Scores as `name=value`, means over members; counts are whole."""

    def text(value: Any) -> str:
        whole = all(isinstance(v, int) for v in (value if isinstance(value, list) else [value]))
        return f"{mean_of(value):.{0 if whole else 2}f}"

    return " ".join(f"{name}={text(value)}" for name, value in scores.items())


def _evaluate(arguments: list[str]) -> None:
    flags = parse(
        "pgjax evaluate",
        arguments,
        [
            positional("run", str, "RUN", "directory of a run"),
            *_which_flags(),
            flag("episodes", int, "complete episodes, or other cases, to average over", 128),
            flag("seed", int, "seed of the evaluation's random key", 0),
            flag("deterministic", bool, "play the mode of the policy instead of sampling", True),
            cache_flag(),
        ],
    )
    if flags.cache:
        enable_compilation_cache()
    import jax

    from pgjax.learning.evaluation import evaluate
    from pgjax.running.session import check_count

    check_count("evaluate: episodes", flags.episodes)
    members = _members(flags.run, flags.best, flags.member)
    found = []
    for label, result in members:
        algorithm, state, key = result.algorithm, result.state, jax.random.key(flags.seed)
        if hasattr(algorithm, "actor"):
            each = evaluate(algorithm, state, key, flags.episodes, flags.deterministic)
            names = ("mean", "std", "min", "max")
            scores = {"episodes": each.num_episodes} | {f"return_{name}": getattr(each, name) for name in names}
        else:
            scores = jax.jit(type(algorithm).evaluate, static_argnums=3)(algorithm, state, key, flags.episodes)
        found.append({name: value.tolist() for name, value in scores.items()})
        print(f"{label}{_figures(found[-1])}")
    if len(members) > 1:
        print(f"all: {_figures({name: [each[name] for each in found] for name in found[0]})}")


def _which_flags() -> list[Flag]:
    """What of a run or sweep is taken."""
    return [
        flag("best", bool, "the best checkpoint by evaluated score instead of the newest", False),
        flag("member", int | None, "one member; default all of a run's seeds, or of a sweep's best setting", None),
    ]


def _members(run: str, best: bool, member: int | None) -> list[tuple[str, Any]]:
    """What is asked for of a run or sweep, each with what it is called where there are several."""
    if holds_sweep(Path(run)):
        if best:
            raise InputError("--best is for runs: of a sweep the best setting is taken by itself, and its last state")
        from pgjax.sweeping.shell import resume_sweep

        if status(Path(run)) != "finished":
            raise InputError(f"the sweep in {run} is {status(Path(run))}: finish it with pgjax resume {run}")
        swept = resume_sweep(run, progress=False)
        indices = swept.best().members if member is None else [member]
        return [(f"member {i}: ", swept.member(i)) for i in indices]
    from pgjax.running.shell import load

    result, seeds = load(run, "best" if best else "newest"), read_config(run)["seeds"]
    if member is not None and not 0 <= member < (seeds or 1):
        raise InputError(f"--member {member} is not accepted: expected one from 0 to {(seeds or 1) - 1}")
    if seeds is None:
        return [("", result)]
    return [(f"member {i}: ", result.member(i)) for i in (range(seeds) if member is None else [member])]


def _list(arguments: list[str]) -> None:
    flags = parse(
        "pgjax list",
        arguments,
        [
            positional("directory", str, "DIR", "where runs are kept", "runs"),
            flag("json", bool, "a JSON object for each run", False),
        ],
    )
    rows = [_list_row(run) for run in _seen_under(flags.directory)]
    names = ["run", "on", "algorithm", "steps", "score", "status"]
    if flags.json:
        for row in rows:
            print(json.dumps(dict(zip(names, row, strict=True))))
    else:
        _print_table(names, rows)


def _seen_under(directory: str) -> list[Seen]:
    found = seen_under(directory)
    if not found:
        raise InputError(f"{directory} holds no runs")
    return found


def _list_row(run: Seen) -> list[str]:
    steps = f"{run.steps:,} / {run.total_steps:,}" if run.total_steps and not run.is_sweep else ""
    shown = run.best if run.is_sweep else run.newest
    score = f"{run.score} {shown:.2f}" if shown == shown else ""
    return [run.run, run.on, run.algorithm, steps, score, run.status]


def _print_table(names: list[str], rows: list[list[str]]) -> None:
    """With a frame on a terminal, as columns elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(_framed(names, rows))
        return
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for row in [names, *rows]:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _framed(names: list[str], rows: list[list[str]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=name in ("progress", "steps/s", "best", "left"))  # words may be cut, not numbers
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _watch(arguments: list[str]) -> None:
    flags = parse(
        "pgjax watch",
        arguments,
        [
            positional("directory", str, "DIR", "where runs are kept", "runs"),
            flag("every", float, "seconds between two looks", 2.0),
            flag("once", bool, "look once, and print", False),
        ],
    )
    if not 0 < flags.every < math.inf:
        raise InputError(f"--every {flags.every} is not accepted: expected seconds above 0")
    names = ["run", "on", "algorithm", "status", "progress", "steps/s", "newest", "best", "left"]
    if flags.once:
        _print_table(names, [_watch_row(run) for run in _seen_under(flags.directory)])
        return
    if not sys.stdout.isatty():
        raise InputError("watch draws on a terminal, which this output is not: give --once")
    from rich.live import Live

    def look() -> Any:
        return _framed(names, [_watch_row(run) for run in seen_under(flags.directory)])

    with contextlib.suppress(KeyboardInterrupt), Live(look(), auto_refresh=False) as live:
        while True:
            time.sleep(flags.every)
            live.update(look(), refresh=True)


def _watch_row(run: Seen) -> list[str]:
    """What is not known is left empty."""

    def known(value: float, text: str) -> str:
        return text.format(value) if value == value else ""

    left = "" if run.seconds_left != run.seconds_left else str(datetime.timedelta(seconds=round(run.seconds_left)))
    return [
        run.run,
        run.on,
        run.algorithm,
        run.status,
        known(run.progress, "{:.0%}"),
        known(run.speed, "{:,.0f}"),
        known(run.newest, f"{run.score} {{:.4g}}"),
        known(run.best, "{:.4g}"),
        left,
    ]


def _plot(arguments: list[str]) -> None:
    flags = parse(
        "pgjax plot",
        arguments,
        [
            positional("runs", tuple[str, ...], "RUN", "directories of runs"),
            flag("metric", str | None, "what to plot, a key of metrics.jsonl; default the score in training", None),
            flag("out", str, "where to write, without ending: .png, .svg and .pdf are added", "curves"),
        ],
    )
    if not flags.runs:
        raise InputError("pgjax plot needs at least one RUN")
    sweeps = [run for run in flags.runs if holds_sweep(Path(run))]
    if sweeps and len(flags.runs) > 1:
        raise InputError(f"{sweeps[0]} is a sweep: expected it alone, or runs")
    if sweeps:
        from pgjax.sweeping.shell import resume_sweep

        pictures = resume_sweep(sweeps[0], progress=False).plot(Path(flags.out), flags.metric)
    else:
        from pgjax.reporting.plotting import plot

        pictures = plot(*flags.runs, out=flags.out, metric=flags.metric)
    for path in pictures:
        print(path)


def _write_report(arguments: list[str]) -> None:
    flags = parse(
        "pgjax report",
        arguments,
        [
            positional("runs", tuple[str, ...], "RUN", "directories of runs and sweeps, or of many"),
            flag("out", str, "the file to write; .html is added where it is missing", "report.html"),
            flag("examples", bool, "with an episode of each run, or completions of its language model", False),
            cache_flag(),
        ],
    )
    if not flags.runs:
        raise InputError("pgjax report needs at least one RUN")
    if flags.cache:
        enable_compilation_cache()
    from pgjax.reporting.page import report

    with tempfile.TemporaryDirectory() as temporary:
        examples = {
            run: _example(run, Path(temporary) / f"{i}.gif") for i, run in enumerate(flags.runs * flags.examples)
        }
        print(report(*flags.runs, out=flags.out.removesuffix(".html") + ".html", examples=examples))


def _example(run: str, gif: Path) -> Any:
    """What shows what a run learned: an episode as a GIF, completions, or why there is nothing."""
    try:
        _, result = _members(run, False, None)[0]
        if hasattr(result.algorithm, "env"):
            from pgjax.reporting.rendering import render

            render(result, gif)
            return gif
        from pgjax.alignment.models import language_model

        return _completions(language_model(run), "", 4, 64)
    except InputError as error:
        return [str(error)]


def _render(arguments: list[str]) -> None:
    flags = parse(
        "pgjax render",
        arguments,
        [
            positional("run", str, "RUN", "directory of a run"),
            *_which_flags(),
            flag("out", str | None, "the file to write, a .gif or .mp4; default RUN/episode.gif", None),
            flag("episodes", int, "episodes, one after another", 1),
            flag("seed", int, "seed of the episodes' random keys", 0),
            flag("max_steps", int, "frames of an episode at most", 500),
            cache_flag(),
        ],
    )
    if flags.cache:
        enable_compilation_cache()
    from pgjax.reporting.rendering import render

    _, result = _members(flags.run, flags.best, flags.member)[0]
    out = flags.out or f"{flags.run}/episode.gif"
    for steps, total in render(result, out, flags.episodes, flags.seed, flags.max_steps):
        print(f"{out}: {steps} steps, return {total:.2f}")


def _generate(arguments: list[str]) -> None:
    flags = parse(
        "pgjax generate",
        arguments,
        [
            positional("run", str, "RUN", "directory of a run, or a Hugging Face folder"),
            flag("prompt", str, "the text to go on from", ""),
            flag("num", int, "how many completions", 1),
            flag("max_tokens", int, "longest completion in tokens, as far as the model's context reaches", 64),
            flag("temperature", float, "0 takes the most probable token", 1.0),
            flag("top_k", int, "sample from so many of the most probable tokens; 0 from all", 0),
            flag("top_p", float, "sample from the most probable tokens that have this probability together", 1.0),
            flag("min_p", float, "sample from tokens with this share of the most probable one's probability", 0.0),
            flag("seed", int, "seed of the random key", 0),
            flag("best", bool, "the best checkpoint by evaluated score instead of the newest", False),
            flag("member", int, "which member of a run with several seeds", 0),
            flag("pad", int, "padding token of a Hugging Face model; -1 as its files say", -1),
            cache_flag(),
        ],
    )
    if flags.cache:
        enable_compilation_cache()
    from pgjax.alignment.models import language_model
    from pgjax.running.session import check_count

    check_count("generate: num", flags.num)
    checkpoint: Any = "best" if flags.best else "newest"
    model = language_model(flags.run, checkpoint=checkpoint, member=flags.member, pad=flags.pad)
    sampling = {name: getattr(flags, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    for text in _completions(model, flags.prompt, flags.num, flags.max_tokens, flags.seed, **sampling):
        print(text)


def _completions(model: Any, text: str, num: int, max_tokens: int, seed: int = 0, **sampling: Any) -> list[str]:
    """What a language model goes on with, after `text`."""
    import jax

    from pgjax.alignment.generation import generate

    tokenizer, prompt = model.tokenizer, model.tokenizer.encode(text) or [model.tokenizer.eos]
    if len(prompt) >= model.network.context:
        raise InputError(
            f"--prompt has {len(prompt)} tokens: expected fewer than the context of the model, {model.network.context}"
        )
    prompts, key = [prompt] * num, jax.random.key(seed)
    max_tokens = min(max_tokens, model.network.context - len(prompt))
    found = generate(
        model.network, model.params, prompts, key, max_tokens, **sampling, eos=tokenizer.eos, pad=tokenizer.pad
    )
    completions = zip(found.tokens.tolist(), found.mask.tolist(), strict=True)
    return [
        tokenizer.decode(prompt + [token for token, counted in zip(tokens, real, strict=True) if counted])
        for tokens, real in completions
    ]


def _docs(arguments: list[str]) -> None:
    flags = parse(
        "pgjax docs",
        arguments,
        [
            flag("out", str | None, "directory for the site; default a temporary one, gone when serving ends", None),
            flag("serve", bool, "serve it on this machine until Ctrl-C", True),
            flag("port", int, "where; 0 takes a free one", 8000),
        ],
    )
    from pgjax.docs.site import build, server

    if not flags.serve and flags.out is None:
        raise InputError("--no-serve needs --out: without a directory nothing would be left of the site")
    with contextlib.ExitStack() as stack:
        out = flags.out or stack.enter_context(tempfile.TemporaryDirectory(prefix="pgjax-docs-"))
        serving = stack.enter_context(server(out, flags.port)) if flags.serve else None  # before the work
        print("building the site", flush=True)
        page = build(out)
        if flags.out:
            print(f"site kept in {page.parent}", flush=True)
        if serving:
            with contextlib.suppress(KeyboardInterrupt):
                print(f"reading at http://127.0.0.1:{serving.server_address[1]}/ until Ctrl-C", flush=True)
                serving.serve_forever()


def _print_config(config: dict[str, Any], seed: int) -> None:
    print(f"algorithm {config['algorithm']}  seed {seed}")
    for part, described in config["parts"].items():
        print(f"{part} {described['name']}")
        for name, value in described["options"].items():
            print(f"  {name} = {value}")
    subject = next(iter(config["parts"].values()))["name"]
    tuned = isinstance(config["algorithm"], str) and preset(config["algorithm"], subject)
    print(f"hyperparameters ({'a preset, defaults' if tuned else f'no preset for {subject}: defaults'} and flags)")
    for name, value in config["hyperparameters"].items():
        print(f"  {name} = {value}")
