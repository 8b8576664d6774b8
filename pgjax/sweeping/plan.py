"""What a sweep will do, known and checked before anything compiles: settings, programs, keys, stages."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax.core.errors import InputError
from pgjax.running.config import from_config, plain_repr, to_config, version_changes
from pgjax.running.directory import read_json
from pgjax.running.population import differing, signature
from pgjax.sweeping.search import PBT, Search, SuccessiveHalving
from pgjax.sweeping.space import (
    PARTS,
    Distribution,
    Mode,
    Setting,
    check_axes,
    is_traced,
    leaves_named,
    settings,
    with_setting,
)


class Group(NamedTuple):
    """Settings that one program trains."""

    label: str
    settings: list[int]
    stacked: tuple[bool, ...]
    """Which leaves of the algorithm differ between its members."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything a sweep will do, known before anything compiles."""

    axes: dict[str, list[Any] | Distribution]
    settings: list[Setting]
    algorithms: list[Any]
    """One per setting."""
    groups: list[Group]
    seeds: list[int]
    search: Search | None
    points: int
    config: dict[str, Any]
    """What makes the sweep again, as JSON values."""

    @property
    def ends(self) -> list[int]:
        """The points of the curves where a stage ends; between stages a search drops settings."""
        return self.search.ends(self.points) if isinstance(self.search, SuccessiveHalving) else [self.points]

    def iteration(self, algorithm: Any, point: int) -> int:
        """How many iterations `algorithm` has done at a point of its curve."""
        return round(algorithm.num_iterations * point / self.points)

    def key(self, setting: int, seed: int) -> jax.Array:
        """The key a run of that seed has; populations that exchange states have one of their own for every member."""
        key = jax.random.key(seed)
        return jax.random.fold_in(key, setting) if isinstance(self.search, PBT) else key

    def describe(self) -> str:
        what = (
            f"{len(self.settings)} settings x {len(self.seeds)} seeds = {len(self.settings) * len(self.seeds)} members"
        )
        programs = "1 program" if len(self.groups) == 1 else f"{len(self.groups)} programs"
        members = ", ".join(f"{g.label} x {len(g.settings) * len(self.seeds)}" for g in self.groups)
        return f"{what} in {programs}: {members}"


def make_plan(
    algorithm: Any,
    seeds: int,
    mode: Mode,
    num_samples: int | None,
    seed: int,
    search: Search | None,
    points: int,
    axes: dict[str, Any],
) -> Plan:
    """What `sweep` will do with these arguments.

    Raises:
        InputError: what is not accepted, by name, value and what would be.
    """
    for name, value in {"seeds": seeds, "points": points}.items():
        check_count(name, value)
    for name, leaf in vars(algorithm).items():
        if isinstance(leaf, (np.ndarray, jax.Array)) and leaf.ndim:
            raise InputError(f"sweep: {name} = {leaf} is not accepted: expected one value; give several as an axis")
    checked = check_axes(algorithm, axes)
    chosen = settings(checked, mode, num_samples, jax.random.key(seed))
    algorithms = [with_setting(algorithm, setting) for setting in chosen]
    if isinstance(search, PBT):
        search.check(algorithm, checked)
    groups = _groups(algorithms, chosen, checked)
    if isinstance(search, PBT) and len(groups) > 1:
        raise InputError(f"PBT needs all members in one program, and these axes make {len(groups)}")
    for group in groups:  # a network that does not fit its environment is refused before anything compiles
        jax.eval_shape(algorithms[group.settings[0]].init, jax.random.key(0))
    plan = Plan(
        axes=checked,
        settings=chosen,
        algorithms=algorithms,
        groups=groups,
        seeds=list(range(seed, seed + seeds)),
        search=search,
        points=min(points, *(a.num_iterations for a in algorithms)),
        config={
            "base": to_config(algorithm),
            "axes": {name: _axis_to_json(axis) for name, axis in checked.items()},
            "search": search and {"kind": type(search).__name__} | dataclasses.asdict(search),
            "arguments": {"seeds": seeds, "mode": mode, "num_samples": num_samples, "seed": seed, "points": points},
            "members": len(chosen) * seeds,
        },
    )
    plan.ends  # noqa: B018 -- refuses a search that does not fit the curves
    return plan


def check_count(name: str, value: Any) -> None:
    """Refuse what is not a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"sweep: {name} = {value!r} is not accepted: expected a whole number of at least 1")


def _groups(algorithms: list[Any], chosen: list[Setting], axes: dict[str, Any]) -> list[Group]:
    """Which leaves are stacked depends on the names of the axes, so that other values make no other program."""
    found: dict[Any, list[int]] = {}
    for i, algorithm in enumerate(algorithms):
        found.setdefault(signature(algorithm), []).append(i)
    groups = []
    for indices in found.values():
        first = algorithms[indices[0]]
        named = leaves_named(first, axes)
        stacked = tuple(a | b for a, b in zip(named, differing([algorithms[i] for i in indices]), strict=True))
        static = {k: v for k, v in chosen[indices[0]].items() if k not in PARTS and not is_traced(first, k)}
        names = [type(first).__name__, f"on {first.env.name}", *(f"{k}={v}" for k, v in static.items())]
        groups.append(Group(" ".join(names), indices, stacked))
    return groups


def check_same_sweep(directory: Path, config: dict[str, Any]) -> None:
    """Refuse a directory that holds another sweep than `config` describes; warn of other versions."""
    stored = read_json(directory / "sweep.json")
    here = json.loads(json.dumps(config))
    different = [name for name in here if name != "versions" and stored.get(name) != here[name]]
    if different:
        described = "; ".join(f"{name} is {stored.get(name)}, not {here[name]}" for name in different)
        raise InputError(f"directory = {str(directory)!r} already holds another sweep ({described}): choose another")
    changed = version_changes(stored["versions"])
    if changed:
        warnings.warn(f"{directory} was written with other versions, numbers may change: {changed}", stacklevel=5)


def arguments_from_json(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The algorithm and the other arguments of the sweep that a config describes.

    Raises:
        InputError: it used objects of somebody's own code.
    """
    search = dict(config["search"] or {})
    kinds = {"SuccessiveHalving": SuccessiveHalving, "PBT": PBT}
    axes = {name: _axis_from_json(axis) for name, axis in config["axes"].items()}
    arguments = {"search": kinds[search.pop("kind")](**search) if search else None}
    return from_config(config["base"]), arguments | config["arguments"] | config["kept"] | axes


def _axis_to_json(axis: list[Any] | Distribution) -> Any:
    if isinstance(axis, Distribution):
        return {"kind": axis.kind, "arguments": _axis_to_json(list(axis.arguments))}
    return [v if isinstance(v, (int, float, str, tuple)) else {"object": plain_repr(v)} for v in axis]


def _axis_from_json(axis: Any) -> list[Any] | Distribution:
    if isinstance(axis, dict):
        return Distribution(axis["kind"], tuple(_axis_from_json(axis["arguments"])))
    objects = [v["object"] for v in axis if isinstance(v, dict)]
    if objects:
        raise InputError(f"this sweep used objects that its config cannot make again: {', '.join(objects)}")
    return [tuple(v) if isinstance(v, list) else v for v in axis]
