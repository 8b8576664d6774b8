"""Command-line flags, generated with tyro from the dataclasses whose fields they set."""

import dataclasses
import os
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.commands.presets import preset
from pgjax.core.errors import InputError, nearest

Flag: TypeAlias = tuple[str, Any, Any]
"""Name, annotation with help, default."""
REQUIRED = dataclasses.MISSING
DISTRIBUTIONS = ("uniform", "log_uniform", "integers", "choice")


class Subject(NamedTuple):
    """What the arguments say is trained: it decides which other flags there are and their defaults."""

    name: str
    algorithm: Any
    env_id: str
    network_name: str
    network: Any
    tuned: dict[str, Any]
    tuned_network: dict[str, Any]

    def flags(self) -> list[Flag]:
        """Of every field of the network and the algorithm."""
        return [*field_flags(self.network, self.tuned_network), *field_flags(self.algorithm, self.tuned)]

    def build(self, env: Any, values: dict[str, Any]) -> Any:
        """The algorithm with these values of its and its network's fields."""

        def own(cls: Any) -> dict[str, Any]:
            return {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}

        return self.algorithm(**(own(self.algorithm) | {"env": env, "network": self.network(**own(self.network))}))


def subject(command: str, arguments: list[str]) -> tuple[Subject, list[str]]:
    """What is trained, and the arguments after its name. Of several envs or networks, separated by commas, the first.

    Raises:
        InputError: there is no algorithm or no environment, or an unknown name.
    """
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"pgjax {command} needs an algorithm first, one of: {', '.join(ALGORITHMS)}")
    name, rest = arguments[0], arguments[1:]
    cls = algorithm_class(name)
    env_id = (peek(rest, "--env") or "").split(",")[0]
    if not env_id:
        raise InputError(f"pgjax {command} needs --env ID; pgjax envs lists them")
    from pgjax.networks.registry import NETWORKS

    tuned = preset(name, env_id)
    tuned_network = tuned.get("network", {"name": "mlp"})
    network_name = (peek(rest, "--network") or tuned_network["name"]).split(",")[0]
    if network_name not in NETWORKS:
        raise InputError(f"--network {network_name!r} is not known: {nearest(network_name, NETWORKS)}")
    if network_name != tuned_network["name"]:
        tuned_network = {}
    return Subject(name, cls, env_id, network_name, NETWORKS[network_name], tuned, tuned_network), rest


def flag(name: str, hint: Any, sentence: str, default: Any = REQUIRED) -> Flag:
    import tyro

    return name, Annotated[hint, tyro.conf.arg(help=sentence)], default


def positional(name: str, hint: Any, metavar: str, sentence: str, default: Any = REQUIRED) -> Flag:
    import tyro

    where: Any = tyro.conf.Positional
    return name, Annotated[where[hint], tyro.conf.arg(help=sentence, metavar=metavar)], default


def cache_flag() -> Flag:
    return flag("cache", bool, "keep compiled programs in the user's cache directory", True)


def field_flags(cls: Any, tuned: dict[str, Any]) -> list[Flag]:
    """For every field of a hyperparameter dataclass that a flag can set."""
    from pgjax.core.hyperparameters import Scalar, field_types

    flags = []
    for f in dataclasses.fields(cls):
        if f.name in ("env", "network"):
            continue
        hint = field_types(cls)[f.name]
        accepts = f" {f.metadata['accepts']}" if f.metadata["accepts"] else ""
        default = tuned.get(f.name, f.default)
        default = tuple(default) if isinstance(default, list) else default
        flags.append(flag(f.name, float if hint == Scalar else hint, f.metadata["help"] + accepts, default))
    return flags


def axis_flags(flags: list[Flag]) -> list[Flag]:
    """The same flags as text, so that each may give several values."""

    def text(value: Any) -> str:
        return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return [flag(name, str, typing.get_args(hint)[1].help, text(default)) for name, hint, default in flags]


def axis(name: str, text: str, hint: Any) -> Any:
    """What an axis flag says: one value (not a list), a list of several, or a distribution.

    Raises:
        InputError: it cannot be read as values of `hint`.
    """
    from pgjax.sweeping import space as axes

    name = name.replace("_", "-")
    kind, colon, values = text.partition(":")
    try:
        if not colon:
            found = [_value(value, hint) for value in text.split(",")]
            return found if len(found) > 1 else found[0]
        if kind not in DISTRIBUTIONS:
            raise InputError(
                f"--{name} {text!r}: the distribution {kind!r} is not known: {nearest(kind, DISTRIBUTIONS)}"
            )
        parsed = [_value(value, hint) for value in values.split(",")]
        return axes.choice(parsed) if kind == "choice" else getattr(axes, kind)(*parsed)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--{name} {text!r} is not accepted: expected a value, values separated by commas, or a distribution such "
            "as uniform:0.1,0.4 (log_uniform, integers, choice)"
        ) from error


def _value(text: str, hint: Any) -> Any:
    """One value of a field; of a tuple, numbers separated by x."""
    if hint is bool:
        return bool(("false", "true").index(text.lower()))
    if typing.get_origin(hint) is tuple:
        return tuple(int(part) for part in text.split("x"))
    if typing.get_origin(hint) is Literal:
        return text
    return hint(text)


def parse(prog: str, arguments: list[str], flags: list[Flag]) -> Any:
    """Parse with tyro, which exits with status 2 and a message that names the flag if something is wrong."""
    import tyro

    fields = [
        (name, hint) if default is REQUIRED else (name, hint, dataclasses.field(default=default))
        for name, hint, default in flags
    ]
    return tyro.cli(dataclasses.make_dataclass("Flags", fields), args=arguments, prog=prog, description="")


def peek(arguments: list[str], name: str) -> str | None:
    """The value of a flag that decides what the other flags are."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def number(text: str) -> int | float:
    """Whole numbers stay whole: constructors of environments take sizes."""
    return int(text) if text.lstrip("-").isdigit() else float(text)


def env_params(pairs: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, where a value may be an axis.

    Raises:
        InputError: a pair that cannot be read.
    """
    params = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            params[name] = axis(name, value, number)
        except InputError as error:
            raise InputError(f"--env-params {pair!r} is not accepted: expected NAME=NUMBER") from error
    return params


def enable_compilation_cache() -> None:
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgjax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
