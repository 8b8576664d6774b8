"""pgjax: a training run is a pure function, `train(algorithm, key) -> (state, metrics)`.

Names are imported when they are first used, so that `import pgjax` and the command line's help load neither jax nor
gymnax. Importing it gives jax one CPU device for each core (`core/cores.py`). Read the rooms in this order: core,
environments, networks, learning, algorithms, running, alignment, reporting, sweeping, docs, commands. Imports point
upward in that list, and within each room in the list that its docstring gives.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pgjax.core.cores import use_all_cores

if TYPE_CHECKING:
    from pgjax import alignment as alignment
    from pgjax.algorithms import register_algorithm as register_algorithm
    from pgjax.algorithms.a2c import A2C as A2C
    from pgjax.algorithms.ddpg import DDPG as DDPG
    from pgjax.algorithms.discrete_sac import DiscreteSAC as DiscreteSAC
    from pgjax.algorithms.npg import NPG as NPG
    from pgjax.algorithms.ppo import PPO as PPO
    from pgjax.algorithms.reinforce import REINFORCE as REINFORCE
    from pgjax.algorithms.sac import SAC as SAC
    from pgjax.algorithms.td3 import TD3 as TD3
    from pgjax.algorithms.trpo import TRPO as TRPO
    from pgjax.algorithms.vpg import VPG as VPG
    from pgjax.core.errors import InputError as InputError
    from pgjax.core.errors import Interrupted as Interrupted
    from pgjax.core.hyperparameters import Scalar as Scalar
    from pgjax.core.hyperparameters import field as field
    from pgjax.core.hyperparameters import pytree as pytree
    from pgjax.core.processes import connect as connect
    from pgjax.environments import wrappers as wrappers
    from pgjax.environments.registry import make as make
    from pgjax.environments.registry import register as register
    from pgjax.environments.registry import registered_envs as registered_envs
    from pgjax.learning import losses as losses
    from pgjax.learning import returns as returns
    from pgjax.learning.evaluation import Evaluation as Evaluation
    from pgjax.learning.evaluation import evaluate as evaluate
    from pgjax.networks.critic import CNNCritic as CNNCritic
    from pgjax.networks.critic import MLPCritic as MLPCritic
    from pgjax.networks.feedforward import CNN as CNN
    from pgjax.networks.feedforward import MLP as MLP
    from pgjax.networks.feedforward import Custom as Custom
    from pgjax.networks.recurrent import GRU as GRU
    from pgjax.networks.registry import register_network as register_network
    from pgjax.networks.transformer import Transformer as Transformer
    from pgjax.reporting.page import report as report
    from pgjax.reporting.plotting import plot as plot
    from pgjax.reporting.rendering import render as render
    from pgjax.running.checkpoint import load_params as load_params
    from pgjax.running.checkpoint import save_params as save_params
    from pgjax.running.loop import train as train
    from pgjax.running.presets import tuned as tuned
    from pgjax.running.shell import Result as Result
    from pgjax.running.shell import load as load
    from pgjax.running.shell import resume as resume
    from pgjax.running.shell import run as run
    from pgjax.running.stopping import EarlyStopping as EarlyStopping
    from pgjax.sweeping.optuna import optuna_search as optuna_search
    from pgjax.sweeping.result import SweepResult as SweepResult
    from pgjax.sweeping.search import PBT as PBT
    from pgjax.sweeping.search import SuccessiveHalving as SuccessiveHalving
    from pgjax.sweeping.shell import resume_sweep as resume_sweep
    from pgjax.sweeping.shell import sweep as sweep
    from pgjax.sweeping.space import choice as choice
    from pgjax.sweeping.space import integers as integers
    from pgjax.sweeping.space import log_uniform as log_uniform
    from pgjax.sweeping.space import uniform as uniform

_EXPORTS = {
    "make": "environments.registry",
    "register": "environments.registry",
    "registered_envs": "environments.registry",
    "register_algorithm": "algorithms",
    "register_network": "networks.registry",
    "MLP": "networks.feedforward",
    "CNN": "networks.feedforward",
    "GRU": "networks.recurrent",
    "Transformer": "networks.transformer",
    "Custom": "networks.feedforward",
    "MLPCritic": "networks.critic",
    "CNNCritic": "networks.critic",
    "REINFORCE": "algorithms.reinforce",
    "VPG": "algorithms.vpg",
    "A2C": "algorithms.a2c",
    "NPG": "algorithms.npg",
    "TRPO": "algorithms.trpo",
    "PPO": "algorithms.ppo",
    "DDPG": "algorithms.ddpg",
    "TD3": "algorithms.td3",
    "SAC": "algorithms.sac",
    "DiscreteSAC": "algorithms.discrete_sac",
    "connect": "core.processes",
    "train": "running.loop",
    "tuned": "running.presets",
    "evaluate": "learning.evaluation",
    "Evaluation": "learning.evaluation",
    "run": "running.shell",
    "resume": "running.shell",
    "load": "running.shell",
    "Result": "running.shell",
    "EarlyStopping": "running.stopping",
    "sweep": "sweeping.shell",
    "resume_sweep": "sweeping.shell",
    "optuna_search": "sweeping.optuna",
    "plot": "reporting.plotting",
    "render": "reporting.rendering",
    "report": "reporting.page",
    "SweepResult": "sweeping.result",
    "uniform": "sweeping.space",
    "log_uniform": "sweeping.space",
    "integers": "sweeping.space",
    "choice": "sweeping.space",
    "SuccessiveHalving": "sweeping.search",
    "PBT": "sweeping.search",
    "save_params": "running.checkpoint",
    "load_params": "running.checkpoint",
    "pytree": "core.hyperparameters",
    "field": "core.hyperparameters",
    "Scalar": "core.hyperparameters",
    "InputError": "core.errors",
    "Interrupted": "core.errors",
}
_MODULES = {
    "wrappers": "environments.wrappers",
    "returns": "learning.returns",
    "losses": "learning.losses",
    "alignment": "alignment",
}
__all__ = [*_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("pgjax")
    if name in _MODULES:
        return importlib.import_module(f"pgjax.{_MODULES[name]}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pgjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pgjax.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_MODULES})


use_all_cores()
