"""Policies over tokens: a language model is a network, generation a rollout, teacher forcing `unroll`.

Read `rewards` (what single tokens earn where whole answers are scored); what is learned from: the built-in languages
`grammar`, `addition`, `sums`, `countdown`, `walks` and `constitution`, `corpora` (these by name), `tokenizers`,
`records` (files), `packing` (arrays), `data` (both as parts); `generation`; `models` (language models as parts);
`revision` (their answers, critiques and revisions); then one file per method. From fixed data: `supervised` (what they
share), `lm`, `sft`, `reward_model`, `process_reward_model`, `dpo`, `kto`. From completions of its own: `judge`,
`learned_rewards` and `scoring` (rewards as parts), `sampling` (what they share), `rlhf`, `grpo`, `rloo`, `online_dpo`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgjax.alignment.data import COMPLETIONS as COMPLETIONS
    from pgjax.alignment.data import LABELS as LABELS
    from pgjax.alignment.data import PREFERENCES as PREFERENCES
    from pgjax.alignment.data import PROMPTS as PROMPTS
    from pgjax.alignment.data import STEPS as STEPS
    from pgjax.alignment.data import TEXTS as TEXTS
    from pgjax.alignment.dpo import DPO as DPO
    from pgjax.alignment.generation import Generation as Generation
    from pgjax.alignment.generation import generate as generate
    from pgjax.alignment.grpo import GRPO as GRPO
    from pgjax.alignment.judge import Judge as Judge
    from pgjax.alignment.kto import KTO as KTO
    from pgjax.alignment.lm import LM as LM
    from pgjax.alignment.models import LanguageModel as LanguageModel
    from pgjax.alignment.models import language_model as language_model
    from pgjax.alignment.online_dpo import OnlineDPO as OnlineDPO
    from pgjax.alignment.process_reward_model import ProcessRewardModel as ProcessRewardModel
    from pgjax.alignment.revision import revise as revise
    from pgjax.alignment.reward_model import RewardModel as RewardModel
    from pgjax.alignment.rewards import pass_at_k as pass_at_k
    from pgjax.alignment.rewards import token_rewards as token_rewards
    from pgjax.alignment.rewards import whiten as whiten
    from pgjax.alignment.rlhf import RLHF as RLHF
    from pgjax.alignment.rloo import RLOO as RLOO
    from pgjax.alignment.scoring import REWARDS as REWARDS
    from pgjax.alignment.scoring import HostReward as HostReward
    from pgjax.alignment.scoring import register_reward as register_reward
    from pgjax.alignment.sft import SFT as SFT
    from pgjax.alignment.tokenizers import TOKENIZERS as TOKENIZERS
    from pgjax.networks.pretrained import load_pretrained as load_pretrained
    from pgjax.networks.pretrained import save_pretrained as save_pretrained
    from pgjax.networks.transformer import Transformer as Transformer

_EXPORTS = {
    "Transformer": "networks.transformer",
    "load_pretrained": "networks.pretrained",
    "save_pretrained": "networks.pretrained",
    "pass_at_k": "alignment.rewards",
    "token_rewards": "alignment.rewards",
    "whiten": "alignment.rewards",
    "TOKENIZERS": "alignment.tokenizers",
    "TEXTS": "alignment.data",
    "COMPLETIONS": "alignment.data",
    "PREFERENCES": "alignment.data",
    "LABELS": "alignment.data",
    "PROMPTS": "alignment.data",
    "STEPS": "alignment.data",
    "Generation": "alignment.generation",
    "generate": "alignment.generation",
    "LanguageModel": "alignment.models",
    "language_model": "alignment.models",
    "revise": "alignment.revision",
    "LM": "alignment.lm",
    "SFT": "alignment.sft",
    "RewardModel": "alignment.reward_model",
    "ProcessRewardModel": "alignment.process_reward_model",
    "DPO": "alignment.dpo",
    "KTO": "alignment.kto",
    "Judge": "alignment.judge",
    "HostReward": "alignment.scoring",
    "REWARDS": "alignment.scoring",
    "register_reward": "alignment.scoring",
    "RLHF": "alignment.rlhf",
    "GRPO": "alignment.grpo",
    "RLOO": "alignment.rloo",
    "OnlineDPO": "alignment.online_dpo",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pgjax.alignment' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pgjax.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
