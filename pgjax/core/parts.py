"""Parts: hyperparameters that are objects, such as an environment, a network, a data set or a model to start from.

A field is declared as a part by `field(..., part=KIND)`. The kind is the registry of everything that may stand there:
it makes a part from its name and options, says what name and options a part has, and copies one with other options.
Config files, sweep axes, command-line flags, presets and plots go through it and name no part of their own.

What a kind does not know is somebody's own code: it trains and sweeps like any other, and only its owner can make it
again. A part that is large (parameters, data) is named by where it lies, with a digest among its options, so that a
description never holds its values.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any, Protocol, TypedDict

import jax
import numpy as np

from pgjax.core.errors import InputError, nearest
from pgjax.core.hyperparameters import Scalar, field_types
from pgjax.core.text import plain


class Description(TypedDict):
    """A part as JSON values; `Kind.make(name, **options)` gives an equal one."""

    name: str
    options: dict[str, Any]


class Kind(Protocol):
    """The registry of one kind of part."""

    @property
    def sentence(self) -> str:
        """What its names are and where to find them, for a flag's help."""
        ...

    def make(self, name: str, **options: Any) -> Any:
        """The part of that name; options that are not given keep their defaults, lists stand for tuples.

        Raises:
            InputError: an unknown name or option, with the nearest known ones, or a value that is not accepted.
        """
        ...

    def describe(self, part: Any) -> Description | None:
        """What makes `part` again; None if it is somebody's own code."""
        ...

    def with_options(self, part: Any, **options: Any) -> Any:
        """A copy with other options; also of somebody's own part, where that is a dataclass.

        Raises:
            InputError: as `make` does.
        """
        ...

    def options(self, part: Any) -> dict[str, bool]:
        """What `with_options` can change; true for numbers that are leaves, for which nothing is compiled again."""
        ...

    def declaration(self, name: str) -> type | None:
        """The dataclass whose fields are the options of that name, so that each can be a flag with its sentence and its
        default; None where options are known only once a part has been made."""
        ...


def kinds_of(algorithm: Any) -> dict[str, Kind]:
    """Field -> kind, for the parts of an algorithm or its class, in the order of declaration."""
    return {f.name: f.metadata["part"] for f in dataclasses.fields(algorithm) if f.metadata.get("part")}


def part_name(kind: Kind, part: Any) -> str:
    """The name of a part; for somebody's own code, what it calls itself."""
    described = kind.describe(part)
    return described["name"] if described else str(getattr(part, "name", plain_repr(part)))


def subject_name(algorithm: Any) -> str:
    """What is trained on: the name of the first part that is declared."""
    (field, kind), *_ = kinds_of(algorithm).items()
    return part_name(kind, getattr(algorithm, field))


class Dataclasses:
    """A kind whose parts are dataclasses of hyperparameters, by name."""

    def __init__(self, label: str, table: dict[str, type]) -> None:
        self.label, self.table = label, table

    @property
    def sentence(self) -> str:
        """The names of the table."""
        return f"one of: {', '.join(self.table)}"

    def register(self, name: str, cls: type) -> None:
        """Let a dataclass of somebody's own be known by that name.

        Raises:
            InputError: the name is taken, or `cls` is not a dataclass.
        """
        if name in self.table:
            raise InputError(f"{self.label} = {name!r} is taken: choose another name")
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise InputError(f"{self.label} {name}: {cls!r} is not accepted: expected a class with @pgjax.pytree")
        self.table[name] = cls

    def make(self, name: str, **options: Any) -> Any:
        """A new object of the class of that name, whose constructor checks its fields."""
        cls = self.declaration(name)
        check_options(f"{self.label} {name}", options, field_types(cls))
        return cls(**{option: from_json(value) for option, value in options.items()})

    def describe(self, part: Any) -> Description | None:
        """The name of its class with all its fields; None for a class that is not in the table."""
        names = {cls: name for name, cls in self.table.items()}
        if type(part) not in names:
            return None
        options = {f.name: to_json(getattr(part, f.name)) for f in dataclasses.fields(part)}
        return {"name": names[type(part)], "options": options}

    def with_options(self, part: Any, **options: Any) -> Any:
        """A copy with other fields, which the constructor checks again."""
        return dataclasses.replace(part, **options)

    def options(self, part: Any) -> dict[str, bool]:
        """All fields of the part."""
        return dataclass_options(part)

    def declaration(self, name: str) -> type:
        """The class of that name.

        Raises:
            InputError: an unknown name, with the nearest known ones.
        """
        if name not in self.table:
            raise InputError(f"{self.label} = {name!r} is not known: {nearest(name, self.table)}")
        return self.table[name]


def check_options(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options that are not known.

    Raises:
        InputError: with the nearest known ones.
    """
    known = [*known]
    for option in {*given} - {*known}:
        expected = nearest(option, known) if known else "expected none"
        raise InputError(f"{owner} has no option {option!r}: {expected}")


def dataclass_options(part: Any) -> dict[str, bool]:
    """The fields of a part that is a dataclass, true for those that are leaves; none of one that is not."""
    if not dataclasses.is_dataclass(part):
        return {}
    return {name: hint == Scalar for name, hint in field_types(type(part)).items()}


def plain_repr(thing: Any) -> str:
    """Without memory addresses, so that the same program gives the same text in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def to_json(value: Any) -> Any:
    """A JSON value; float32 in its shortest decimal form, infinity as a string since JSON has none."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        value = plain(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def from_json(value: Any) -> Any:
    """What `to_json` was given, arrays as tuples."""
    if isinstance(value, list):
        return tuple(value)
    return float(value) if value in ("inf", "-inf") else value
