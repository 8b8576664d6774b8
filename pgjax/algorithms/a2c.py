"""Advantage actor-critic (Mnih et al., 2016, in its synchronous form).

Policy and value learn together, in one gradient step per short rollout, from bootstrapped n-step returns or GAE:

    L = E[-log pi(a|s) A] + vf_coef E[value loss] - ent_coef E[entropy].
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from pgjax.algorithms import on_policy
from pgjax.algorithms.on_policy import (
    OnPolicy,
    OnPolicyState,
    Samples,
    acting,
    check,
    collect,
    initial_state,
    learning_rates,
    samples,
)
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.devices import mean_of_shares
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.learning import losses, returns
from pgjax.learning.optimizers import adam
from pgjax.learning.rollout import Actor
from pgjax.networks.network import Memory


@pytree
class A2C(OnPolicy):
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

    def __post_init__(self) -> None:
        check(self)

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_iterations(self) -> int:
        return self.total_steps // self.steps_per_iteration

    def divides_into(self, devices: int) -> bool:
        return on_policy.divides_into(self, devices, num_minibatches=1)

    def init(self, key: Key) -> OnPolicyState:
        return initial_state(self, key, adam(self.learning_rate, self.max_grad_norm).init)

    def actor(self, state: OnPolicyState) -> Actor:
        return acting(self.network, state.params, state.obs_moments)

    def step(self, state: OnPolicyState) -> tuple[OnPolicyState, Metrics]:
        # Collect
        key = jax.random.fold_in(state.key, state.iteration)
        after, batch, metrics = collect(self, state, key)

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
        gradient = mean_of_shares(jax.grad(self.loss, has_aux=True), in_axes=(None, 0, 1))
        grads, learning = gradient(state.params, state.rollout.memory, samples(batch, advantage, value_target))
        updates, opt_state = adam(learning_rate, self.max_grad_norm).update(grads, state.opt_state, state.params)

        metrics |= learning | {
            "explained_variance": losses.explained_variance(batch.value, value_target),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate,
        }
        return after._replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state), metrics

    def loss(self, params: Params, memory: Memory, batch: Samples) -> tuple[Array, Metrics]:
        _, output = self.network.unroll(params, memory, batch.obs, batch.reset)
        policy = output.distribution
        policy_loss = jnp.mean(losses.policy_gradient(policy.log_prob(batch.action), batch.advantage))
        value_loss = jnp.mean(losses.value_loss(output.value, batch.value_target))
        entropy = jnp.mean(policy.entropy())
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        return policy_loss + self.vf_coef * value_loss - self.ent_coef * entropy, metrics
