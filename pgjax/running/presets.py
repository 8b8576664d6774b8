"""Tuned settings per algorithm and environment, from `presets.toml`."""

import functools
import tomllib
from pathlib import Path
from typing import Any

from pgjax.core.errors import InputError, nearest


def tuned(algorithm: str, subject: str, **changes: Any) -> Any:
    """An algorithm with the settings that the command line has for it, some of them changed.

    `pgjax.tuned("ppo", "CartPole-v1", num_envs=8)`: `subject` is the id of an environment, or for a language model the
    name of its data, and `changes` are fields of the algorithm.

    Raises:
        InputError: there is no such algorithm, field or preset, with the nearest that there is; or a value is not
            accepted.
    """
    from pgjax.algorithms import algorithm_class
    from pgjax.core.hyperparameters import field_types
    from pgjax.core.parts import check_options, from_json, kinds_of

    cls, settings = algorithm_class(algorithm), preset(algorithm, subject)
    if not settings:
        others = [name for name in table() if subject in table()[name]]
        there = nearest(subject, table().get(algorithm, {})) if algorithm in table() else "there is none for it"
        also = f"; there are presets of {', '.join(others)} for it" if others else ""
        raise InputError(f"tuned: {algorithm} has no preset for {subject!r}: {there}{also}")
    check_options(f"tuned: {algorithm}", changes, field_types(cls))
    kinds = kinds_of(cls)
    tables = {next(iter(kinds)): {"name": subject}} | {name: settings[name] for name in kinds if name in settings}
    parts = {name: kinds[name].make(**options) for name, options in tables.items() if name not in changes}
    own = {name: from_json(value) for name, value in settings.items() if name not in kinds}
    return cls(**(own | parts | changes))


def preset(algorithm: str, subject: str) -> dict[str, Any]:
    """Field -> value for an algorithm on an environment; empty where nothing was tuned.

    A part such as `network` is a table: its `name` and its own fields.
    """
    return dict(table().get(algorithm, {}).get(subject, {}))


@functools.cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Algorithm -> environment -> field -> value."""
    return tomllib.loads(Path(__file__).with_name("presets.toml").read_text())
