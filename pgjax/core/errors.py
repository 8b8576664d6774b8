"""What is raised on purpose. Imports nothing heavy: the command line's help uses it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input refused before anything compiles; the message names the field, the value and what would be accepted."""


ELSEWHERE = {
    "batch_size": "num_minibatches",
    "clip_range": "clip_eps",
    "clip_coef": "clip_eps",
    "lr": "learning_rate",
    "n_envs": "num_envs",
    "n_epochs": "num_epochs",
    "n_eval_episodes": "num_episodes",
    "n_steps": "num_steps",
    "net_arch": "hidden",
    "policy": "network",
    "policy_kwargs": "network",
    "total_timesteps": "total_steps",
    "update_epochs": "num_epochs",
}
"""What other libraries call a field."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The part of an error message that suggests what `name` may have meant."""
    known = sorted(known)
    if ELSEWHERE.get(name) in known:
        return f"did you mean {ELSEWHERE[name]}?"
    close = [each for each in known if each.lower() == name.lower()]
    close = close or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


class Interrupted(Exception):
    """A run that a signal asked to stop, and that has saved itself; the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
