"""Proximal policy optimisation (Schulman et al., 2017), with the details practice has added, each a switch.

One iteration collects `num_steps` steps from `num_envs` environments, estimates advantages, and makes
`num_epochs * num_minibatches` gradient steps on

    L = E[policy loss] + vf_coef E[value loss] - ent_coef E[entropy],

where `objective` chooses what keeps the new policy near the old: clipping the probability ratio, a penalty on the KL
divergence with a fixed or adaptive coefficient, both, or nothing.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pgjax.algorithms import on_policy
from pgjax.algorithms.on_policy import (
    OnPolicy,
    OnPolicyState,
    Samples,
    acting,
    check,
    collect,
    columns,
    initial_state,
    learning_rates,
    num_columns,
    samples,
)
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.devices import mean_of_shares
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.learning import losses, returns
from pgjax.learning.optimizers import adam, shuffled
from pgjax.learning.rollout import Actor, Transition
from pgjax.networks.distributions import Distribution
from pgjax.networks.network import Memory


class Learner(NamedTuple):
    """What the optimisation carries from one iteration to the next."""

    adam: Any
    kl_scale: Float[Array, ""]
    """beta of eq. 8 as a multiple of `kl_coef`, as adapted so far."""


@pytree
class PPO(OnPolicy):
    num_epochs: int = field("passes over each collected batch", default=4, accepts="[1, inf)")
    num_minibatches: int = field("gradient steps per epoch", default=4, accepts="[1, inf)")
    learning_rate: Scalar = field("step size of Adam", default=2.5e-4, accepts="[0, inf)")
    advantage: Literal["gae", "vtrace"] = field(
        "advantages once per batch, or anew in each epoch, corrected for how far the policy has moved", default="gae"
    )
    gae_lambda: Scalar = field(
        "lambda of the generalised advantage: 0 one-step TD, 1 Monte Carlo", default=0.95, accepts="[0, 1]"
    )
    objective: Literal["clip", "cpi", "kl_penalty", "clip_kl"] = field(
        "the policy's loss: ratio clipped, left alone, penalised by the KL divergence, or clipped and penalised",
        default="clip",
    )
    clip_eps: Scalar = field("the probability ratio is clipped to 1 +- this", default=0.2, accepts="(0, inf)")
    kl_coef: Scalar = field("weight of the KL penalty, to begin with if it adapts", default=1.0, accepts="[0, inf)")
    adaptive_kl: Scalar = field(
        "KL divergence per iteration that the penalty's weight adapts to; inf leaves it",
        default=float("inf"),
        accepts="(0, inf]",
    )
    vf_coef: Scalar = field("weight of the value loss", default=0.5, accepts="[0, inf)")
    target_kl: Scalar = field(
        "a minibatch with a larger approximate KL ends the iteration", default=float("inf"), accepts="(0, inf]"
    )
    clip_value: bool = field("clip the value's change to clip_eps as well", default=False)
    normalize_advantage: Literal["minibatch", "batch", "none"] = field(
        "what advantages are brought to mean 0 and standard deviation 1 over", default="minibatch"
    )

    def __post_init__(self) -> None:
        check(self, "num_minibatches")

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_iterations(self) -> int:
        """Whole iterations within `total_steps`."""
        return self.total_steps // self.steps_per_iteration

    def divides_into(self, devices: int) -> bool:
        return on_policy.divides_into(self, devices, self.num_minibatches)

    def init(self, key: Key) -> OnPolicyState:
        optimizer = adam(self.learning_rate, self.max_grad_norm)
        return initial_state(self, key, lambda params: Learner(optimizer.init(params), jnp.float32(1.0)))

    def actor(self, state: OnPolicyState) -> Actor:
        return acting(self.network, state.params, state.obs_moments)

    def step(self, state: OnPolicyState) -> tuple[OnPolicyState, Metrics]:
        rollout_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))

        # Collect
        after, batch, metrics = collect(self, state, rollout_key)

        # Credit
        learned = self._credited(batch, jnp.ones_like(batch.value))

        # Learn
        params, opt_state, learning = self._learn(state, batch, learned, update_key)

        metrics |= learning
        metrics["explained_variance"] = losses.explained_variance(batch.value, learned.value_target)
        return after._replace(params=params, opt_state=opt_state), metrics

    def _credited(self, batch: Transition, ratio: Float[Array, "T B"]) -> Samples:
        """Advantages and value targets; `ratio` of the policy now to the one that acted is what V-trace corrects by."""
        ends = batch.terminated, batch.truncated
        if self.advantage == "gae":
            advantage = returns.gae(batch.reward, batch.value, batch.next_value, *ends, self.gamma, self.gae_lambda)
            value_target = advantage + batch.value
        else:
            value_target, advantage = returns.vtrace(
                batch.reward, batch.value, batch.next_value, *ends, self.gamma, ratio, self.gae_lambda
            )
        if self.normalize_advantage == "batch":
            advantage = losses.normalized_advantage(advantage)
        return samples(batch, advantage, value_target)

    def _learn(
        self, state: OnPolicyState, batch: Transition, learned: Samples, key: Key
    ) -> tuple[Params, Learner, Metrics]:
        """All gradient steps of an iteration. Metrics are means over the gradient steps made."""
        memory, kl_scale = state.rollout.memory, state.opt_state.kl_scale
        kl_coef = self.kl_coef * kl_scale
        (learning_rate,) = learning_rates(self, state, self.learning_rate)
        optimizer = adam(learning_rate, self.max_grad_norm)
        gradient = mean_of_shares(jax.grad(self.loss, has_aux=True), in_axes=(None, 0, 1, None))

        def policy(params: Params) -> Distribution:
            return self.network.unroll(params, memory, batch.obs, batch.reset)[1].distribution

        if self.objective in ("kl_penalty", "clip_kl"):
            learned = learned._replace(policy=policy(state.params))

        def epoch(carry: Any, key: Key) -> tuple[Any, Any]:
            now = learned
            if self.advantage == "vtrace":
                ratio = jnp.exp(policy(carry[0]).log_prob(batch.action) - batch.log_prob)
                now = self._credited(batch, ratio)._replace(policy=learned.policy)
            now = columns(self, now)

            def update(carry: Any, chosen: Array) -> tuple[Any, Any]:
                params, opt_state, stopped = carry
                minibatch = jax.tree.map(lambda x: x[:, chosen], now)
                start = jax.tree.map(lambda x: x[chosen], memory)
                if self.normalize_advantage == "minibatch":
                    minibatch = minibatch._replace(advantage=losses.normalized_advantage(minibatch.advantage))
                grads, metrics = gradient(params, start, minibatch, kl_coef)
                stopped |= metrics["approx_kl"] > self.target_kl
                updates, next_opt_state = optimizer.update(grads, opt_state, params)
                made = (optax.apply_updates(params, updates), next_opt_state)
                kept = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), made, (params, opt_state))
                metrics["grad_norm"] = optax.tree.norm(grads)
                return (*kept, stopped), (metrics, ~stopped)

            return jax.lax.scan(update, carry, shuffled(key, num_columns(self)).reshape(self.num_minibatches, -1))

        carry = (state.params, state.opt_state.adam, jnp.bool_(False))
        (params, opt_state, _), (metrics, made) = jax.lax.scan(epoch, carry, jax.random.split(key, self.num_epochs))
        metrics = {
            name: jnp.sum(jnp.where(made, x, 0.0)) / jnp.maximum(jnp.sum(made), 1) for name, x in metrics.items()
        }
        metrics |= {"updates": jnp.sum(made), "learning_rate": learning_rate}
        if learned.policy is not None:
            metrics |= {"kl": jnp.mean(learned.policy.kl(policy(params))), "kl_coef": kl_coef}
            kl_scale = losses.adapted_kl_coef(kl_scale, metrics["kl"], self.adaptive_kl)
        return params, Learner(opt_state, kl_scale), metrics

    def loss(
        self, params: Params, memory: Memory, minibatch: Samples, kl_coef: Float[Array, ""]
    ) -> tuple[Array, Metrics]:
        """The loss of one minibatch; `memory` is what the network remembered at the start of its sequences."""
        _, output = self.network.unroll(params, memory, minibatch.obs, minibatch.reset)
        log_ratio = output.distribution.log_prob(minibatch.action) - minibatch.log_prob
        ratio = jnp.exp(log_ratio)
        kl = jnp.zeros_like(ratio) if minibatch.policy is None else minibatch.policy.kl(output.distribution)
        if self.objective in ("clip", "clip_kl"):
            policy_losses = losses.ppo_clip(ratio, minibatch.advantage, self.clip_eps) + kl_coef * kl
        else:
            policy_losses = losses.kl_penalty(ratio, minibatch.advantage, kl, kl_coef)
        if self.clip_value:
            value_losses = losses.clipped_value_loss(
                output.value, minibatch.value, minibatch.value_target, self.clip_eps
            )
        else:
            value_losses = losses.value_loss(output.value, minibatch.value_target)
        policy_loss = jnp.mean(policy_losses)
        value_loss = jnp.mean(value_losses)
        entropy = jnp.mean(output.distribution.entropy())
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": jnp.mean(losses.kl_k3(log_ratio)),
            "clip_fraction": jnp.mean(jnp.abs(ratio - 1.0) > self.clip_eps),
        }
        return policy_loss + self.vf_coef * value_loss - self.ent_coef * entropy, metrics
