"""Natural gradients: Fisher-vector products, conjugate gradients, and steps whose length a KL divergence bounds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from pgjax.core.algorithm import Params
from pgjax.core.hyperparameters import Scalar
from pgjax.networks.distributions import Distribution


def fisher_vector_product(
    policy: Callable[[Params], Distribution], params: Params, damping: Scalar
) -> Callable[[Params], Params]:
    """v -> (F + damping I) v without forming F, the Fisher matrix of `policy` averaged over its batch.

    F is the Hessian of E[KL(pi_params || pi)] at params: J^T M J for the Jacobian J of the distribution's parameters
    and the Hessian M of the KL divergence in those (Schulman et al., 2015, appendix C.1). The policy is linearised
    once: a product is one pass forward and one backward through the linear network.
    """
    here, jacobian = jax.linearize(policy, params)
    transposed = jax.linear_transpose(jacobian, params)
    gradient = jax.grad(lambda there: jnp.mean(here.kl(there)))

    def product(v: Params) -> Params:
        _, curved = jax.jvp(gradient, (here,), (jacobian(v),))
        return jax.tree.map(lambda Fv, v: Fv + damping * v, transposed(curved)[0], v)

    return product


def conjugate_gradient(product: Callable[[Params], Params], vector: Params, iterations: int) -> Params:
    """x with product(x) = vector, after at most `iterations` steps: the natural gradient if product is Fisher's.

    Hestenes & Stiefel (1952), from x = 0; where the residual has fallen to 1e-5 of the vector, x stays. It is a loop of
    fixed length: jax.scipy's, whose length depends on the residual, gives wrong numbers under vmap on CPUs with jaxlib
    0.10.2.
    """
    dot = optax.tree.vdot
    limit = 1e-10 * dot(vector, vector)

    def step(_: int, carry: Any) -> Any:
        x, residual, direction, size = carry
        image = product(direction)
        curvature = dot(direction, image)
        going = (size > limit) & (curvature != 0.0)
        alpha = jnp.where(going, size / jnp.where(going, curvature, 1.0), 0.0)
        x = jax.tree.map(lambda x, d: x + alpha * d, x, direction)
        residual = jax.tree.map(lambda r, q: r - alpha * q, residual, image)
        next_size = dot(residual, residual)
        beta = jnp.where(going, next_size / jnp.where(going, size, 1.0), 0.0)
        direction = jax.tree.map(lambda r, d: r + beta * d, residual, direction)
        return x, residual, direction, next_size

    start = jax.tree.map(jnp.zeros_like, vector), vector, vector, dot(vector, vector)
    return jax.lax.fori_loop(0, iterations, step, start)[0]


def within_kl(product: Callable[[Params], Params], direction: Params, max_kl: Scalar) -> Params:
    """sqrt(2 max_kl / d^T F d) d: as far along `direction` as a KL of `max_kl` allows where it is d^T F d / 2.

    Schulman et al. (2015), appendix C; `product` is v -> F v. A direction of zero stays zero.
    """
    curvature = optax.tree.vdot(direction, product(direction))
    scale = jnp.where(curvature > 0.0, jnp.sqrt(2.0 * max_kl / jnp.where(curvature > 0.0, curvature, 1.0)), 0.0)
    return jax.tree.map(lambda d: scale * d, direction)


def shortened(
    divergence: Callable[[Params], Float[Array, ""]], params: Params, step: Params, bound: Scalar, max_tries: int = 10
) -> tuple[Params, Float[Array, ""]]:
    """params + c step with divergence(params + c step) <= bound, and c, which is 1 where the whole step keeps to it.

    Otherwise c <- 0.9 c sqrt(bound / divergence) until it does, which is at once for a divergence quadratic in c; where
    it is not finite, c <- c / 10. Where `max_tries` are not enough, `params` stays as it was and c is 0.
    """

    def moved(fraction: Array) -> Params:
        return jax.tree.map(lambda p, s: p + fraction * s, params, step)

    def shorten(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tries, fraction, reached = carry
        fraction = fraction * jnp.where(jnp.isfinite(reached), 0.9 * jnp.sqrt(bound / reached), 0.1)
        return tries + 1, fraction, divergence(moved(fraction))

    whole = jnp.float32(1.0)
    _, fraction, reached = jax.lax.while_loop(
        lambda carry: (carry[0] < max_tries) & ~(carry[2] <= bound),
        shorten,
        (jnp.int32(0), whole, divergence(moved(whole))),
    )
    found = reached <= bound
    new = jax.tree.map(lambda new, old: jnp.where(found, new, old), moved(fraction), params)
    return new, jnp.where(found, fraction, 0.0)


def line_search(
    accept: Callable[[Params], Bool[Array, ""]], params: Params, step: Params, max_backtracks: int, shrink: Scalar
) -> tuple[Params, Float[Array, ""]]:
    """The first of params + shrink^k step, k = 0, 1, ..., max_backtracks, that `accept` takes, and its shrink^k.

    Where none is taken, `params` stays as it was and the fraction is 0.
    """

    def candidate(fraction: Array) -> Params:
        return jax.tree.map(lambda p, s: p + fraction * s, params, step)

    def rejected(k: Array) -> Array:
        return (k <= max_backtracks) & ~accept(candidate(jnp.float32(shrink) ** k))

    k = jax.lax.while_loop(rejected, lambda k: k + 1, jnp.int32(0))
    found, fraction = k <= max_backtracks, jnp.float32(shrink) ** k
    new = jax.tree.map(lambda new, old: jnp.where(found, new, old), candidate(fraction), params)
    return new, jnp.where(found, fraction, 0.0)
