"""Ending a run early: a callback that watches one metric."""

import collections
import dataclasses
from typing import Literal

import numpy as np

from pgjax.core.errors import InputError, nearest
from pgjax.core.hyperparameters import documented, field
from pgjax.running.session import Progress, check_count


@documented
@dataclasses.dataclass
class EarlyStopping:
    """Ends a run once a metric has reached a goal, or has not been better for a while.

    `pgjax.run(ppo, callback=pgjax.EarlyStopping("return_mean", goal=475.0))`. What is judged is the metric's mean over
    its last `window` iterations that reported one, and over members. The run ends with the chunk of about a second in
    which that happened. One object watches one run.
    """

    metric: str = field("what is watched, a name in `metrics.jsonl`")
    goal: float | None = field("a mean that is enough", default=None)
    patience: int | None = field("iterations after which no better mean is waited for", default=None)
    window: int = field("iterations of a mean", default=10, accepts="[1, inf)")
    better: Literal["higher", "lower"] = field("which end of the metric is the better one", default="higher")

    def __post_init__(self) -> None:
        if self.goal is None and self.patience is None:
            raise InputError("EarlyStopping.goal = None and patience = None never end a run: expected one of them")
        for name in ("window", *(["patience"] if self.patience is not None else [])):
            check_count(f"EarlyStopping: {name}", getattr(self, name))
        if self.better not in ("higher", "lower"):
            raise InputError(f"EarlyStopping.better = {self.better!r} is not accepted: expected 'higher' or 'lower'")
        self._recent = collections.deque[float](maxlen=self.window)
        self._best, self._best_at = -np.inf, 0

    def __call__(self, progress: Progress) -> bool:
        """Whether it is enough.

        Raises:
            InputError: there is no such metric, with the nearest that there is.
        """
        if self.metric not in progress.metrics:
            raise InputError(f"EarlyStopping.metric = {self.metric!r}: {nearest(self.metric, progress.metrics)}")
        values = progress.metrics[self.metric]
        sign = 1.0 if self.better == "higher" else -1.0
        first = progress.iteration - len(values) + 1
        for iteration, value in enumerate(values.reshape(len(values), -1).mean(axis=1), first):
            if np.isnan(value):
                continue
            self._recent.append(sign * float(value))
            mean = float(np.mean(self._recent))
            if len(self._recent) == self.window and mean > self._best:
                self._best, self._best_at = mean, iteration
        if self.goal is not None and self._best >= sign * self.goal:
            return True
        return self.patience is not None and progress.iteration - self._best_at >= self.patience
