"""Networks that remember within an episode: `GRU`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from pgjax.core.algorithm import Key, Params
from pgjax.core.hyperparameters import check_fields, field, pytree
from pgjax.environments.base import Box, Space
from pgjax.networks.heads import Heads, each_torso, heads, init_heads, torso_names
from pgjax.networks.network import Memory, Output
from pgjax.networks.torsos import Activation, DenseTorso, initializer


@pytree
class GRU(Heads):
    """Fully connected layers, then a gated recurrent unit (Cho et al., 2014) that remembers within an episode."""

    hidden: tuple[int, ...] = field("widths of the hidden layers before the memory", default=(64,), accepts="[1, inf)")
    memory_size: int = field("width of the recurrent state", default=64, accepts="[1, inf)")
    activation: Activation = field("nonlinearity after each hidden layer", default="tanh")

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
        """Per torso an encoder and a cell, and heads on the cell's state."""
        key, head_key = jax.random.split(key)
        example = jnp.zeros((1, *observation_space.shape))
        torsos = {}
        for name, torso_key in each_torso(key, self.shared_torso).items():
            encoder_key, cell_key = jax.random.split(torso_key)
            features, encoder = self._encoder().init_with_output(encoder_key, example)
            cell = self._cell().init(cell_key, jnp.zeros((1, self.memory_size)), features)
            torsos[name] = {"encoder": encoder, "cell": cell}
        return torsos | init_heads(self, head_key, self.memory_size, action_space)

    def initial_memory(self, batch: int) -> Memory:
        """Zeros, one vector per torso."""
        return {name: jnp.zeros((batch, self.memory_size)) for name in torso_names(self.shared_torso)}

    def step(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """`unroll` over a single step."""
        memory, output = self.unroll(params, memory, obs[None], reset[None])
        return memory, jax.tree.map(lambda x: x[0], output)

    def unroll(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """Encodes all T * B observations as one batch; only the cell goes step by step."""
        T, B = obs.shape[:2]
        after, features = {}, {}
        for name in memory:
            encoded = self._encoder().apply(params[name]["encoder"], obs.reshape(T * B, *obs.shape[2:]))
            after[name], features[name] = self._remember(params[name]["cell"], memory[name], encoded, reset)
        return after, heads(self, params, features.__getitem__)

    def _remember(
        self, cell_params: Params, memory: Float[Array, "B H"], encoded: Float[Array, "TB F"], reset: Bool[Array, "T B"]
    ) -> tuple[Float[Array, "B H"], Float[Array, "T B H"]]:
        def step(memory: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
            encoded, reset = x
            return self._cell().apply(cell_params, jnp.where(reset[:, None], 0.0, memory), encoded)

        return jax.lax.scan(step, memory, (encoded.reshape(*reset.shape, -1), reset))

    def _encoder(self) -> Any:
        return DenseTorso(self.hidden, self.activation, self.orthogonal_init)

    def _cell(self) -> Any:
        return nn.GRUCell(self.memory_size, recurrent_kernel_init=initializer(self.orthogonal_init, 1.0))
