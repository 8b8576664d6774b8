"""How hyperparameters are declared: traced scalars, static fields, parts, and what each accepts.

Shapes are written `[T, B, ...]` everywhere: T = num_steps of a rollout, B = num_envs.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, dataclass_transform

import jax
import numpy as np

from pgjax.core.errors import InputError, nearest
from pgjax.core.text import changed_fields, document_fields

TRACED = "traced"
Scalar: TypeAlias = Annotated[float | jax.Array, TRACED]
"""A hyperparameter that is a pytree leaf: it vmaps and changes without recompiling. Every other field is static."""


LARGEST_INT = 2**31
"""Counts are int32 on devices: an `int` field whose interval ends at infinity accepts what is less."""


def field(sentence: str, *, default: Any = dataclasses.MISSING, accepts: str | None = None, part: Any = None) -> Any:
    """A dataclass field with its one-line description and what it accepts.

    Args:
        accepts: an interval for numbers, such as `"(0, 1]"`. One closed at infinity, `"(0, inf]"`, accepts infinity; no
            interval accepts NaN. Of an `int`, infinity is `LARGEST_INT`.
        part: for a field whose value is an object, the kind of object (`core/parts.py`).
    """
    return dataclasses.field(default=default, metadata={"help": sentence, "accepts": accepts, "part": part})


T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def pytree(cls: type[T]) -> type[T]:
    """A frozen dataclass whose `TRACED` fields (`Scalar`, environments) are pytree leaves and whose others are static.

    Python and NumPy numbers flatten to strongly typed float32, so that a float and an array give the same program.
    Unflattening calls no constructor: transformations may put tracers, axes or `None` where numbers were. `repr` shows
    what differs from the defaults, and the docstring goes on with every field.
    """
    doc = cls.__doc__
    cls = dataclasses.dataclass(frozen=True, repr=False)(cls)
    hints = field_types(cls)
    traced = tuple(name for name, hint in hints.items() if TRACED in getattr(hint, "__metadata__", ()))
    document_fields(cls, doc, hints, traced)
    if "__repr__" not in vars(cls):
        cls.__repr__ = changed_fields  # type: ignore[method-assign]
    cls.__init__ = _naming(cls.__init__, hints)  # type: ignore[method-assign]
    _register(cls, traced, tuple(name for name in hints if name not in traced))
    cls.__new__ = _new  # type: ignore[method-assign]
    return cls


def _naming(init: Any, fields: Iterable[str]) -> Any:
    """A constructor that says of a field it does not know which may have been meant."""

    @functools.wraps(init)
    def constructor(self: Any, *args: Any, **given: Any) -> None:
        for name in given.keys() - {*fields}:
            raise InputError(f"{type(self).__name__} has no field {name!r}: {nearest(name, fields)}")
        init(self, *args, **given)

    return constructor


def _register(cls: Any, traced: tuple[str, ...], static: tuple[str, ...]) -> None:
    def flatten_with_keys(self: Any) -> tuple[Any, tuple[Any, ...]]:
        leaves = [(jax.tree_util.GetAttrKey(name), _strong(getattr(self, name))) for name in traced]
        return leaves, tuple(getattr(self, name) for name in static)

    def unflatten(aux: tuple[Any, ...], leaves: Iterable[Any]) -> Any:
        self: Any = object.__new__(cls)
        for name, value in [*zip(traced, leaves, strict=True), *zip(static, aux, strict=True)]:
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    cls.leaf_fields = traced, static


def _new(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """A new object, also of a class that inherits from a `pytree` without being declared one: it is one with the fields
    that it inherits.

    Raises:
        InputError: it declares fields, which only `pytree` makes fields.
    """
    if "leaf_fields" not in vars(cls):
        hints = vars(cls).get("__annotations__", {})
        own = [name for name, hint in hints.items() if "ClassVar" not in str(hint)]
        own += [f.name for f in dataclasses.fields(cls) if f.name in vars(cls) and f.name not in own]
        if own:
            raise InputError(f"{cls.__name__} declares {', '.join(own)}: write @pgjax.pytree above the class")
        _register(cls, *cls.leaf_fields)
    return object.__new__(cls)


def documented(cls: type[T]) -> type[T]:
    """A dataclass of fields that is no pytree, whose docstring goes on with every field."""
    document_fields(cls, cls.__doc__, field_types(cls), ())
    return cls


def field_types(cls: Any) -> dict[str, Any]:
    """Field name -> annotation, in the order of declaration."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _strong(value: Any) -> Any:
    return np.asarray(value, np.float32) if isinstance(value, (int, float, np.ndarray, np.generic)) else value


def check_fields(config: Any) -> None:
    """Refuse a field whose type or value its declaration does not accept. Tracers pass: they have no value yet.

    Raises:
        InputError: naming the field, the value and what would be accepted.
    """
    hints = field_types(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        expected = _expected(hints[f.name], f.metadata.get("accepts"), value)
        if expected:
            raise InputError(f"{type(config).__name__}.{f.name} = {value!r} is not accepted: expected {expected}")


def _expected(hint: Any, interval: str | None, value: Any) -> str | None:
    """What the field wants if `value` is not it, else None."""
    within = f" in {interval}" if interval else ""
    if hint is int and interval:
        within, interval = within.replace("inf", "2^31"), interval.replace("inf", str(LARGEST_INT))
    origin = typing.get_origin(hint)
    if hint == Scalar:
        if isinstance(value, jax.core.Tracer):
            return None
        known = isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)) and not isinstance(value, bool)
        numeric = known and np.asarray(value).dtype.kind in "iufV"  # V: bfloat16
        return None if numeric and _inside(np.asarray(value), interval) else f"a number{within}"
    if hint is int:
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        return None if whole and _inside(np.asarray(value), interval) else f"a whole number (int){within}"
    if hint is float:
        numeric = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        return None if numeric and _inside(np.asarray(value), interval) else f"a number{within}"
    if hint is bool:
        return None if isinstance(value, bool) else "True or False"
    if origin is Literal:
        choices = typing.get_args(hint)
        known = any(type(value) is type(choice) and value == choice for choice in choices)
        return None if known else "one of " + ", ".join(map(repr, choices))
    if origin is tuple:
        whole = isinstance(value, tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        return None if whole and _inside(np.asarray(value), interval) else f"a tuple of whole numbers (int){within}"
    if origin is Annotated:
        hint = typing.get_args(hint)[0]
    if isinstance(value, hint) and not isinstance(value, type):
        return None
    expected = (hint.__doc__ or hint.__name__).splitlines()[0]
    if isinstance(value, type):
        return f"{expected}: an object of the class, {value.__name__}()"
    members = [name for name in dir(hint) if not name.startswith("_")]
    missing = [name for name in members if not hasattr(value, name)]
    return f"{expected}; it has no {', '.join(missing)}" if len(missing) < len(members) else expected


def _inside(value: np.ndarray, interval: str | None) -> bool:
    if interval is None:
        return bool(np.all(np.isfinite(value)))
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return bool(np.all(above & below & (np.isfinite(value) | (math.isinf(high) and interval[-1] == "]"))))
