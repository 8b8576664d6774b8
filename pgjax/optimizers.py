"""Optimisers, schedules, and the loop of minibatch epochs."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from pgjax.types import Key, Scalar

Carry = TypeVar("Carry")


def adam(learning_rate: Scalar, max_grad_norm: Scalar) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015; epsilon 1e-5) on gradients scaled down to a global norm of at most `max_grad_norm`.

    Its state does not depend on the arguments, so it is built anew from traced hyperparameters in every step.
    """
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(learning_rate, eps=1e-5))


def scheduled(schedule: Literal["constant", "linear"], initial: Scalar, iteration: Array, num_iterations: int) -> Array:
    """The value of a schedule in `iteration` (from 0) of `num_iterations`; linear would reach 0 one after the last."""
    if schedule == "constant":
        return jnp.asarray(initial, jnp.float32)
    return initial * jnp.maximum(0.0, 1.0 - iteration / num_iterations)


def shuffled(key: Key, n: int) -> Int[Array, "n"]:
    """A random permutation of 0..n-1 by one sort of random bits with the index in the low ones.

    Equal high bits fall back to index order: a pair does so with probability n / 2^32 rounded up to a power of two,
    which beyond 2^16 is no longer negligible; there `jax.random.permutation` is used.
    """
    if n > 2**16:
        return jax.random.permutation(key, n)
    index_bits = jnp.uint32((1 << max(n - 1, 1).bit_length()) - 1)
    bits = jax.random.bits(key, (n,), jnp.uint32)
    return (jnp.sort((bits & ~index_bits) | jnp.arange(n, dtype=jnp.uint32)) & index_bits).astype(jnp.int32)


def minibatch_epochs(
    update: Callable[[Carry, Int[Array, "size"]], tuple[Carry, Any]],
    carry: Carry,
    key: Key,
    num_samples: int,
    num_epochs: int,
    num_minibatches: int,
) -> tuple[Carry, Any]:
    """Pass `num_epochs` times over shuffled minibatches of the indices 0..num_samples-1.

    `update(carry, indices) -> (carry, out)`; every index is seen once per epoch. Returns the last carry and all `out`
    stacked as `[num_epochs, num_minibatches, ...]`.
    """

    def epoch(carry: Carry, key: Key) -> tuple[Carry, Any]:
        return jax.lax.scan(update, carry, shuffled(key, num_samples).reshape(num_minibatches, -1))

    return jax.lax.scan(epoch, carry, jax.random.split(key, num_epochs))
