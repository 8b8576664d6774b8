"""Networks of your own: a flax module as the torso of a policy, and a network with a memory of your own making.

python own_network.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

import pgjax
from pgjax.environments.base import Box, Discrete
from pgjax.networks.distributions import Categorical
from pgjax.networks.network import Output


class Residual(nn.Module):
    """Observations `[N, *obs]` to features `[N, width]`; the heads of policy and value are added by `Custom`."""

    width: int = 64

    @nn.compact
    def __call__(self, obs):
        x = nn.Dense(self.width)(obs.reshape(obs.shape[0], -1))
        for _ in range(2):
            x = x + nn.Dense(self.width)(nn.tanh(nn.LayerNorm()(x)))
        return x


@pgjax.pytree
class Trace:
    """A softmax policy and a value, linear in the observation and in a trace of those before:

    m_t = decay m_{t-1} + obs_t, forgotten where an episode starts. The law: `unroll` equals a scan of `step`.
    """

    size: int = pgjax.field("numbers of an observation", default=4, accepts="[1, inf)")
    decay: pgjax.Scalar = pgjax.field("of what is remembered, per step", default=0.9, accepts="[0, 1)")

    def init(self, key, observation_space: Box, action_space: Discrete):
        shape = (2 * observation_space.shape[0], action_space.n)
        return {"policy": 0.01 * jax.random.normal(key, shape), "value": jnp.zeros(shape[0])}

    def initial_memory(self, batch):
        return jnp.zeros((batch, self.size))

    def step(self, params, memory, obs, reset):
        """Acting, `[B, ...]`."""
        memory = jnp.where(reset[:, None], 0.0, self.decay * memory) + obs
        features = jnp.concatenate([obs, memory], axis=-1)
        return memory, Output(Categorical(features @ params["policy"]), features @ params["value"])

    def unroll(self, params, memory, obs, reset):
        """Learning, `[T, B, ...]`."""
        return jax.lax.scan(lambda memory, x: self.step(params, memory, *x), memory, (obs, reset))


def main(total_steps=204_800):
    env = pgjax.make("CartPole-v1")
    results = {}
    for network in (pgjax.Custom(Residual(width=64)), Trace(size=4)):
        ppo = pgjax.PPO(env, network=network, num_envs=32, learning_rate=2.5e-3, total_steps=total_steps)
        result = pgjax.run(ppo, progress=False)
        results[type(network).__name__] = float(pgjax.evaluate(ppo, result.state, jax.random.key(1)).mean)
    print("mean returns:", results)
    return results


if __name__ == "__main__":
    main()
