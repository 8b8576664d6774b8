"""Episodes as GIFs. Needs the extra `render`."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pgjax.core.errors import InputError
from pgjax.environments.gymnax import draw
from pgjax.learning.acting import greedy
from pgjax.reporting.plotting import matplotlib


def render_episode(algorithm: Any, state: Any, key: Any, out: Path, max_steps: int) -> tuple[int, float]:
    """Play one greedy episode and write it as a GIF. Returns its length (in frames, at most `max_steps`) and return.

    Raises:
        InputError: there is no environment, gymnax has no drawing of it (with those it has), or needs a package that is
            missing.
    """
    if not hasattr(algorithm, "env"):
        raise InputError(f"{type(algorithm).__name__} has no policy in an environment: there is nothing to draw")
    if "matplotlib.pyplot" not in sys.modules:
        matplotlib().use("Agg")  # gymnax draws with pyplot, which must not look for a screen
    env = algorithm.env
    actor = algorithm.actor(state)
    key, reset_key = jax.random.split(key)
    env_state, obs = env.reset(reset_key)
    memory, first = actor.initial_memory(1), True
    states: list[Any] = []
    rewards: list[float] = []
    step = jax.jit(env.step)
    act = jax.jit(lambda memory, obs, reset: greedy(actor, memory, obs, reset))
    done = False
    while not done and len(states) < max_steps:
        states.append(env_state)
        memory, action = act(memory, obs[None], np.array([first]))
        successor = step(jax.random.fold_in(key, len(states)), env_state, action[0])
        rewards.append(float(successor.reward))
        done = bool(successor.terminated | successor.truncated)
        env_state, obs, first = successor.state, successor.obs, False
    draw(env, states, np.cumsum(rewards), out)
    return len(states), float(np.sum(rewards))
