"""A policy that was exported as `policy.npz`, in NumPy alone: copy this file to where there is no jax.

policy = Policy("policy.npz")
action = policy(obs)                  # [*obs] or [N, *obs]; of a network that remembers: action, memory
action, memory = policy(obs, memory)  # with the memory of the observation before; None at the start of an episode
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (np.tanh(0.5 * x) + 1.0)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "elu": lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
}


class Policy:
    """The greedy policy: the actions that `Result.predict` gives, up to rounding."""

    def __init__(self, path: Any) -> None:
        file = np.load(path)
        self.about = json.loads(str(file["about"]))
        self.arrays = {name: file[name] for name in file.files}

    def __call__(self, obs: Any, memory: Any = None) -> Any:
        """As the module says."""
        x, shape = np.asarray(obs, np.float32), tuple(self.about["obs_shape"])
        if x.shape not in (shape, (*x.shape[:1], *shape)):
            raise ValueError(f"obs of shape {x.shape} is not accepted: expected {shape} or {('N', *shape)}")
        batch = x.reshape(-1, *shape)
        memory_size = self.about["memory_size"]
        memory = np.zeros((len(batch), memory_size), np.float32) if memory is None else memory
        value = batch
        for step in self.about["steps"]:
            value = getattr(self, f"_{step['op']}")(value, memory, **{k: v for k, v in step.items() if k != "op"})
            memory = value if step["op"] == "gru" else memory
        action = value[0] if x.shape == shape else value
        return (action, memory) if memory_size else action

    def _normalize(self, x: Any, memory: Any, mean: str, scale: str, clip: float) -> Any:
        return np.clip((x - self.arrays[mean]) * self.arrays[scale], -clip, clip)

    def _conv(self, x: Any, memory: Any, kernel: str, bias: str, stride: int) -> Any:
        weights = self.arrays[kernel]
        windows = np.lib.stride_tricks.sliding_window_view(x, weights.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
        return np.einsum("nhwcij,ijco->nhwo", windows, weights) + self.arrays[bias]

    def _flatten(self, x: Any, memory: Any) -> Any:
        return x.reshape(len(x), -1)

    def _dense(self, x: Any, memory: Any, kernel: str, bias: str) -> Any:
        return x @ self.arrays[kernel] + self.arrays[bias]

    def _activation(self, x: Any, memory: Any, name: str) -> Any:
        return ACTIVATIONS[name](x)

    def _gru(self, x: Any, memory: Any, **names: str) -> Any:
        p = {name: self.arrays[array] for name, array in names.items()}
        r = _sigmoid(x @ p["ir"] + p["ir_bias"] + memory @ p["hr"])
        z = _sigmoid(x @ p["iz"] + p["iz_bias"] + memory @ p["hz"])
        n = np.tanh(x @ p["in"] + p["in_bias"] + r * (memory @ p["hn"] + p["hn_bias"]))
        return (1.0 - z) * n + z * memory

    def _argmax(self, x: Any, memory: Any) -> Any:
        return np.argmax(x, axis=1)

    def _bounds(self, x: Any, memory: Any, low: str, high: str, shape: list[int]) -> Any:
        below, above = self.arrays[low], self.arrays[high]
        mapped = below + (np.clip(x.reshape(-1, *shape), -1.0, 1.0) + 1.0) / 2.0 * (above - below)
        return np.clip(mapped, below, above)

    def _reshape(self, x: Any, memory: Any, shape: list[int]) -> Any:
        return x.reshape(-1, *shape)
