"""From features to policy and value: linear heads, and the fields that all our networks have.

The parameters of a network are a dict:

- `"shared"`, or `"actor"` and `"critic"`: the torsos, flax parameters that turn observations into features;
- `"policy"`: a linear head. With a `"log_std"` the policy is a `DiagGaussian` (a `TanhGaussian` if the network
  squashes), without a `Categorical`. `log_std` is a parameter shaped like the action, or a linear head of its own, and
  is clipped to `LOG_STD_BOUNDS`;
- `"value"`: a linear head with one output.
"""

from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pgjax.core.algorithm import Key, Params
from pgjax.core.hyperparameters import field, pytree
from pgjax.environments.base import Box, Discrete, Space
from pgjax.networks.distributions import Categorical, DiagGaussian, TanhGaussian
from pgjax.networks.network import Output
from pgjax.networks.torsos import initializer

LOG_STD_BOUNDS = (-20.0, 2.0)
"""Of a standard deviation, whether it depends on the state (Haarnoja et al., 2018) or is a parameter."""


@pytree
class Heads:
    """The fields that all our networks have: declarations without behaviour."""

    _: KW_ONLY
    shared_torso: bool = field("one torso for policy and value instead of one each", default=False)
    state_dependent_std: bool = field(
        "a Gaussian policy's standard deviation comes from the features instead of being a parameter", default=False
    )
    squash: bool = field("a Gaussian policy's actions pass through tanh, into (-1, 1)", default=False)
    orthogonal_init: bool = field(
        "orthogonal weights, small ones (0.01) in the policy head; otherwise Lecun's normal ones", default=True
    )


def torso_names(shared_torso: bool) -> tuple[str, ...]:
    """The keys of the torsos among the parameters: first the one of the policy, last the one of the value."""
    return ("shared",) if shared_torso else ("actor", "critic")


def each_torso(key: Key, shared_torso: bool) -> dict[str, Key]:
    """A random key for each torso, by name."""
    names = torso_names(shared_torso)
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))


def init_heads(config: Heads, key: Key, width: int, action_space: Space) -> Params:
    """Orthogonal heads have gain 0.01 for the policy, so that it starts near uniform, and 1 for the value."""

    def linear(key: Key, size: int, gain: float) -> Params:
        kernel_init = initializer(config.orthogonal_init, gain)
        return {"kernel": kernel_init(key, (width, size)), "bias": jnp.zeros(size)}

    policy_key, value_key = jax.random.split(key)
    size = action_space.n if isinstance(action_space, Discrete) else action_space.shape[0]
    policy = linear(policy_key, size, 0.01)
    if isinstance(action_space, Box) and config.state_dependent_std:
        policy["log_std"] = linear(jax.random.fold_in(policy_key, 1), size, 0.01)
    elif isinstance(action_space, Box):
        policy["log_std"] = jnp.zeros(size)
    return {"policy": policy, "value": linear(value_key, 1, 1.0)}


def heads(config: Heads, params: Params, features: Any) -> Output:
    """Policy and value from `features(torso name)`."""
    names = torso_names("shared" in params)

    def linear(name: str, head: Params) -> Array:
        return features(name) @ head["kernel"] + head["bias"]

    x = linear(names[0], params["policy"])
    value = linear(names[-1], params["value"])[..., 0]
    if "log_std" not in params["policy"]:
        return Output(Categorical(x), value)
    log_std = params["policy"]["log_std"]
    if config.state_dependent_std:
        log_std = linear(names[0], log_std)
    gaussian = TanhGaussian if config.squash else DiagGaussian
    return Output(gaussian(x, jnp.broadcast_to(jnp.clip(log_std, *LOG_STD_BOUNDS), x.shape)), value)
