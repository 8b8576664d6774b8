"""The algorithms, by the name the command line uses: where, class, one sentence. Nothing is imported until it is used.

Read `in_environment` (what all share) and `on_policy`, then one file per idea: `reinforce`, `vpg`, `a2c`, `npg`,
`trpo`, `ppo`; then `off_policy` with `ddpg`, `td3`, `sac`, `discrete_sac`.
"""

import importlib
from typing import Any

from pgjax.core.errors import InputError, nearest

ALGORITHMS = {
    "reinforce": (
        "algorithms.reinforce",
        "REINFORCE",
        "the score function times the returns of complete episodes (Williams, 1992)",
    ),
    "vpg": (
        "algorithms.vpg",
        "VPG",
        "vanilla policy gradient: a learned value, generalised advantages (Schulman et al., 2016)",
    ),
    "a2c": (
        "algorithms.a2c",
        "A2C",
        "advantage actor-critic: policy and value together, short rollouts (Mnih et al., 2016)",
    ),
    "npg": ("algorithms.npg", "NPG", "natural policy gradient: steps measured by the KL divergence (Kakade, 2002)"),
    "trpo": (
        "algorithms.trpo",
        "TRPO",
        "trust region policy optimisation: npg with a line search (Schulman et al., 2015)",
    ),
    "ppo": (
        "algorithms.ppo",
        "PPO",
        "proximal policy optimisation: clipped or penalised ratios (Schulman et al., 2017)",
    ),
    "ddpg": (
        "algorithms.ddpg",
        "DDPG",
        "deep deterministic policy gradient: a policy that climbs its critic, from replay (Lillicrap et al., 2016)",
    ),
    "td3": ("algorithms.td3", "TD3", "twin delayed ddpg: critics that overestimate less (Fujimoto et al., 2018)"),
    "sac": ("algorithms.sac", "SAC", "soft actor-critic: returns and entropy, from replay (Haarnoja et al., 2018)"),
    "discrete-sac": (
        "algorithms.discrete_sac",
        "DiscreteSAC",
        "soft actor-critic for discrete actions (Christodoulou, 2019)",
    ),
    "lm": ("alignment.lm", "LM", "a language model: next-token prediction on running text (Bengio et al., 2003)"),
    "sft": (
        "alignment.sft",
        "SFT",
        "supervised fine-tuning: a language model learns completions (Ouyang et al., 2022)",
    ),
    "reward-model": (
        "alignment.reward_model",
        "RewardModel",
        "scores of completions from preferences (Bradley & Terry, 1952; Christiano et al., 2017)",
    ),
    "process-reward-model": (
        "alignment.process_reward_model",
        "ProcessRewardModel",
        "whether each step of an answer is right, from judged steps (Uesato et al., 2022; Lightman et al., 2024)",
    ),
    "dpo": (
        "alignment.dpo",
        "DPO",
        "direct preference optimisation: preferences as a loss on the policy (Rafailov et al., 2023)",
    ),
    "kto": (
        "alignment.kto",
        "KTO",
        "Kahneman-Tversky optimisation: single answers called good or bad (Ethayarajh et al., 2024)",
    ),
    "rlhf": (
        "alignment.rlhf",
        "RLHF",
        "PPO on a language model that stays near where it started (Ziegler et al., 2019)",
    ),
    "grpo": (
        "alignment.grpo",
        "GRPO",
        "group relative policy optimisation: answers against each other, no critic (Shao et al., 2024)",
    ),
    "rloo": (
        "alignment.rloo",
        "RLOO",
        "REINFORCE leave-one-out: an answer against the mean of the others (Ahmadian et al., 2024)",
    ),
    "online-dpo": (
        "alignment.online_dpo",
        "OnlineDPO",
        "dpo on completions of the policy itself, which the reward compares (Guo et al., 2024)",
    ),
}


_OWN: dict[str, type] = {}
"""Of ALGORITHMS, those that are somebody's own."""


def algorithm_class(name: str) -> Any:
    """The class called `name` in the table above.

    Raises:
        InputError: an unknown name, with the nearest known ones.
    """
    if name not in ALGORITHMS:
        raise InputError(
            f"algorithm = {name!r} is not known: {nearest(name, ALGORITHMS)} (one of your own: after "
            "pgjax.register_algorithm, on the command line by --import of the module that calls it)"
        )
    module, cls, _ = ALGORITHMS[name]
    return _OWN.get(name) or getattr(importlib.import_module(f"pgjax.{module}"), cls)


def algorithm_name(cls: type) -> str | None:
    """The name of a class in the table above; None for one that is not there."""
    names = {(f"pgjax.{module}", known): name for name, (module, known, _) in ALGORITHMS.items() if name not in _OWN}
    names |= {(own.__module__, own.__name__): name for name, own in _OWN.items()}
    return names.get((cls.__module__, cls.__name__))


def register_algorithm(name: str, cls: type) -> None:
    """Make an algorithm class of your own known as `name`, to configs, the command line and sweeps.

    In every process that reads its runs, before it does: on the command line by `--import` of the module that calls
    this.

    Raises:
        InputError: the name is taken, or `cls` is not a class.
    """
    if not isinstance(cls, type):
        raise InputError(f"register_algorithm: cls = {cls!r} is not accepted: expected a class")
    if name in ALGORITHMS:
        raise InputError(f"register_algorithm: name = {name!r} is taken: choose another")
    sentence = (cls.__doc__ or cls.__name__).strip().splitlines()[0]
    ALGORITHMS[name] = (cls.__module__, cls.__name__, sentence)
    _OWN[name] = cls
