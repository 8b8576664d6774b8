"""Code of a user's own, which is traced before it is compiled, so that what it does wrong is said by name."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from pgjax.core.errors import InputError

LIBRARY = __name__.split(".")[0] + "."


def is_own(x: Any) -> bool:
    """Whether the class of an object is none of the library's."""
    return not type(x).__module__.startswith(LIBRARY)


@contextlib.contextmanager
def named(name: str, method: str) -> Iterator[None]:
    """Around a call of somebody's code.

    Raises:
        InputError: naming the method and what it raised.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = str(error).strip().split("\n")[0][:300]
        raise InputError(f"{name}: {method} raised {type(error).__name__}: {said}") from error


def traced(name: str, method: str, call: Callable[..., Any], *shapes: Any) -> Any:
    """The shapes and types of what a call of somebody's code gives, which is traced and not run.

    Raises:
        InputError: as `named` does.
    """
    with named(name, method):
        return jax.eval_shape(call, *shapes)
