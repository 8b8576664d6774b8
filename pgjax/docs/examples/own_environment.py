"""An environment of your own: dock a craft by thrust along a line, with a mass and a fuel price that can be swept.

python own_environment.py
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import pgjax
from pgjax.environments.base import Box, TimeStep


class Craft(NamedTuple):
    position: jax.Array
    velocity: jax.Array
    time: jax.Array


@pgjax.pytree
class Docking:
    """Come to rest at 0. Two pure functions, two spaces; a field annotated `Scalar` is a number that can be swept."""

    mass: pgjax.Scalar = pgjax.field("of the craft, in kg", default=1.0, accepts="(0, inf)")
    fuel_price: pgjax.Scalar = pgjax.field("reward per newton and step", default=0.05, accepts="[0, inf)")

    name = "Docking"
    observation_space = Box((2,))
    action_space = Box((1,), -1.0, 1.0)
    time_limit = 100

    def reset(self, key):
        """The start of an episode: at rest, up to 2 m away."""
        craft = Craft(jax.random.uniform(key, minval=-2.0, maxval=2.0), jnp.float32(0.0), jnp.int32(0))
        return craft, self.observe(craft)

    def step(self, key, craft, action):
        """A tenth of a second. Nothing is reset here: who steps starts the next episode."""
        thrust = self.received(action)[0]
        velocity = craft.velocity + 0.1 * thrust / self.mass
        craft = Craft(craft.position + 0.1 * velocity, velocity, craft.time + 1)
        reward = -jnp.abs(craft.position) - self.fuel_price * jnp.abs(thrust)
        is_lost = jnp.abs(craft.position) > 5.0  # an end: its value is zero
        is_late = craft.time >= self.time_limit  # a time limit: its value is bootstrapped
        return TimeStep(craft, self.observe(craft), jnp.where(is_lost, -100.0, reward), is_lost, is_late)

    def received(self, action):
        """What `step` makes of any real action."""
        return jnp.clip(action, -1.0, 1.0)

    def observe(self, craft):
        return jnp.stack([craft.position, craft.velocity])


def main(total_steps=409_600):
    ppo = pgjax.PPO(
        Docking(), num_envs=32, num_steps=64, learning_rate=1e-3, normalize_reward=True, total_steps=total_steps
    )
    state, _ = jax.jit(pgjax.train)(ppo, jax.random.key(0))
    print("return of the greedy policy:", float(pgjax.evaluate(ppo, state, jax.random.key(1)).mean))

    result = pgjax.sweep(ppo, mass=[0.5, 1.0, 2.0], progress=False)  # one program, three worlds
    for setting, score, _ in result.ranking():
        print(setting, f"{score:.1f}")
    return result


if __name__ == "__main__":
    main()
