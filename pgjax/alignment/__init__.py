"""Policies over tokens: what language models need besides what every policy needs.

Read `rewards` (what single tokens earn where whole answers are scored).
"""

import importlib
from typing import Any

_EXPORTS = {"token_rewards": "rewards", "whiten": "rewards"}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pgjax.alignment' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pgjax.alignment.{_EXPORTS[name]}"), name)
