"""pgjax: a training run is a pure function, `train(algorithm, key) -> (state, metrics)`.

Names are imported when they are first used, so that `import pgjax` and the command line's help load neither jax nor
gymnax. Importing it gives jax one CPU device for each core (`cores.py`). Read the rooms in this order: errors, cores,
rundir, types, sharding, environments, distributions, networks, normalize, rollout, returns, losses, optimizers,
algorithms, train, evaluate, population, programs, checkpoint, logging, run, statistics, plotting, axes, search, plan,
results, sweep, optuna_search, presets, flags, cli. Imports point upward in that list.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pgjax.cores import use_all_cores

if TYPE_CHECKING:
    from pgjax.algorithms.a2c import A2C as A2C
    from pgjax.algorithms.npg import NPG as NPG
    from pgjax.algorithms.ppo import PPO as PPO
    from pgjax.algorithms.reinforce import REINFORCE as REINFORCE
    from pgjax.algorithms.trpo import TRPO as TRPO
    from pgjax.algorithms.vpg import VPG as VPG
    from pgjax.axes import choice as choice
    from pgjax.axes import integers as integers
    from pgjax.axes import log_uniform as log_uniform
    from pgjax.axes import uniform as uniform
    from pgjax.checkpoint import load_params as load_params
    from pgjax.checkpoint import save_params as save_params
    from pgjax.environments.gymnax import make as make
    from pgjax.environments.gymnax import register as register
    from pgjax.environments.gymnax import registered_envs as registered_envs
    from pgjax.errors import InputError as InputError
    from pgjax.errors import Interrupted as Interrupted
    from pgjax.evaluate import Evaluation as Evaluation
    from pgjax.evaluate import evaluate as evaluate
    from pgjax.networks import CNN as CNN
    from pgjax.networks import GRU as GRU
    from pgjax.networks import MLP as MLP
    from pgjax.networks import Custom as Custom
    from pgjax.optuna_search import optuna_search as optuna_search
    from pgjax.results import SweepResult as SweepResult
    from pgjax.run import Result as Result
    from pgjax.run import load as load
    from pgjax.run import resume as resume
    from pgjax.run import run as run
    from pgjax.search import PBT as PBT
    from pgjax.search import SuccessiveHalving as SuccessiveHalving
    from pgjax.sweep import resume_sweep as resume_sweep
    from pgjax.sweep import sweep as sweep
    from pgjax.train import train as train

_EXPORTS = {
    "make": "environments.gymnax",
    "register": "environments.gymnax",
    "registered_envs": "environments.gymnax",
    "MLP": "networks",
    "CNN": "networks",
    "GRU": "networks",
    "Custom": "networks",
    "REINFORCE": "algorithms.reinforce",
    "VPG": "algorithms.vpg",
    "A2C": "algorithms.a2c",
    "NPG": "algorithms.npg",
    "TRPO": "algorithms.trpo",
    "PPO": "algorithms.ppo",
    "train": "train",
    "evaluate": "evaluate",
    "Evaluation": "evaluate",
    "run": "run",
    "resume": "run",
    "load": "run",
    "Result": "run",
    "sweep": "sweep",
    "resume_sweep": "sweep",
    "optuna_search": "optuna_search",
    "SweepResult": "results",
    "uniform": "axes",
    "log_uniform": "axes",
    "integers": "axes",
    "choice": "axes",
    "SuccessiveHalving": "search",
    "PBT": "search",
    "save_params": "checkpoint",
    "load_params": "checkpoint",
    "InputError": "errors",
    "Interrupted": "errors",
}
__all__ = list(_EXPORTS)


class _Package(ModuleType):
    """`pgjax.train` is the function, also after the module of that name has been imported."""

    def __getattr__(self, name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module 'pgjax' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"pgjax.{_EXPORTS[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_EXPORTS})


sys.modules[__name__].__class__ = _Package
use_all_cores()
