"""Networks without memory: `MLP`, `CNN`, and `Custom` around a flax module of the user's own."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pgjax.core.algorithm import Key, Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import check_fields, field, pytree
from pgjax.environments.base import Box, Space
from pgjax.networks.heads import Heads, each_torso, heads, init_heads
from pgjax.networks.network import Memory, Output
from pgjax.networks.torsos import Activation, ConvTorso, DenseTorso


class Memoryless(Heads):
    """The four methods for a torso `[N, *obs] -> [N, F]` without memory."""

    def _torso(self) -> Any:
        raise NotImplementedError

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
        """Torsos as they start, and heads of the width of their features.

        Raises:
            InputError: a torso gives something else than features `[N, F]`.
        """
        key, head_key = jax.random.split(key)
        example = jnp.zeros((1, *observation_space.shape))
        torsos = {
            name: self._torso().init(torso_key, example)
            for name, torso_key in each_torso(key, self.shared_torso).items()
        }
        features = {name: jax.eval_shape(self._torso().apply, params, example) for name, params in torsos.items()}
        for name, shape in features.items():
            if len(shape.shape) != 2 or shape.shape[0] != 1:
                raise InputError(f"torso {name!r} maps {example.shape} to {shape.shape}: expected (1, features)")
        width = next(iter(features.values())).shape[-1]
        return torsos | init_heads(self, head_key, width, action_space)

    def initial_memory(self, batch: int) -> Memory:
        """`()`: nothing is remembered."""
        return ()

    def step(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """The torso on obs `[B, ...]`; where episodes start makes no difference."""
        return (), heads(self, params, lambda name: self._torso().apply(params[name], obs))

    def unroll(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """`step` on all T * B observations as one batch."""
        T, B = obs.shape[:2]
        _, output = self.step(params, memory, obs.reshape(T * B, *obs.shape[2:]), reset)
        return (), jax.tree.map(lambda x: x.reshape(T, B, *x.shape[1:]), output)


@pytree
class MLP(Memoryless):
    """Fully connected layers on the flattened observation."""

    hidden: tuple[int, ...] = field("widths of the hidden layers", default=(64, 64), accepts="[1, inf)")
    activation: Activation = field("nonlinearity after each hidden layer", default="tanh")

    def __post_init__(self) -> None:
        check_fields(self)

    def _torso(self) -> Any:
        return DenseTorso(self.hidden, self.activation, self.orthogonal_init)


@pytree
class CNN(Memoryless):
    """Convolutions over a grid [H, W, C], then fully connected layers."""

    channels: tuple[int, ...] = field("output channels of the convolutions", default=(16,), accepts="[1, inf)")
    kernel_size: int = field("side of the square kernels", default=3, accepts="[1, inf)")
    stride: int = field("step between kernel positions", default=1, accepts="[1, inf)")
    hidden: tuple[int, ...] = field("widths of the hidden layers", default=(128,), accepts="[1, inf)")
    activation: Activation = field("nonlinearity after each layer", default="relu")

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
        """Parameters for observations (H, W, C).

        Raises:
            InputError: observations of another shape, or smaller than the convolutions need.
        """
        if len(observation_space.shape) != 3:
            raise InputError(
                f"CNN needs observations of shape (H, W, C), not {observation_space.shape}: use MLP or GRU"
            )
        side = min(observation_space.shape[:2])
        for _ in self.channels:
            side = (side - self.kernel_size) // self.stride + 1
        if side < 1:
            raise InputError(
                f"CNN: {len(self.channels)} convolutions of kernel_size = {self.kernel_size} and stride = "
                f"{self.stride} do not fit observations of shape {observation_space.shape}"
            )
        return super().init(key, observation_space, action_space)

    def _torso(self) -> Any:
        return ConvTorso(
            self.channels, self.kernel_size, self.stride, self.hidden, self.activation, self.orthogonal_init
        )


@pytree
class Custom(Memoryless):
    """A user's own flax module as the torso: it maps `[N, *obs]` to features `[N, F]`, and the heads are added.

    A linen module is given as it is. An nnx module is given through flax's bridge:
    `Custom(flax.nnx.bridge.to_linen(MyModule, num_inputs, num_features))`. Either must be hashable.
    """

    module: Any

    def _torso(self) -> Any:
        return self.module
