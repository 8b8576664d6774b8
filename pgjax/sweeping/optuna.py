"""Optuna proposes, one compiled program evaluates: a study driven a population at a time. Needs the extra `optuna`."""

import importlib
from typing import Any

import numpy as np

from pgjax.core.errors import InputError
from pgjax.sweeping.search import ranked_by
from pgjax.sweeping.shell import sweep
from pgjax.sweeping.space import ValueDistribution, check_axes


def optuna_search(
    algorithm: Any,
    study: Any,
    /,
    num_trials: int,
    batch_size: int = 16,
    seeds: int = 1,
    *,
    metric: str = "score",
    last: int = 5,
    progress: bool = True,
    **axes: ValueDistribution,
) -> Any:
    """Train trials of an `optuna.Study`, `batch_size` of them as one population, and tell it the results.

    A trial's value is the mean over its seeds of `metric`, as in `SweepResult.setting_scores`; a trial with a member
    that failed is told as failed. A study with a storage of its own goes on where it was: trials it has finished count
    towards `num_trials`, and those that a stopped process left running are told as failed and do not. Batches of one
    size share one compiled program if no axis selects a program.

    Returns:
        The study.

    Raises:
        InputError: `study` is none or looks for the other end of `metric`; no axis is given, or one is not a
            distribution; a size is not positive.
    """
    optuna = _optuna()
    if not isinstance(study, optuna.study.Study):
        raise InputError(
            f"optuna_search: study = {study!r} is not accepted: expected an optuna.Study, of optuna.create_study()"
        )
    distributions = {name: _to_optuna(optuna, name, axis) for name, axis in axes.items()}
    check_axes(algorithm, axes)
    if not axes:
        raise InputError("optuna_search needs at least one axis, such as learning_rate=pgjax.log_uniform(1e-4, 1e-2)")
    direction = "minimize" if ranked_by(metric, algorithm)[1] < 0 else "maximize"
    if study.direction != optuna.study.StudyDirection[direction.upper()]:
        raise InputError(
            f'the study does not {direction} {metric}: expected optuna.create_study(direction="{direction}")'
        )
    for name, value in {"num_trials": num_trials, "batch_size": batch_size}.items():
        if value < 1:
            raise InputError(f"optuna_search: {name} = {value} is not accepted: expected at least 1")
    states = optuna.trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):
        study.tell(trial.number, state=states.FAIL)
    while (left := num_trials - _told(study, states)) > 0:
        trials = [study.ask(distributions) for _ in range(min(batch_size, left))]
        values: dict[str, Any] = {name: [trial.params[name] for trial in trials] for name in axes}
        result = sweep(algorithm, seeds, mode="zip", progress=progress, **values)
        for trial, value in zip(trials, result.setting_scores(metric, last).mean(axis=1), strict=True):
            trial.set_user_attr("pgjax", True)
            study.tell(trial, None if np.isnan(value) else float(value), states.FAIL if np.isnan(value) else None)
    return study


def _told(study: Any, states: Any) -> int:
    """Trials that were trained, whether they were finite or not."""
    return sum("pgjax" in trial.user_attrs for trial in study.get_trials(states=(states.COMPLETE, states.FAIL)))


def _to_optuna(optuna: Any, name: str, axis: Any) -> Any:
    if not isinstance(axis, ValueDistribution):
        raise InputError(f"axis {name} = {axis!r} is not accepted: Optuna proposes values, expected a distribution")
    if axis.kind == "choice":
        return optuna.distributions.CategoricalDistribution(axis.arguments)
    if axis.kind == "integers":
        return optuna.distributions.IntDistribution(*axis.arguments)
    return optuna.distributions.FloatDistribution(*axis.arguments, log=axis.kind == "log_uniform")


def _optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise InputError("optuna_search needs Optuna: pip install 'pgjax[optuna]'") from error
