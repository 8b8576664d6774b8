"""Search inside a sweep: what happens to its members between the parts of a curve."""

import functools
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pgjax.core.algorithm import Key
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, check_fields, documented, field
from pgjax.running.population import Population
from pgjax.sweeping.space import ValueDistribution, axis_key, choice, is_traced


@dataclass(frozen=True)
class Search:
    """What happens to the members of a sweep while they train: nothing, unless a child says so.

    Of all scores higher is better here, whichever end of the algorithm's own is.
    """

    _: KW_ONLY
    metric: str = field(
        "what ranks: score, the algorithm's own, or another curve, the higher the better", default="score"
    )

    exchanges: ClassVar[bool] = False
    """Whether members take over from each other: all are one program then, and each has a key of its own."""

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, algorithm: Any, axes: dict[str, list[Any] | ValueDistribution]) -> None:
        """Refuse axes that this search cannot work with.

        Raises:
            InputError: naming the axis and what would be accepted.
        """

    def ends(self, points: int) -> list[int]:
        """The points of a curve where a stage ends, the last one its end; between stages settings may be dropped."""
        return [points]

    def survivors(self, scores: Float[np.ndarray, "settings"]) -> Int[np.ndarray, "survivors"]:
        """Which settings go on to the next stage, ascending; a score is NaN where a seed failed.

        A pure function of the scores and the search's own fields: a sweep that goes on asks again.
        """
        return np.arange(len(scores))

    def window(self) -> int:
        """How many of the newest points of a curve a score averages."""
        return 1

    def changes_after(self, point: int) -> bool:
        """Whether members take over from each other after that many points."""
        return False

    def exploit_and_explore(
        self,
        axes: dict[str, list[Any] | ValueDistribution],
        key: Key,
        scores: Float[np.ndarray, "settings seeds"],
        population: Population,
        state: Any,
    ) -> tuple[Population, Any, Int[Array, "members"]]:
        """Population and state after members have taken over from each other, and which member each comes from."""
        raise NotImplementedError


@documented
@dataclass(frozen=True)
class SuccessiveHalving(Search):
    """Train all settings a little, the best 1 / eta of them eta times as long, and so on (Jamieson & Talwalkar, 2016).

    Survivors go on from where they were, in as few and as full batches as they need. With R rungs a setting that is
    pruned first has trained `eta^-R` of its run, and of n settings `n eta^-R` reach the end.
    """

    eta: int = field("one in how many settings survives a rung", default=3, accepts="[2, inf)")
    rungs: int = field("how often settings are pruned", default=2, accepts="[1, inf)")
    last: int = field("points of the curve to average before a rung", default=3, accepts="[1, inf)")

    def ends(self, points: int) -> list[int]:
        """The points of a curve at which settings are pruned, and its end.

        Raises:
            InputError: a curve of so few points cannot be cut that often.
        """
        ends = [round(points * self.eta**-k) for k in range(self.rungs, -1, -1)]
        if ends[0] < 1 or len(set(ends)) < len(ends):
            raise InputError(
                f"SuccessiveHalving.rungs = {self.rungs} with eta = {self.eta} is not accepted: a curve of {points} "
                f"points cannot be cut that often; expected more iterations (or points), or fewer rungs"
            )
        return ends

    def window(self) -> int:
        """The points of `last`."""
        return self.last

    def survivors(self, scores: Float[np.ndarray, "settings"]) -> Int[np.ndarray, "survivors"]:
        """The best settings, in their order; one without a score counts as the worst."""
        count = -(-len(scores) // self.eta)
        return np.sort(best_first(scores)[:count])


@documented
@dataclass(frozen=True)
class PBT(Search):
    """Population-based training (Jaderberg et al., 2017), the members of each seed being a population of their own.

    After every `every` points the worst `fraction` of a population take over the whole state of members drawn from the
    best `fraction`, and their hyperparameters, changed: each is drawn anew from its axis with probability `resample`,
    and otherwise moves one step up or down within its bounds. A step multiplies or divides a `log_uniform` by `factor`,
    adds or subtracts `factor - 1` times the width of a `uniform`, and takes a choice to its neighbour.
    A member keeps its own random key, so copies part at once.

    Nobody takes over from a member whose score is not strictly higher, and ties in the ranking break at random. A score
    of NaN is none, as before the first episode ends: the member stays and the fractions are those of the others. One of
    -inf is a failure, the worst there is.
    """

    every: int = field("points of the curve between changes", default=5, accepts="[1, inf)")
    fraction: Scalar = field("of a population that is replaced", default=0.25, accepts="(0, 0.5]")
    factor: Scalar = field("step by which a hyperparameter is changed", default=1.25, accepts="(1, inf)")
    resample: Scalar = field("probability that a hyperparameter is drawn anew", default=0.25, accepts="[0, 1]")

    exchanges = True

    def window(self) -> int:
        """All points since the last change."""
        return self.every

    def changes_after(self, point: int) -> bool:
        """After every `every` points."""
        return point % self.every == 0

    def check(self, algorithm: Any, axes: dict[str, list[Any] | ValueDistribution]) -> None:
        """Refuse axes that cannot change while a member trains.

        Raises:
            InputError: naming the axis.
        """
        for name in axes:
            if "." in name or not hasattr(algorithm, name) or not is_traced(algorithm, name):
                raise InputError(f"PBT cannot change {name} while a member trains: expected Scalar fields")

    def exploit_and_explore(
        self,
        axes: dict[str, list[Any] | ValueDistribution],
        key: Key,
        scores: Float[np.ndarray, "settings seeds"],
        population: Population,
        state: Any,
    ) -> tuple[Population, Any, Int[Array, "members"]]:
        """Population and state after one change, and where each member's came from. Compiled; runs on the devices.

        `scores` may be NaN (none) and -inf (failed).
        """
        drawn = tuple(
            (name, axis if isinstance(axis, ValueDistribution) else choice(axis)) for name, axis in axes.items()
        )
        return _exploit_and_explore(self, drawn, key, jnp.asarray(scores), population, state)


SEARCHES = {"halving": SuccessiveHalving, "pbt": PBT}
"""The searches by the name that the command line and stored sweeps use."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _exploit_and_explore(
    pbt: PBT,
    axes: tuple[tuple[str, ValueDistribution], ...],
    key: Key,
    scores: Array,
    population: Population,
    state: Any,
) -> tuple[Population, Any, Array]:
    source_key, axes_key = jax.random.split(key)
    settings, seeds = scores.shape
    source = _source(pbt, source_key, scores)
    source = (source * seeds + jnp.arange(seeds)).reshape(-1)
    source = jnp.concatenate([source, jnp.arange(settings * seeds, population.size)])
    exploiting = source != jnp.arange(population.size)

    changed = {}
    for name, axis in axes:
        value = getattr(population.member, name)
        explored = _explored(pbt, axis, axis_key(axes_key, name), value[source])
        changed[name] = jnp.where(exploiting, explored, value)
    state = jax.tree.map(lambda x: x[source], state)._replace(key=state.key)
    return replace(population, member=replace(population.member, **changed)), state, source


def _source(pbt: PBT, key: Key, scores: Float[Array, "settings seeds"]) -> Int[Array, "settings seeds"]:
    """The setting that each member goes on from: its own or, among the worst of a seed, that of one of its best."""
    best_key, ties_key = jax.random.split(key)
    settings = scores.shape[0]
    scored = jnp.sum(~jnp.isnan(scores), axis=0)
    shares = [max(1, int(n * float(pbt.fraction))) if n > 1 else 0 for n in range(settings + 1)]
    share = jnp.array(shares)[scored]
    order = jnp.lexsort((jax.random.uniform(ties_key, scores.shape), scores), axis=0)  # NaN comes last
    best = jax.random.randint(best_key, scores.shape, scored - share, scored)
    drawn = jnp.take_along_axis(order, best, axis=0)
    worst = jnp.argsort(order, axis=0) < share
    higher = jnp.take_along_axis(scores, drawn, axis=0) > scores
    return jnp.where(worst & higher, drawn, jnp.arange(settings)[:, None])


def _explored(pbt: PBT, axis: ValueDistribution, key: Key, value: Float[Array, "members"]) -> Float[Array, "members"]:
    kind_key, anew_key, up_key = jax.random.split(key, 3)
    up = jax.random.bernoulli(up_key, shape=value.shape)
    anew = axis.draw(anew_key, value.size)
    if axis.kind == "choice":
        values = jnp.sort(jnp.asarray(axis.arguments, jnp.float32))
        here = jnp.argmin(jnp.abs(values - value[:, None]), axis=1)
        last = values.size - 1
        neighbour = last - jnp.abs(last - jnp.abs(here + jnp.where(up, 1, -1)))  # at an end, the only one there is
        anew, moved = values[anew], values[jnp.clip(neighbour, 0, last)]
    else:
        low, high = axis.bounds
        logarithmic = axis.kind == "log_uniform"
        step = jnp.log(pbt.factor) if logarithmic else (pbt.factor - 1) * (high - low)
        moved = jnp.log(value) if logarithmic else value
        moved = jnp.where(up, moved + step, moved - step)
        moved = jnp.clip(jnp.exp(moved) if logarithmic else moved, low, high)
    return jnp.where(jax.random.bernoulli(kind_key, pbt.resample, value.shape), anew, moved).astype(jnp.float32)


def ranked_by(metric: str, algorithm: Any) -> tuple[str, float]:
    """The curve that `metric` means, and the sign that makes higher values of it better.

    `"score"` is the algorithm's own, in the direction that is its own; of any other curve higher is better.
    """
    name, direction = algorithm.score
    return (name, 1.0 if direction == "max" else -1.0) if metric in ("score", name) else (metric, 1.0)


def best_first(scores: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Indices from the highest score to the lowest; those without one (NaN) come last, in their order."""
    return np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable")


def curve_mean(curve: np.ndarray, last: int) -> np.ndarray:
    """The mean over the last points `[..., points]`, leaving out those that are absent; NaN without any."""
    tail = curve[..., -last:]
    known = ~np.isnan(tail)
    count = known.sum(axis=-1)
    return np.where(count > 0, np.where(known, tail, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)
