"""The algorithms, by the name the command line uses: class and one sentence. Nothing is imported until it is used."""

import importlib
from typing import Any

from pgjax.errors import InputError, nearest

ALGORITHMS = {
    "ppo": ("PPO", "proximal policy optimisation with the clipped surrogate (Schulman et al., 2017)"),
}


def algorithm_class(name: str) -> Any:
    """The class called `name` in the table above.

    Raises:
        InputError: an unknown name, with the nearest known ones.
    """
    if name not in ALGORITHMS:
        raise InputError(f"algorithm = {name!r} is not known: {nearest(name, ALGORITHMS)}")
    return getattr(importlib.import_module(f"pgjax.algorithms.{name}"), ALGORITHMS[name][0])
