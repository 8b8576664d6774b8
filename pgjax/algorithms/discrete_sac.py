"""Soft actor-critic for choices (Christodoulou, 2019): expectations over all actions instead of samples."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pgjax.algorithms.off_policy import Learner, check
from pgjax.algorithms.sac import SAC
from pgjax.core.algorithm import Key, Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.environments.base import Discrete
from pgjax.learning.replay import Batch
from pgjax.networks.feedforward import MLP
from pgjax.networks.network import Network
from pgjax.networks.registry import NETWORKS


@pytree
class DiscreteSAC(SAC):
    """Soft actor-critic for discrete actions (Christodoulou, 2019, algorithm 1).

    Critics give Q_i(s, .) of all actions, and what `SAC` samples is computed:

        y = r + gamma sum_a pi(a | s') (min_i Q'_i(s', a) - alpha log pi(a | s')),
        sum_a pi(a | s) (alpha log pi(a | s) - min_i Q_i(s, a)).

    The temperature aims at `target_entropy` times the largest entropy, log n.
    """

    network: Network = field(
        "policy",
        default=MLP(hidden=(256, 256), activation="relu", shared_torso=True, orthogonal_init=False),
        part=NETWORKS,
    )
    target_entropy: Scalar = field(
        "entropy that alpha aims at, as a share of that of uniform choices", default=0.5, accepts="(0, 1)"
    )

    def __post_init__(self) -> None:
        check(self)
        if not isinstance(self.env.action_space, Discrete):
            raise InputError(
                f"DiscreteSAC.env = {self.env.name} has continuous actions: expected discrete ones; sac is for these"
            )

    @property
    def entropy_goal(self) -> Array | float:
        """The target in nats."""
        space: Any = self.env.action_space
        return jnp.asarray(self.target_entropy) * jnp.log(space.n)

    def target(self, learner: Learner, batch: Batch, alpha: Array, key: Key) -> Float[Array, "N"]:
        """y = r + gamma E[min_i Q'_i(s', a) - alpha log pi(a | s')]."""
        loss, _ = self.policy_losses(learner.params["policy"], learner.targets["critics"], batch.next_obs, alpha, key)
        return batch.reward - batch.discount * loss

    def policy_losses(
        self, params: Params, critics: Params, obs: Array, alpha: Array, key: Key
    ) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
        """sum_a pi(a | s) (alpha log pi(a | s) - min_i Q_i(s, a)), and the entropy."""
        policy: Any = self.policy(params, obs)
        value = jnp.min(self.action_values(critics, obs, None), axis=0)
        entropy = policy.entropy()
        return -alpha * entropy - jnp.sum(jax.nn.softmax(policy.logits) * value, axis=-1), entropy
