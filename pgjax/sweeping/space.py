"""What a sweep varies: axes over hyperparameters, and the settings they give.

An axis is a list of values or a distribution. Its name is a field of the algorithm, an option of one of its parts (a
field of its network, a parameter of its environment), a part as a whole, or `algorithm`. Where two of them share a
name, `PART.NAME` and `algorithm.NAME` tell them apart.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.algorithms import algorithm_class
from pgjax.core.algorithm import SWEEP_STREAM, Key
from pgjax.core.errors import InputError, nearest
from pgjax.core.hyperparameters import Scalar, field_types
from pgjax.core.parts import kinds_of

Mode: TypeAlias = Literal["grid", "random", "zip"]
Setting: TypeAlias = dict[str, Any]
"""Axis -> value."""


class ValueDistribution(NamedTuple):
    """Where the values of an axis are drawn from; made by `uniform`, `log_uniform`, `integers` and `choice`."""

    kind: Literal["uniform", "log_uniform", "integers", "choice"]
    arguments: tuple[Any, ...]

    @property
    def bounds(self) -> tuple[Any, Any]:
        """The lowest and the highest value."""
        return min(self.arguments), max(self.arguments)

    def draw(self, key: Key, n: int) -> jax.Array:
        """`[n]` values; of `choice`, their indices."""
        if self.kind == "choice":
            return jax.random.randint(key, (n,), 0, len(self.arguments))
        low, high = self.arguments
        if self.kind == "integers":
            return jax.random.randint(key, (n,), low, high + 1)
        if self.kind == "log_uniform":
            return jnp.exp(jax.random.uniform(key, (n,), minval=np.log(low), maxval=np.log(high)))
        return jax.random.uniform(key, (n,), minval=low, maxval=high)

    def sample(self, key: Key, n: int) -> list[Any]:
        """`n` values as Python numbers; of `choice` the values themselves."""
        drawn = np.asarray(self.draw(key, n)).tolist()
        return [self.arguments[i] for i in drawn] if self.kind == "choice" else drawn

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(map(str, self.arguments))}"


def uniform(low: float, high: float) -> ValueDistribution:
    """Uniform between `low` and `high`.

    Raises:
        InputError: `low` is not below `high`, or a bound is not finite.
    """
    return _range("uniform", low, high, low < high)


def log_uniform(low: float, high: float) -> ValueDistribution:
    """Uniform in the logarithm, between two positive bounds.

    Raises:
        InputError: `low` is not positive and below `high`, or a bound is not finite.
    """
    return _range("log_uniform", low, high, 0 < low < high)


def integers(low: int, high: int) -> ValueDistribution:
    """Whole numbers from `low` to `high`, both included.

    Raises:
        InputError: the bounds are not whole numbers, `low` below `high`.
    """
    return _range("integers", low, high, isinstance(low, int) and isinstance(high, int) and low < high)


def choice(values: Any) -> ValueDistribution:
    """Any of `values`, equally likely.

    Raises:
        InputError: there are no values, or they are neither a list nor a one-dimensional array.
    """
    values = _values("choice", values)
    return ValueDistribution("choice", tuple(values))


def _range(kind: Any, low: Any, high: Any, accepted: bool) -> ValueDistribution:
    if not accepted or not np.all(np.isfinite([low, high])):
        wanted = {"uniform": "low < high", "log_uniform": "0 < low < high", "integers": "whole numbers, low < high"}
        raise InputError(f"{kind}({low!r}, {high!r}) is not accepted: expected {wanted[kind]}")
    return ValueDistribution(kind, (low, high))


def check_axes(algorithm: Any, axes: Mapping[str, Any]) -> dict[str, list[Any] | ValueDistribution]:
    """The axes with their values as lists.

    Raises:
        InputError: a name that nothing has (with the nearest), no values, or a continuous distribution over what each
            distinct value of would need a program of its own.
    """
    checked = {
        name: axis if isinstance(axis, ValueDistribution) else _values(f"axis {name}", axis)
        for name, axis in axes.items()
    }
    firsts = {name: x.arguments[0] if isinstance(x, ValueDistribution) else x[0] for name, x in checked.items()}
    example = _with_parts(algorithm, firsts, {})
    for name, axis in checked.items():
        continuous = isinstance(axis, ValueDistribution) and axis.kind in ("uniform", "log_uniform")
        if not is_traced(example, name) and continuous:
            raise InputError(
                f"axis {name} = {axis} is not accepted: {name} selects the program, one for each distinct value; "
                "expected a list, choice or integers"
            )
    return checked


def _values(label: str, axis: Any) -> list[Any]:
    if isinstance(axis, (list, tuple, range)):
        values = list(axis)
    elif isinstance(axis, (np.ndarray, jax.Array)) and axis.ndim == 1:
        values = np.asarray(axis).tolist()
    else:
        raise InputError(
            f"{label} = {axis!r} is not accepted: expected a list, a one-dimensional array or a distribution"
        )
    if not values:
        raise InputError(f"{label} has no values: expected at least one")
    return [tuple(v) if isinstance(v, list) else v for v in values]


def is_traced(algorithm: Any, name: str) -> bool:
    """Whether new values of an axis are new numbers for the same program."""
    if is_whole(algorithm, name):
        return False
    owner, field = _owner(algorithm, name)
    if owner:
        return kinds_of(algorithm)[owner].options(getattr(algorithm, owner))[field]
    return field_types(type(algorithm))[field] == Scalar


def is_whole(algorithm: Any, name: str) -> bool:
    """Whether an axis sets the algorithm or one of its parts as a whole."""
    return name == "algorithm" or name in kinds_of(algorithm)


MOST_SETTINGS = 1_000_000
"""Of one sweep: all are listed before it starts."""


def settings(
    axes: Mapping[str, list[Any] | ValueDistribution], mode: Mode, num_samples: int | None, key: Key
) -> list[Setting]:
    """The settings of a sweep.

    `grid`: every combination of the lists; distributions together give `num_samples` more values to combine with.
    `random`: `num_samples` settings, a list being a choice. `zip`: the i-th setting takes the i-th value of every list,
    and distributions draw as many. Every axis draws from a key of its own, named after it, so adding an axis changes no
    other one's values.

    Raises:
        InputError: an unknown mode, lists of unequal length in `zip`, or `num_samples` missing, useless or below 1.
    """
    if mode not in ("grid", "random", "zip"):
        raise InputError(f"mode = {mode!r} is not accepted: expected 'grid', 'random' or 'zip'")
    lists = {name: axis for name, axis in axes.items() if isinstance(axis, list)}
    drawn = {name: axis for name, axis in axes.items() if isinstance(axis, ValueDistribution)}
    needed = mode == "random" or (bool(drawn) and not (mode == "zip" and lists))
    if needed and (num_samples is None or num_samples < 1):
        raise InputError(f"num_samples = {num_samples} is not accepted: expected at least 1, as values are drawn")
    if not needed and num_samples is not None:
        raise InputError(f"num_samples = {num_samples} is not accepted: nothing is drawn that it could count")
    lengths = {name: len(values) for name, values in lists.items()}
    if mode == "zip" and len(set(lengths.values())) > 1:
        raise InputError(f"zip needs lists of one length, got {', '.join(f'{k}: {v}' for k, v in lengths.items())}")
    if mode == "random":
        drawn |= {name: choice(values) for name, values in lists.items()}
        lists = {}
    count = num_samples or (len(next(iter(lists.values()))) if lists else 1)
    total = count if mode == "zip" else math.prod(lengths.values() if mode == "grid" else []) * (count if drawn else 1)
    if total > MOST_SETTINGS:
        raise InputError(f"these axes make {total:,} settings: expected at most {MOST_SETTINGS:,}; draw fewer values")
    samples = {name: axis.sample(axis_key(key, name), count) for name, axis in drawn.items()}
    if mode == "zip":
        columns = lists | samples
        return [{name: columns[name][i] for name in axes} for i in range(count)]
    joint = [{name: values[i] for name, values in samples.items()} for i in range(count if samples else 1)]
    combined = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    return [{name: (one | other)[name] for name in axes} for one in combined for other in joint]


def axis_key(key: Key, name: str) -> Key:
    """The key of one axis of a sweep: none that training from `key` uses."""
    return jax.random.fold_in(jax.random.fold_in(key, SWEEP_STREAM), np.uint32(zlib.crc32(name.encode())))


def with_setting(algorithm: Any, setting: Setting, made: dict[Any, Any] | None = None) -> Any:
    """`algorithm` with the values of a setting.

    `algorithm` may be set to a name or an algorithm: a name takes over the fields that both have, an algorithm is taken
    as it is. A part is set to a name or a part. `made` keeps the parts that names stand for, so that settings that are
    given the same dict share them: a model that many start from is in memory once.

    Raises:
        InputError: an unknown name or a value that is not accepted.
    """
    algorithm = _with_parts(algorithm, setting, {} if made is None else made)
    changes: dict[str, dict[str, Any]] = {}
    for name, value in setting.items():
        if not is_whole(algorithm, name):
            owner, field = _owner(algorithm, name)
            changes.setdefault(owner, {})[field] = value
    own, kinds = changes.pop("", {}), kinds_of(algorithm)
    own |= {part: kinds[part].with_options(getattr(algorithm, part), **options) for part, options in changes.items()}
    return dataclasses.replace(algorithm, **own) if own else algorithm


def _with_parts(algorithm: Any, setting: Setting, made: dict[Any, Any]) -> Any:
    chosen = setting.get("algorithm", algorithm)
    if isinstance(chosen, str):
        cls = algorithm_class(chosen)
        shared = [f.name for f in dataclasses.fields(cls) if hasattr(algorithm, f.name)]
        chosen = cls(**{name: getattr(algorithm, name) for name in shared})
    kinds = kinds_of(chosen)
    parts = {part: setting[part] for part in kinds if part in setting}
    for part, value in parts.items():
        if isinstance(value, str):
            if (kinds[part], value) not in made:
                made[kinds[part], value] = kinds[part].make(value)
            parts[part] = made[kinds[part], value]
    return dataclasses.replace(chosen, **parts) if parts else chosen


def _owner(algorithm: Any, name: str) -> tuple[str, str]:
    """(part, option) that an axis sets; ("", field) where it is one of the algorithm's own."""
    kinds = kinds_of(algorithm)
    fields = {"": [f.name for f in dataclasses.fields(algorithm) if f.name not in kinds]}
    fields |= {part: list(kind.options(getattr(algorithm, part))) for part, kind in kinds.items()}
    prefix, dot, rest = name.rpartition(".")
    owner = "" if prefix == "algorithm" else prefix
    found = [part for part in fields if rest in fields[part] and (not dot or part == owner)]
    if len(found) == 1:
        return found[0], rest
    if found:
        spelled = " or ".join(f"{part or 'algorithm'}.{rest}" for part in found)
        raise InputError(f"axis {name} is ambiguous: expected {spelled}")
    known = {"algorithm", *kinds, *(each for names in fields.values() for each in names)}
    raise InputError(f"axis {name} is not known to {type(algorithm).__name__}: {nearest(name, known)}")


def leaves_named(algorithm: Any, axes: Iterable[str]) -> tuple[bool, ...]:
    """For each leaf of `algorithm`, whether an axis sets it: a field of its own, or an option of one of its parts."""
    owned = {_owner(algorithm, name) for name in axes if not is_whole(algorithm, name)}
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(algorithm)]
    return tuple((path.partition(".")[0] if "." in path else "", path.rpartition(".")[2]) in owned for path in paths)
