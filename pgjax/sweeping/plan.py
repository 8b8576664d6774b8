"""What a sweep will do, known and checked before anything compiles: settings, programs, keys, stages."""

import dataclasses
from typing import Any, NamedTuple

import jax

from pgjax.core.errors import InputError
from pgjax.core.parts import plain_repr, subject_name
from pgjax.running.config import entry, from_config, reading, to_config
from pgjax.running.population import differing, signature
from pgjax.running.session import check_count, check_seeds, check_single
from pgjax.sweeping.search import SEARCHES, Search
from pgjax.sweeping.space import (
    MOST_SETTINGS,
    Mode,
    Setting,
    ValueDistribution,
    check_axes,
    is_traced,
    is_whole,
    leaves_named,
    settings,
    with_setting,
)

ARGUMENTS = ("seeds", "mode", "num_samples", "seed", "points")
"""What a stored sweep holds besides its algorithm, axes and search, and `Kept`."""


class Kept(NamedTuple):
    """How a sweep is trained and kept."""

    episodes: int
    members_at_once: int | None
    checkpoint_every: int | None


class Group(NamedTuple):
    """Settings that one program trains."""

    label: str
    settings: list[int]
    stacked: tuple[bool, ...]
    """Which leaves of the algorithm differ between its members."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything a sweep will do, known before anything compiles."""

    axes: dict[str, list[Any] | ValueDistribution]
    settings: list[Setting]
    algorithms: list[Any]
    """One per setting."""
    groups: list[Group]
    seeds: list[int]
    search: Search
    points: int
    config: dict[str, Any]
    """What makes the sweep again, as JSON values."""

    @property
    def ends(self) -> list[int]:
        """The points of the curves where a stage ends; between stages a search drops settings."""
        return self.search.ends(self.points)

    def iteration(self, algorithm: Any, point: int) -> int:
        """How many iterations `algorithm` has done at a point of its curve."""
        return round(algorithm.num_iterations * point / self.points)

    def key(self, setting: int, seed: int) -> jax.Array:
        """The key a run of that seed has; populations that exchange states have one of their own for every member."""
        key = jax.random.key(seed)
        return jax.random.fold_in(key, setting) if self.search.exchanges else key

    def describe(self) -> str:
        """How many settings, seeds, members and programs there are, in one line for a person."""
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
    search: Search,
    points: int,
    axes: dict[str, Any],
) -> Plan:
    """What `sweep` will do with these arguments.

    Raises:
        InputError: what is not accepted, by name, value and what would be.
    """
    for name, value in {"seeds": seeds, "points": points}.items():
        check_count(f"sweep: {name}", value)
    check_seeds("sweep", seed, seeds)
    check_single("sweep", algorithm)
    checked = check_axes(algorithm, axes)
    chosen = settings(checked, mode, num_samples, jax.random.key(seed))
    made: dict[Any, Any] = {}
    _check_members(len(chosen), seeds)
    algorithms = [with_setting(algorithm, setting, made) for setting in chosen]
    if len({a.score for a in algorithms}) > 1:
        raise InputError("these algorithms are judged by different scores and cannot be ranked in one sweep")
    if not isinstance(search, Search):
        raise InputError(
            f"sweep: search = {search!r} is not accepted: expected a Search: pgjax.SuccessiveHalving() or pgjax.PBT()"
        )
    search.check(algorithm, checked)
    groups = _groups(algorithms, chosen, checked)
    if search.exchanges and len(groups) > 1:
        raise InputError(f"{type(search).__name__} needs all members in one program, and these axes make {len(groups)}")
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
            "search": _search_to_json(search),
            "arguments": dict(zip(ARGUMENTS, (seeds, mode, num_samples, seed, points), strict=True)),
            "members": len(chosen) * seeds,
        },
    )
    plan.ends  # noqa: B018 -- refuses a search that does not fit the curves
    return plan


def _check_members(num_settings: int, seeds: int) -> None:
    members = num_settings * seeds
    if members > MOST_SETTINGS:
        raise InputError(
            f"sweep: seeds = {seeds:,} is not accepted: they make {members:,} members; expected at most "
            f"{MOST_SETTINGS:,}"
        )


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
        setting = chosen[indices[0]].items()
        static = {k: v for k, v in setting if not is_whole(first, k) and not is_traced(first, k)}
        names = [type(first).__name__, f"on {subject_name(first)}", *(f"{k}={v}" for k, v in static.items())]
        groups.append(Group(" ".join(names), indices, stacked))
    return groups


@reading("the config of this sweep")
def arguments_from_json(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The algorithm and the other arguments of the sweep that a config describes.

    Raises:
        InputError: it used objects of somebody's own code, or is damaged.
    """
    base, axes, search, arguments, kept = (
        entry(config, name, "the config of this sweep") for name in ("base", "axes", "search", "arguments", "kept")
    )
    if search and search.get("kind") not in SEARCHES:
        raise InputError(f"this sweep used a search that is not known: {search.get('kind')}")
    found = SEARCHES[search["kind"]](**search["options"]) if search else None
    unknown = sorted((arguments | kept).keys() - {*ARGUMENTS, *Kept._fields})
    if unknown:
        raise InputError(f"the config of this sweep is damaged: {', '.join(unknown)} are no arguments of it")
    values = {name: _axis_from_json(axis) for name, axis in axes.items()}
    return from_config(base), {"search": found} | arguments | kept | values


def _search_to_json(search: Search) -> dict[str, Any] | None:
    """Its name and options; None for a sweep without one, the `repr` of somebody's own."""
    if type(search) is Search:
        return None
    names = {cls: name for name, cls in SEARCHES.items()}
    return {"kind": names.get(type(search), plain_repr(search)), "options": dataclasses.asdict(search)}


def _axis_to_json(axis: list[Any] | ValueDistribution) -> Any:
    if isinstance(axis, ValueDistribution):
        return {"kind": axis.kind, "arguments": _axis_to_json(list(axis.arguments))}
    return [v if isinstance(v, (int, float, str, tuple)) else {"object": plain_repr(v)} for v in axis]


def _axis_from_json(axis: Any) -> list[Any] | ValueDistribution:
    if isinstance(axis, dict):
        return ValueDistribution(axis["kind"], tuple(_axis_from_json(axis["arguments"])))
    objects = [v["object"] for v in axis if isinstance(v, dict)]
    if objects:
        raise InputError(f"this sweep used objects that its config cannot make again: {', '.join(objects)}")
    return [tuple(v) if isinstance(v, list) else v for v in axis]
