"""Deep deterministic policy gradient (Lillicrap et al., 2016): a policy that follows the gradient of its critic."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pgjax.algorithms.in_environment import acting
from pgjax.algorithms.off_policy import Explored, Learner, OffPolicy, check, stepped
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.core.metrics import Mean
from pgjax.environments.base import Discrete
from pgjax.learning.acting import Actor
from pgjax.learning.normalize import Moments
from pgjax.learning.replay import Batch
from pgjax.networks.feedforward import MLP
from pgjax.networks.network import Memory, Network, Output
from pgjax.networks.registry import NETWORKS


class Noise(NamedTuple):
    """What exploring remembers of an environment."""

    noise: Float[Array, "B D"]
    action: Float[Array, "B D"]
    """Of the policy, without it."""


class Noisy(NamedTuple):
    """Normal actions, clipped as the environment is given them."""

    mean: Float[Array, "B D"]
    std: Float[Array, ""]
    high: float
    """Of the action space; infinite if it has no bounds."""

    def noise(self, key: Key, times: tuple[int, ...] = ()) -> Array:
        """Standard normal."""
        return jax.random.normal(key, times + self.mean.shape)

    def sample_and_log_prob(self, noise: Array) -> tuple[Array, Array]:
        """mean + std noise; nothing asks for its log-probability."""
        return self.mean + self.std * noise, jnp.zeros(self.mean.shape[:-1])

    def env_action(self, action: Array) -> Array:
        """Within the bounds."""
        return jnp.clip(action, -self.high, self.high)

    def mode(self) -> Array:
        """The mean."""
        return self.mean


@pytree
class DDPG(OffPolicy):
    """Deep deterministic policy gradient (Lillicrap et al., 2016, algorithm 1).

    The critic minimises (Q(s, a) - y)^2 / 2 with y = r + gamma Q'(s', mu'(s')), where ' are slow copies, and the policy
    maximises E[Q(s, mu(s))], whose gradient is grad_a Q(s, a) grad mu(s) at a = mu(s) (Silver et al., 2014, eq. 9).
    mu(s) is the mode of the network's policy, as the environment is given it. It explores with

        a = mu(s) + x,  x <- (1 - noise_theta) x + noise_std N(0, 1),

    the Ornstein-Uhlenbeck process of the paper; with noise_theta = 1, independent normal noise.
    """

    network: Network = field(
        "policy",
        default=MLP(hidden=(256, 256), activation="relu", shared_torso=True, squash=True, orthogonal_init=False),
        part=NETWORKS,
    )
    noise_std: Scalar = field("standard deviation of each step's noise", default=0.1, accepts="[0, inf)")
    noise_theta: Scalar = field(
        "how fast noise is forgotten: 1 at once, 0.15 in the paper", default=1.0, accepts="[0, 1]"
    )

    num_critics = 1
    with_target: ClassVar[tuple[str, ...]] = ("critics", "policy")

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.env.action_space, Discrete):
            raise InputError(
                f"{type(self).__name__}.env = {self.env.name} has discrete actions: expected continuous ones, along "
                "which a critic has a gradient; discrete-sac and ppo choose"
            )

    def explorer(
        self, params: Params, obs_moments: Moments | None, is_random: Bool[Array, ""], held: Key | None = None
    ) -> Actor:
        """mu(s) + x, or uniform actions where `is_random`."""
        actor = acting(self.network, params["policy"], obs_moments)
        space: Any = self.env.action_space

        def initial_memory(batch: int) -> Memory:
            return Noise(*(jnp.zeros((batch, *space.shape)) for _ in range(2)))

        def act(memory: Noise, obs: Array, reset: Array) -> tuple[Memory, Output]:
            _, output = actor.act((), obs, reset)
            action = _greedy(output)
            left = jnp.where(reset[:, None], 0.0, (1.0 - self.noise_theta) * memory.noise)
            drawn: Any = Explored(Noisy(action + left, jnp.asarray(self.noise_std), space.high), is_random, held)
            return Noise(left, action), Output(drawn, output.value)

        def after(memory: Noise, action: Array) -> Memory:
            return memory._replace(noise=jnp.where(is_random, 0.0, action - memory.action))

        return Actor(initial_memory, act, after)

    def update(
        self, learner: Learner, batch: Batch, key: Key, nth: Array, rates: dict[str, Array]
    ) -> tuple[Learner, Metrics]:
        """The critic, then the policy."""
        target = self.target(learner.targets, batch, key)
        learner, metrics = self.with_critics(learner, batch, target, rates)
        learner, policy_loss = self.with_policy(learner, batch, rates)
        return learner, metrics | {"policy_loss": Mean(policy_loss, 1)}

    def target(self, targets: Params, batch: Batch, key: Key) -> Float[Array, "N"]:
        """y = r + gamma Q'(s', mu'(s'))."""
        action = self.deterministic(targets["policy"], batch.next_obs)
        return batch.reward + batch.discount * self.action_values(targets["critics"], batch.next_obs, action)[0]

    def with_policy(self, learner: Learner, batch: Batch, rates: dict[str, Array]) -> tuple[Learner, Array]:
        """A gradient step of the policy on -E[Q(s, mu(s))], and that loss."""

        def loss(policy: Params) -> Array:
            action = self.deterministic(policy, batch.obs)
            return -jnp.mean(self.critic.values(learner.params["critics"][0], batch.obs, action))

        policy_loss, grads = jax.value_and_grad(loss)(learner.params["policy"])
        return stepped(learner, {"policy": grads}, rates, self.max_grad_norm), policy_loss

    def deterministic(self, policy: Params, obs: Float[Array, "N *obs"]) -> Float[Array, "N D"]:
        """mu(s)."""
        return _greedy(self.network.step(policy, (), obs, jnp.zeros(obs.shape[0], bool))[1])


def _greedy(output: Output) -> Any:
    return output.distribution.env_action(output.distribution.mode())
