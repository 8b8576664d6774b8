"""Soft actor-critic (Haarnoja et al., 2018): returns and the entropy of the policy, weighed by a temperature."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pgjax.algorithms.off_policy import Learner, OffPolicy, check, stepped
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.core.metrics import Mean
from pgjax.environments.base import Discrete
from pgjax.learning.replay import Batch
from pgjax.networks.distributions import Distribution
from pgjax.networks.feedforward import MLP
from pgjax.networks.network import Network
from pgjax.networks.registry import NETWORKS


@pytree
class SAC(OffPolicy):
    """Soft actor-critic with two critics (Haarnoja et al., 2018b, algorithm 1).

    With a' ~ pi(s') and slow copies Q', the critics minimise (Q_i(s, a) - y)^2 / 2, the policy and the temperature
    alpha the other two:

        y = r + gamma (min_i Q'_i(s', a') - alpha log pi(a' | s')),
        E[alpha log pi(a | s) - min_i Q_i(s, a)],  a ~ pi(s) by the reparametrisation trick,
        alpha (entropy - target),  target = target_entropy * D for actions of D dimensions.

    Targets of `n` > 1 steps leave out the entropy of the steps between.
    """

    network: Network = field(
        "policy",
        default=MLP(
            hidden=(256, 256),
            activation="relu",
            shared_torso=True,
            state_dependent_std=True,
            squash=True,
            orthogonal_init=False,
        ),
        part=NETWORKS,
    )
    temperature: Scalar = field("alpha, to begin with if it adapts", default=1.0, accepts="(0, inf)")
    adapt_temperature: bool = field("move alpha until the policy has the target entropy", default=True)
    temperature_learning_rate: Scalar = field("step size of its Adam, on log alpha", default=3e-4, accepts="[0, inf)")
    target_entropy: Scalar = field("entropy that alpha aims at, in nats per dimension of an action", default=-1.0)

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.env.action_space, Discrete):
            raise InputError(
                f"SAC.env = {self.env.name} has discrete actions: expected continuous ones; discrete-sac chooses"
            )

    @property
    def rates(self) -> dict[str, Scalar]:
        """That of the temperature beside the others."""
        return super().rates | {"log_scale": self.temperature_learning_rate}

    @property
    def entropy_goal(self) -> Array | float:
        """The target in nats."""
        space: Any = self.env.action_space
        return self.target_entropy * space.shape[0]

    def initial_params(self, key: Key) -> Params:
        """Networks, and the logarithm of alpha as a multiple of `temperature`."""
        return super().initial_params(key) | {"log_scale": jnp.float32(0.0)}

    def update(
        self, learner: Learner, batch: Batch, key: Key, nth: Array, rates: dict[str, Array]
    ) -> tuple[Learner, Metrics]:
        """The critics, the policy, and the temperature."""
        target_key, policy_key = jax.random.split(key)
        alpha = self.temperature * jnp.exp(learner.params["log_scale"])
        target = self.target(learner, batch, alpha, target_key)
        learner, metrics = self.with_critics(learner, batch, target, rates)

        def loss(policy: Params) -> tuple[Array, Array]:
            losses, entropy = self.policy_losses(policy, learner.params["critics"], batch.obs, alpha, policy_key)
            return jnp.mean(losses), jnp.mean(entropy)

        (policy_loss, entropy), grads = jax.value_and_grad(loss, has_aux=True)(learner.params["policy"])
        learner = stepped(learner, {"policy": grads}, rates, self.max_grad_norm)
        if self.adapt_temperature:
            gradient = alpha * (entropy - self.entropy_goal)
            learner = stepped(learner, {"log_scale": gradient}, rates, self.max_grad_norm)
        return learner, metrics | {
            "policy_loss": Mean(policy_loss, 1),
            "entropy": Mean(entropy, 1),
            "temperature": Mean(alpha, 1),
        }

    def target(self, learner: Learner, batch: Batch, alpha: Array, key: Key) -> Float[Array, "N"]:
        """y = r + gamma (min_i Q'_i(s', a') - alpha log pi(a' | s'))."""
        policy = self.policy(learner.params["policy"], batch.next_obs)
        action, log_prob = policy.sample_and_log_prob(policy.noise(key))
        value = self.action_values(learner.targets["critics"], batch.next_obs, policy.env_action(action))
        return batch.reward + batch.discount * (jnp.min(value, axis=0) - alpha * log_prob)

    def policy_losses(
        self, params: Params, critics: Params, obs: Array, alpha: Array, key: Key
    ) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
        """alpha log pi(a | s) - min_i Q_i(s, a), and -log pi(a | s)."""
        policy = self.policy(params, obs)
        action, log_prob = policy.sample_and_log_prob(policy.noise(key))
        value = jnp.min(self.action_values(critics, obs, policy.env_action(action)), axis=0)
        return alpha * log_prob - value, -log_prob

    def policy(self, params: Params, obs: Float[Array, "N *obs"]) -> Distribution:
        """pi(. | s)."""
        return self.network.step(params, (), obs, jnp.zeros(obs.shape[0], bool))[1].distribution
