"""Environments of a user's own: known by a name, and traced before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp

from pgjax.core.errors import InputError
from pgjax.core.own import is_own, traced
from pgjax.core.parts import Dataclasses
from pgjax.environments.base import Box, Discrete, TimeStep
from pgjax.environments.wrappers import Wrapper

OWN = Dataclasses("env", {})
"""Classes with the interface of `environments.base.Environment`, by the names they were registered under."""


def has_our_interface(x: Any) -> bool:
    """Of an environment or its class; those in the style of gymnax have no `received`."""
    return hasattr(x, "received") and hasattr(x, "step")


def check_environment(env: Any) -> None:
    """Trace the methods of an environment of the user's own, without compiling, and refuse what they give if it is not
    what is due.

    Raises:
        InputError: naming the method, what it raised or gave, and what is expected.
    """
    while isinstance(env, Wrapper):
        env = env.env
    if not is_own(env):
        return
    name = str(env.name)
    if any(leaf is env for leaf in jax.tree.leaves(env)):
        raise InputError(f"{name} is no pytree: write @pgjax.pytree above the class {type(env).__name__}")
    for what, kinds in {"observation_space": (Box,), "action_space": (Box, Discrete)}.items():
        given = getattr(env, what)
        if not isinstance(given, kinds):
            raise InputError(
                f"{name}: {what} is {given!r}: expected a "
                f"{' or '.join(kind.__name__ for kind in kinds)} of pgjax.environments.base"
            )
        if isinstance(given, Box) and not isinstance(given.shape, tuple):
            raise InputError(f"{name}: {what} is {given}: expected Box(shape, low, high) with a tuple first")
    seen, key, space = env.observation_space.shape, jax.random.key(0), env.action_space
    start = traced(name, "reset", env.reset, key)
    if not (isinstance(start, tuple) and len(start) == 2):
        raise InputError(f"{name}: reset gives {_said(start)}: expected (state, obs)")
    state, obs = start
    _check_array(name, "reset", "an observation", obs, seen)
    action = jnp.int32(0) if isinstance(space, Discrete) else jnp.zeros(space.shape)
    received = traced(name, "received", env.received, action)
    _check_array(name, "received", "an action", received, action.shape)
    step = traced(name, "step", env.step, key, state, action)
    if not isinstance(step, TimeStep):
        raise InputError(f"{name}: step gives {_said(step)}: expected a TimeStep of pgjax.environments.base")
    if _shapes(step.state) != _shapes(state):
        raise InputError(
            f"{name}: step gives another state, {_shapes(step.state)}, than reset does, {_shapes(state)}: expected the "
            "same shapes and types"
        )
    _check_array(name, "step", "an observation", step.obs, seen)
    for what in ("reward", "terminated", "truncated"):
        _check_array(name, "step", what, getattr(step, what), ())


def _check_array(name: str, method: str, what: str, found: Any, shape: tuple[int, ...]) -> None:
    if getattr(found, "shape", None) != shape:
        where = " in (state, obs)" if method == "reset" else ""
        said = f"of shape {found.shape}" if hasattr(found, "shape") else f"that is {_said(found)}"
        raise InputError(f"{name}: {method} gives {what} {said}: expected an array of shape {shape}{where}")


def _said(x: Any) -> str:
    return f"{len(x)} values" if isinstance(x, tuple) else f"a {type(x).__name__}"


def _shapes(state: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", state))
