"""From observations to features: flax modules, and how their weights start."""

import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pgjax.core.algorithm import Key

Activation: TypeAlias = Literal["tanh", "relu", "gelu", "silu", "elu"]


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


def initializer(orthogonal_init: bool, gain: float) -> Any:
    """`orthogonal(gain)`, or LeCun's normal initialiser (LeCun et al., 1998), which takes no gain."""
    return orthogonal(gain) if orthogonal_init else nn.initializers.lecun_normal()


class DenseTorso(nn.Module):
    """[N, *obs] -> [N, hidden[-1]]: flatten, then layers with, if orthogonal, weights of gain sqrt(2)."""

    hidden: tuple[int, ...]
    activation: str
    orthogonal_init: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            kernel_init = initializer(self.orthogonal_init, math.sqrt(2))
            x = getattr(nn, self.activation)(nn.Dense(width, kernel_init=kernel_init)(x))
        return x


class Conv(nn.Module):
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
        kernel = self.param("kernel", initializer(self.orthogonal_init, math.sqrt(2)), (k, k, C, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        rows, columns = ((size - k) // self.stride * self.stride + 1 for size in x.shape[1:3])
        shifted = [x[:, i : i + rows : self.stride, j : j + columns : self.stride] for i in range(k) for j in range(k)]
        return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(k * k * C, self.width) + bias


class ConvTorso(nn.Module):
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
            x = getattr(nn, self.activation)(Conv(width, self.kernel_size, self.stride, self.orthogonal_init)(x))
        return DenseTorso(self.hidden, self.activation, self.orthogonal_init)(x)
