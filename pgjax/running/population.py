"""Many members as one algorithm: mapped over seeds and hyperparameters."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int

from pgjax.core.algorithm import Key, Metrics
from pgjax.core.devices import MEMBERS
from pgjax.core.hyperparameters import TRACED, pytree
from pgjax.learning.evaluation import evaluate
from pgjax.learning.rollout import absent_without_episodes

STEPS_AT_ONCE = 2048
"""Environment steps of one iteration over all members that a CPU core trains at the same time."""


@pytree
class Population:
    """`size` members of one algorithm as a single algorithm: `init` takes their keys, states have a leading axis.

    Each member is the run its key and hyperparameters alone would make, to rounding.
    """

    member: Annotated[Any, TRACED]
    """The algorithm; the leaves named in `stacked` have a leading axis of members, the others are common to all."""
    size: int
    stacked: tuple[bool, ...]
    """For each leaf of `member`."""

    @property
    def env(self) -> Any:
        return self.member.env

    @property
    def total_steps(self) -> int:
        return self.member.total_steps

    @property
    def steps_per_iteration(self) -> int:
        return self.member.steps_per_iteration

    @property
    def num_iterations(self) -> int:
        return self.member.num_iterations

    def init(self, keys: Key) -> Any:
        return self._map(lambda member, key: member.init(key))(keys)

    def step(self, state: Any) -> tuple[Any, Metrics]:
        return self._map(lambda member, state: member.step(state))(state)

    def scores(self, state: Any, episodes: int) -> Metrics:
        """Evaluations of each member, with its own key, so that all its states face the same episodes."""
        return self._map(lambda member, state: scores(member, state, episodes))(state)

    def _map(self, f: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
        """`f(member, x)` of all members: vmapped, on a CPU a few at a time, as one with many environments fills it."""
        leaves, structure = jax.tree.flatten(self.member)
        own = [x for x, s in zip(leaves, self.stacked, strict=True) if s]

        def of_one(own_and_x: tuple[list[Any], Any]) -> Any:
            remaining = iter(own_and_x[0])
            chosen = [next(remaining) if s else x for x, s in zip(leaves, self.stacked, strict=True)]
            return f(jax.tree.unflatten(structure, chosen), own_and_x[1])

        limit = max(1, STEPS_AT_ONCE // self.steps_per_iteration) if jax.default_backend() == "cpu" else self.size
        at_once = max(n for n in range(1, min(limit, self.size) + 1) if self.size % n == 0)
        if at_once == self.size:
            return lambda x: jax.vmap(of_one)((own, x))
        return lambda x: jax.lax.map(of_one, (own, x), batch_size=at_once if at_once > 1 else None)

    def specs(self) -> "Population":
        """Where the leaves live: stacked ones are spread over the devices, the others are on all of them."""
        leaves = [MEMBERS if s else PartitionSpec() for s in self.stacked]
        return Population(jax.tree.unflatten(jax.tree.structure(self.member), leaves), self.size, self.stacked)


SCORES = ("return_mean", "return_std", "episodes")


def scores(algorithm: Any, state: Any, episodes: int) -> Metrics:
    """The evaluation of one state that is kept: greedy, over complete episodes."""
    found = evaluate(algorithm, state, state.key, episodes)
    return dict(zip(SCORES, (found.mean, found.std, found.num_episodes), strict=True))


def copies(algorithm: Any, size: int) -> Population:
    """`size` members that differ in their keys only."""
    return Population(algorithm, size, (False,) * len(jax.tree.leaves(algorithm)))


def signature(algorithm: Any) -> tuple[Any, tuple[Any, ...]]:
    """Equal for algorithms that are one program with other numbers."""
    leaves, structure = jax.tree.flatten(algorithm)
    return structure, tuple((np.shape(leaf), np.result_type(leaf)) for leaf in leaves)


def differing(algorithms: Sequence[Any]) -> tuple[bool, ...]:
    """For each leaf, whether it is not the same number in all of them."""
    columns = zip(*(jax.tree.leaves(a) for a in algorithms), strict=True)
    return tuple(any(not np.array_equal(column[0], x) for x in column[1:]) for column in columns)


def stack(algorithms: Sequence[Any], stacked: tuple[bool, ...]) -> Population:
    """Members of one signature, whose leaves differ at most where `stacked`."""
    columns = zip(*(jax.tree.leaves(a) for a in algorithms), strict=True)
    leaves = [np.stack(column) if s else column[0] for column, s in zip(columns, stacked, strict=True)]
    return Population(jax.tree.unflatten(jax.tree.structure(algorithms[0]), leaves), len(algorithms), stacked)


def member_of(population: Population, i: int) -> Any:
    """The algorithm of one member."""
    leaves, structure = jax.tree.flatten(population.member)
    chosen = [np.asarray(x)[i] if s else x for x, s in zip(leaves, population.stacked, strict=True)]
    return jax.tree.unflatten(structure, chosen)


def train_means(population: Any, state: Any, num_iterations: Int[Array, ""]) -> tuple[Any, Metrics]:
    """`num_iterations` more iterations; their mean metrics. One program serves every number.

    A metric of episodes is averaged over the iterations in which one ended; any other one that is NaN makes the mean
    NaN.
    """
    shapes = jax.eval_shape(population.step, state)[1]
    zeros = {name: (jnp.zeros(x.shape), jnp.zeros(x.shape)) for name, x in shapes.items()}

    def body(_: Array, carry: Any) -> Any:
        state, sums = carry
        state, metrics = population.step(state)
        absent = {name: absent_without_episodes(name) & jnp.isnan(x) for name, x in metrics.items()}
        sums = {
            name: (total + jnp.where(absent[name], 0.0, metrics[name]), count + ~absent[name])
            for name, (total, count) in sums.items()
        }
        return state, sums

    state, sums = jax.lax.fori_loop(0, num_iterations, body, (state, zeros))
    return state, {name: total / count for name, (total, count) in sums.items()}


def all_finite(tree: Any) -> Bool[Array, "members"]:
    """For each member, whether every number of its parameters is finite."""
    finite = [jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite), axis=0)
