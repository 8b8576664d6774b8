"""Several devices, those of all processes: the members of a population are spread over them, or the environments of
one run, and the parameters of a model that is large.

For one run nothing is to be said where it is written: compiled `with jax.set_mesh(env_mesh(n))`, its environments and
the samples of every minibatch are divided, and without such a mesh the functions that divide them change nothing. With
`env_mesh(n, shards)` parameters and what has their shape are divided as well (fully sharded data parallelism:
Rajbhandari et al., 2020; Zhao et al., 2023): `shards` devices keep one copy, and each has a layer whole only while it
computes with it. A divided run is the undivided one to rounding.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from pgjax.core import processes
from pgjax.core.errors import InputError

ENVS, SHARDS = "envs", "shards"
BOTH = (ENVS, SHARDS)
"""The axes of the mesh that environments and samples are divided over."""
MEMBERS = PartitionSpec("members")
MEMORY_SHARE = 0.8
SHARDED_SIZE = 2**12
"""Arrays with fewer elements are whole on every device: to bring their shares together takes longer than it saves."""
SHARE_STEPS = 128
"""Dividing a run pays where each device has this many environment steps of every minibatch."""


def host_memory() -> int:
    """Bytes available to new programs, or all there are where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit(mesh: Mesh) -> float:
    """Bytes that a program may take on all devices together; those of several processes on CPUs as if all were on the
    machine that has the least."""
    stats = jax.local_devices()[0].memory_stats()
    limit = mesh.size * stats["bytes_limit"] if stats else host_memory()
    return MEMORY_SHARE * min(processes.exchanged(limit))


def check_memory(needed: float, mesh: Mesh) -> None:
    """Refuse what takes so many bytes on all devices together, if they are too many.

    Raises:
        InputError: naming what is needed and what there is.
    """
    if needed > memory_limit(mesh):
        raise InputError(
            f"this does not fit into memory: it takes at least {needed / 1e6:,.0f} MB of "
            f"{memory_limit(mesh) / 1e6:,.0f} MB; expected fewer environments, steps or episodes, or a smaller network"
        )


def total_bytes(shapes: Any) -> int:
    """Of all arrays of a pytree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def largest_array(jaxpr: Any) -> int:
    """Bytes of the largest array that a traced program computes: no program can do with less."""
    largest = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = [x for value in equation.params.values() for x in (value if isinstance(value, tuple) else (value,))]
        sizes = [total_bytes(v.aval) for v in equation.outvars if hasattr(v.aval, "shape")]
        sizes += [largest_array(x) for x in inner if hasattr(getattr(x, "jaxpr", x), "eqns")]
        largest = max([largest, *sizes])
    return largest


def count_devices(wanted: int | None) -> int:
    """How many devices to use: all by default, and always all of several processes.

    Raises:
        InputError: there are not that many.
    """
    there, several = jax.device_count(), processes.count()
    is_whole = isinstance(wanted, int) and not isinstance(wanted, bool)
    if wanted is not None and not (is_whole and 1 <= wanted <= there):
        raise InputError(f"devices = {wanted!r} is not accepted: expected from 1 to the {there} there are")
    if several > 1 and wanted not in (None, there):
        raise InputError(f"devices = {wanted} is not accepted: {several} processes use all {there} they have")
    return wanted or there


def member_mesh(devices: int | None, members: int) -> Mesh:
    """Devices, but not more than there are members, as one axis that members are spread over; of several processes
    all."""
    there = count_devices(devices)
    return Mesh(np.array(jax.devices()[: there if processes.count() > 1 else min(there, members)]), tuple(MEMBERS))


def equal_shares(mesh: Mesh, members: int) -> Mesh:
    """As many of its devices as divide the members into equal shares.

    Raises:
        InputError: there are several processes, and their devices do not.
    """
    size = max(n for n in range(1, mesh.size + 1) if members % n == 0)
    if processes.count() > 1 and size < mesh.size:
        raise InputError(
            f"seeds = {members} is not accepted: expected a multiple of the {mesh.size} devices of "
            f"{processes.count()} processes"
        )
    return Mesh(mesh.devices[:size], mesh.axis_names)


def env_mesh(devices: int, shards: int = 1) -> Mesh:
    """The first devices, which environments are divided over; each `shards` neighbours keep one copy of parameters."""
    return Mesh(np.array(jax.devices()[:devices]).reshape(-1, shards), BOTH)


def _divided() -> bool:
    shape = jax.sharding.get_abstract_mesh().shape
    return shape.get(ENVS, 1) * shape.get(SHARDS, 1) > 1


def _shards() -> int:
    """Of parameters, in what XLA divides by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[SHARDS] if SHARDS in mesh.auto_axes else 1


def share_of(x: Any, shards: int) -> PartitionSpec:
    """How an array is divided over so many shards: numbers, not counts or keys, along the longer of its last two axes
    that they divide, so that the layers of a stack lie as each by itself."""
    small = x.size < SHARDED_SIZE or x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating)
    axes = [i for i in range(x.ndim - 2, x.ndim) if i >= 0 and x.shape[i] % shards == 0]
    if shards == 1 or small or not axes:
        return PartitionSpec()
    axis = max(axes, key=lambda i: x.shape[i])
    return PartitionSpec(*(None,) * axis, SHARDS)


def in_shares(x: Any) -> Any:
    """Arrays laid out as `share_of` says, those without shares whole on every device."""
    shards = _shards()
    if not _divided():
        return x
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, share_of(leaf, shards)), x)


def gathered(params: Any) -> Any:
    """Parameters of which every device has all, for as long as it computes with them; their gradients go back into
    shares."""
    return jax.tree.map(_gathered, params) if _shards() > 1 else params


@jax.custom_vjp
def _gathered(x: Any) -> Any:
    return everywhere(x)


_gathered.defvjp(lambda x: (everywhere(x), None), lambda _, gradient: (in_shares(everywhere(gradient)),))


def everywhere(x: Any) -> Any:
    """Arrays of which every device has a copy."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) if _divided() else x


def shared_out(x: Any) -> Any:
    """Arrays of which every device has a share of the rows, so that XLA divides what is computed from them."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BOTH)) if _divided() else x


def each_on_its_own(f: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
    """`f` run by every device on its share of the arguments, whose axis in `in_axes` is divided.

    For loops in which devices must not wait for each other, as they would where a condition depends on all shares.
    """
    if not _divided():
        return f
    in_specs, out_specs = (jax.tree.map(_spec, axes) for axes in (in_axes, out_axes))
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def mean_of_shares(f: Callable[..., tuple[Any, Any]], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """The weighted mean over all samples of what `f` sums over some of them.

    `f(*args) -> (sums, weight)`: a pytree of sums over the samples it was given, and how much these weigh together.
    Each device sums over its share of the arguments, divided along `in_axes` (None for what all have whole), and all
    sums are divided by all weights (0 of nothing), so that a masked mean over devices is the masked mean. Sums and
    weight travel as one vector: devices that meet once for each array would wait longer than they compute.
    """

    def mean(sums: Any, weight: Any) -> Any:
        return jax.tree.map(lambda x: x / jnp.where(weight > 0.0, weight, 1.0), sums)

    if not _divided():
        return lambda *args: mean(*f(*args))

    def added(*args: Any) -> Any:
        vector, restore = ravel_pytree(f(*args))
        return mean(*restore(jax.lax.psum(vector, BOTH)))

    in_specs = tuple(PartitionSpec() if axis is None else _spec(axis) for axis in in_axes)
    if _shards() > 1:  # no device has the parameters: what it needs of them when, XLA arranges

        def arranged(*args: Any) -> Any:
            divided = zip(args, in_axes, in_specs, strict=True)
            return mean(*f(*(x if axis is None else jax.lax.with_sharding_constraint(x, s) for x, axis, s in divided)))

        return arranged
    return jax.shard_map(added, in_specs=in_specs, out_specs=PartitionSpec(), check_vma=False)


def _spec(axis: int) -> PartitionSpec:
    return PartitionSpec(*(None,) * axis, BOTH)
