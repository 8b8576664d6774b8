"""Policy and value networks behind one interface.

A network is a small frozen, hashable object: it selects the program and holds no arrays. Its parameters are a dict:

- `"shared"`, or `"actor"` and `"critic"`: the torsos, flax parameters that turn observations into features;
- `"policy"`: a linear head. With a `"log_std"` the policy is a `DiagGaussian` (a `TanhGaussian` if the network
  squashes), without a `Categorical`. `log_std` is a parameter shaped like the action, or a linear head of its own;
- `"value"`: a linear head with one output.

Law, tested for every network: `unroll` over `[T, B, ...]` equals a scan of `step` over time, resets included. A network
that remembers keeps one array of shape `[B, ...]` per torso; one that does not has `()` for a memory.
"""

import math
from dataclasses import KW_ONLY
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from pgjax.distributions import Categorical, DiagGaussian, Distribution, TanhGaussian
from pgjax.environments.base import Box, Discrete, Space
from pgjax.errors import InputError
from pgjax.types import Key, Params, check_fields, field, pytree

Memory: TypeAlias = Any
Activation: TypeAlias = Literal["tanh", "relu", "gelu", "silu", "elu"]
LOG_STD_BOUNDS = (-20.0, 2.0)
"""Of a standard deviation that depends on the state (Haarnoja et al., 2018)."""


class Output(NamedTuple):
    """What a network says about an observation."""

    distribution: Distribution
    value: Float[Array, "*batch"]


@runtime_checkable
class Network(Protocol):
    """a network such as `pgjax.MLP()` (the interface is `pgjax.networks.Network`)

    Implement these four methods to bring any network whatever; `Custom` covers most.
    """

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params: ...

    def initial_memory(self, batch: int) -> Memory:
        """What is remembered at the start of an episode; `()` for networks without memory."""
        ...

    def step(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """Acting: obs `[B, ...]`, reset `[B]`. Memory is forgotten first where `reset`."""
        ...

    def unroll(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """Learning: obs `[T, B, ...]`, reset `[T, B]`."""
        ...


@jax.custom_batching.sequential_vmap
def _orthonormal(matrix: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Orthonormal columns. One matrix at a time even under vmap: batched QRs in one program can hang on CPU."""
    q, r = jnp.linalg.qr(matrix)
    return q * jnp.sign(jnp.diagonal(r))


def orthogonal(gain: float) -> Any:
    """An initialiser: a random (semi-)orthogonal matrix times `gain` (Saxe et al., 2014)."""

    def init(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q = _orthonormal(jax.random.normal(key, (max(rows, columns), min(rows, columns)), dtype))
        return gain * (q if rows >= columns else q.T).reshape(shape)

    return init


def _initializer(orthogonal_init: bool, gain: float) -> Any:
    return orthogonal(gain) if orthogonal_init else nn.initializers.lecun_normal()


class _DenseTorso(nn.Module):
    """[N, *obs] -> [N, hidden[-1]]: flatten, then layers with, if orthogonal, weights of gain sqrt(2)."""

    hidden: tuple[int, ...]
    activation: str
    orthogonal_init: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            kernel_init = _initializer(self.orthogonal_init, math.sqrt(2))
            x = getattr(nn, self.activation)(nn.Dense(width, kernel_init=kernel_init)(x))
        return x


class _Conv(nn.Module):
    """A convolution without padding as one product with all patches, [N, H, W, C] -> [N, H', W', width].

    In a compiled loop on a CPU it is sixteen times as fast as XLA's convolution with its gradient.
    """

    width: int
    kernel_size: int
    stride: int
    orthogonal_init: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, C = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", _initializer(self.orthogonal_init, math.sqrt(2)), (k, k, C, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        rows, columns = ((size - k) // self.stride * self.stride + 1 for size in x.shape[1:3])
        shifted = [x[:, i : i + rows : self.stride, j : j + columns : self.stride] for i in range(k) for j in range(k)]
        return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(k * k * C, self.width) + bias


class _ConvTorso(nn.Module):
    """[N, H, W, C] -> [N, hidden[-1]]: convolutions without padding, then dense layers."""

    channels: tuple[int, ...]
    kernel_size: int
    stride: int
    hidden: tuple[int, ...]
    activation: str
    orthogonal_init: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.channels:
            x = getattr(nn, self.activation)(_Conv(width, self.kernel_size, self.stride, self.orthogonal_init)(x))
        return _DenseTorso(self.hidden, self.activation, self.orthogonal_init)(x)


@pytree
class _Heads:
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


class _Memoryless(_Heads):
    """The four methods for a torso `[N, *obs] -> [N, F]` without memory."""

    def _torso(self) -> Any:
        raise NotImplementedError

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
        key, head_key = jax.random.split(key)
        example = jnp.zeros((1, *observation_space.shape))
        torsos = {
            name: self._torso().init(torso_key, example)
            for name, torso_key in _each_torso(key, self.shared_torso).items()
        }
        features = {name: jax.eval_shape(self._torso().apply, params, example) for name, params in torsos.items()}
        for name, shape in features.items():
            if len(shape.shape) != 2 or shape.shape[0] != 1:
                raise InputError(f"torso {name!r} maps {example.shape} to {shape.shape}: expected (1, features)")
        width = next(iter(features.values())).shape[-1]
        return torsos | _init_heads(self, head_key, width, action_space)

    def initial_memory(self, batch: int) -> Memory:
        return ()

    def step(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        return (), _heads(self, params, lambda name: self._torso().apply(params[name], obs))

    def unroll(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        T, B = obs.shape[:2]
        _, output = self.step(params, memory, obs.reshape(T * B, *obs.shape[2:]), reset)
        return (), jax.tree.map(lambda x: x.reshape(T, B, *x.shape[1:]), output)


@pytree
class MLP(_Memoryless):
    """Fully connected layers on the flattened observation."""

    hidden: tuple[int, ...] = field("widths of the hidden layers", default=(64, 64), accepts="[1, inf)")
    activation: Activation = field("nonlinearity after each hidden layer", default="tanh")

    def __post_init__(self) -> None:
        check_fields(self)

    def _torso(self) -> Any:
        return _DenseTorso(self.hidden, self.activation, self.orthogonal_init)


@pytree
class CNN(_Memoryless):
    """Convolutions over a grid [H, W, C], then fully connected layers."""

    channels: tuple[int, ...] = field("output channels of the convolutions", default=(16,), accepts="[1, inf)")
    kernel_size: int = field("side of the square kernels", default=3, accepts="[1, inf)")
    stride: int = field("step between kernel positions", default=1, accepts="[1, inf)")
    hidden: tuple[int, ...] = field("widths of the hidden layers", default=(128,), accepts="[1, inf)")
    activation: Activation = field("nonlinearity after each layer", default="relu")

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
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
        return _ConvTorso(
            self.channels, self.kernel_size, self.stride, self.hidden, self.activation, self.orthogonal_init
        )


@pytree
class Custom(_Memoryless):
    """A user's own flax module as the torso: it maps `[N, *obs]` to features `[N, F]`, and the heads are added.

    A linen module is given as it is. An nnx module is given through flax's bridge:
    `Custom(flax.nnx.bridge.to_linen(MyModule, num_inputs, num_features))`. Either must be hashable.
    """

    module: Any

    def _torso(self) -> Any:
        return self.module


@pytree
class GRU(_Heads):
    """Fully connected layers, then a gated recurrent unit (Cho et al., 2014) that remembers within an episode."""

    hidden: tuple[int, ...] = field("widths of the hidden layers before the memory", default=(64,), accepts="[1, inf)")
    memory_size: int = field("width of the recurrent state", default=64, accepts="[1, inf)")
    activation: Activation = field("nonlinearity after each hidden layer", default="tanh")

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
        key, head_key = jax.random.split(key)
        example = jnp.zeros((1, *observation_space.shape))
        torsos = {}
        for name, torso_key in _each_torso(key, self.shared_torso).items():
            encoder_key, cell_key = jax.random.split(torso_key)
            features, encoder = self._encoder().init_with_output(encoder_key, example)
            cell = self._cell().init(cell_key, jnp.zeros((1, self.memory_size)), features)
            torsos[name] = {"encoder": encoder, "cell": cell}
        return torsos | _init_heads(self, head_key, self.memory_size, action_space)

    def initial_memory(self, batch: int) -> Memory:
        return {name: jnp.zeros((batch, self.memory_size)) for name in _torso_names(self.shared_torso)}

    def step(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        memory, output = self.unroll(params, memory, obs[None], reset[None])
        return memory, jax.tree.map(lambda x: x[0], output)

    def unroll(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        T, B = obs.shape[:2]
        after, features = {}, {}
        for name in memory:
            encoded = self._encoder().apply(params[name]["encoder"], obs.reshape(T * B, *obs.shape[2:]))
            after[name], features[name] = self._remember(params[name]["cell"], memory[name], encoded, reset)
        return after, _heads(self, params, features.__getitem__)

    def _remember(
        self, cell_params: Params, memory: Float[Array, "B H"], encoded: Float[Array, "TB F"], reset: Bool[Array, "T B"]
    ) -> tuple[Float[Array, "B H"], Float[Array, "T B H"]]:
        def step(memory: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
            encoded, reset = x
            return self._cell().apply(cell_params, jnp.where(reset[:, None], 0.0, memory), encoded)

        return jax.lax.scan(step, memory, (encoded.reshape(*reset.shape, -1), reset))

    def _encoder(self) -> Any:
        return _DenseTorso(self.hidden, self.activation, self.orthogonal_init)

    def _cell(self) -> Any:
        return nn.GRUCell(self.memory_size, recurrent_kernel_init=_initializer(self.orthogonal_init, 1.0))


NETWORKS = {"mlp": MLP, "cnn": CNN, "gru": GRU}
"""The networks by the name that the command line, presets and stored configs use."""


def make_network(name: str, **fields: Any) -> Network:
    """A network from what JSON or TOML says of it, where tuples are lists."""
    return NETWORKS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def has_memory(network: Network) -> bool:
    """Whether minibatches must keep whole sequences."""
    return bool(jax.tree.leaves(jax.eval_shape(lambda: network.initial_memory(1))))


def _torso_names(shared_torso: bool) -> tuple[str, ...]:
    return ("shared",) if shared_torso else ("actor", "critic")


def _each_torso(key: Key, shared_torso: bool) -> dict[str, Key]:
    names = _torso_names(shared_torso)
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))


def _init_heads(config: _Heads, key: Key, width: int, action_space: Space) -> Params:
    """Orthogonal heads have gain 0.01 for the policy, so that it starts near uniform, and 1 for the value."""

    def linear(key: Key, size: int, gain: float) -> Params:
        kernel_init = _initializer(config.orthogonal_init, gain)
        return {"kernel": kernel_init(key, (width, size)), "bias": jnp.zeros(size)}

    policy_key, value_key = jax.random.split(key)
    size = action_space.n if isinstance(action_space, Discrete) else action_space.shape[0]
    policy = linear(policy_key, size, 0.01)
    if isinstance(action_space, Box) and config.state_dependent_std:
        policy["log_std"] = linear(jax.random.fold_in(policy_key, 1), size, 0.01)
    elif isinstance(action_space, Box):
        policy["log_std"] = jnp.zeros(size)
    return {"policy": policy, "value": linear(value_key, 1, 1.0)}


def _heads(config: _Heads, params: Params, features: Any) -> Output:
    """Policy and value from `features(torso name)`."""
    names = _torso_names("shared" in params)

    def linear(name: str, head: Params) -> Array:
        return features(name) @ head["kernel"] + head["bias"]

    x = linear(names[0], params["policy"])
    value = linear(names[-1], params["value"])[..., 0]
    if "log_std" not in params["policy"]:
        return Output(Categorical(x), value)
    log_std = params["policy"]["log_std"]
    if config.state_dependent_std:
        log_std = jnp.clip(linear(names[0], log_std), *LOG_STD_BOUNDS)
    gaussian = TanhGaussian if config.squash else DiagGaussian
    return Output(gaussian(x, jnp.broadcast_to(log_std, x.shape)), value)
