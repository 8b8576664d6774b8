"""What runs and sweeps compile: once per shape, several programs at the same time, for all devices there are."""

import functools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from pgjax.core.algorithm import Metrics
from pgjax.core.devices import MEMBERS, dividing, env_mesh, everywhere, local_devices, member_mesh
from pgjax.core.errors import InputError
from pgjax.running.loop import train_chunk
from pgjax.running.population import Population, all_finite, scores, signature, stack, train_means

MAX_CHUNK = 256
MEMORY_SHARE = 0.8


class Programs(NamedTuple):
    """The compiled functions of a run."""

    init: Any
    """(algorithm, key) -> state."""
    chunk: Any
    """(algorithm, state, num_iterations) -> (state, metrics), of at most `MAX_CHUNK` iterations; `state` is donated."""
    scores: Any
    """(algorithm, state) -> evaluations."""
    algorithm_sharding: Any
    sharding: Any
    """Of keys, states and evaluations."""


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


def compile_run(algorithm: Any, episodes: int | None, devices: int | None = None) -> Programs:
    """The programs of a run of an algorithm or a population; `scores` is left out without `episodes`.

    The members of a population are spread over `devices`, by default all local ones; the environments of a single
    algorithm are divided over as many of these as it says that it divides into.
    """
    return _compile_run(*signature(algorithm), episodes, local_devices(devices))


@functools.lru_cache(maxsize=32)
def _compile_run(structure: Any, shapes: tuple[Any, ...], episodes: int | None, devices: int) -> Programs:
    like = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*x) for x in shapes])
    spread: Callable[..., Any]
    algorithm_spec: Any
    if isinstance(like, Population):
        mesh = dividing(member_mesh(devices, like.size), like.size)
        spread, keys = functools.partial(_over_members, like, mesh), _keys(like.size)
        algorithm_spec, spec, metrics_spec = like.specs(), MEMBERS, PartitionSpec(None, *MEMBERS)
    else:
        mesh = env_mesh(max(n for n in range(1, devices + 1) if n == 1 or like.divides_into(n)))
        spread, keys = _with_results_everywhere, jax.eval_shape(lambda: jax.random.key(0))
        algorithm_spec = spec = metrics_spec = PartitionSpec()
    with jax.set_mesh(mesh):
        algorithm, key = _placed(like, mesh, algorithm_spec), _placed(keys, mesh, spec)
        count = _placed(jax.ShapeDtypeStruct((), jnp.int32), mesh, PartitionSpec())
        init = jax.jit(spread(lambda algorithm, key: algorithm.init(key), spec))
        state = _placed(jax.eval_shape(init, algorithm, key), mesh, spec)
        advance = functools.partial(train_chunk, max_iterations=MAX_CHUNK)
        chunk = jax.jit(spread(advance, spec, PartitionSpec(), out_specs=(spec, metrics_spec)), donate_argnums=1)
        lowered = [init.lower(algorithm, key), chunk.lower(algorithm, state, count)]
        if episodes:
            evaluation = jax.jit(spread(functools.partial(_scores, episodes=episodes), spec))
            lowered.append(evaluation.lower(algorithm, state))
    compiled_init, compiled_chunk, *compiled_scores = _compiled(*lowered)
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), (algorithm_spec, spec))
    return Programs(compiled_init, compiled_chunk, compiled_scores[0] if episodes else None, *shardings)


def _scores(algorithm: Any, state: Any, episodes: int) -> Metrics:
    return (
        algorithm.scores(state, episodes) if isinstance(algorithm, Population) else scores(algorithm, state, episodes)
    )


def _keys(members: int) -> Any:
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members))


def _placed(shapes: Any, mesh: Mesh, spec: Any) -> Any:
    """Shapes with the sharding of `spec`, a prefix of their tree."""
    shardings = jax.tree.broadcast(jax.tree.map(lambda s: NamedSharding(mesh, s), spec), shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _with_results_everywhere(f: Callable[..., Any], *in_specs: Any, out_specs: Any = None) -> Callable[..., Any]:
    """`f` of an algorithm that divides itself."""
    return lambda *args: everywhere(f(*args))


def _over_members(
    like: Population, mesh: Mesh, f: Callable[..., Any], *in_specs: Any, out_specs: Any = MEMBERS
) -> Callable[..., Any]:
    """`f(population, ...)` of each device's own members."""

    def local(population: Population, *args: Any) -> Any:
        return f(Population(population.member, population.size // mesh.size, population.stacked), *args)

    # Keys and constants made inside a member's run differ by device, which the check of replication refuses.
    return jax.shard_map(local, mesh=mesh, in_specs=(like.specs(), *in_specs), out_specs=out_specs, check_vma=False)


def _compiled(*lowered: Any) -> list[Any]:
    """Compiled at the same time: XLA releases Python's lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda program: program.compile(), lowered))


@functools.lru_cache(maxsize=32)
def _compile(structure: Any, shapes: tuple[Any, ...], mesh: Mesh, episodes: int) -> Program:
    """Keyed by everything that selects the program, so that another batch of the same shape compiles nothing."""
    like = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*x) for x in shapes])
    spread = functools.partial(_over_members, like, mesh)

    def trained(population: Population, state: Any, num_iterations: Array) -> Any:
        state, metrics = train_means(population, state, num_iterations)
        return state, metrics, all_finite(state.params)

    population = _placed(like, mesh, like.specs())
    keys = _placed(_keys(like.size), mesh, MEMBERS)
    init = jax.jit(spread(lambda population, keys: population.init(keys), MEMBERS))
    state = _placed(jax.eval_shape(init, population, keys), mesh, MEMBERS)
    count = _placed(jax.ShapeDtypeStruct((), jnp.int32), mesh, PartitionSpec())
    traced = jax.jit(spread(trained, MEMBERS, PartitionSpec()), donate_argnums=1).trace(population, state, count)
    _refuse_if_hopeless(traced.jaxpr.jaxpr, like.size // mesh.size, mesh)
    metrics = tuple(traced.out_info[1])
    evaluation = jax.jit(spread(functools.partial(_scores, episodes=episodes), MEMBERS))
    train, init, evaluation = _compiled(
        traced.lower(), init.lower(population, keys), evaluation.lower(population, state)
    )
    return Program(mesh, train, init, evaluation, metrics, _bytes_needed(train) * mesh.size)


def compile_batch(member: Any, stacked: tuple[bool, ...], size: int, mesh: Mesh, episodes: int) -> Program:
    """The program of `size` members like `member`; compiled once for every batch of that shape."""
    return _compile(*signature(stack([member] * size, stacked)), dividing(mesh, size), episodes)


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
