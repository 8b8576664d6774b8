"""The cores of a CPU as devices of their own: XLA keeps more than one busy only with what runs on several devices."""

import os
import sys
import warnings

from pgjax.core.errors import InputError


def use_all_cores() -> None:
    """Let jax have as many CPU devices as the environment variable `PGJAX_CPU_DEVICES` says, by default one per core.

    Without that variable a number chosen for jax itself stands, in `JAX_NUM_CPU_DEVICES` or `XLA_FLAGS`. If jax is
    running, it is too late: a `UserWarning` says so, and everything runs on the devices that there are.

    Raises:
        InputError: `PGJAX_CPU_DEVICES` is not a positive number.
    """
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen and "PGJAX_CPU_DEVICES" not in os.environ:
        return
    devices = _wanted()
    if "jax" not in sys.modules:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(devices)  # read when jax is imported, which takes too long for now
        return
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        if jax.default_backend() == "cpu" and jax.local_device_count() < devices:
            warnings.warn(
                f"jax was running before pgjax was imported with {jax.local_device_count()} CPU device for {devices} "
                "cores, so training will not use them all: import pgjax first",
                stacklevel=3,
            )


def count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wanted() -> int:
    given = os.environ.get("PGJAX_CPU_DEVICES")
    if given is None:
        return count_cores()
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"PGJAX_CPU_DEVICES = {given!r} is not accepted: expected a number of devices, 1 or more")
    return int(given)
