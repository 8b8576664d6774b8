"""What runs and sweeps compile: once per shape, several programs at the same time, for all devices there are."""

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from pgjax.core import processes
from pgjax.core.algorithm import Algorithm, Scores
from pgjax.core.devices import (
    MEMBERS,
    SHARDS,
    SHARE_STEPS,
    check_memory,
    count_devices,
    env_mesh,
    equal_shares,
    in_shares,
    largest_array,
    member_mesh,
    memory_limit,
    share_of,
    total_bytes,
)
from pgjax.core.errors import InputError
from pgjax.running.loop import train_chunk, train_means
from pgjax.running.population import Population, all_finite, signature, stack

MAX_CHUNK = 256
MAPPINGS = Path("/proc/self/maps")
"""Of this process, on Linux."""
MANY_MAPPINGS = 40_000
"""XLA's CPU backend maps every compiled function into memory by itself, a thousand for a program or more, and where a
process passes 65,530 mappings, Linux' default limit, it is aborted."""


class Advance(NamedTuple):
    """How to train on, and what is to be known of it."""

    train: Callable[[Any, Any, Any], tuple[Any, Any]]
    """(algorithm, state, num_iterations) -> (state, report)."""
    members: PartitionSpec
    """Which axis of the report of a population is that of its members."""
    in_batches: bool
    """Whether members that do not fit together may train one batch after another."""


ROWS = Advance(
    functools.partial(train_chunk, max_iterations=MAX_CHUNK), PartitionSpec(None, *MEMBERS), in_batches=False
)
"""Every iteration by itself, at most `MAX_CHUNK` of them."""


def _means(population: Any, state: Any, num_iterations: Array) -> Any:
    state, metrics = train_means(population, state, num_iterations)
    return state, (metrics, all_finite(state.params))


MEANS = Advance(_means, MEMBERS, in_batches=True)
"""All iterations as one, and for each member whether its parameters are finite after them."""


class Layout(NamedTuple):
    """How an algorithm and its states lie on the devices."""

    mesh: Mesh
    members: int
    """0 for a single algorithm."""

    @property
    def shards(self) -> int:
        """How many devices keep one copy of the parameters."""
        return self.mesh.shape.get(SHARDS, 1)

    def specs(self, x: Any) -> Any:
        """How a state, keys or anything else with one entry per member is divided."""
        return MEMBERS if self.members else jax.tree.map(lambda leaf: share_of(leaf, self.shards), x)

    def algorithm_specs(self, algorithm: Any) -> Any:
        """How an algorithm or a population is."""
        return algorithm.specs() if self.members else self.specs(algorithm)

    def place(self, x: Any) -> Any:
        """A state, keys or anything else with one entry per member, where they belong."""
        return processes.placed(x, self._shardings(self.specs(x)))

    def place_algorithm(self, algorithm: Any) -> Any:
        """An algorithm, where its leaves belong."""
        return processes.placed(algorithm, self._shardings(self.algorithm_specs(algorithm)))

    def _shardings(self, specs: Any) -> Any:
        return jax.tree.map(lambda s: NamedSharding(self.mesh, s), specs)

    def place_count(self, count: int) -> Any:
        """How many iterations, for every device."""
        return processes.placed(np.int32(count), NamedSharding(self.mesh, PartitionSpec()))


class Programs(NamedTuple):
    """The compiled functions of a run, or of a batch of members."""

    layout: Layout
    init: Any
    """(algorithm, key) -> state."""
    advance: Any
    """(algorithm, state, num_iterations) -> (state, report), as was asked for; `state` is donated."""
    evaluate: Any
    """(algorithm, state) -> scores; None where no evaluation was asked for."""
    report: Any
    """The shapes of that report."""
    scores: tuple[str, ...]
    bytes_needed: int
    """By training, on all devices together."""


def env_layout(algorithm: Algorithm, devices: int | None = None, shards: int = 1) -> Layout:
    """A single algorithm on as many of `devices`, by default all there are, as it says that it divides into, with its
    parameters over `shards` of them.

    Raises:
        InputError: there are several processes, and it does not divide into their devices; or `shards` does not divide
            the devices it divides into.
    """
    there = count_devices(devices)
    size = max(n for n in range(1, there + 1) if n == 1 or algorithm.divides_into(n))
    if processes.count() > 1 and size < there:
        raise InputError(
            f"{type(algorithm).__name__} does not divide over the {there} devices of {processes.count()} processes: "
            f"expected environments and minibatches that are multiples of {there}, and at least {SHARE_STEPS} steps of "
            "each minibatch for each device"
        )
    if size % shards:
        raise InputError(
            f"shards = {shards} is not accepted: expected a divisor of the {size} devices that "
            f"{type(algorithm).__name__} divides over"
        )
    return Layout(env_mesh(size, shards), 0)


def member_layout(population: Population, devices: int | None = None) -> Layout:
    """A population over as many of `devices`, by default all there are, as divide its members into equal shares."""
    return Layout(equal_shares(member_mesh(devices, population.size), population.size), population.size)


def compile_programs(algorithm: Any, layout: Layout, advance: Advance, num: int | None) -> Programs:
    """The programs of an algorithm or a population, evaluated over `num` cases if at all; compiled once for all that
    differ in numbers only.

    Raises:
        InputError: the state, or an array of the program, is larger than the memory.
    """
    forget_programs(MANY_MAPPINGS)
    return _compile(*signature(algorithm), layout, advance, num)


def forget_programs(mappings: int) -> None:
    """Forget compiled programs, those of jax too, if this process has more mappings than that."""
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > mappings:
        _compile.cache_clear()
        jax.clear_caches()


@functools.lru_cache(maxsize=32)
def _compile(structure: Any, shapes: tuple[Any, ...], layout: Layout, advance: Advance, num: int | None) -> Programs:
    """Keyed by everything that selects the programs."""
    like = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*x) for x in shapes])
    mesh, members = layout
    on_devices = functools.partial(_over_members, like, layout) if members else _dividing_itself
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members) if members else jax.random.key(0))
    with contextlib.nullcontext() if members else jax.set_mesh(mesh):
        algorithm, key = _placed(like, mesh, layout.algorithm_specs(like)), _placed(key, mesh, layout.specs(key))
        count = _placed(jax.ShapeDtypeStruct((), jnp.int32), mesh, PartitionSpec())
        reported = advance.members if members else PartitionSpec()
        init_out, train_out = None, None
        if members:  # said once more, since XLA does not divide what is empty
            init_out = NamedSharding(mesh, MEMBERS)
            train_out = init_out, NamedSharding(mesh, reported)
        init = jax.jit(on_devices(lambda algorithm, key: algorithm.init(key), MEMBERS), out_shardings=init_out)
        state = jax.eval_shape(init, algorithm, key)
        state = _placed(state, mesh, layout.specs(state))
        trained = on_devices(advance.train, MEMBERS, PartitionSpec(), out_specs=(MEMBERS, reported))
        train = jax.jit(trained, donate_argnums=1, out_shardings=train_out)
        traced = train.trace(algorithm, state, count)
        parts = members // mesh.size if members and advance.in_batches else 1
        copies = 1 if members else mesh.size // layout.shards
        check_memory(max(total_bytes(state) * copies, largest_array(traced.jaxpr)) // parts, mesh)
        lowered = [init.lower(algorithm, key), traced.lower()]
        scores: tuple[str, ...] = ()
        if num:
            evaluate = jax.jit(on_devices(functools.partial(_evaluate, num=num), MEMBERS))
            traced_evaluation = evaluate.trace(algorithm, state)
            check_memory(largest_array(traced_evaluation.jaxpr) // parts, mesh)
            lowered.append(traced_evaluation.lower())
            scores = tuple(lowered[-1].out_info)
    compiled_init, compiled_train, *compiled_evaluate = _compiled(*lowered)
    needed = _bytes_needed(compiled_train) * mesh.size
    evaluation = compiled_evaluate[0] if num else None
    return Programs(layout, compiled_init, compiled_train, evaluation, traced.out_info[1], scores, needed)


def _evaluate(algorithm: Any, state: Any, num: int) -> Scores:
    return algorithm.evaluate(state, state.key, num)


def _placed(shapes: Any, mesh: Mesh, spec: Any) -> Any:
    """Shapes with the sharding of `spec`, a prefix of their tree."""
    shardings = jax.tree.broadcast(jax.tree.map(lambda s: NamedSharding(mesh, s), spec), shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _dividing_itself(f: Callable[..., Any], *in_specs: Any, out_specs: Any = None) -> Callable[..., Any]:
    """`f` of a single algorithm; its results are on all devices, or in shares."""
    return lambda *args: in_shares(f(*args))


def _over_members(
    like: Population, layout: Layout, f: Callable[..., Any], *in_specs: Any, out_specs: Any = MEMBERS
) -> Callable[..., Any]:
    """`f(population, ...)` of each device's own members."""

    def local(population: Population, *args: Any) -> Any:
        return f(Population(population.member, population.size // layout.mesh.size, population.stacked), *args)

    # Keys and constants made inside a member's run differ by device, which the check of replication refuses.
    in_specs = layout.algorithm_specs(like), *in_specs
    return jax.shard_map(local, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _compiled(*lowered: Any) -> list[Any]:
    """Compiled at the same time: XLA releases Python's lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda program: program.compile(), lowered))


def compile_batch(member: Any, stacked: tuple[bool, ...], size: int, devices: int | None, num: int) -> Programs:
    """The programs of `size` members like `member`; compiled once for every batch of that shape."""
    population = stack([member] * size, stacked)
    return compile_programs(population, member_layout(population, devices), MEANS, num)


def fit(
    member: Any, stacked: tuple[bool, ...], count: int, devices: int | None, num: int, size: int | None
) -> tuple[Programs, int]:
    """Programs for batches of `count` members like `member`, and the size of a batch, all equal.

    `size` is at most how many train together; by default as many as the memory holds that the compiled program says it
    needs.

    Raises:
        InputError: not even one member per device fits.
    """
    mesh = member_mesh(devices, count)
    chosen = min(size or count, count)
    while True:
        batches = -(-count // chosen)
        chosen = -(-count // (batches * mesh.size)) * mesh.size
        programs = compile_batch(member, stacked, chosen, devices, num)
        limit = memory_limit(mesh)
        if programs.bytes_needed <= limit:
            return programs, chosen
        if chosen == mesh.size:
            raise InputError(
                f"not even one member per device fits: {chosen} need {programs.bytes_needed / 1e6:,.0f} MB of "
                f"{limit / 1e6:,.0f} MB; expected fewer environments or steps, or a smaller network"
            )
        chosen = max(mesh.size, min(chosen - 1, int(chosen * limit / programs.bytes_needed)))


def _bytes_needed(compiled: Any) -> int:
    found = compiled.memory_analysis()
    both = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return both + found.temp_size_in_bytes
