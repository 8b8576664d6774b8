"""The floating-point work of an environment step of PPO, and the speed of the matrix products that are most of it."""

import collections
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import pgjax
from pgjax.algorithms.on_policy import Samples, num_sequences
from pgjax.networks.network import has_memory

SQUARE = ((1024, 1024), (1024, 1024), (((1,), (0,)), ((), ())))


class Work(NamedTuple):
    """Per environment step."""

    learning_flops: float
    acting_flops: float
    products: dict[Any, float]
    """How often each matrix product: its two shapes and XLA's dimension numbers."""


def work(ppo: pgjax.PPO) -> Work:
    """A network with memory learns in a loop over time, which XLA counts once: one turn of it, times its length."""
    pieces, size = ppo.num_steps if has_memory(ppo.network) else 1, num_sequences(ppo) // ppo.num_minibatches
    state = jax.eval_shape(ppo.init, jax.random.key(0))

    def act(state: Any, obs: Any, reset: Any) -> Any:
        actor = ppo.actor(state)
        return actor.act(actor.initial_memory(ppo.num_envs), obs, reset)

    def minibatch(steps: int) -> Samples:
        def array(dtype: Any, *shape: int) -> Any:
            return jax.ShapeDtypeStruct((steps, size, *shape), dtype)

        arrays = dict.fromkeys(Samples._fields, array(jnp.float32)) | {"weight": None, "policy": None}
        arrays |= {"obs": array(jnp.float32, *state.rollout.obs.shape[1:]), "reset": array(bool)}
        return Samples(**arrays | {"action": array(action.dtype, *action.shape[1:])})

    acting = state, state.rollout.obs, state.rollout.reset
    action = jax.eval_shape(lambda *args: act(*args)[1].distribution.mode(), *acting)
    memory = jax.eval_shape(lambda: ppo.network.initial_memory(size))

    def loss(*args: Any) -> Any:
        value, metrics = ppo.loss(*args, jnp.float32(ppo.kl_coef))
        return jnp.mean(value), jax.tree.map(jnp.mean, metrics)

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)  # also of what was remembered before
    passes = ppo.num_epochs * ppo.num_minibatches / ppo.steps_per_iteration
    whole = jax.make_jaxpr(gradient)(state.params, memory, minibatch(ppo.num_steps if pieces > 1 else 1))
    found: collections.Counter[Any] = collections.Counter()
    for product, times in matrix_products(whole.jaxpr):
        found[product] += times
    return Work(
        passes * pieces * flops(gradient, state.params, memory, minibatch(1)),
        flops(act, *acting) / ppo.num_envs,
        {product: passes * times for product, times in found.items()},
    )


def flops(function: Any, *shapes: Any) -> float:
    analysis: Any = jax.jit(function).lower(*shapes).compile().cost_analysis()
    return analysis["flops"]


def matrix_products(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """The matrix products of a traced program and how often each is made; convolutions as products."""
    for equation in jaxpr.eqns:
        numbers = equation.params.get("dimension_numbers")
        if equation.primitive.name == "dot_general":
            yield (*(v.aval.shape for v in equation.invars), numbers), times
        elif equation.primitive.name == "conv_general_dilated":
            out, kernel = equation.outvars[0].aval.shape, equation.invars[1].aval.shape
            features, inner = out[numbers.out_spec[1]], math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            yield ((math.prod(out) // features, inner), (inner, features), (((1,), (0,)), ((), ()))), times
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inside in value if isinstance(value, tuple) else (value,):
                inside = getattr(inside, "jaxpr", inside)
                if hasattr(inside, "eqns"):
                    yield from matrix_products(inside, times * length)


def product_flops(product: Any) -> int:
    left, right, ((_, contracted), (_, batch)) = product
    return 2 * math.prod(left) * math.prod(n for i, n in enumerate(right) if i not in (*contracted, *batch))


def repeated(product: Any, devices: int, flops: float = 2e8, trials: int = 4) -> tuple[float, float]:
    """Seconds of one matrix product in the fastest of a few chains on `devices` devices at once, and cores busy."""
    length = math.ceil(flops / product_flops(product))

    def chain(left: Any, right: Any) -> Any:
        def again(_: Any, carry: Any) -> Any:
            left, right, _ = jax.lax.optimization_barrier(carry)  # what it is made of may have changed
            return left, right, jax.lax.dot_general(left, right, product[2])

        return jax.lax.fori_loop(0, length, again, (left, right, jax.lax.dot_general(left, right, product[2])))[2]

    mesh = Mesh(np.array(jax.devices()[:devices]), ("devices",))
    everywhere = PartitionSpec()
    program = jax.jit(jax.shard_map(chain, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False))
    operands = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(product[:2])]
    operands = jax.device_put(operands, NamedSharding(mesh, everywhere))
    jax.block_until_ready(program(*operands))
    times = []
    for _ in range(trials):
        start, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(program(*operands))
        times.append((time.perf_counter() - start, time.process_time() - busy))
    seconds, busy = min(times)
    return seconds / (length + 1), busy / seconds


def peaks(products: dict[Any, float], devices: int) -> dict[str, Any]:
    """GFLOP/s of the matrix products, in the proportion in which they are made, and of large square ones."""
    found = {product: repeated(product, devices) for product in products}
    spent = {product: times * found[product][0] for product, times in products.items()}
    total = sum(times * product_flops(product) for product, times in products.items())
    each = {f"{p[0]} {p[1]} {p[2][0]}": devices * product_flops(p) / seconds / 1e9 for p, (seconds, _) in found.items()}
    square, square_cores = repeated(SQUARE, devices, 2e10)
    return {
        "devices": devices,
        "gflops": devices * total / sum(spent.values()) / 1e9,
        "cores_busy": sum(spent[product] * cores for product, (_, cores) in found.items()) / sum(spent.values()),
        "square_gflops": devices * product_flops(SQUARE) / square / 1e9,
        "square_cores_busy": square_cores,
        "each": each,
    }
