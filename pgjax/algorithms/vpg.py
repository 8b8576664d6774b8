"""Vanilla policy gradient with generalised advantages (Schulman et al., 2016; "VPG" of Spinning Up).

    grad J = E[grad log pi(a|s) A(s, a)]

One step of the policy per batch, because the expectation is over the policy that acted; then several steps of the value
towards the lambda-return, whose targets stay right however far it moves.
"""

import jax
import optax
from jaxtyping import Array, Float

from pgjax.algorithms import on_policy
from pgjax.algorithms.in_environment import learning_rates
from pgjax.algorithms.on_policy import (
    OnPolicyState,
    Samples,
    SeparateValue,
    check,
    collect,
    fit_value,
    gae_samples,
    initial_state,
)
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.learning import losses
from pgjax.learning.optimizers import adam, mean_gradient
from pgjax.networks.network import Memory


@pytree
class VPG(SeparateValue):
    """Vanilla policy gradient (Schulman et al., 2016, eq. 1, with A by eq. 16).

    Adam follows grad J = E[grad log pi(a|s) A].
    """

    learning_rate: Scalar = field("step size of the policy's Adam", default=3e-3, accepts="[0, inf)")
    gae_lambda: Scalar = field(
        "lambda of the generalised advantage: 0 one-step TD, 1 Monte Carlo", default=0.95, accepts="[0, 1]"
    )

    def __post_init__(self) -> None:
        check(self, "value_minibatches")

    def divides_into(self, devices: int) -> bool:
        """Whether the environments and the value's minibatches can be divided; the policy takes whole rollouts."""
        return on_policy.divides_into(self, devices, self.value_minibatches)

    def init(self, key: Key) -> OnPolicyState:
        """The start of a run, with two Adams: the policy's and the value's."""
        optimizer = adam(self.learning_rate, self.max_grad_norm)
        return initial_state(self, key, lambda params: (optimizer.init(params), optimizer.init(params)))

    def step(self, state: OnPolicyState) -> tuple[OnPolicyState, Metrics]:
        """One rollout, one gradient step of the policy, and `value_epochs` passes of the value."""
        rollout_key, value_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))
        memory = state.rollout.memory

        # Collect
        next_state, batch, metrics = collect(self, state, rollout_key)

        # Credit
        samples = gae_samples(self, batch)

        # Learn
        policy_rate, value_rate = learning_rates(self, state, self.learning_rate, self.value_learning_rate)
        policy_adam, value_adam = state.opt_state
        grads, learning = mean_gradient(self.loss)(state.params, memory, samples)
        updates, policy_adam = adam(policy_rate, self.max_grad_norm).update(grads, policy_adam, state.params)
        params = optax.apply_updates(state.params, updates)
        params, value_adam, value_loss = fit_value(self, params, value_adam, memory, samples, value_rate, value_key)

        metrics |= learning | {
            "value_loss": value_loss,
            "explained_variance": losses.explained_variance(batch.value, samples.value_target),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": policy_rate,
        }
        return next_state._replace(params=params, opt_state=(policy_adam, value_adam)), metrics

    def loss(self, params: Params, memory: Memory, samples: Samples) -> tuple[Float[Array, "T B"], dict[str, Array]]:
        """-log pi(a|s) A - ent_coef entropy, `[T, B]`, with its terms as metrics."""
        policy = self.network.unroll(params, memory, samples.obs, samples.reset)[1].distribution
        policy_loss = losses.policy_gradient(policy.log_prob(samples.action), samples.advantage)
        entropy = policy.entropy()
        return policy_loss - self.ent_coef * entropy, {"policy_loss": policy_loss, "entropy": entropy}
