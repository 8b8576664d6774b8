"""Code of a user's own, which is traced before it is compiled, so that what it does wrong is said by name."""

import contextlib
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from pgjax.core.errors import InputError

ADVICE = {
    "TracerBoolConversionError": "; what depends on an array is chosen by jnp.where or jax.lax.cond, not by if",
    "ConcretizationTypeError": "; arrays stay arrays: without float(), int() and the like",
    "TracerArrayConversionError": "; arrays stay JAX's: jnp where np stands",
}
"""For what those meet first who write for a compiler for the first time."""
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
        advice = ADVICE.get(type(error).__name__, "")
        raise InputError(f"{name}: {method} raised {type(error).__name__}: {said}{_place(error)}{advice}") from error


def _place(error: Exception) -> str:
    """The line of somebody's code that raised it."""
    others = str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(others)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def traced(name: str, method: str, call: Callable[..., Any], *shapes: Any) -> Any:
    """The shapes and types of what a call of somebody's code gives, which is traced and not run.

    Raises:
        InputError: as `named` does.
    """
    with named(name, method):
        return jax.eval_shape(call, *shapes)
