"""How objects show themselves: one line for what holds arrays, and the fields of a dataclass in its docstring."""

import dataclasses
import html
import inspect
import re
import typing
from typing import Annotated, Any

import jax
import numpy as np

FEW = 16
"""Numbers that are shown one by one."""


def brief(value: Any) -> str:
    """`repr` in which an array of more than a few numbers is its type and shape, wherever it stands."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {brief(each)}" for name, each in value.items()) + "}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = zip(value._fields, value, strict=True)
        return f"{type(value).__name__}({', '.join(f'{name}={brief(each)}' for name, each in fields)})"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(brief, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and not isinstance(value, jax.core.Tracer):
        return _array(value)
    return repr(value)


def _array(x: Any) -> str:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) or x.size > FEW:
        return f"{x.dtype}{list(x.shape)}"
    return str(plain(x))


def plain(x: Any) -> Any:
    """An array as Python numbers; floats in the shortest decimal form of their own type."""
    array = np.asarray(x)
    return (array.astype(str).astype(float) if array.dtype.kind == "f" else array).tolist()


def shows_briefly(cls: Any) -> Any:
    """A NamedTuple whose `repr` is `brief`."""
    cls.__repr__ = brief
    return cls


def html_table(rows: list[list[Any]], header: list[str] | None = None) -> str:
    """For notebooks, with everything in it escaped."""

    def line(cells: list[Any], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{line(header, 'th') if header else ''}{''.join(line(row, 'td') for row in rows)}</table>"


def changed_fields(self: Any) -> str:
    """`repr` of a dataclass: the fields that are not at their defaults."""
    fields = ((f, getattr(self, f.name)) for f in dataclasses.fields(self))
    shown = (f"{f.name}={brief(value)}" for f, value in fields if not is_same(value, f.default))
    return f"{type(self).__name__}({', '.join(shown)})"


def is_same(value: Any, default: Any) -> bool:
    """Whether a value is the default, numbers as float32; False for tracers."""
    if default is dataclasses.MISSING:
        return False
    (leaves, structure), (others, expected) = jax.tree.flatten(value), jax.tree.flatten(default)
    same: Any = structure == expected  # type: ignore[operator]
    return bool(same) and all(map(_same, leaves, others))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return False
    a, b = (np.asarray(x, np.float32) if isinstance(x, float) else np.asarray(x) for x in (a, b))
    return np.array_equal(a, b)


class _Annotation(str):
    """What a signature shows as it stands."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def short_type(hint: Any) -> str:
    """An annotation without module names and marks: `Scalar` for a traced number, the class of a part."""
    if typing.get_origin(hint) is Annotated:
        first = typing.get_args(hint)[0]
        return "Scalar" if first == float | jax.Array else short_type(first)
    return hint.__name__ if isinstance(hint, type) else re.sub(r"[\w.]+\.(?=\w)", "", str(hint))


def document_fields(cls: Any, doc: str | None, hints: dict[str, Any], traced: tuple[str, ...]) -> None:
    """Let `help` show short annotations, and under `doc` what each field is, accepts and defaults to."""
    cls.__init__.__annotations__ = {name: _Annotation(short_type(hint)) for name, hint in hints.items()}
    signature = inspect.signature(cls.__init__)
    cls.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    lines = []
    for f in dataclasses.fields(cls):
        accepts = f.metadata.get("accepts")
        kind = f"{short_type(hints[f.name])}{f' in {accepts}' if accepts else ''}"
        kind += ", traced" if f.name in traced else ""
        kind += "" if f.default is dataclasses.MISSING else f", default {brief(f.default)}"
        lines.append(f"    {f.name} ({kind}):\n        {f.metadata.get('help', '')}".rstrip(":\n "))
    heading = "Fields; traced ones are leaves of the pytree, and change without compiling again:"
    cls.__doc__ = "\n\n".join(part for part in (inspect.cleandoc(doc or ""), "\n".join([heading, *lines])) if part)
