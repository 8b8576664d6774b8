"""What a run leaves on disk besides its metrics: the config that makes the algorithm again, and the state."""

import dataclasses
import errno
import json
import math
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.environments.gymnax import GymnaxEnvironment, make
from pgjax.errors import InputError
from pgjax.networks import NETWORKS, make_network
from pgjax.train import Algorithm

VERSIONED = ("pgjax", "jax", "flax", "optax", "gymnax")


def to_config(algorithm: Any, seed: int) -> dict[str, Any]:
    """Everything that makes `algorithm` again, as JSON values; the `repr` of what cannot be made from JSON."""
    names = {cls: name for name, (cls, _) in ALGORITHMS.items()}
    values = {f.name: getattr(algorithm, f.name) for f in dataclasses.fields(algorithm)}
    env, network = values.pop("env"), values.pop("network")
    return {
        "algorithm": names.get(type(algorithm).__name__, repr(type(algorithm))),
        "env": _env_config(env),
        "network": _network_config(network),
        "hyperparameters": {name: _plain(value) for name, value in values.items()},
        "seed": seed,
        "versions": {package: metadata.version(package) for package in VERSIONED},
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
        env=make(env["id"], **env["constructor"], **env["params"]),
        network=make_network(**network),
        **values,
    )


def _env_config(env: Any) -> dict[str, Any]:
    if not isinstance(env, GymnaxEnvironment) or env.id is None:
        return {"object": repr(env)}
    params = {f.name: _plain(getattr(env.params, f.name)) for f in dataclasses.fields(env.params)}
    return {"id": env.id, "constructor": dict(env.constructor_options), "params": params}


def _network_config(network: Any) -> dict[str, Any]:
    names = {cls: name for name, cls in NETWORKS.items()}
    if type(network) not in names:
        return {"object": repr(network)}
    return {"name": names[type(network)]} | {f.name: getattr(network, f.name) for f in dataclasses.fields(network)}


def _plain(value: Any) -> Any:
    """A JSON value; float32 in its shortest decimal form, infinity as a string since JSON has none."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        value = (array.astype(str).astype(float) if array.dtype.kind == "f" else array).tolist()
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _number(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf") else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_config(run: Path) -> dict[str, Any]:
    """The config stored in a run directory.

    Raises:
        InputError: there is none, or it is not JSON.
    """
    path = Path(run) / "config.json"
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{run} holds no run: cannot read {path} ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def save_checkpoint(directory: Path, iteration: int, state: Any) -> Path:
    """Write every leaf of `state` to `directory/<iteration>`; the directory appears only when it is complete.

    Raises:
        OSError: it could not be written; checkpoints that were there are untouched.
    """
    import orbax.checkpoint as ocp  # costs a second, and only runs that write need it

    path = (Path(directory) / str(iteration)).absolute()
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(path, {name: np.asarray(leaf) for name, leaf in _named_leaves(state).items()})
    except Exception as error:  # tensorstore reports a full disk as ValueError, at great length
        reason = os.strerror(errno.ENOSPC) if "No space left" in str(error) else str(error)[:200]
        raise OSError(f"cannot write the checkpoint {path}: {reason}") from error
    return path


def load_checkpoint(directory: Path, init: Callable[[], Any]) -> Any:
    """The state in the newest checkpoint under `directory`, with the structure of what `init` would give.

    Raises:
        InputError: there is no checkpoint, or its leaves have other names, shapes or types than `init`'s.
    """
    import orbax.checkpoint as ocp

    saved = [p for p in Path(directory).glob("*") if p.name.isdigit()]
    if not saved:
        raise InputError(f"{directory} holds no checkpoint: the run has not finished, or its files were moved")
    path = max(saved, key=lambda p: int(p.name)).absolute()
    expected = jax.eval_shape(init)
    wanted = {name: (leaf.shape, leaf.dtype) for name, leaf in _named_leaves(expected).items()}
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            found = {n: (m.shape, m.dtype) for n, m in checkpointer.metadata(path).item_metadata.tree.items()}
        except Exception as error:
            raise InputError(f"the checkpoint {path} is damaged: {error}") from error
        different = [
            f"{name} is {_describe(found.get(name))}, expected {_describe(wanted.get(name))}"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name)
        ]
        if different:
            more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
            raise InputError(f"the checkpoint {path} is of another shape: {'; '.join(different[:3])}{more}")
        numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
        leaves = checkpointer.restore(path, restore_args=numpy)
    restored = [
        jax.random.wrap_key_data(leaves[name]) if _is_key(like) else leaves[name]
        for name, like in zip(wanted, jax.tree.leaves(expected), strict=True)
    ]
    return jax.device_put(jax.tree.unflatten(jax.tree.structure(expected), restored))


def _named_leaves(state: Any) -> dict[str, Any]:
    """Leaf path -> array, in tree order; random keys as the words they are made of."""

    def words(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        return (
            jax.eval_shape(jax.random.key_data, leaf)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else jax.random.key_data(leaf)
        )

    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): words(leaf) for path, leaf in leaves}


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(shape_and_dtype: Any) -> str:
    return "absent" if shape_and_dtype is None else f"{shape_and_dtype[1]}{list(shape_and_dtype[0])}"
