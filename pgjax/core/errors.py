"""What is raised on purpose. Imports nothing heavy: the command line's help uses it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input refused before anything compiles; the message names the field, the value and what would be accepted."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The part of an error message that suggests what `name` may have meant."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


class Interrupted(Exception):
    """A run that a signal asked to stop, and that has saved itself; the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
