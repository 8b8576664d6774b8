"""The command line. Help and listings import neither jax nor gymnax; flags are generated from the dataclasses."""

import dataclasses
import os
import sys
import time
import typing
import warnings
from pathlib import Path
from typing import Annotated, Any

from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.environments.catalog import CATALOG
from pgjax.errors import InputError, Interrupted, nearest
from pgjax.presets import preset
from pgjax.rundir import read_config, read_rows, status

USAGE = """\
usage: pgjax COMMAND ...

  pgjax train ALGORITHM --env ID [flags]   train, evaluate, and keep the run in a directory
  pgjax train ALGORITHM --env ID --help    every flag, with the values used for that environment
  pgjax resume RUN [--total-steps N]       continue a run that was stopped, or train on
  pgjax evaluate RUN [--best]              evaluate a run's newest state, or its best
  pgjax list DIR                           the runs under a directory
  pgjax plot RUN ... [--out PATH]          learning curves of runs, as PNG and SVG
  pgjax render RUN [--out PATH]            an episode of a run as a GIF
  pgjax envs                               the environments
  pgjax algorithms                         the algorithms

for example:

  pgjax train ppo --env CartPole-v1
"""


def main(argv: list[str] | None = None) -> int:
    """The console script: 0 on success, 2 for input that was refused, 1 for a run that failed."""
    arguments = sys.argv[1:] if argv is None else argv
    commands = {
        "train": _train,
        "resume": _resume,
        "evaluate": _evaluate,
        "list": _list,
        "plot": _plot,
        "render": _render,
        "envs": _envs,
        "algorithms": _algorithms,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise InputError(f"command = {arguments[0]!r} is not known: {nearest(arguments[0], commands)}")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            commands[arguments[0]](arguments[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    return 0


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _algorithms(arguments: list[str]) -> None:
    _no_arguments("algorithms", arguments)
    for name, (_, sentence) in ALGORITHMS.items():
        print(f"{name:12} {sentence}")


def _envs(arguments: list[str]) -> None:
    _no_arguments("envs", arguments)
    print(f"{'environment':26} {'observation':14} {'actions':12} tuned presets")
    for env_id, (shape, actions) in CATALOG.items():
        tuned = [name for name in ALGORITHMS if preset(name, env_id)]
        print(f"{env_id:26} {'x'.join(map(str, shape)):14} {actions:12} {' '.join(tuned)}".rstrip())


def _no_arguments(command: str, arguments: list[str]) -> None:
    if arguments:
        raise InputError(f"pgjax {command} takes no arguments, got {' '.join(arguments)}")


def _train(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"pgjax train needs an algorithm first, one of: {', '.join(ALGORITHMS)}")
    name, arguments = arguments[0], arguments[1:]
    cls = algorithm_class(name)
    from pgjax import networks
    from pgjax.environments.gymnax import make

    env_id = _peek(arguments, "--env")
    if env_id is None:
        raise InputError("pgjax train needs --env ID; pgjax envs lists them")
    tuned = preset(name, env_id)
    tuned_network = tuned.get("network", {"name": "mlp"})
    network_name = _peek(arguments, "--network") or tuned_network["name"]
    if network_name not in networks.NETWORKS:
        raise InputError(f"--network {network_name!r} is not known: {nearest(network_name, networks.NETWORKS)}")
    network_class = networks.NETWORKS[network_name]
    if network_name != tuned_network["name"]:
        tuned_network = {}
    flags = _parse(
        f"pgjax train {name}",
        arguments,
        [
            ("env", Annotated[str, _help("environment id; pgjax envs lists them")], dataclasses.MISSING),
            ("env_params", Annotated[tuple[str, ...], _help("environment parameters to override, NAME=VALUE ...")], ()),
            ("seed", Annotated[int, _help("seed of the run's random key")], 0),
            (
                "directory",
                Annotated[str | None, _help("where to keep the run; default runs/<env>-<algorithm>-<time>")],
                None,
            ),
            ("seeds", Annotated[int | None, _help("train that many members, with seed, seed + 1, ...")], None),
            ("checkpoint_every", Annotated[int | None, _help("iterations between checkpoints; default a tenth")], None),
            ("keep", Annotated[int, _help("how many of the newest checkpoints to keep, beside the best")], 2),
            ("episodes", Annotated[int, _help("episodes of each evaluation")], 128),
            ("sinks", Annotated[tuple[str, ...], _help("where else metrics go: csv, tensorboard, wandb")], ()),
            _cache_flag(),
            ("network", Annotated[str, _help(f"one of: {', '.join(networks.NETWORKS)}")], network_name),
            *_flags(network_class, tuned_network),
            *_flags(cls, tuned),
        ],
    )
    if flags.cache:
        _enable_compilation_cache()

    env = make(flags.env, **_env_params(flags.env_params))
    network = network_class(**{f.name: getattr(flags, f.name) for f in dataclasses.fields(network_class)})
    own = [f.name for f in dataclasses.fields(cls) if f.name not in ("env", "network")]
    algorithm = cls(env=env, network=network, **{field: getattr(flags, field) for field in own})
    directory = Path(flags.directory or f"runs/{flags.env}-{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    from pgjax.checkpoint import to_config
    from pgjax.run import run

    _print_config(to_config(algorithm), flags.seed)
    result = run(
        algorithm,
        flags.seed,
        directory,
        seeds=flags.seeds,
        checkpoint_every=flags.checkpoint_every,
        keep=flags.keep,
        episodes=flags.episodes,
        sinks=flags.sinks,
    )
    _report(result, directory)


def _resume(arguments: list[str]) -> None:
    flags = _parse(
        "pgjax resume",
        arguments,
        [
            _run_argument(),
            ("total_steps", Annotated[int | None, _help("train on to this many steps; default the run's own")], None),
            _cache_flag(),
        ],
    )
    if flags.cache:
        _enable_compilation_cache()
    from pgjax.run import resume

    _report(resume(flags.run, flags.total_steps), Path(flags.run))


def _report(result: Any, directory: Path) -> None:
    """Where the run is, how good it is, and the line of figures."""
    last = read_rows(directory / "evaluations.jsonl")[-1]
    mean = _mean(last["return_mean"])
    print(f"run kept in {directory}")
    print(f"episodes={_mean(last['episodes']):.0f} return_mean={mean:.2f} return_std={_mean(last['return_std']):.2f}")
    speed = result.steps_now / result.seconds_run if result.steps_now else 0.0
    print(
        f"env={result.algorithm.env.name} steps={result.steps} seconds_compile={result.seconds_compile:.2f} "
        f"seconds_run={result.seconds_run:.2f} steps_per_second={speed:.0f} return_mean={mean:.2f}"
    )


def _mean(value: Any) -> float:
    """Over the members of a population, or of one run."""
    values = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
    return sum(values) / len(values) if values else float("nan")


def _evaluate(arguments: list[str]) -> None:
    flags = _parse(
        "pgjax evaluate",
        arguments,
        [
            _run_argument(),
            ("best", Annotated[bool, _help("the best checkpoint by evaluated return instead of the newest")], False),
            ("episodes", Annotated[int, _help("complete episodes to average over")], 128),
            ("seed", Annotated[int, _help("seed of the evaluation's random key")], 0),
            ("deterministic", Annotated[bool, _help("play the mode of the policy instead of sampling")], True),
            _cache_flag(),
        ],
    )
    if flags.cache:
        _enable_compilation_cache()
    import jax

    from pgjax.evaluate import evaluate

    for result in _members(flags.run, flags.best):
        key = jax.random.key(flags.seed)
        print(_describe(evaluate(result.algorithm, result.state, key, flags.episodes, flags.deterministic)))


def _members(run: str, best: bool) -> list[Any]:
    """The members of a stored population, or the one result of a run."""
    from pgjax.run import load

    result = load(run, "best" if best else "newest")
    seeds = read_config(run)["seeds"]
    return [result] if seeds is None else [result.member(i) for i in range(seeds)]


def _list(arguments: list[str]) -> None:
    import tyro

    where = Annotated[tyro.conf.Positional[str], _positional("DIR", "where runs are kept")]
    flags = _parse("pgjax list", arguments, [("directory", where, "runs")])
    found = sorted(path.parent for path in Path(flags.directory).rglob("config.json"))
    if not found:
        raise InputError(f"{flags.directory} holds no runs")
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "env", "algorithm", "steps", "return", "status")
    for run in found:
        table.add_row(*_list_row(run, Path(flags.directory)))
    Console().print(table)


def _list_row(run: Path, directory: Path) -> list[str]:
    name = str(run.relative_to(directory))
    try:
        config = read_config(run)
        rows = read_rows(run / "metrics.jsonl")
        returns = [m for m in (_mean(row["return_mean"]) for row in rows[-100:]) if m == m]
        return [
            name,
            str(config["env"].get("id", config["env"].get("object"))),
            config["algorithm"] + (f" x {config['seeds']}" if config["seeds"] else ""),
            f"{rows[-1]['steps'] if rows else 0:,} / {config['hyperparameters']['total_steps']:,}",
            f"{returns[-1]:.2f}" if returns else "",
            status(run),
        ]
    except InputError as error:
        return [name, "", "", "", "", f"damaged: {error}"]


def _plot(arguments: list[str]) -> None:
    import tyro

    flags = _parse(
        "pgjax plot",
        arguments,
        [
            (
                "runs",
                Annotated[tyro.conf.Positional[tuple[str, ...]], _positional("RUN", "directories of runs")],
                dataclasses.MISSING,
            ),
            ("metric", Annotated[str, _help("what to plot, a key of metrics.jsonl")], "return_mean"),
            ("out", Annotated[str, _help("where to write, without ending: .png and .svg are added")], "curves"),
        ],
    )
    if not flags.runs:
        raise InputError("pgjax plot needs at least one RUN")
    from pgjax.plotting import plot_runs

    for path in plot_runs([Path(run) for run in flags.runs], flags.metric, Path(flags.out)):
        print(path)


def _render(arguments: list[str]) -> None:
    flags = _parse(
        "pgjax render",
        arguments,
        [
            _run_argument(),
            ("best", Annotated[bool, _help("the best checkpoint by evaluated return instead of the newest")], False),
            ("out", Annotated[str | None, _help("the file to write; default RUN/episode.gif")], None),
            ("seed", Annotated[int, _help("seed of the episode's random key")], 0),
            ("max_steps", Annotated[int, _help("frames at most")], 500),
            _cache_flag(),
        ],
    )
    if flags.cache:
        _enable_compilation_cache()
    import jax

    from pgjax.plotting import render_episode

    result = _members(flags.run, flags.best)[0]
    out = Path(flags.out or f"{flags.run}/episode.gif")
    steps, total = render_episode(result.algorithm, result.state, jax.random.key(flags.seed), out, flags.max_steps)
    print(f"{out}: {steps} steps, return {total:.2f}")


def _run_argument() -> tuple[str, Any, Any]:
    import tyro

    return "run", Annotated[tyro.conf.Positional[str], _positional("RUN", "directory of a run")], dataclasses.MISSING


def _positional(name: str, sentence: str) -> Any:
    import tyro

    return tyro.conf.arg(help=sentence, metavar=name)


def _cache_flag() -> tuple[str, Any, Any]:
    return "cache", Annotated[bool, _help("keep compiled programs in the user's cache directory")], True


def _describe(evaluation: Any) -> str:
    mean, std, low, high = (float(x) for x in evaluation[:4])
    return (
        f"episodes={int(evaluation.num_episodes)} return_mean={mean:.2f} return_std={std:.2f} "
        f"return_min={low:.2f} return_max={high:.2f}"
    )


def _flags(cls: type, tuned: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, annotation with help, default) for every field of a hyperparameter dataclass that a flag can set."""
    from pgjax.types import Scalar, field_types

    flags = []
    for f in dataclasses.fields(cls):
        if f.name in ("env", "network"):
            continue
        hint = field_types(cls)[f.name]
        accepts = f" {f.metadata['accepts']}" if f.metadata["accepts"] else ""
        default = tuned.get(f.name, f.default)
        default = tuple(default) if isinstance(default, list) else default
        flags.append(
            (f.name, Annotated[float if hint == Scalar else hint, _help(f.metadata["help"] + accepts)], default)
        )
    return flags


def _parse(prog: str, arguments: list[str], flags: list[tuple[str, Any, Any]]) -> Any:
    """Parse with tyro, which exits with status 2 and a message that names the flag if something is wrong."""
    import tyro

    fields = [
        (name, hint) if default is dataclasses.MISSING else (name, hint, dataclasses.field(default=default))
        for name, hint, default in flags
    ]
    return tyro.cli(dataclasses.make_dataclass("Flags", fields), args=arguments, prog=prog, description="")


def _help(sentence: str) -> Any:
    import tyro

    return tyro.conf.arg(help=sentence)


def _peek(arguments: list[str], flag: str) -> str | None:
    """The value of a flag that decides what the other flags are."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def _env_params(pairs: typing.Iterable[str]) -> dict[str, float]:
    """Whole numbers stay whole: constructors of environments take sizes."""
    params: dict[str, float] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            params[name] = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError as error:
            raise InputError(f"--env-params {pair!r} is not accepted: expected NAME=NUMBER") from error
    return params


def _print_config(config: dict[str, Any], seed: int) -> None:
    print(f"algorithm {config['algorithm']}  seed {seed}")
    for part in ("env", "network", "hyperparameters"):
        print(part)
        for name, value in config[part].items():
            print(f"  {name} = {value}")


def _enable_compilation_cache() -> None:
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgjax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
