"""Many members as one algorithm: vmapped over seeds and hyperparameters, spread over devices, fitted into memory."""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from pgjax.errors import InputError
from pgjax.evaluate import evaluate
from pgjax.rollout import absent_without_episodes
from pgjax.types import TRACED, Key, Metrics, pytree

MEMBERS = PartitionSpec("members")
MEMORY_SHARE = 0.8


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
        return self._vmap(lambda member, key: member.init(key))(keys)

    def step(self, state: Any) -> tuple[Any, Metrics]:
        return self._vmap(lambda member, state: member.step(state))(state)

    def scores(self, state: Any, episodes: int) -> Metrics:
        """Evaluations of each member, with its own key, so that all its states face the same episodes."""
        return self._vmap(lambda member, state: scores(member, state, episodes))(state)

    def _vmap(self, f: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
        leaves, structure = jax.tree.flatten(self.member)
        axes = [0 if s else None for s in self.stacked]
        rebuilt = jax.vmap(lambda leaves, x: f(jax.tree.unflatten(structure, leaves), x), in_axes=(axes, 0))
        return functools.partial(rebuilt, leaves)

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


class Program(NamedTuple):
    """A population's compiled functions; its members are spread over the devices of `mesh`."""

    mesh: Mesh
    train: Any
    """(population, state, num_iterations) -> (state, mean metrics, finite `[members]`); `state` is donated."""
    init: Any
    """(population, keys) -> state."""
    scores: Any
    """(population, state) -> evaluations."""
    metrics: tuple[str, ...]
    """The names of what `train` returns."""
    bytes_needed: int
    """On all devices together."""

    def place(self, members: Any, spec: Any = MEMBERS) -> Any:
        """Arrays with a leading axis of members, spread over the devices."""
        if isinstance(spec, Population):
            shardings = jax.tree.map(lambda s: NamedSharding(self.mesh, s), spec)
            return jax.device_put(members, shardings)
        return jax.device_put(members, NamedSharding(self.mesh, spec))


@functools.lru_cache(maxsize=32)
def _compile(structure: Any, shapes: tuple[Any, ...], mesh: Mesh, episodes: int) -> Program:
    """Keyed by everything that selects the program, so that another batch of the same shape compiles nothing."""
    like = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*x) for x in shapes])
    specs = like.specs()
    devices = mesh.size

    def spread(f: Callable[..., Any], *in_specs: Any) -> Any:
        def local(population: Population, *args: Any) -> Any:
            return f(Population(population.member, population.size // devices, population.stacked), *args)

        # Keys and constants made inside a member's run differ by device, which the check of replication refuses.
        return jax.shard_map(local, mesh=mesh, in_specs=(specs, *in_specs), out_specs=MEMBERS, check_vma=False)

    def placed(tree: Any, spec: Any) -> Any:
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, s)), tree, spec
        )

    def trained(population: Population, state: Any, num_iterations: Array) -> Any:
        state, metrics = train_means(population, state, num_iterations)
        return state, metrics, all_finite(state.params)

    population = placed(like, specs)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), like.size))
    keys = placed(keys, MEMBERS)
    init = jax.jit(spread(lambda population, keys: population.init(keys), MEMBERS))
    state = jax.eval_shape(init, population, keys)
    state = placed(state, jax.tree.map(lambda _: MEMBERS, state))
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    traced = jax.jit(spread(trained, MEMBERS, PartitionSpec()), donate_argnums=1).trace(population, state, count)
    _refuse_if_hopeless(traced.jaxpr.jaxpr, like.size // devices, mesh)
    metrics = tuple(traced.out_info[1])
    evaluation = jax.jit(spread(lambda population, state: population.scores(state, episodes), MEMBERS))
    lowered = [traced.lower(), init.lower(population, keys), evaluation.lower(population, state)]
    with ThreadPoolExecutor() as pool:
        compiled = [pool.submit(program.compile) for program in lowered]
    train, init, evaluation = (future.result() for future in compiled)
    return Program(mesh, train, init, evaluation, metrics, _bytes_needed(train) * devices)


def compile_batch(member: Any, stacked: tuple[bool, ...], size: int, mesh: Mesh, episodes: int) -> Program:
    """The program of `size` members like `member`; compiled once for every batch of that shape."""
    while size % mesh.size:
        mesh = Mesh(mesh.devices[:-1], mesh.axis_names)
    return _compile(*signature(stack([member] * size, stacked)), mesh, episodes)


def fit(
    member: Any, stacked: tuple[bool, ...], count: int, mesh: Mesh, episodes: int, size: int | None
) -> tuple[Program, int]:
    """A program for batches of `count` members like `member`, and the size of a batch, all equal.

    `size` is at most how many train together; by default as many as the memory holds that the compiled program says it
    needs.

    Raises:
        InputError: not even one member per device fits.
    """
    chosen = min(size or count, count)
    while True:
        batches = -(-count // chosen)
        chosen = -(-count // (batches * mesh.size)) * mesh.size
        program = compile_batch(member, stacked, chosen, mesh, episodes)
        limit = memory_limit(mesh)
        if program.bytes_needed <= limit:
            return program, chosen
        if chosen == mesh.size:
            raise InputError(
                f"not even one member per device fits: {chosen} need {program.bytes_needed / 1e6:,.0f} MB of "
                f"{limit / 1e6:,.0f} MB; expected fewer environments or steps, or a smaller network"
            )
        chosen = max(mesh.size, min(chosen - 1, int(chosen * limit / program.bytes_needed)))


def memory_limit(mesh: Mesh) -> float:
    """Bytes that a population may take on all devices together."""
    stats = mesh.devices.flat[0].memory_stats()
    if stats:
        return MEMORY_SHARE * mesh.size * stats["bytes_limit"]
    return MEMORY_SHARE * _host_memory()


def _host_memory() -> int:
    """Bytes available to new programs, or all there are where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def member_mesh(devices: int | None, members: int) -> Mesh:
    """The first `devices` local devices, all by default, but not more than there are members.

    Raises:
        InputError: there are not that many.
    """
    local = jax.local_devices()
    if devices is not None and not 1 <= devices <= len(local):
        raise InputError(f"devices = {devices} is not accepted: expected from 1 to the {len(local)} there are")
    return Mesh(np.array(local[: min(devices or len(local), members)]), ("members",))


def _bytes_needed(compiled: Any) -> int:
    found = compiled.memory_analysis()
    both = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return both + found.temp_size_in_bytes


def _refuse_if_hopeless(jaxpr: Any, local_size: int, mesh: Mesh) -> None:
    """Before compiling: no program can do with less than its largest array."""
    largest = max(_array_bytes(jaxpr)) // local_size
    if largest > memory_limit(mesh):
        raise InputError(
            f"not even one member fits: one of its arrays takes {largest / 1e6:,.0f} MB of "
            f"{memory_limit(mesh) / 1e6:,.0f} MB; expected fewer environments or steps, or a smaller network"
        )


def _array_bytes(jaxpr: Any) -> Iterator[int]:
    """The sizes of all arrays a traced program computes."""
    for equation in jaxpr.eqns:
        inner = [x for value in equation.params.values() for x in (value if isinstance(value, tuple) else (value,))]
        for each in (getattr(x, "jaxpr", x) for x in inner):
            if hasattr(each, "eqns"):
                yield from _array_bytes(each)
        yield from (
            math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in equation.outvars if hasattr(v.aval, "shape")
        )
