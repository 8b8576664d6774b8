"""What makes an algorithm again, as JSON values."""

import dataclasses
import math
import re
from importlib import metadata
from typing import Any

import jax
import numpy as np

from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.core.algorithm import Algorithm
from pgjax.core.errors import InputError
from pgjax.environments.gymnax import GymnaxEnvironment, make
from pgjax.networks.registry import NETWORKS, make_network

VERSIONED = ("pgjax", "jax", "jaxlib", "flax", "optax", "gymnax")


def to_config(algorithm: Any) -> dict[str, Any]:
    """Everything that makes `algorithm` again, as JSON values; the `repr` of what cannot be made from JSON."""
    names = {(f"pgjax.algorithms.{name}", cls): name for name, (cls, _) in ALGORITHMS.items()}
    kind = type(algorithm)
    values = {f.name: getattr(algorithm, f.name) for f in dataclasses.fields(algorithm)}
    return {
        "algorithm": names.get((kind.__module__, kind.__name__), repr(kind)),
        "env": _env_config(values.pop("env")),
        "network": _network_config(values.pop("network")),
        "hyperparameters": {name: _plain(value) for name, value in values.items()},
    }


def from_config(config: dict[str, Any]) -> Algorithm:
    """The algorithm a config describes.

    Raises:
        InputError: it was made with an environment, network or algorithm that lives in somebody's own code.
    """
    env, network = config["env"], config["network"]
    own = [repr(part) for part in (config["algorithm"], env, network) if "<" in str(part) or "object" in part]
    if own:
        raise InputError(f"this run used code of its own, which its config cannot make again: {', '.join(own)}")
    values = {k: tuple(v) if isinstance(v, list) else _number(v) for k, v in config["hyperparameters"].items()}
    return algorithm_class(config["algorithm"])(
        env=make(env["id"], **env["constructor"], **env["params"]), network=make_network(**network), **values
    )


def versions() -> dict[str, str]:
    """Of what can change a run's numbers, and the kind of device."""
    return {package: metadata.version(package) for package in VERSIONED} | {"backend": jax.default_backend()}


def version_changes(stored: dict[str, str]) -> str:
    """What differs between the versions a run was written with and those here; empty if nothing does."""
    here = versions()
    return ", ".join(f"{p} {stored.get(p)} -> {here[p]}" for p in here if stored.get(p) != here[p])


def _env_config(env: Any) -> dict[str, Any]:
    if not isinstance(env, GymnaxEnvironment) or env.id is None:
        return {"object": plain_repr(env)}
    params = {f.name: _plain(getattr(env.params, f.name)) for f in dataclasses.fields(env.params)}
    return {"id": env.id, "constructor": dict(env.constructor_options), "params": params}


def plain_repr(thing: Any) -> str:
    """Without memory addresses, so that the same program gives the same text in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def _network_config(network: Any) -> dict[str, Any]:
    names = {cls: name for name, cls in NETWORKS.items()}
    if type(network) not in names:
        return {"object": plain_repr(network)}
    fields = {f.name: _plain(getattr(network, f.name)) for f in dataclasses.fields(network)}
    return {"name": names[type(network)]} | fields


def _plain(value: Any) -> Any:
    """A JSON value; float32 in its shortest decimal form, infinity as a string since JSON has none."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        value = (array.astype(str).astype(float) if array.dtype.kind == "f" else array).tolist()
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _number(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf") else value
