"""Several processes that run one program together, each with devices of its own, on one machine or many.

`connect` joins them, by `jax.distributed`. From then on they make the same calls, and a run divides over the devices
of all. What only one of them may do, such as writing files, is the first one's; what depends on a clock, a signal or a
file is exchanged, so that all do the same. With one process everything here is nothing.
"""

import contextlib
import functools
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # the coordinator's messages have no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pgjax.core.errors import InputError
from pgjax.core.place import place_of

CONNECT_SECONDS = 300
"""How long processes wait for each other at the start."""
HEARTBEAT_SECONDS = 100
"""After so long without a sign of life a process counts as lost, and all others end."""
WAIT_SECONDS = 24 * 3600
"""How long one that is alive is waited for: it may compile, or write a checkpoint."""


def connect(
    coordinator: str | None = None,
    processes: int = 1,
    process: int = 0,
    timeout: float = CONNECT_SECONDS,
    heartbeat: int = HEARTBEAT_SECONDS,
) -> None:
    """Join `processes` processes of which this is number `process`, from 0; before jax computes anything.

    Args:
        coordinator: HOST:PORT where the first one listens, reached by all. Without it the environment says all three,
            as `pgjax launch` or SLURM have set it, and nothing is done where it does not.
        timeout: seconds that they wait for each other.
        heartbeat: seconds without a sign of life after which a process counts as lost, and all others are ended.

    Raises:
        InputError: the numbers do not fit together, the port is in use, or a process did not come in time.
    """
    if coordinator is None:
        place = place_of(os.environ)
        if place is None:
            return
        coordinator, processes, process = place
    if not 0 <= process < processes:
        raise InputError(f"connect: process = {process} is not accepted: expected one from 0 to {processes - 1}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"connect: coordinator = {coordinator!r} is not accepted: expected HOST:PORT")
    _meet(host, int(port), processes, process, timeout)
    # Programs that meet other processes must start in the same order everywhere, and signals are the run's.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        cluster_detection_method="deactivate",
        initialization_timeout=max(1, round(timeout)),
        heartbeat_timeout_seconds=heartbeat,
    )


def _meet(host: str, port: int, processes: int, process: int, timeout: float) -> None:
    """Wait until all are there, before jax does, which aborts a process that waits in vain."""
    deadline = time.monotonic() + timeout
    if process == 0:
        _wait_for_all(port, processes, deadline, timeout)
        return
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0) as connection:
            connection.sendall(process.to_bytes(4))
            connection.settimeout(max(1.0, deadline - time.monotonic()))
            if connection.recv(2) == b"go":
                return
        time.sleep(0.2)
    raise InputError(f"process {process} of {processes} met no process 0 at {host}:{port} within {timeout} s")


def _wait_for_all(port: int, processes: int, deadline: float, timeout: float) -> None:
    came: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as opened:
        try:
            listener = opened.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise InputError(f"port {port} cannot be listened on: {os.strerror(error.errno or 0)}") from error
        while len(came) < processes - 1:
            listener.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except OSError as error:
                missing = ", ".join(str(i) for i in range(1, processes) if i not in came)
                raise InputError(
                    f"of {processes} processes number {missing} did not come to port {port} within {timeout} s"
                ) from error
            opened.enter_context(connection)
            connection.settimeout(1.0)
            with contextlib.suppress(OSError):
                came[int.from_bytes(connection.recv(4))] = connection
        for connection in came.values():
            connection.sendall(b"go")


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that owns files, locks and what is shown."""
    return jax.process_index() == 0


_rounds = itertools.count()


def exchanged(value: Any) -> list[Any]:
    """What each process gave, in their order; JSON values.

    Through the coordinator, not the devices: processes that have come apart wait here, where a lost one ends the
    others, and do not read each other's gradients as messages.
    """
    if count() == 1:
        return [value]
    client: Any = distributed.global_state.client
    this = next(_rounds)
    client.key_value_set(f"pgjax/{this}/{jax.process_index()}", json.dumps(value))
    if this > 1 and is_first():  # all have read that round: they have written the one after it
        client.key_value_delete(f"pgjax/{this - 2}/")
    found = [client.blocking_key_value_get(f"pgjax/{this}/{i}", WAIT_SECONDS * 1000) for i in range(count())]
    return list(map(json.loads, found))


def agreed(value: Any) -> Any:
    """What the first process gave."""
    return exchanged(value)[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what may fail in one process alone: the others fail with it instead of waiting for it.

    Raises:
        InputError: another process failed, with its number and what it said.
        And what was raised inside.
    """
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
    said = exchanged("" if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for process, text in enumerate(said):
        if text:
            raise InputError(f"process {process} ended with {text}")


def placed(x: Any, shardings: Any) -> Any:
    """Arrays that all processes have, where they belong; `shardings` is a prefix of their tree."""
    if count() == 1:
        return jax.device_put(x, shardings)
    return jax.tree.map(_placed, x, jax.tree.broadcast(shardings, x))


def _placed(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return _moving(sharding)(x)
    if is_key(x):
        return jax.random.wrap_key_data(_placed(words(x), sharding))
    array = np.asarray(x, jnp.result_type(x))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.lru_cache
def _moving(sharding: NamedSharding) -> Any:
    return jax.jit(lambda x: x, out_shardings=sharding)


def on_host(tree: Any) -> Any:
    """Copies of arrays of all devices, whole, as NumPy in every process; random keys as the words they are made of."""
    leaves, structure = jax.tree.flatten(jax.tree.map(words, tree))
    elsewhere = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not x.is_fully_addressable]
    if elsewhere:
        everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("devices",)), PartitionSpec())
        for i, x in zip(elsewhere, _moving(everywhere)([leaves[i] for i in elsewhere]), strict=True):
            leaves[i] = x
    return jax.tree.unflatten(structure, [np.array(x) for x in leaves])


def whole(tree: Any) -> Any:
    """Arrays that this process can read: those of several processes as copies, all others as they are."""
    return tree if count() == 1 else with_keys(on_host(tree), tree)


def of_first(tree: Any, like: Any) -> Any:
    """The arrays of the first process, whose shapes `like` has; what the others give is not looked at."""
    if count() == 1:
        return tree
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.tree.map(words, like))
    return with_keys(multihost_utils.broadcast_one_to_all(on_host(tree) if is_first() else empty), like)


def with_keys(tree: Any, like: Any) -> Any:
    """What `on_host` was given, with random keys where `like` has them."""
    return jax.tree.map(lambda x, of: jax.random.wrap_key_data(x) if is_key(of) else x, tree, like)


def words(leaf: Any) -> Any:
    """What random keys, or the shape of some, are made of; anything else as it is."""
    if not is_key(leaf):
        return leaf
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    return jax.eval_shape(jax.random.key_data, leaf) if abstract else jax.random.key_data(leaf)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys, or the shape of one."""
    is_array = isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))
    return is_array and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
