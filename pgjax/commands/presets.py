"""Tuned settings per algorithm and environment, from `presets.toml`."""

import functools
import tomllib
from pathlib import Path
from typing import Any


def preset(algorithm: str, env_id: str) -> dict[str, Any]:
    """Field -> value for an algorithm on an environment; empty where nothing was tuned.

    `network` is a table: its `name` and the network's own fields.
    """
    return dict(table().get(algorithm, {}).get(env_id, {}))


@functools.cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Algorithm -> environment -> field -> value."""
    return tomllib.loads(Path(__file__).with_name("presets.toml").read_text())
