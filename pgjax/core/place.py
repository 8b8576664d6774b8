"""Which of several processes this is, by its environment; without jax, so that the command line can ask at once."""

from collections.abc import Mapping
from typing import NamedTuple

from pgjax.core.errors import InputError


class Place(NamedTuple):
    """Which of several processes this one is."""

    coordinator: str
    """HOST:PORT at which the first one listens."""
    processes: int
    process: int


def place_of(environ: Mapping[str, str]) -> Place | None:
    """What the environment says: our own variables, as `pgjax launch` sets them, or those of a SLURM step with several
    tasks; None for a process by itself.

    Raises:
        InputError: some of our variables are not there, or a value is not accepted.
    """
    names = "PGJAX_COORDINATOR", "PGJAX_PROCESSES", "PGJAX_PROCESS"
    own = [name for name in names if name in environ]
    if own:
        missing = [name for name in names if name not in environ]
        if missing:
            raise InputError(f"{own[0]} is set and {' and '.join(missing)} is not: expected all of {', '.join(names)}")
        return Place(environ[names[0]], _number(environ, names[1], 1), _number(environ, names[2], 0))
    if "SLURM_PROCID" in environ and _number(environ, "SLURM_NTASKS", 1, "1") > 1:
        host = _first_host(environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_NODELIST", "localhost")))
        port = 61440 + _number(environ, "SLURM_JOB_ID", 0, "0") % 4096
        return Place(f"{host}:{port}", _number(environ, "SLURM_NTASKS", 1), _number(environ, "SLURM_PROCID", 0))
    return None


def _number(environ: Mapping[str, str], name: str, least: int, default: str = "") -> int:
    text = environ.get(name, default)
    if not text.isdecimal() or int(text) < least:
        raise InputError(f"{name} = {text!r} is not accepted: expected a whole number of at least {least}")
    return int(text)


def _first_host(nodes: str) -> str:
    """Of a SLURM list such as `node[3-5,8],login`."""
    prefix, bracket, inside = nodes.partition("[")
    if not bracket or "," in prefix:
        return nodes.partition(",")[0]
    return prefix + inside.partition("]")[0].partition(",")[0].partition("-")[0]
