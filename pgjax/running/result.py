"""A finished run in the hands of its user."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax.core.algorithm import Key
from pgjax.core.errors import InputError
from pgjax.core.parts import subject_name
from pgjax.core.text import html_table
from pgjax.running.export import export


class Result(NamedTuple):
    """A finished run."""

    algorithm: Any
    """As it was given, or rebuilt from the config."""
    state: Any
    """With a leading axis of members for several seeds."""
    metrics: Mapping[str, np.ndarray]
    """`[num_iterations]` each, `[num_iterations, members]` for several seeds; NaN where there was nothing to report."""
    steps: int
    """Of the whole run, in the algorithm's unit."""
    steps_now: int
    """Of them, those trained in this process."""
    seconds_compile: float
    seconds_run: float

    def summary(self) -> dict[str, str]:
        """What there is to say of the run in a few words."""
        name = self.algorithm.score[0]
        iteration = self.state.iteration
        found = {
            "algorithm": f"{type(self.algorithm).__name__} on {subject_name(self.algorithm)}",
            "length": f"{self.steps:,} {self.algorithm.unit}",
        }
        found |= {"members": str(len(iteration))} if iteration.ndim else {}
        known: Any = self.metrics.get(name, ()) if isinstance(self.metrics, dict) else ()  # others are in a file
        last = np.nanmean(known[-1]) if len(known) else np.nan
        found |= {f"last {name}": f"{last:.4g}"} if np.isfinite(last) else {}
        times = {"compiled": self.seconds_compile, "ran": self.seconds_run}
        return found | {what: f"{seconds:.1f} s" for what, seconds in times.items() if seconds}

    def __repr__(self) -> str:
        return f"Result({', '.join(f'{name}: {text}' for name, text in self.summary().items())})"

    def _repr_html_(self) -> str:
        metrics = ", ".join(self.metrics) if isinstance(self.metrics, dict) else repr(self.metrics)
        return html_table([*map(list, self.summary().items()), ["changed", repr(self.algorithm)], ["metrics", metrics]])

    def predict(self, obs: Any, deterministic: bool = True, key: Key | None = None, memory: Any = None) -> Any:
        """The action for one observation, or one per observation of a batch, as NumPy.

        `deterministic` plays the mode of the policy; otherwise the action is sampled with `key`. A continuous action is
        what the environment would receive, in its own bounds. A network with memory gives `(action, memory)`, and gets
        that memory with the next observation; without one, an episode starts.

        Raises:
            InputError: the algorithm has no policy in an environment, `key` is missing, `obs` has another shape, or
                `memory` is not of this network and batch.
        """
        if not hasattr(self.algorithm, "predict"):
            raise InputError(f"predict: {type(self.algorithm).__name__} has no policy in an environment")
        return self.algorithm.predict(self.state, obs, deterministic, key, memory)

    def export(self, path: str | Path) -> None:
        """Write the greedy policy, with its normaliser and the mapping of its actions, for where there is no jax:
        `.npz`, which `pgjax/running/numpy_policy.py` reads with NumPy alone, or `.onnx`.

        Raises:
            InputError: as `running.export.export` does; or there are several members: export `member(i)`.
        """
        if self.state.iteration.ndim:
            raise InputError(f"export: there are {len(self.state.iteration)} members: expected one, by member(i)")
        export(self.algorithm, self.state, path)

    def member(self, i: int) -> "Result":
        """One member of a run with several seeds, to be evaluated or used alone."""
        state = jax.tree.map(lambda x: x[i], self.state)
        metrics = {name: x[:, i] if x.ndim == 2 else x for name, x in self.metrics.items()}
        return self._replace(state=state, metrics=metrics)
