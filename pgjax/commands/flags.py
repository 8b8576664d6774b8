"""Command-line flags, generated with tyro from the dataclasses whose fields they set."""

import dataclasses
import itertools
import os
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.core.errors import ELSEWHERE, InputError, nearest
from pgjax.running.presets import preset

Flag: TypeAlias = tuple[str, Any, Any]
"""Name, annotation with help, default."""
REQUIRED = dataclasses.MISSING
DISTRIBUTIONS = ("uniform", "log_uniform", "integers", "choice")


class Part(NamedTuple):
    """What the arguments say of one part of the algorithm."""

    field: str
    kind: Any
    name: str
    """Of several, separated by commas, the first."""
    declaration: type | None
    tuned: dict[str, Any]
    """Options that differ from the declaration's defaults."""

    @property
    def params(self) -> str:
        """The flag for options that are known only once the part has been made."""
        return f"{self.field}_params"

    def option_names(self) -> list[str]:
        """Of the options that are known before."""
        return [f.name for f in dataclasses.fields(self.declaration)] if self.declaration else []


class Subject(NamedTuple):
    """What the arguments say is trained: it decides which other flags there are and their defaults."""

    name: str
    algorithm: Any
    parts: list[Part]
    tuned: dict[str, Any]

    @property
    def subject(self) -> str:
        """What is trained on, the first part, in the name of a directory; of a path the last component."""
        return Path(self.parts[0].name).resolve().name

    def part_flags(self) -> list[Flag]:
        """Which part, for each; and its options where only a part that has been made has them."""
        flags = []
        for part in self.parts:
            default = part.name if field_default(self.algorithm, part.field) is not REQUIRED else REQUIRED
            flags.append(flag(part.field, str, part.kind.sentence, default))
            if part.declaration is None:
                flags.append(flag(part.params, tuple[str, ...], f"options of {part.field}, NAME=VALUE ...", ()))
        return flags

    def options_of(self, part: Part) -> dict[str, str]:
        """The names of the flags of its options: their own, or after the part's where an earlier part has them."""
        earlier = {name for each in self.parts[: self.parts.index(part)] for name in each.option_names()}
        return {name: f"{part.field}_{name}" if name in earlier else name for name in part.option_names()}

    def axis_name(self, name: str) -> str:
        """What a sweep calls the axis of a flag: with its part where several parts have an option of that name."""
        for part in self.parts:
            for option, flag_name in self.options_of(part).items():
                if name == flag_name and sum(option in each.option_names() for each in self.parts) > 1:
                    return f"{part.field}.{option}"
        return name

    def option_flags(self) -> list[Flag]:
        """Of every field of the parts and of the algorithm."""
        declared = [
            [
                (self.options_of(part)[name], hint, default)
                for name, hint, default in field_flags(part.declaration, part.tuned)
            ]
            for part in self.parts
            if part.declaration
        ]
        return [*itertools.chain(*declared), *field_flags(self.algorithm, self.tuned)]

    def build(self, values: dict[str, Any]) -> Any:
        """The algorithm with these values of its fields and of its parts' options."""
        made = {}
        for part in self.parts:
            options = {option: values[name] for option, name in self.options_of(part).items() if name in values}
            if part.declaration is None:
                options = values.get(part.params, {})
            made[part.field] = part.kind.make(part.name, **options)
        own = {f.name: values[f.name] for f in dataclasses.fields(self.algorithm) if f.name in values}
        return self.algorithm(**(own | made))


def subject(command: str, arguments: list[str]) -> tuple[Subject, list[str]]:
    """What is trained, and the arguments after its name. Of several parts of a kind, separated by commas, the first.

    Raises:
        InputError: there is no algorithm, a part without default is missing, or a name is not known.
    """
    place = _place_of_algorithm(arguments)
    if place is None:
        raise InputError(f"pgjax {command} needs an algorithm first, one of: {', '.join(ALGORITHMS)}")
    name, rest = arguments[place], arguments[:place] + arguments[place + 1 :]
    cls = algorithm_class(name)
    from pgjax.core.parts import kinds_of

    parts: list[Part] = []
    tuned: dict[str, Any] = {}
    for field, kind in kinds_of(cls).items():
        described = dict(tuned.get(field) or _default_description(cls, field, kind))
        default = described.pop("name", None)
        chosen = (peek(rest, f"--{field.replace('_', '-')}") or default or "").split(",")[0]
        if not chosen:
            perhaps = f" (--{field.replace('_', '-')} {rest[0]}?)" if rest and not rest[0].startswith("-") else ""
            raise InputError(f"pgjax {command} needs --{field.replace('_', '-')}{perhaps}: {kind.sentence}")
        if not parts:
            tuned = preset(name, chosen)
            described = {option: v for option, v in tuned.get(field, described).items() if option != "name"}
        parts.append(Part(field, kind, chosen, kind.declaration(chosen), described if chosen == default else {}))
    return Subject(name, cls, parts, tuned), rest


def _place_of_algorithm(arguments: list[str]) -> int | None:
    """Where the name of the algorithm is: first, or where there is one behind flags."""
    if arguments and not arguments[0].startswith("-"):
        return 0
    names = [i for i, argument in enumerate(arguments) if argument in ALGORITHMS]
    return min(names, key=lambda i: arguments[i - 1].startswith("--"), default=None)


def _default_description(cls: Any, field: str, kind: Any) -> dict[str, Any]:
    """The name and the options of a part that is not given; empty where one must be."""
    default = field_default(cls, field)
    described = None if default is REQUIRED else kind.describe(default)
    return {"name": described["name"]} | described["options"] if described else {}


def field_default(cls: Any, name: str) -> Any:
    """The default of a dataclass's field; `REQUIRED` without one."""
    return next(f.default for f in dataclasses.fields(cls) if f.name == name)


def flag(name: str, hint: Any, sentence: str, default: Any = REQUIRED) -> Flag:
    """A flag and its sentence in the help; without a default it must be given."""
    import tyro

    return name, Annotated[hint, tyro.conf.arg(help=sentence)], default


def positional(name: str, hint: Any, metavar: str, sentence: str, default: Any = REQUIRED) -> Flag:
    """An argument that is given without a name; the help calls it `metavar`."""
    import tyro

    where: Any = tyro.conf.Positional
    return name, Annotated[where[hint], tyro.conf.arg(help=sentence, metavar=metavar)], default


def cache_flag() -> Flag:
    """`--cache`, which all commands that compile have."""
    return flag("cache", bool, "keep compiled programs in the user's cache directory", True)


def field_flags(cls: Any, tuned: dict[str, Any]) -> list[Flag]:
    """For every field of a hyperparameter dataclass that is not a part."""
    from pgjax.core.hyperparameters import Scalar, field_types

    flags = []
    for f in dataclasses.fields(cls):
        if f.metadata["part"]:
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

    def sentence(hint: Any, said: Any) -> str:
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        return str(said.help) + (f" [{', '.join(choices)}]" if choices else "")

    return [flag(name, str, sentence(*typing.get_args(hint)), text(default)) for name, hint, default in flags]


def axis(name: str, text: str, hint: Any) -> Any:
    """What an axis flag says: one value (not a list), a list of several, or a distribution.

    Raises:
        InputError: it cannot be read as values of `hint`.
    """
    from pgjax.sweeping import space

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
        return space.choice(parsed) if kind == "choice" else getattr(space, kind)(*parsed)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--{name} {text!r} is not accepted: expected a value, values separated by commas, or a distribution such "
            "as uniform:0.1,0.4 (log_uniform, integers, choice)"
        ) from error


def _value(text: str, hint: Any) -> Any:
    """One value of a field; of a tuple, numbers separated by x, or nothing."""
    if hint is bool:
        return bool(("false", "true").index(text.lower()))
    if typing.get_origin(hint) is tuple:
        return tuple(int(part) for part in text.split("x")) if text else ()
    if typing.get_origin(hint) is Literal:
        return text
    return hint(text)


def parse(prog: str, arguments: list[str], flags: list[Flag]) -> Any:
    """Parse with tyro, which exits with status 2 and a message that names the flag if something is wrong.

    Raises:
        InputError: a flag has the name that other libraries give to one of these.
    """
    import tyro

    names = {name.replace("_", "-") for name, *_ in flags}
    for argument in arguments:
        given = argument.partition("=")[0].removeprefix("--")
        meant = ELSEWHERE.get(given.replace("-", "_"), "").replace("_", "-")
        if argument.startswith("--") and given not in names and meant in names:
            raise InputError(f"--{given} is not a flag of {prog}: did you mean --{meant}?")
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


def named_values(flag_name: str, pairs: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, where a value may be an axis.

    Raises:
        InputError: a pair that cannot be read.
    """
    values = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            values[name] = axis(name, value, number)
        except InputError as error:
            label = flag_name.replace("_", "-")
            raise InputError(f"--{label} {pair!r} is not accepted: expected NAME=NUMBER") from error
    return values


def enable_compilation_cache() -> None:
    """Keep programs that take half a second to compile in `$XDG_CACHE_HOME/pgjax/xla`, by default under `~/.cache`."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgjax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
