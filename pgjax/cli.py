"""The command line. Help and listings import neither jax nor gymnax; flags are generated from the dataclasses."""

import dataclasses
import os
import sys
import time
import typing
from pathlib import Path
from typing import Annotated, Any

from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.environments.catalog import CATALOG
from pgjax.errors import InputError, nearest
from pgjax.presets import preset

USAGE = """\
usage: pgjax COMMAND ...

  pgjax train ALGORITHM --env ID [flags]   train, evaluate, and keep the run in a directory
  pgjax train ALGORITHM --env ID --help    every flag, with the values used for that environment
  pgjax evaluate RUN [--episodes N]        evaluate a finished run
  pgjax envs                               the environments
  pgjax algorithms                         the algorithms

for example:

  pgjax train ppo --env CartPole-v1
"""


def main(argv: list[str] | None = None) -> int:
    """The console script: 0 on success, 2 for input that was refused, 1 for a run that failed."""
    arguments = sys.argv[1:] if argv is None else argv
    commands = {"train": _train, "evaluate": _evaluate, "envs": _envs, "algorithms": _algorithms}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise InputError(f"command = {arguments[0]!r} is not known: {nearest(arguments[0], commands)}")
        commands[arguments[0]](arguments[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


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
    from pgjax.evaluate import evaluate

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
            ("episodes", Annotated[int, _help("episodes of the evaluation at the end")], 128),
            ("cache", Annotated[bool, _help("keep compiled programs in the user's cache directory")], True),
            ("network", Annotated[str, _help(f"one of: {', '.join(networks.NETWORKS)}")], network_name),
            *_flags(network_class, tuned_network),
            *_flags(cls, tuned),
        ],
    )
    if flags.episodes < 1:
        raise InputError(f"--episodes {flags.episodes} is not accepted: expected at least 1")
    if flags.cache:
        _enable_compilation_cache()
    import jax

    env = make(flags.env, **_env_params(flags.env_params))
    network = network_class(**{f.name: getattr(flags, f.name) for f in dataclasses.fields(network_class)})
    own = [f.name for f in dataclasses.fields(cls) if f.name not in ("env", "network")]
    algorithm = cls(env=env, network=network, **{field: getattr(flags, field) for field in own})
    directory = Path(flags.directory or f"runs/{flags.env}-{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    from pgjax.checkpoint import to_config
    from pgjax.run import run

    _print_config(to_config(algorithm, flags.seed))
    result = run(algorithm, flags.seed, directory)
    evaluation = evaluate(algorithm, result.state, jax.random.key(flags.seed), flags.episodes)
    print(f"run kept in {directory}")
    print(_describe(evaluation))
    print(
        f"env={flags.env} steps={result.steps} seconds_compile={result.seconds_compile:.2f} "
        f"seconds_run={result.seconds_run:.2f} steps_per_second={result.steps / result.seconds_run:.0f} "
        f"return_mean={float(evaluation.mean):.2f}"
    )


def _evaluate(arguments: list[str]) -> None:
    import tyro

    flags = _parse(
        "pgjax evaluate",
        arguments,
        [
            ("run", Annotated[tyro.conf.Positional[str], _help("directory of a finished run")], dataclasses.MISSING),
            ("episodes", Annotated[int, _help("complete episodes to average over")], 128),
            ("seed", Annotated[int, _help("seed of the evaluation's random key")], 0),
            ("deterministic", Annotated[bool, _help("play the mode of the policy instead of sampling")], True),
            ("cache", Annotated[bool, _help("keep compiled programs in the user's cache directory")], True),
        ],
    )
    if flags.cache:
        _enable_compilation_cache()
    import jax

    from pgjax.checkpoint import from_config, load_checkpoint, read_config
    from pgjax.evaluate import evaluate

    algorithm = from_config(read_config(Path(flags.run)))
    state = load_checkpoint(Path(flags.run) / "checkpoints", lambda: algorithm.init(jax.random.key(0)))
    evaluation = evaluate(algorithm, state, jax.random.key(flags.seed), flags.episodes, flags.deterministic)
    print(_describe(evaluation))


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
    params = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        try:
            params[name] = float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise InputError(f"--env-params {pair!r} is not accepted: expected NAME=NUMBER")
    return params


def _print_config(config: dict[str, Any]) -> None:
    print(f"algorithm {config['algorithm']}  seed {config['seed']}")
    for part in ("env", "network", "hyperparameters"):
        print(part)
        for name, value in config[part].items():
            print(f"  {name} = {value}")


def _enable_compilation_cache() -> None:
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgjax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
