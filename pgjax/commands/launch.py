"""`pgjax launch`: a command as several processes of this machine, which watch each other."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType
from typing import Any

from pgjax.commands.flags import flag, parse
from pgjax.core.cores import count_cores
from pgjax.core.errors import InputError, Interrupted

COMMANDS = ("train", "sweep", "resume")
GRACE_SECONDS = 15.0
"""For the others to end by themselves after one has failed, before they are killed."""
START = "import sys; from pgjax.commands.cli import main; sys.exit(main())"


def launch(arguments: list[str]) -> int:
    """Run the command behind our own flags in each process; the exit status of the first one that fails, or 0.

    Raises:
        InputError: no command that can be launched, or a number that is not accepted.
        Interrupted: a signal, which was passed on to all, and all have ended.
    """
    at = next((i for i, argument in enumerate(arguments) if argument in COMMANDS), len(arguments))
    flags = parse(
        "pgjax launch",
        arguments[:at],
        [
            flag("processes", int, "how many, which share the cores", 2),
            flag("port", int, "where the first one listens; default a free one", 0),
        ],
    )
    if at == len(arguments):
        raise InputError(f"pgjax launch needs one of the commands {', '.join(COMMANDS)} behind its own flags")
    if flags.processes < 1:
        raise InputError(f"--processes {flags.processes} is not accepted: expected a whole number of at least 1")
    started = [
        subprocess.Popen([sys.executable, "-c", START, *arguments[at:]], env=each, start_new_session=True)
        for each in environments(flags.processes, flags.port or free_port())
    ]
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _signal(started, number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = _wait(started)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _signal(started, signal.SIGKILL)
    if received:
        raise Interrupted(f"stopped by {signal.Signals(received[0]).name}", received[0])
    return status


def environments(processes: int, port: int) -> list[dict[str, str]]:
    """Of each process: who it is, and its share of the cores unless a number of devices was chosen."""
    shared = {"PGJAX_COORDINATOR": f"localhost:{port}", "PGJAX_PROCESSES": str(processes)}
    share = {"PGJAX_CPU_DEVICES": str(max(1, count_cores() // processes))}
    return [share | os.environ | shared | {"PGJAX_PROCESS": str(process)} for process in range(processes)]


def free_port() -> int:
    """One that nothing listens on just now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def _wait(started: list[subprocess.Popen[Any]]) -> int:
    """Until all have ended: where one fails, the others have a moment to end with it."""
    failed, deadline = 0, float("inf")
    while any(process.poll() is None for process in started) and time.monotonic() < deadline:
        for number, process in enumerate(started):
            if process.returncode and not failed:
                failed, deadline = process.returncode, time.monotonic() + GRACE_SECONDS
                how = signal.Signals(-failed).name if failed < 0 else f"status {failed}"
                sys.stderr.write(f"process {number} ended with {how}: stopping the others\n")
        time.sleep(0.1)
    failed = failed or next((process.returncode for process in started if process.returncode), 0)
    return 128 - failed if failed < 0 else failed


def _signal(started: list[subprocess.Popen[Any]], number: int) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(number)
