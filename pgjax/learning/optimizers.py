"""Optimisers, schedules, the gradient of a weighted mean, and the loop of minibatch epochs."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, UInt32

from pgjax.core.algorithm import Key, Params
from pgjax.core.devices import mean_of_shares
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar

Carry = TypeVar("Carry")
Schedule: TypeAlias = Literal["constant", "linear", "cosine", "robbins_monro"]


FEW = 2**20
"""Up to so many parameters one vector of them all is faster than their arrays; beyond, it costs time and memory."""


def adam(learning_rate: Scalar, max_grad_norm: Scalar) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015; epsilon 1e-5) on gradients scaled down to a global norm of at most `max_grad_norm`.

    Its state does not depend on the arguments, so it is built anew from traced hyperparameters in every step. It works
    on one flat vector if parameters are `FEW`: a few operations instead of a few for each array. Its moments are in
    float32.
    """
    by_array = optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(learning_rate, eps=1e-5))
    flat = optax.flatten(by_array)

    def of(tree: Any) -> optax.GradientTransformation:
        return flat if sum(x.size for x in jax.tree.leaves(tree)) <= FEW else by_array

    return _exact(
        optax.GradientTransformation(
            lambda params: of(params).init(params),
            lambda grads, state, params=None: of(grads).update(grads, state, params),
        )
    )


def adamw(learning_rate: Scalar, max_grad_norm: Scalar, weight_decay: Scalar) -> optax.GradientTransformation:
    """Adam on clipped gradients that also takes `learning_rate * weight_decay` of themselves off matrices, the leaves
    called kernel, embed or unembed (Loshchilov & Hutter, 2019, algorithm 2)."""

    def matrices(params: Params) -> Any:
        decayed = ("kernel", "embed", "unembed")
        return jax.tree.map_with_path(lambda path, _: getattr(path[-1], "key", None) in decayed, params)

    return _exact(
        optax.chain(
            optax.clip_by_global_norm(max_grad_norm),
            optax.scale_by_adam(),
            optax.add_decayed_weights(weight_decay, matrices),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


def _exact(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """One whose moments are in float32, whatever the parameters are in."""

    def exact(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    return optax.GradientTransformation(
        lambda params: optimizer.init(exact(params)),
        lambda grads, state, params=None: optimizer.update(exact(grads), state, exact(params)),
    )


def gradient_of_mean(
    sums: Callable[..., tuple[Array, tuple[dict[str, Array], Any]]],
    in_axes: tuple[int | None, ...],
    micro_batches: int = 1,
) -> Callable[..., Any]:
    """The gradient of a mean over samples, and the means of metrics, from sums over some of them.

    `sums(params, *args) -> (total, (metrics, weight))`: a loss and metrics summed over the samples it is given, and how
    much these weigh together. The result, `f(params, *args) -> (gradient, metrics)`, divides the samples along
    `in_axes` of `args` (None for what is no sample) over the devices, and there into `micro_batches`, which are
    computed one after another and keep the memory of one. All sums are divided by all weights, so the means and their
    gradient are those of all samples at once, however unequal the parts weigh.
    """

    def of_part(params: Params, *args: Any) -> tuple[Any, Any]:
        grads, (metrics, weight) = jax.grad(sums, has_aux=True)(params, *args)
        return (grads, metrics), weight

    def of_share(params: Params, *args: Any) -> tuple[Any, Any]:
        if micro_batches == 1:
            return of_part(params, *args)

        def parts(x: Array, axis: int) -> Array:
            divided = x.reshape(*x.shape[:axis], -1, micro_batches, *x.shape[axis + 1 :])
            return jnp.moveaxis(divided, axis + 1, 0)

        divided = [
            None if axis is None else jax.tree.map(functools.partial(parts, axis=axis), arg)
            for axis, arg in zip(in_axes, args, strict=True)
        ]

        def of_one(divided: list[Any]) -> tuple[Any, Any]:
            chosen = [arg if part is None else part for arg, part in zip(args, divided, strict=True)]
            return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), of_part(params, *chosen))

        first = jax.eval_shape(of_one, jax.tree.map(lambda x: x[0], divided))
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape), first)
        return jax.lax.scan(lambda so_far, part: (optax.tree.add(so_far, of_one(part)), None), empty, divided)[0]

    return mean_of_shares(of_share, in_axes=(None, *in_axes))


def mean_gradient(
    loss: Callable[..., tuple[Array, dict[str, Array]]], shared: int = 0, micro_batches: int = 1
) -> Callable[..., Any]:
    """The gradient of the mean of what `loss` says of each sample, and the means of its metrics, over all devices.

    `loss(params, memory, samples, *shared) -> (losses, metrics)`, one number per sample each; `samples.weight` says how
    much each counts, None that all count alike. The result is called with the same arguments, the last `shared` of
    which are no samples and the same on all devices. `micro_batches` as in `gradient_of_mean`.

    Raises:
        InputError: the losses or a metric have another shape, when it is traced.
    """

    def sums(params: Params, memory: Any, samples: Any, *more: Any) -> tuple[Array, tuple[dict[str, Array], Any]]:
        found = loss(params, memory, samples, *more)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise InputError(f"loss gives a {type(found).__name__}: expected (losses, metrics)")
        value, metrics = found
        for name, x in {"the loss": value, **metrics}.items():
            if x.shape != samples.obs.shape[:2]:
                raise InputError(
                    f"loss gives {name} of shape {x.shape}: expected {samples.obs.shape[:2]}, a number per sample"
                )
        weighted = (lambda x: x) if samples.weight is None else (lambda x: samples.weight * x)
        weight = float(samples.obs.shape[0] * samples.obs.shape[1]) if samples.weight is None else samples.weight.sum()
        return jnp.sum(weighted(value)), (jax.tree.map(lambda x: jnp.sum(weighted(x)), metrics), weight)

    return gradient_of_mean(sums, (0, 1, *(None,) * shared), micro_batches)


STRETCHED = ("linear", "cosine")
"""The schedules that reach 0 at the end of a run, and so change when it is made longer."""


def scheduled(schedule: Schedule, initial: Scalar, iteration: Array, num_iterations: int, offset: Scalar) -> Array:
    """The value of a schedule in iteration k = 0, 1, ... of `num_iterations`, `initial` in the first.

    `linear` and `cosine` (a half period; Loshchilov & Hutter, 2017, eq. 5) would reach 0 one iteration after the last.
    `robbins_monro` is c / (k + offset) with c = initial * offset: its sum diverges and the sum of its squares does not,
    which is what stochastic approximation asks for (Robbins & Monro, 1951).
    """
    initial = jnp.asarray(initial, jnp.float32)
    done = jnp.minimum(1.0, iteration / num_iterations)
    if schedule == "constant":
        return initial
    if schedule == "linear":
        return initial * (1.0 - done)
    if schedule == "cosine":
        return initial * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    return initial * offset / (iteration + offset)


def polyak(target: Params, online: Params, tau: Scalar) -> Params:
    """(1 - tau) target + tau online: the slow copy of a network (Lillicrap et al., 2016, section 3)."""
    return jax.tree.map(lambda t, o: t + tau * (o - t), target, online)


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
    update: Callable[[Carry, Int[Array, "size"], Any], tuple[Carry, Any]],
    carry: Carry,
    key: Key,
    num_samples: int,
    num_epochs: int,
    num_minibatches: int,
    epoch_data: Callable[[Carry], Any],
) -> tuple[Carry, Any]:
    """Pass `num_epochs` times over shuffled minibatches of the indices 0..num_samples-1.

    `update(carry, indices, data) -> (carry, out)`, with `data = epoch_data(carry)` as of the start of the epoch; every
    index is seen once per epoch. Returns the last carry and all `out` stacked as `[num_epochs, num_minibatches, ...]`.
    """

    def epoch(carry: Carry, key: Key) -> tuple[Carry, Any]:
        data = epoch_data(carry)
        indices = shuffled(key, num_samples).reshape(num_minibatches, -1)
        return jax.lax.scan(lambda carry, chosen: update(carry, chosen, data), carry, indices)

    return jax.lax.scan(epoch, carry, jax.random.split(key, num_epochs))
