"""Natural policy gradient (Kakade, 2002).

The steepest ascent where distance is the KL divergence of policies and not the length of the parameters' step:

    theta <- theta + alpha F^-1 grad J,    F = E[grad log pi grad log pi^T],

with F^-1 grad J by conjugate gradients on Fisher-vector products, and alpha either given or as large as a KL of
`max_kl` allows (Schulman et al., 2015, appendix C).

`max_kl` bounds E[KL(pi_old || pi)], the mean over the states of the batch. The step is as long as the bound allows
where the KL is quadratic with F; where the KL measured on the whole batch is above the bound even so, as with few
environments in F or hardly any damping, it is shortened until it is within, and where that fails the policy stays.

Under `normalize_obs` the KL that is bounded and reported is that of the policies that see observations normalised as in
this iteration; the policy that acts next sees them by moments updated since, so the KL from one acting policy to the
next is another one: larger at first, nearly the same once the moments have settled.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

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
from pgjax.learning.natural_gradient import conjugate_gradient, fisher_vector_product, shortened, within_kl
from pgjax.learning.optimizers import adam
from pgjax.networks.distributions import Distribution
from pgjax.networks.network import Memory


@pytree
class NaturalGradient(SeparateValue):
    """Hyperparameters of the algorithms that take natural gradients: declarations without behaviour."""

    max_kl: Scalar = field(
        "mean KL divergence of the new policy from the old that a step may reach", default=0.01, accepts="(0, inf)"
    )
    cg_iterations: int = field("conjugate-gradient iterations at most", default=10, accepts="[1, inf)")
    cg_damping: Scalar = field("multiple of the identity added to the Fisher matrix", default=0.1, accepts="[0, inf)")
    fisher_stride: int = field(
        "one in so many environments enters the Fisher matrix, whose products cost the most",
        default=1,
        accepts="[1, inf)",
    )
    gae_lambda: Scalar = field(
        "lambda of the generalised advantage: 0 one-step TD, 1 Monte Carlo", default=0.95, accepts="[0, 1]"
    )


@pytree
class NPG(NaturalGradient):
    """Natural policy gradient (Kakade, 2002, section 2).

    theta <- theta + alpha F^-1 grad J.
    """

    step_rule: Literal["max_kl", "learning_rate"] = field(
        "how long the step is: what max_kl allows, or learning_rate times the natural gradient", default="max_kl"
    )
    learning_rate: Scalar = field("alpha of step_rule learning_rate", default=0.1, accepts="[0, inf)")

    def __post_init__(self) -> None:
        check(self, "value_minibatches")

    def init(self, key: Key) -> OnPolicyState:
        """The start of a run, with one Adam: the value's."""
        return initial_state(self, key, adam(self.value_learning_rate, self.max_grad_norm).init)

    def step(self, state: OnPolicyState) -> tuple[OnPolicyState, Metrics]:
        """One rollout, one natural-gradient step of the policy, and `value_epochs` passes of the value."""
        rollout_key, value_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))
        memory = state.rollout.memory

        # Collect
        next_state, batch, metrics = collect(self, state, rollout_key)

        # Credit
        samples = gae_samples(self, batch)

        # Learn
        alpha, value_rate = learning_rates(self, state, self.learning_rate, self.value_learning_rate)
        policy, objective = policy_and_objective(self, state.params, memory, samples)
        gradient = jax.grad(objective, has_aux=True)(state.params)[0]
        product = fisher_vector_product(policy, state.params, self.cg_damping)
        direction = conjugate_gradient(product, gradient, self.cg_iterations)
        if self.step_rule == "max_kl":
            step = within_kl(product, direction, self.max_kl)
            params, fraction = shortened(lambda params: objective(params)[1]["kl"], state.params, step, self.max_kl)
        else:
            step = jax.tree.map(lambda d: alpha * d, direction)
            params, fraction = jax.tree.map(jnp.add, state.params, step), jnp.float32(1.0)
        _, learning = objective(params)
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


def policy_and_objective(
    algorithm: Any, old_params: Params, memory: Memory, samples: Samples
) -> tuple[Callable[[Params], Distribution], Callable[[Params], tuple[Array, dict[str, Array]]]]:
    """The policy on the states that the Fisher matrix is averaged over, and what is maximised, both functions of the
    parameters.

    The objective is E[pi(a|s) / pi_old(a|s) A] + ent_coef E[entropy]; with it come metrics: its first term's negative,
    E[KL(pi_old || pi)] and the entropy.
    """

    def policy(params: Params, stride: int = 1) -> Distribution:
        start, obs, reset = (
            jax.tree.map(lambda x: x[::stride], memory),
            samples.obs[:, ::stride],
            samples.reset[:, ::stride],
        )
        return algorithm.network.unroll(params, start, obs, reset)[1].distribution

    old = jax.lax.stop_gradient(policy(old_params))

    def objective(params: Params) -> tuple[Array, dict[str, Array]]:
        new = policy(params)
        ratio = jnp.exp(new.log_prob(samples.action) - samples.log_prob)
        policy_loss, entropy = jnp.mean(losses.surrogate(ratio, samples.advantage)), jnp.mean(new.entropy())
        metrics = {"policy_loss": policy_loss, "kl": jnp.mean(old.kl(new)), "entropy": entropy}
        return algorithm.ent_coef * entropy - policy_loss, metrics

    return lambda params: policy(params, algorithm.fisher_stride), objective
