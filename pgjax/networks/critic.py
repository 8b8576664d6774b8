"""Action values as a part of their own: Q(s, a) of a continuous action, or Q(s, .) of all choices at once.

Parameters are those of one critic; algorithms that want several initialise several.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pgjax.core.algorithm import Key, Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import check_fields, field, pytree
from pgjax.core.parts import Dataclasses
from pgjax.environments.base import Box, Discrete, Space
from pgjax.networks.torsos import Activation, ConvTorso, DenseTorso, initializer


@runtime_checkable
class Critic(Protocol):
    """a critic such as `pgjax.MLPCritic()` (the interface is `pgjax.networks.critic.Critic`)"""

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
        """The parameters of one new critic for these spaces."""
        ...

    def values(
        self, params: Params, obs: Float[Array, "N *obs"], action: Float[Array, "N D"] | None
    ) -> Float[Array, "N"] | Float[Array, "N n"]:
        """Q(s, a) `[N]`; without an action, that of every choice, `[N, n]`."""
        ...


class _Layers:
    """The two methods for a dense torso on features of the observation and the action, and a linear head."""

    hidden: tuple[int, ...]
    activation: Activation
    orthogonal_init: bool

    def _features(self) -> Any:
        """A module for what comes before the action; None where that is the flat observation."""
        return None

    def _dense(self) -> Any:
        return DenseTorso(self.hidden, self.activation, self.orthogonal_init)

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
        """Layers as they start; the head has gain 1."""
        feature_key, dense_key, head_key = jax.random.split(key, 3)
        x = jnp.zeros((1, *observation_space.shape))
        params: dict[str, Any] = {}
        features = self._features()
        if features is not None:
            params["features"] = features.init(feature_key, x)
            x = jnp.zeros(jax.eval_shape(features.apply, params["features"], x).shape)
        x = x.reshape(1, -1)
        if isinstance(action_space, Box):
            x = jnp.concatenate([x, jnp.zeros((1, *action_space.shape))], axis=1)
        params["dense"] = self._dense().init(dense_key, x)
        width = jax.eval_shape(self._dense().apply, params["dense"], x).shape[-1]
        size = action_space.n if isinstance(action_space, Discrete) else 1
        kernel = initializer(self.orthogonal_init, 1.0)(head_key, (width, size))
        return params | {"value": {"kernel": kernel, "bias": jnp.zeros(size)}}

    def values(
        self, params: Params, obs: Float[Array, "N *obs"], action: Float[Array, "N D"] | None
    ) -> Float[Array, "N"] | Float[Array, "N n"]:
        """As `Critic` says."""
        features = self._features()
        x = obs if features is None else features.apply(params["features"], obs)
        x = x.reshape(x.shape[0], -1)
        x = x if action is None else jnp.concatenate([x, action], axis=1)
        value = self._dense().apply(params["dense"], x) @ params["value"]["kernel"] + params["value"]["bias"]
        return value if action is None else value[:, 0]


@pytree
class MLPCritic(_Layers):
    """Fully connected layers on the flattened observation and the action."""

    hidden: tuple[int, ...] = field("widths of the hidden layers", default=(256, 256), accepts="[1, inf)")
    activation: Activation = field("nonlinearity after each hidden layer", default="relu")
    orthogonal_init: bool = field("orthogonal weights; otherwise Lecun's normal ones", default=False)

    def __post_init__(self) -> None:
        check_fields(self)


@pytree
class CNNCritic(_Layers):
    """Convolutions over a grid [H, W, C], then fully connected layers on what they give and the action."""

    channels: tuple[int, ...] = field("output channels of the convolutions", default=(16,), accepts="[1, inf)")
    kernel_size: int = field("side of the square kernels", default=3, accepts="[1, inf)")
    stride: int = field("step between kernel positions", default=1, accepts="[1, inf)")
    hidden: tuple[int, ...] = field("widths of the hidden layers", default=(128,), accepts="[1, inf)")
    activation: Activation = field("nonlinearity after each layer", default="relu")
    orthogonal_init: bool = field("orthogonal weights; otherwise Lecun's normal ones", default=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def _features(self) -> Any:
        return ConvTorso(self.channels, self.kernel_size, self.stride, (), self.activation, self.orthogonal_init)

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
        """Parameters for observations (H, W, C).

        Raises:
            InputError: observations of another shape.
        """
        if len(observation_space.shape) != 3:
            raise InputError(f"CNNCritic needs observations of shape (H, W, C), not {observation_space.shape}")
        return super().init(key, observation_space, action_space)


CRITICS = Dataclasses("critic", {"mlp": MLPCritic, "cnn": CNNCritic})
"""A critic that is not of these classes is somebody's own code."""
