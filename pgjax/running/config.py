"""What makes an algorithm again, as JSON values, and whether two configs are of the same run."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

import jax

from pgjax.algorithms import algorithm_class, algorithm_name
from pgjax.core.algorithm import Algorithm
from pgjax.core.errors import InputError
from pgjax.core.own import is_own
from pgjax.core.parts import Kind, from_json, kinds_of, part_name, plain_repr, to_json
from pgjax.environments.gymnax import GymnaxEnvironment
from pgjax.environments.wrappers import Wrapper

NEED_NO_IMPORT = ("gymnax.", "builtins", "__main__")
VERSIONED = ("pgjax", "jax", "jaxlib", "flax", "optax", "gymnax")


def to_config(algorithm: Any) -> dict[str, Any]:
    """Everything that makes `algorithm` again, as JSON values; with `own`, a `repr`, where something cannot be made
    from JSON.

    `parts` holds the name and the options of each part, `hyperparameters` every other field. `unit` and `score` are the
    algorithm's own, for those who read a run from outside. `imports`, where there are any, are the modules of what is
    the user's own.
    """
    cls, kinds = type(algorithm), kinds_of(algorithm)
    values = {f.name: getattr(algorithm, f.name) for f in dataclasses.fields(algorithm)}
    parts = {name: kind.describe(values[name]) or own_part(kind, values[name]) for name, kind in kinds.items()}
    classes = {type(x) for x in (algorithm, *(_innermost(values[name]) for name in kinds)) if is_own(x)}
    modules = sorted({own.__module__ for own in classes if not own.__module__.startswith(NEED_NO_IMPORT)})
    imports: dict[str, Any] = {"imports": modules} if modules else {}
    return imports | {
        "algorithm": algorithm_name(cls) or {"own": plain_repr(cls)},
        "parts": parts,
        "hyperparameters": {name: to_json(value) for name, value in values.items() if name not in kinds},
        "unit": algorithm.unit,
        "score": list(algorithm.score),
    }


def _innermost(part: Any) -> Any:
    while isinstance(part, (Wrapper, GymnaxEnvironment)):
        part = part.env
    return part


def own_part(kind: Kind, part: Any) -> dict[str, str]:
    """What is kept of a part that its kind does not know: what it calls itself, and its `repr`."""
    return {"name": part_name(kind, part), "own": plain_repr(part)}


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Around whatever makes something of a stored config, which may have been damaged or edited.

    Raises:
        InputError: naming what could not be made sense of.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{where} is damaged, or of another version of pgjax ({type(error).__name__}: {error}): restore it, or "
            "start in another directory"
        ) from error


@reading("this config")
def from_config(config: dict[str, Any]) -> Algorithm:
    """The algorithm a config describes.

    Raises:
        InputError: it was made with a part or an algorithm that lives in somebody's own code, or the config names
            something that is not known or not accepted.
    """
    missing = [name for name in ("algorithm", "parts", "hyperparameters") if name not in config]
    if missing:
        raise InputError(f"this config is damaged, or of another version of pgjax: it has no {', '.join(missing)}")
    name, parts, hyperparameters = config["algorithm"], config["parts"], config["hyperparameters"]
    own = [
        described["own"] for described in (name, *parts.values()) if isinstance(described, dict) and "own" in described
    ]
    if own:
        raise InputError(
            f"this run used code of its own, which its config cannot make again: {', '.join(own)}; "
            "give it as algorithm=, or name it before: pgjax.register for an environment, register_network, "
            "register_algorithm, alignment.register_reward; on the command line with --import of the module that does"
        )
    modules = [module for module in config.get("imports", ()) if module not in sys.modules]
    try:
        return _made(name, parts, hyperparameters)
    except InputError as error:
        if not modules:
            raise
        raise InputError(
            f"this run was made with code of {', '.join(modules)}: import it before, on the command line by "
            f"{' '.join(f'--import {module}' for module in modules)} ({error})"
        ) from error


def _made(name: str, parts: dict[str, Any], hyperparameters: dict[str, Any]) -> Algorithm:
    cls = algorithm_class(name)
    kinds, known = kinds_of(cls), {f.name for f in dataclasses.fields(cls)}
    unknown = sorted((hyperparameters.keys() | parts.keys()) - known)
    if unknown or parts.keys() != kinds.keys():
        raise InputError(
            f"this config is damaged, or of another version of pgjax: expected the parts {', '.join(kinds)} of {name}, "
            f"got {', '.join(parts)}" + (f"; {', '.join(unknown)} not known" if unknown else "")
        )
    made = {part: kinds[part].make(described["name"], **described["options"]) for part, described in parts.items()}
    return cls(**made, **{field: from_json(value) for field, value in hyperparameters.items()})


def entry(config: dict[str, Any], name: str, where: str, kind: type = object) -> Any:
    """One entry of a stored config.

    Raises:
        InputError: it is not there, or of another type.
    """
    if not isinstance(config.get(name, ...), kind) or name not in config:
        said = f"its {name!r} is {config[name]!r}" if name in config else f"it has no {name!r}"
        raise InputError(f"{where} is damaged: {said}; restore it, or start the run in another directory")
    return config[name]


def differences(stored: dict[str, Any], config: dict[str, Any], names: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Where two configs differ in the entries `names`: dotted path -> (stored, wanted), of what JSON keeps of them."""
    old, new = (flat({name: json.loads(json.dumps(c.get(name))) for name in names}) for c in (stored, config))
    return {_short(path): (old.get(path), new.get(path)) for path in old | new if old.get(path) != new.get(path)}


def _short(path: str) -> str:
    """As an axis would be called: network.hidden for parts.network.options.hidden."""
    return path.removeprefix("parts.").replace(".options.", ".")


def flat(config: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> value."""
    if not isinstance(config, dict) or not config:
        return {path: config}
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{path}.{name}" if path else name)
    return found


def versions() -> dict[str, str]:
    """Of what can change a run's numbers, and the kind of device."""
    return {package: metadata.version(package) for package in VERSIONED} | {"backend": jax.default_backend()}


def version_changes(stored: dict[str, str]) -> str:
    """What differs between the versions a run was written with and those here; empty if nothing does."""
    here = versions()
    return ", ".join(f"{p} {stored.get(p)} -> {here[p]}" for p in here if stored.get(p) != here[p])
