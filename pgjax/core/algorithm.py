"""The interface between an algorithm and everything that runs it, and the words it is written in."""

from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import LARGEST_INT
from pgjax.core.metrics import Metric

Key: TypeAlias = jax.Array
"""A typed random key, `jax.random.key(seed)`."""
Params: TypeAlias = Any
"""A pytree of network parameters."""
Metrics: TypeAlias = dict[str, Metric]
"""Of one iteration, by name, reduced on the device."""
Scores: TypeAlias = dict[str, jax.Array]
"""What an evaluation found, by name: scalars."""

INIT_STREAM = np.uint32(0xFFFFFFFF)
EVALUATION_STREAM = np.uint32(0xFFFFFFFE)
SWEEP_STREAM = np.uint32(0xFFFFFFFD)
DATA_STREAM = np.uint32(0xFFFFFFFC)
HELD_STREAM = np.uint32(0xFFFFFFFB)
"""Folded into a root key these give keys no iteration has: iterations are counted in int32."""


def check_key(label: str, key: Any) -> None:
    """Refuse a seed where a random key is expected.

    Raises:
        InputError: naming the value and what would be accepted.
    """
    if not isinstance(key, jax.Array) or not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        said = repr(key) if len(repr(key)) < 100 else f"a {type(key).__name__}"
        raise InputError(f"{label}: key = {said} is not accepted: expected a random key such as jax.random.key(0)")


def check_algorithm(label: str, algorithm: Any) -> None:
    """Refuse what is no algorithm.

    Raises:
        InputError: naming what it is and what would be accepted.
    """
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "steps_per_iteration")):
        has = ", whose .algorithm is one" if hasattr(algorithm, "algorithm") else ""
        raise InputError(
            f"{label}: algorithm is a {type(algorithm).__name__}{has}: expected an algorithm such as "
            "pgjax.PPO(pgjax.make(ID)) or pgjax.tuned(NAME, ID)"
        )


def check_one_member(label: str, state: Any) -> None:
    """Refuse the states of several members where one is expected.

    Raises:
        InputError: saying how to take one out.
    """
    if hasattr(state, "iteration") and jnp.ndim(state.iteration):
        raise InputError(f"{label}: there are {len(state.iteration)} members: expected one, by result.member(i)")


def check_counts(algorithm: Any) -> None:
    """Refuse a run that int32 cannot count.

    Raises:
        InputError: naming the count, the value and what would be accepted.
    """
    for name in ("steps_per_iteration", "num_iterations"):
        value = getattr(algorithm, name)
        if value >= LARGEST_INT:
            raise InputError(
                f"{type(algorithm).__name__}.{name} = {value} is not accepted: expected less than {LARGEST_INT}, which "
                "is what 32-bit numbers count"
            )


class State(Protocol):
    """What the next step needs and nothing else: a NamedTuple with at least these fields."""

    @property
    def key(self) -> Key:
        """The root of the run: iteration i draws from `fold_in(key, i)`, and the key itself never changes."""
        ...

    @property
    def iteration(self) -> jax.Array:
        """int32, iterations done."""
        ...

    @property
    def params(self) -> Params:
        """What is learned; a run whose parameters are not finite has failed."""
        ...


class Algorithm(Protocol):
    """The whole interface between an algorithm and everything that runs it.

    A pytree of hyperparameters that is three pure functions of a `State`. Loops, runs, sweeps, checkpoints, sinks,
    plots and the command line know nothing else of it.
    """

    @property
    def unit(self) -> str:
        """What steps are counted in: "env steps", "tokens", "pairs"."""
        ...

    @property
    def total_steps(self) -> int:
        """The budget asked for, in `unit`; a field, so that a run can be trained on."""
        ...

    @property
    def steps_per_iteration(self) -> int:
        """In `unit`."""
        ...

    @property
    def num_iterations(self) -> int:
        """Whole iterations within `total_steps`."""
        ...

    @property
    def score(self) -> tuple[str, Literal["max", "min"]]:
        """Which of the scores of `evaluate` ranks runs, and which end of it is better.

        A metric of the same name, if there is one, is what it looks like in training.
        """
        ...

    def init(self, key: Key) -> Any:
        """The state a run with this key starts from."""
        ...

    def step(self, state: Any) -> tuple[Any, Metrics]:
        """One iteration: collect, credit, learn."""
        ...

    def evaluate(self, state: Any, key: Key, num: int) -> Scores:
        """How good `state` is, over `num` cases (episodes, prompts, pairs) that training never sees.

        It folds `EVALUATION_STREAM` into `key`, so the key of a training run may be given.
        """
        ...

    def divides_into(self, devices: int) -> bool:
        """Whether an iteration can be divided over so many devices, and is large enough for that to pay."""
        ...


def not_kept(algorithm: Any) -> tuple[str, ...]:
    """The fields of its state that checkpoints leave out: what `algorithm.not_kept` names, if there is one."""
    return getattr(algorithm, "not_kept", ())
