"""The algorithms, by the name the command line uses: class and one sentence. Nothing is imported until it is used.

Read `on_policy` (what they share), then one file per idea: `reinforce`, `vpg`, `a2c`, `npg`, `trpo`, `ppo`.
"""

import importlib
from typing import Any

from pgjax.core.errors import InputError, nearest

ALGORITHMS = {
    "reinforce": ("REINFORCE", "the score function times the returns of complete episodes (Williams, 1992)"),
    "vpg": ("VPG", "vanilla policy gradient: a learned value, generalised advantages (Schulman et al., 2016)"),
    "a2c": ("A2C", "advantage actor-critic: policy and value together, short rollouts (Mnih et al., 2016)"),
    "npg": ("NPG", "natural policy gradient: steps measured by the KL divergence (Kakade, 2002)"),
    "trpo": ("TRPO", "trust region policy optimisation: npg with a line search (Schulman et al., 2015)"),
    "ppo": ("PPO", "proximal policy optimisation: clipped or penalised ratios (Schulman et al., 2017)"),
}


def algorithm_class(name: str) -> Any:
    """The class called `name` in the table above.

    Raises:
        InputError: an unknown name, with the nearest known ones.
    """
    if name not in ALGORITHMS:
        raise InputError(f"algorithm = {name!r} is not known: {nearest(name, ALGORITHMS)}")
    return getattr(importlib.import_module(f"pgjax.algorithms.{name}"), ALGORITHMS[name][0])
