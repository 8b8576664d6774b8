"""The searches behind the presets of PPO: settings of each environment on seeds from 1000 on, which no table reports.

    python experiments/tune.py --envs CartPole-v1
    python experiments/tune.py --envs Breakout-MinAtar --halving     # most of the budget for the best settings

A search is what is fixed and the axes beside it; those of numbers only are one program. Settings are ranked by the mean
over the worse half of their seeds after the last step, so that one seed in eight that fails counts. Each search is kept
when it is done. Writes tune.json (every setting and seed) and tune.md (the best three of each).
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import markdown, write_report

import pgjax
from pgjax.reporting.plotting import label

REMEMBERS = pgjax.GRU(hidden=(32,), memory_size=32)
BOTH = {"normalize_obs": True, "normalize_reward": True}
PHYSICS = BOTH | {"total_steps": 999_424, "num_epochs": 10, "learning_rate": 1e-3, "gamma": [0.95, 0.99]}
SEARCHES: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "total_steps": 204_800,
        "num_steps": [32, 128],
        "num_epochs": 10,
        "num_minibatches": 8,
        "gamma": [0.98, 0.99],
        "learning_rate": [1e-3, 2.5e-3],
    },
    "Acrobot-v1": {"total_steps": 499_712, "num_steps": 32, "learning_rate": 2.5e-3, "ent_coef": [0.0, 0.01]},
    "Pendulum-v1": {
        "total_steps": 999_424,
        "num_envs": 32,
        "num_epochs": 10,
        "num_minibatches": 32,
        "learning_rate": 1e-3,
        "normalize_reward": True,
        "gamma": [0.9, 0.95],
        "gae_lambda": [0.9, 0.95],
    },
    "MountainCar-v0": BOTH
    | {
        "total_steps": 599_040,
        "num_steps": 16,
        "gae_lambda": 0.98,
        "learning_rate": [1e-3, 3e-3],
        "ent_coef": [0.0, 0.01],
    },
    "DeepSea-bsuite": {"total_steps": 499_712, "learning_rate": 2.5e-3, "ent_coef": [0.01, 0.05]},
    "UmbrellaChain-bsuite": {"total_steps": 196_608, "learning_rate": 2.5e-3, "ent_coef": [0.0, 0.01]},
    "DiscountingChain-bsuite": {"total_steps": 262_144, "gamma": [0.99, 1.0], "learning_rate": 2.5e-3},
    "SimpleBandit-bsuite": {"total_steps": 98_304, "num_steps": 32, "learning_rate": 2.5e-3, "ent_coef": [0.0, 0.01]},
    "FrozenLake-misc": {"total_steps": 294_912, "learning_rate": 2.5e-3, "ent_coef": [0.0, 0.01]},
    "FourRooms-misc": {"total_steps": 499_712, "learning_rate": 2.5e-3, "ent_coef": [0.0, 0.01]},
    "BernoulliBandit-misc": {
        "network": REMEMBERS,
        "total_steps": 299_520,
        "num_steps": 100,
        "learning_rate": 2.5e-3,
        "ent_coef": [0.0, 0.01],
    },
    "GaussianBandit-misc": {
        "network": REMEMBERS,
        "total_steps": 499_200,
        "num_steps": 100,
        "learning_rate": 2.5e-3,
        "gamma": [0.99, 1.0],
        "ent_coef": [0.03, 0.1, 0.3],
    },
    "Reacher-misc": PHYSICS,
    "Swimmer-misc": PHYSICS,
    "Breakout-MinAtar": {"total_steps": 999_424, "learning_rate": [1e-3, 2.5e-3], "ent_coef": 0.01},
    "PointRobot-misc": {
        "network": REMEMBERS,
        "total_steps": 998_400,
        "num_steps": 100,
        "learning_rate": [1e-3, 2.5e-3],
        "normalize_reward": True,
    },
    "MetaMaze-misc": {
        "network": pgjax.GRU(hidden=(64,), memory_size=64),
        "total_steps": 1_996_800,
        "num_steps": 200,
        "learning_rate": 2.5e-3,
        "normalize_obs": True,
        "gamma": [0.97, 0.99],
        "ent_coef": 0.01,
    },
}
"""Field -> value, or a list of those that are tried."""


@dataclasses.dataclass(frozen=True)
class Options:
    envs: Annotated[tuple[str, ...], tyro.conf.arg(help="some environments; default all")] = tuple(SEARCHES)
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each setting, from 1000 on")] = 8
    halving: Annotated[bool, tyro.conf.arg(help="drop the worse settings early")] = False
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def searched(env_id: str, options: Options) -> list[dict[str, Any]]:
    """Every setting with its seeds' returns, the best first."""
    space = SEARCHES[env_id]
    axes = {name: values for name, values in space.items() if isinstance(values, list)}
    fixed = {name: value for name, value in space.items() if name not in axes}
    search = pgjax.SuccessiveHalving() if options.halving else None
    ppo = pgjax.PPO(pgjax.make(env_id), **fixed)
    result = pgjax.sweep(ppo, options.seeds, seed=1000, search=search, progress=False, **axes)
    found = [
        {"setting": label(setting), "returns": np.sort(returns)}
        for setting, returns in zip(result.settings, result.setting_scores(), strict=True)
        if np.isfinite(returns).all()
    ]
    return sorted(found, key=lambda each: -each["returns"][: (options.seeds + 1) // 2].mean())


def main(options: Options) -> None:
    kept = options.out / "tune.json"
    found: dict[str, Any] = json.loads(kept.read_text())["found"] if kept.exists() else {}
    for env_id in options.envs:
        found[env_id] = searched(env_id, options)
        rows = [
            [name, each["setting"], f"{np.min(each['returns']):.2f}", f"{np.median(each['returns']):.2f}"]
            for name, settings in found.items()
            for each in settings[:3]
        ]
        table = markdown(["environment", "setting", "lowest seed", "median"], rows, 2)
        write_report(
            options.out, table, None, {"found": found, "searches": {name: str(x) for name, x in SEARCHES.items()}}
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
