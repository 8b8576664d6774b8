"""Advantage actor-critic (Mnih et al., 2016, in its synchronous form).

Policy and value learn together, in one gradient step per short rollout, from bootstrapped n-step returns or GAE:

    L = E[-log pi(a|s) A] + vf_coef E[value loss] - ent_coef E[entropy].
"""

from typing import Literal

import jax
import optax
from jaxtyping import Array, Float

from pgjax.algorithms import on_policy
from pgjax.algorithms.in_environment import learning_rates
from pgjax.algorithms.on_policy import (
    OnPolicy,
    OnPolicyState,
    Samples,
    collect,
    initial_state,
    samples_of,
)
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.learning import losses, returns
from pgjax.learning.optimizers import adam, mean_gradient
from pgjax.networks.network import Memory


@pytree
class A2C(OnPolicy):
    """Advantage actor-critic (Mnih et al., 2016, section 4).

    Adam minimises E[-log pi(a|s) A + vf_coef (V - target)^2 / 2 - ent_coef entropy].
    """

    num_steps: int = field("steps of each environment per iteration (T)", default=16, accepts="[1, inf)")
    learning_rate: Scalar = field("step size of Adam", default=1e-3, accepts="[0, inf)")
    ent_coef: Scalar = field("weight of the entropy bonus", default=0.01, accepts="[0, inf)")
    vf_coef: Scalar = field("weight of the value loss", default=0.5, accepts="[0, inf)")
    advantage: Literal["gae", "n_step"] = field("how advantages are estimated", default="gae")
    gae_lambda: Scalar = field(
        "lambda of gae: 0 one-step TD, 1 all the rewards of the rollout as in A3C", default=0.95, accepts="[0, 1]"
    )
    n: int = field("rewards before the bootstrap of n_step", default=5, accepts="[1, inf)")
    normalize_advantage: bool = field("bring advantages to mean 0 and standard deviation 1", default=False)

    def divides_into(self, devices: int) -> bool:
        """Whether the environments can be divided; one rollout is one minibatch."""
        return on_policy.divides_into(self, devices, num_minibatches=1)

    def init(self, key: Key) -> OnPolicyState:
        """The start of a run, with one Adam for policy and value."""
        return initial_state(self, key, adam(self.learning_rate, self.max_grad_norm).init)

    def step(self, state: OnPolicyState) -> tuple[OnPolicyState, Metrics]:
        """One rollout, and one gradient step of policy and value."""
        # Collect
        key = jax.random.fold_in(state.key, state.iteration)
        next_state, batch, metrics = collect(self, state, key)

        # Credit
        ends = batch.terminated, batch.truncated
        if self.advantage == "gae":
            advantage = returns.gae(batch.reward, batch.value, batch.next_value, *ends, self.gamma, self.gae_lambda)
        else:
            advantage = returns.n_step(batch.reward, batch.next_value, *ends, self.gamma, self.n) - batch.value
        value_target = advantage + batch.value
        if self.normalize_advantage:
            advantage = losses.normalized_advantage(advantage)

        # Learn
        (learning_rate,) = learning_rates(self, state, self.learning_rate)
        samples = samples_of(batch, advantage, value_target)
        grads, learning = mean_gradient(self.loss)(state.params, state.rollout.memory, samples)
        updates, opt_state = adam(learning_rate, self.max_grad_norm).update(grads, state.opt_state, state.params)

        metrics |= learning | {
            "explained_variance": losses.explained_variance(batch.value, value_target),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate,
        }
        return next_state._replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state), metrics

    def loss(self, params: Params, memory: Memory, samples: Samples) -> tuple[Float[Array, "T B"], dict[str, Array]]:
        """-log pi(a|s) A + vf_coef value loss - ent_coef entropy, `[T, B]`, with its terms as metrics."""
        _, output = self.network.unroll(params, memory, samples.obs, samples.reset)
        policy = output.distribution
        policy_loss = losses.policy_gradient(policy.log_prob(samples.action), samples.advantage)
        value_loss = losses.value_loss(output.value, samples.value_target)
        entropy = policy.entropy()
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        return policy_loss + self.vf_coef * value_loss - self.ent_coef * entropy, metrics
