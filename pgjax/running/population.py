"""Many members as one algorithm: mapped over seeds and hyperparameters."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool

from pgjax.core.algorithm import Key, Metrics, Scores
from pgjax.core.devices import MEMBERS
from pgjax.core.hyperparameters import TRACED, pytree

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
    def unit(self) -> str:
        """That of a member."""
        return self.member.unit

    @property
    def score(self) -> tuple[str, Literal["max", "min"]]:
        """That of a member, which ranks each of them."""
        return self.member.score

    @property
    def total_steps(self) -> int:
        """The budget of each member."""
        return self.member.total_steps

    @property
    def steps_per_iteration(self) -> int:
        """Of one member; all together do `size` times as many."""
        return self.member.steps_per_iteration

    @property
    def num_iterations(self) -> int:
        """Of each member: all do theirs at the same time."""
        return self.member.num_iterations

    def init(self, keys: Key) -> Any:
        """The states of all members, from `keys` `[members]`."""
        return self._map(lambda member, key: member.init(key))(keys)

    def step(self, state: Any) -> tuple[Any, Metrics]:
        """One iteration of every member; the metrics are `[members]`."""
        return self._map(lambda member, state: member.step(state))(state)

    def evaluate(self, state: Any, keys: Key, num: int) -> Scores:
        """Every member by itself, with its own of `keys` `[members]`; the scores are `[members]`."""
        return self._map(lambda member, state_and_key: member.evaluate(*state_and_key, num))((state, keys))

    def divides_into(self, devices: int) -> bool:
        """Members are spread over devices whole, and none is divided."""
        return devices == 1

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


def copies(algorithm: Any, size: int) -> Population:
    """`size` members that differ in their keys only."""
    return Population(algorithm, size, (False,) * len(jax.tree.leaves(algorithm)))


def signature(algorithm: Any) -> tuple[Any, tuple[Any, ...]]:
    """Equal for algorithms that are one program with other numbers."""
    leaves, structure = jax.tree.flatten(algorithm)
    return structure, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def differing(algorithms: Sequence[Any]) -> tuple[bool, ...]:
    """For each leaf, whether it is not the same number in all of them."""
    columns = zip(*(jax.tree.leaves(a) for a in algorithms), strict=True)
    return tuple(any(x is not column[0] and not np.array_equal(column[0], x) for x in column[1:]) for column in columns)


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


def all_finite(tree: Any) -> Bool[Array, "members"]:
    """For each member, whether every number of its parameters is finite."""
    finite = [jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite), axis=0)
