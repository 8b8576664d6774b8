"""Trust region policy optimisation (Schulman et al., 2015).

    maximise E[pi(a|s) / pi_old(a|s) A]   subject to   E[KL(pi_old || pi)] <= max_kl

The step of the natural gradient solves this to first and second order. It is shortened until the surrogate has in fact
improved and the KL is in fact within the bound; where no step is, the policy stays.

Under `normalize_obs` the KL that is bounded and reported is that of the policies that see observations normalised as in
this iteration; the policy that acts next sees them by moments updated since, so the KL from one acting policy to the
next is another one: larger at first, nearly the same once the moments have settled.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from pgjax.algorithms.in_environment import learning_rates
from pgjax.algorithms.npg import NaturalGradient, policy_and_objective
from pgjax.algorithms.on_policy import (
    OnPolicyState,
    check,
    collect,
    fit_value,
    gae_samples,
    initial_state,
)
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.learning import losses
from pgjax.learning.natural_gradient import conjugate_gradient, fisher_vector_product, line_search, within_kl
from pgjax.learning.optimizers import adam


@pytree
class TRPO(NaturalGradient):
    """Trust region policy optimisation (Schulman et al., 2015, eq. 14).

    Each step maximises E[pi(a|s) / pi_old(a|s) A] subject to E[KL(pi_old || pi)] <= max_kl.
    """

    max_backtracks: int = field("how often the step is shortened at most", default=10, accepts="[0, inf)")
    backtrack: Scalar = field("factor the step is shortened by", default=0.8, accepts="(0, 1)")

    def __post_init__(self) -> None:
        check(self, "value_minibatches")

    def init(self, key: Key) -> OnPolicyState:
        """The start of a run, with one Adam: the value's."""
        return initial_state(self, key, adam(self.value_learning_rate, self.max_grad_norm).init)

    def step(self, state: OnPolicyState) -> tuple[OnPolicyState, Metrics]:
        """One rollout, the longest step of the policy that is accepted, and `value_epochs` passes of the value."""
        rollout_key, value_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))
        memory = state.rollout.memory

        # Collect
        next_state, batch, metrics = collect(self, state, rollout_key)

        # Credit
        samples = gae_samples(self, batch)

        # Learn
        policy, objective = policy_and_objective(self, state.params, memory, samples)
        (before, _), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        product = fisher_vector_product(policy, state.params, self.cg_damping)
        direction = conjugate_gradient(product, gradient, self.cg_iterations)
        step = within_kl(product, direction, self.max_kl)

        def accept(params: Params) -> Array:
            value, measured = objective(params)
            return (value > before) & (measured["kl"] <= self.max_kl)

        params, fraction = line_search(accept, state.params, step, self.max_backtracks, self.backtrack)
        _, learning = objective(params)
        (value_rate,) = learning_rates(self, state, self.value_learning_rate)
        params, opt_state, value_loss = fit_value(self, params, state.opt_state, memory, samples, value_rate, value_key)

        metrics |= learning | {
            "value_loss": value_loss,
            "explained_variance": losses.explained_variance(batch.value, samples.value_target),
            "grad_norm": optax.tree.norm(gradient),
            "step_norm": jnp.where(fraction > 0.0, fraction * optax.tree.norm(step), 0.0),
            "step_fraction": fraction,
            "learning_rate": value_rate,
        }
        return next_state._replace(params=params, opt_state=opt_state), metrics
