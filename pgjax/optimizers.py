"""Optimisers, schedules, natural-gradient pieces, and the loop of minibatch epochs."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, UInt32

from pgjax.distributions import Distribution
from pgjax.types import Key, Params, Scalar

Carry = TypeVar("Carry")


def adam(learning_rate: Scalar, max_grad_norm: Scalar) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015; epsilon 1e-5) on gradients scaled down to a global norm of at most `max_grad_norm`.

    Its state does not depend on the arguments, so it is built anew from traced hyperparameters in every step. It works
    on one flat vector: a few operations instead of a few for each parameter array.
    """
    return optax.flatten(optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(learning_rate, eps=1e-5)))


def scheduled(schedule: Literal["constant", "linear"], initial: Scalar, iteration: Array, num_iterations: int) -> Array:
    """The value of a schedule in `iteration` (from 0) of `num_iterations`; linear would reach 0 one after the last."""
    if schedule == "constant":
        return jnp.asarray(initial, jnp.float32)
    return initial * jnp.maximum(0.0, 1.0 - iteration / num_iterations)


def polyak(target: Params, online: Params, tau: Scalar) -> Params:
    """(1 - tau) target + tau online: the slow copy of a network (Lillicrap et al., 2016, section 3)."""
    return jax.tree.map(lambda t, o: t + tau * (o - t), target, online)


def fisher_vector_product(
    policy: Callable[[Params], Distribution], params: Params, damping: Scalar
) -> Callable[[Params], Params]:
    """v -> (F + damping I) v without forming F, the Fisher matrix of `policy` averaged over its batch.

    F is the Hessian of E[KL(pi_params || pi)] at params (Schulman et al., 2015, appendix C.1).
    """
    here = jax.lax.stop_gradient(policy(params))

    def mean_kl(params: Params) -> Array:
        return jnp.mean(here.kl(policy(params)))

    def product(v: Params) -> Params:
        _, hessian_times_v = jax.jvp(jax.grad(mean_kl), (params,), (v,))
        return jax.tree.map(lambda Fv, v: Fv + damping * v, hessian_times_v, v)

    return product


def conjugate_gradient(product: Callable[[Params], Params], vector: Params, iterations: int) -> Params:
    """x with product(x) = vector, after at most `iterations` steps: the natural gradient if product is Fisher's."""
    return jax.scipy.sparse.linalg.cg(product, vector, maxiter=iterations)[0]


def line_search(
    accept: Callable[[Params], Bool[Array, ""]], params: Params, step: Params, max_backtracks: int, shrink: Scalar
) -> tuple[Params, Bool[Array, ""]]:
    """The first of params + shrink^k step, k = 0, 1, ..., max_backtracks, that `accept` takes, and whether any was.

    Where none is taken, `params` stays as it was.
    """

    def candidate(k: Array) -> Params:
        return jax.tree.map(lambda p, s: p + shrink**k * s, params, step)

    def rejected(k: Array) -> Array:
        return (k <= max_backtracks) & ~accept(candidate(k))

    k = jax.lax.while_loop(rejected, lambda k: k + 1, jnp.int32(0))
    found = k <= max_backtracks
    return jax.tree.map(lambda new, old: jnp.where(found, new, old), candidate(k), params), found


def shuffled(key: Key, n: int) -> Int[Array, "n"]:
    """A random permutation of 0..n-1: up to 2^10 a sort of random bits, beyond a Feistel network, which sorts nothing.

    The sort has the index in the low bits, so that equal high bits fall back to index order; a pair does so with
    probability 2^-22 at most. The network (Luby & Rackoff, 1988) permutes the smallest power of two that holds n by
    eight rounds of a keyed hash, and numbers from n on are permuted again until they fall below it.
    """
    bits = max(n - 1, 1).bit_length()
    if bits <= 10:
        draw = jax.random.bits(key, (n,), jnp.uint32)
        index = jnp.uint32((1 << bits) - 1)
        return (jnp.sort((draw & ~index) | jnp.arange(n, dtype=jnp.uint32)) & index).astype(jnp.int32)
    round_keys = jax.random.bits(key, (8,), jnp.uint32)
    permuted = _feistel(jnp.arange(n, dtype=jnp.uint32), bits, round_keys)
    if n < 1 << bits:
        permuted = jax.lax.while_loop(
            lambda x: jnp.any(x >= n), lambda x: jnp.where(x >= n, _feistel(x, bits, round_keys), x), permuted
        )
    return permuted.astype(jnp.int32)


def _feistel(x: UInt32[Array, "n"], bits: int, round_keys: UInt32[Array, "even"]) -> UInt32[Array, "n"]:
    """A bijection of the numbers of so many bits: each round adds a hash of one half to the other and swaps them."""
    widths = bits - bits // 2, bits // 2
    left, right = x >> widths[1], x & ((1 << widths[1]) - 1)
    for i in range(round_keys.shape[0]):
        hashed = (right ^ round_keys[i]) * jnp.uint32(0x9E3779B1)
        hashed = (hashed ^ (hashed >> 15)) * jnp.uint32(0x85EBCA77)
        left, right = right, left ^ (hashed >> (32 - widths[i % 2]))
    return (left << widths[1]) | right


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
