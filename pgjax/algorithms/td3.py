"""Twin delayed DDPG (Fujimoto et al., 2018): three remedies for critics that overestimate."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pgjax.algorithms.ddpg import DDPG
from pgjax.algorithms.off_policy import Learner
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.core.metrics import Mean
from pgjax.learning.replay import Batch


@pytree
class TD3(DDPG):
    """Twin delayed deep deterministic policy gradient (Fujimoto et al., 2018, algorithm 1): DDPG with

    - the smaller value of two critics in the target, y = r + gamma min_i Q'_i(s', a');
    - a smoothed target action, a' = mu'(s') + clip(noise, -c, c), noise ~ N(0, target_noise^2), within the bounds;
    - a policy and targets that move in every `policy_delay`-th gradient step only.
    """

    target_noise: Scalar = field("standard deviation of the noise of target actions", default=0.2, accepts="[0, inf)")
    target_noise_clip: Scalar = field("that noise is clipped to +- this", default=0.5, accepts="[0, inf)")
    policy_delay: int = field("gradient steps of the critics for each of the policy", default=2, accepts="[1, inf)")

    num_critics = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.num_rounds * self.num_updates
        if steps % self.policy_delay:
            raise InputError(
                f"TD3.policy_delay = {self.policy_delay} does not divide num_rounds * num_updates = {steps}, the "
                "gradient steps of an iteration"
            )

    def update(
        self, learner: Learner, batch: Batch, key: Key, nth: Array, rates: dict[str, Array]
    ) -> tuple[Learner, Metrics]:
        """The critics, and in every `policy_delay`-th step the policy."""
        target = self.target(learner.targets, batch, key)
        learner, metrics = self.with_critics(learner, batch, target, rates)
        is_due = (nth + 1) % self.policy_delay == 0
        learner, policy_loss = jax.lax.cond(
            is_due,
            lambda learner: self.with_policy(learner, batch, rates),
            lambda learner: (learner, jnp.float32(0.0)),
            learner,
        )
        return learner, metrics | {"policy_loss": Mean(policy_loss, is_due.astype(jnp.float32))}

    def target(self, targets: Params, batch: Batch, key: Key) -> Float[Array, "N"]:
        """y = r + gamma min_i Q'_i(s', mu'(s') + noise)."""
        action = self.deterministic(targets["policy"], batch.next_obs)
        space: Any = self.env.action_space
        clip, high = self.target_noise_clip, space.high
        noise = jnp.clip(self.target_noise * jax.random.normal(key, action.shape), -clip, clip)
        value = self.action_values(targets["critics"], batch.next_obs, jnp.clip(action + noise, -high, high))
        return batch.reward + batch.discount * jnp.min(value, axis=0)

    def moved(self, learner: Learner, nth: Array) -> Params:
        """As others do, in every `policy_delay`-th gradient step."""
        is_due = (nth + 1) % self.policy_delay == 0
        moved = super().moved(learner, nth // self.policy_delay)
        return jax.tree.map(lambda new, old: jnp.where(is_due, new, old), moved, learner.targets)
