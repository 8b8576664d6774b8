"""What the methods that learn from a fixed set of data share: batches by epochs, AdamW, and scores on held-out rows."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from pgjax.alignment.data import epoch_rows
from pgjax.core.algorithm import DATA_STREAM, INIT_STREAM, Key, Metrics, Params, check_counts
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, check_fields, field, pytree
from pgjax.core.text import shows_briefly
from pgjax.learning.optimizers import adamw, gradient_of_mean, scheduled, shuffled

Sums = Callable[..., tuple[Array, tuple[dict[str, Array], Array]]]
"""(params, rows) -> (loss, (metrics, weight)), summed over the rows."""
SHARE_TOKENS = 256
"""Dividing a batch over devices pays where each has this many tokens of it."""


@pytree
class Supervised:
    """The hyperparameters of learning from a fixed set of data."""

    _: KW_ONLY
    batch_size: int = field("rows of the data per gradient step", default=32, accepts="[1, inf)")
    micro_batches: int = field(
        "parts of a batch that are computed one after another: less memory, the same gradient",
        default=1,
        accepts="[1, inf)",
    )
    learning_rate: Scalar = field("step size of AdamW", default=1e-3, accepts="[0, inf)")
    lr_schedule: Literal["constant", "linear", "cosine"] = field(
        "the learning rate over the run: constant, or down to 0 linearly or as a half cosine", default="cosine"
    )
    warmup: int = field("iterations that the learning rate rises over", default=20, accepts="[0, inf)")
    weight_decay: Scalar = field("how fast matrices decay, times the learning rate", default=0.0, accepts="[0, inf)")
    max_grad_norm: Scalar = field(
        "global norm gradients are scaled down to; inf leaves them", default=1.0, accepts="(0, inf]"
    )

    score = ("loss", "min")

    @property
    def steps_per_iteration(self: Any) -> int:
        """Rows of a batch."""
        return self.batch_size

    @property
    def num_iterations(self: Any) -> int:
        """Whole batches within `total_steps`."""
        return self.total_steps // self.steps_per_iteration

    def divides_into(self: Any, devices: int) -> bool:
        """Whether a batch can be divided, with enough of it for each device to pay."""
        tokens = self.batch_size * jax.tree.leaves(self.data.train)[0].shape[1]
        return self.batch_size % (devices * self.micro_batches) == 0 and tokens // devices >= SHARE_TOKENS


@shows_briefly
class ModelState(NamedTuple):
    """The `State` of a model that learns, with nothing beside it but its optimiser."""

    key: Key
    iteration: Array
    params: Params
    opt_state: Any


def prepare_supervised(algorithm: Any) -> None:
    """Check the fields, pack the data for the model that learns, and check sizes.

    Raises:
        InputError: as `check_supervised` does, or a field is not accepted.
    """
    check_fields(algorithm)
    model = algorithm.model
    object.__setattr__(algorithm, "data", algorithm.data.packed(model.tokenizer, model.network.context))
    check_supervised(algorithm)


def check_supervised(algorithm: Any) -> None:
    """Refuse sizes that do not fit together, or to the data, which is packed.

    Raises:
        InputError: naming the field, the value and what would be accepted.
    """
    check_batches(algorithm)
    if algorithm.batch_size % algorithm.micro_batches:
        raise InputError(
            f"{type(algorithm).__name__}.micro_batches = {algorithm.micro_batches} does not divide batch_size = "
            f"{algorithm.batch_size}"
        )


def check_batches(algorithm: Any, group_size: int = 1) -> None:
    """Refuse a budget below one batch, and batches larger than the data, which is packed; groups are of one row each.

    Raises:
        InputError: naming the field, the value and what would be accepted.
    """
    name, size, rows = type(algorithm).__name__, algorithm.steps_per_iteration, algorithm.data.train[0].shape[0]
    if algorithm.total_steps < size:
        raise InputError(
            f"{name}.total_steps = {algorithm.total_steps} is less than one iteration: expected at least {size} "
            f"{algorithm.unit}"
        )
    check_counts(algorithm)
    if algorithm.batch_size > rows * group_size:
        raise InputError(
            f"{name}.batch_size = {algorithm.batch_size} is not accepted: {algorithm.data.source.name} has {rows} rows "
            "to train on"
        )


def initial_state(algorithm: Supervised, key: Key, init: Callable[[Key], Params]) -> ModelState:
    """The start of a run; `init(key)` gives the parameters."""
    params = init(jax.random.fold_in(key, INIT_STREAM))
    opt_state = adamw(algorithm.learning_rate, algorithm.max_grad_norm, algorithm.weight_decay).init(params)
    return ModelState(key, jnp.int32(0), params, opt_state)


def batch_of(algorithm: Any, state: Any, rows: Any = None) -> Any:
    """The rows that the iteration after `state` learns from, by default of the data to train on."""
    rows = algorithm.data.train if rows is None else rows
    num = jax.tree.leaves(rows)[0].shape[0]
    chosen = epoch_rows(state.key, state.iteration, num, algorithm.batch_size)
    return jax.tree.map(lambda x: x[chosen], rows)


def in_parts(f: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """`f` of all rows, computed for so many at a time; rows are on the first axis of what it is given and gives."""
    n = jax.tree.leaves(rows)[0].shape[0]
    parts = -(-n // size)
    divided = jax.tree.map(lambda x: jnp.resize(x, (parts, size, *x.shape[1:])), rows)
    return jax.tree.map(lambda x: x.reshape(parts * size, *x.shape[2:])[:n], jax.lax.map(f, divided))


def learn(algorithm: Any, state: Any, batch: Any, sums: Sums) -> tuple[Any, Metrics]:
    """One gradient step on the mean of what `sums` adds up over the batch."""
    decayed = scheduled(algorithm.lr_schedule, algorithm.learning_rate, state.iteration, algorithm.num_iterations, 1.0)
    learning_rate = decayed * jnp.minimum(1.0, (state.iteration + 1) / max(algorithm.warmup, 1))
    optimizer = adamw(learning_rate, algorithm.max_grad_norm, algorithm.weight_decay)
    grads, metrics = gradient_of_mean(sums, (0,), algorithm.micro_batches)(state.params, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": learning_rate}
    return state._replace(iteration=state.iteration + 1, params=params, opt_state=opt_state), metrics


def held_out_means(algorithm: Any, params: Params, key: Key, num: int, sums: Sums) -> dict[str, Array]:
    """The means of the metrics of `sums` over `num` held-out rows, or all there are, a micro-batch at a time."""
    rows = held_out_rows(algorithm.data, key, num)

    def of_row(row: Any) -> tuple[dict[str, Array], Array]:
        return sums(params, jax.tree.map(lambda x: x[None], row))[1]

    size = min(algorithm.batch_size // algorithm.micro_batches, rows[0].shape[0])
    metrics, weight = jax.lax.map(of_row, rows, batch_size=size)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0) / jnp.maximum(jnp.sum(weight), 1.0), metrics)


def held_out_rows(data: Any, key: Key, num: int) -> Any:
    """`num` different held-out rows, or all there are.

    Raises:
        InputError: none are held out.
    """
    if data.held_out is None:
        raise InputError(f"{data.source.name}: held_out = 0 leaves nothing to evaluate on: expected a share above 0")
    n = data.held_out[0].shape[0]
    chosen = shuffled(jax.random.fold_in(key, DATA_STREAM), n)[: min(num, n)]
    return jax.tree.map(lambda x: x[chosen], data.held_out)
