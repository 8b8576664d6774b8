"""What makes a stored run or sweep again: a command where flags can say it, else Python; from its config alone.

A flag is given unless its value is the default of its dataclass and no preset speaks of it, so that the command means
the same when presets have changed. Parts are not made, since a config may be somebody else's; but for the environments
that gymnax has, and those registered in this process.
"""

import dataclasses
import shlex
from typing import Any

from pgjax.algorithms import algorithm_class
from pgjax.core.errors import InputError
from pgjax.core.parts import Kind, kinds_of, to_json
from pgjax.environments.catalog import CATALOG
from pgjax.environments.own import OWN
from pgjax.running.presets import preset


class _NoFlagError(Exception):
    """Something that no flag says."""


def again(config: dict[str, Any], directory: str) -> str:
    """The command that trains the run or sweep of a config again, or the Python that does; `directory` is where the
    config is.

    Raises:
        InputError: it was made with code of its own, or the config is not one of ours.
    """
    base = config.get("base", config)
    own = [x["own"] for x in (base["algorithm"], *base["parts"].values()) if isinstance(x, dict) and "own" in x]
    if own:
        raise InputError(f"made with code of its own, which no command names: {', '.join(own)}")
    try:
        words = _sweep_words(config) if "base" in config else _run_words(config)
        for module in base.get("imports", ()):
            words += ["--import", module]
    except _NoFlagError:
        return _python(config, directory)
    return shlex.join(["pgjax", *words])


def _run_words(config: dict[str, Any]) -> list[str]:
    words = ["train", config["algorithm"]]
    for name, value in _said(config).items():
        words += _flag(name, value)
    given: dict[str, Any] = {
        "seed": 0,
        "seeds": None,
        "checkpoint_every": None,
        "keep": 2,
        "episodes": 128,
        "sinks": [],
    }
    for name, default in given.items():
        words += _flag(name, config[name]) if config[name] != default else []
    shards = config.get("shards", 1)
    return words + _flag("devices", config["devices"]) + (_flag("shards", shards) if shards > 1 else [])


def _sweep_words(config: dict[str, Any]) -> list[str]:
    base, axes = config["base"], config["axes"]
    if "algorithm" in axes:
        raise _NoFlagError
    cls = algorithm_class(base["algorithm"])
    names, said = _flag_names(cls, base), _said(base)
    params: dict[str, list[str]] = {}
    for axis, values in axes.items():
        text = _axis_text(values)
        if axis in base["parts"]:
            said[axis] = text
            continue
        owner, _, option = axis.rpartition(".")
        owners = [part for part, each in base["parts"].items() if option in each["options"]]
        part = next((each for each in owners if each == owner or not owner), None)
        if part and (part, option) not in names:
            params.setdefault(part, []).append(f"{option}={text}")
        else:
            said[names[part, option] if part else option] = text
    for part, pairs in params.items():
        changed = {pair.partition("=")[0] for pair in pairs}
        before = [pair for pair in said.get(f"{part}_params", []) if pair.partition("=")[0] not in changed]
        said[f"{part}_params"] = [*before, *pairs]
    words = ["sweep", base["algorithm"]]
    for name, value in said.items():
        words += _flag(name, value) if name.endswith("_params") else [_spelled(name), _axis_text([value])]
    given: dict[str, Any] = {"seeds": 1, "seed": 0, "mode": "grid", "num_samples": None, "points": 100, "episodes": 128}
    given |= {"members_at_once": None, "checkpoint_every": None}
    arguments = config["arguments"] | config["kept"]
    for name, default in given.items():
        words += _flag(name, arguments[name]) if arguments[name] != default else []
    if config["search"]:
        options = ",".join(f"{name}={value}" for name, value in config["search"]["options"].items())
        words += ["--search", f"{config['search']['kind']}:{options}"]
    return words + _flag("devices", config["devices"])


def _said(config: dict[str, Any]) -> dict[str, Any]:
    """Flag -> value, for the parts and hyperparameters that have to be given."""
    cls = algorithm_class(config["algorithm"])
    kinds, names = kinds_of(cls), _flag_names(cls, config)
    tuned = preset(config["algorithm"], next(iter(config["parts"].values()))["name"])
    said: dict[str, Any] = {}
    for part, described in config["parts"].items():
        said[part] = described["name"]
        declaration = kinds[part].declaration(described["name"])
        if declaration is None:
            said |= _params(part, kinds[part], described)
            continue
        usual = _defaults(declaration)
        spoken = _default_options(cls, part, kinds[part]) | tuned.get(part, {})
        for option, value in described["options"].items():
            named = option in spoken and (option in tuned.get(part, {}) or spoken[option] != usual.get(option))
            if (part, option) in names and (named or value != usual.get(option)):
                said[names[part, option]] = value
    usual = _defaults(cls)
    own = config["hyperparameters"].items()
    return said | {name: value for name, value in own if name in tuned or value != usual.get(name)}


def _params(part: str, kind: Kind, described: dict[str, Any]) -> dict[str, Any]:
    """The options of a part that are known only once it was made."""
    name = described["name"]
    usual: Any = kind.describe(kind.make(name)) if name in CATALOG or name in OWN.table else None
    changed = {name: x for name, x in described["options"].items() if not usual or usual["options"].get(name) != x}
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in changed.values()):
        raise _NoFlagError
    return {f"{part}_params": [f"{name}={value}" for name, value in changed.items()]} if changed else {}


def _flag_names(cls: Any, config: dict[str, Any]) -> dict[tuple[str, str], str]:
    """(part, option) -> flag: an option's own name, or after the part's where an earlier part has one of that name."""
    names: dict[tuple[str, str], str] = {}
    for part, kind in kinds_of(cls).items():
        declaration = kind.declaration(config["parts"][part]["name"])
        taken = {option for _, option in names}
        for option in _defaults(declaration) if declaration else ():
            names[part, option] = f"{part}_{option}" if option in taken else option
    return names


def _defaults(cls: Any) -> dict[str, Any]:
    """Field -> default as JSON keeps it; a class where there is none."""
    return {f.name: to_json(f.default) if _has_default(f) else object for f in dataclasses.fields(cls)}


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING


def _default_options(cls: Any, part: str, kind: Kind) -> dict[str, Any]:
    default = next(f.default for f in dataclasses.fields(cls) if f.name == part)
    described = None if default is dataclasses.MISSING else kind.describe(default)
    return described["options"] if described else {}


def _spelled(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [_spelled(name if value else f"no_{name}")]
    if isinstance(value, list):
        return [_spelled(name), *map(str, value)]
    if isinstance(value, dict):
        raise _NoFlagError
    return [_spelled(name), str(value)]


def _axis_text(values: Any) -> str:
    """As a flag of a sweep takes it."""
    if isinstance(values, dict):
        return f"{values['kind']}:{_axis_text(values['arguments'])}"
    if any(isinstance(value, dict) for value in values):
        raise _NoFlagError
    return ",".join("x".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)


def _python(config: dict[str, Any], directory: str) -> str:
    if "base" in config:
        makes = "arguments_from_json", "pgjax.sweeping.plan", "sweep.json"
        does = "algorithm, arguments = arguments_from_json(config)\npgjax.sweep(algorithm, **arguments)"
    else:
        makes = "from_config", "pgjax.running.config", "config.json"
        names = ("seed", "seeds", "checkpoint_every", "keep", "episodes", "devices", "shards")
        kept = {name: config[name] for name in names if name in config}
        does = f"pgjax.run(from_config(config), {', '.join(f'{name}={value!r}' for name, value in kept.items())})"
    function, module, file = makes
    read = f"config = json.loads(pathlib.Path({f'{directory}/{file}'!r}).read_text())"
    own = "".join(f"import {name}\n" for name in config.get("base", config).get("imports", ()))
    return f"{own}import json, pathlib, pgjax\nfrom {module} import {function}\n{read}\n{does}"
