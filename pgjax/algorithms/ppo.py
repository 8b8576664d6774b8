"""Proximal policy optimisation (Schulman et al., 2017), with the details practice has added, each a switch.

One iteration collects `num_steps` steps from `num_envs` environments, estimates advantages, and makes
`num_epochs * num_minibatches` gradient steps on

    L = E[policy loss] + vf_coef E[value loss] - ent_coef E[entropy],

where `objective` chooses what keeps the new policy near the old: clipping the probability ratio, a penalty on the KL
divergence with a fixed or adaptive coefficient, both, or nothing.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pgjax.algorithms import on_policy
from pgjax.algorithms.in_environment import learning_rates
from pgjax.algorithms.on_policy import (
    OnPolicy,
    OnPolicyState,
    Samples,
    as_sequences,
    check,
    collect,
    initial_state,
    minibatch_of,
    samples_of,
)
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.devices import everywhere
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.core.metrics import Count, Mean
from pgjax.learning import losses, returns
from pgjax.learning.optimizers import adam, mean_gradient, minibatch_epochs
from pgjax.learning.rollout import Transition
from pgjax.networks.distributions import Distribution
from pgjax.networks.network import Memory


class Learner(NamedTuple):
    """What the optimisation carries from one iteration to the next."""

    adam: Any
    kl_scale: Float[Array, ""]
    """beta of eq. 8 as a multiple of `kl_coef`, as adapted so far."""


@pytree
class MinibatchUpdate:
    """The hyperparameters of passing over what was collected in minibatches."""

    _: KW_ONLY
    num_epochs: int = field("passes over each collected batch", default=4, accepts="[1, inf)")
    num_minibatches: int = field("gradient steps per epoch", default=4, accepts="[1, inf)")
    micro_batches: int = field(
        "parts of a minibatch that are computed one after another: less memory, the same gradient",
        default=1,
        accepts="[1, inf)",
    )
    learning_rate: Scalar = field("step size of Adam", default=2.5e-4, accepts="[0, inf)")
    max_grad_norm: Scalar = field(
        "global norm gradients are scaled down to; inf leaves them", default=0.5, accepts="(0, inf]"
    )


@pytree
class ProximalUpdate(MinibatchUpdate):
    """The gradient steps of PPO and their loss, whoever collects: with a `network`, what `optimize` asks for."""

    _: KW_ONLY
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
    ent_coef: Scalar = field("weight of the entropy bonus", default=0.0, accepts="[0, inf)")
    target_kl: Scalar = field(
        "a minibatch with a larger approximate KL ends the iteration", default=float("inf"), accepts="(0, inf]"
    )
    clip_value: bool = field("clip the value's change to clip_eps as well", default=False)
    normalize_advantage: Literal["minibatch", "batch", "none"] = field(
        "what advantages are brought to mean 0 and standard deviation 1 over", default="minibatch"
    )

    def normalized(self, samples: Samples) -> Samples:
        """With advantages normalised over the whole batch, if that is what is asked for."""
        if self.normalize_advantage != "batch":
            return samples
        return samples._replace(advantage=losses.normalized_advantage(samples.advantage, samples.policy_weight))

    def loss(
        self: Any, params: Params, memory: Memory, minibatch: Samples, kl_coef: Float[Array, ""]
    ) -> tuple[Float[Array, "T size"], dict[str, Array]]:
        """Policy loss + vf_coef value loss - ent_coef entropy, `[T, size]`, with metrics of the same shape.

        `memory` is what the network remembered at the start of the sequences.
        """
        _, output = self.network.unroll(params, memory, minibatch.obs, minibatch.reset)
        log_ratio = output.distribution.log_prob(minibatch.action) - minibatch.log_prob
        ratio = jnp.exp(log_ratio)
        entropy = output.distribution.entropy()
        if self.objective in ("clip", "clip_kl"):
            policy_loss = losses.ppo_clip(ratio, minibatch.advantage, self.clip_eps)
        else:
            policy_loss = losses.surrogate(ratio, minibatch.advantage)
        if minibatch.policy is not None:
            policy_loss += kl_coef * minibatch.policy.kl(output.distribution)
        if self.clip_value:
            value_loss = losses.clipped_value_loss(output.value, minibatch.value, minibatch.value_target, self.clip_eps)
        else:
            value_loss = losses.value_loss(output.value, minibatch.value_target)
        metrics = {
            "policy_loss": policy_loss,
            "entropy": entropy,
            "approx_kl": losses.kl_k3(log_ratio),
            "clip_fraction": (jnp.abs(ratio - 1.0) > self.clip_eps).astype(jnp.float32),
        }
        if minibatch.is_choice is not None:
            metrics = {name: jnp.where(minibatch.is_choice, x, 0.0) for name, x in metrics.items()}
        loss = metrics["policy_loss"] + self.vf_coef * value_loss - self.ent_coef * metrics["entropy"]
        return loss, metrics | {"value_loss": value_loss}


@pytree
class PPO(ProximalUpdate, OnPolicy):
    """Proximal policy optimisation (Schulman et al., 2017, eq. 9).

    Adam minimises E[policy loss + vf_coef value loss - ent_coef entropy].
    """

    advantage: Literal["gae", "vtrace"] = field(
        "advantages once per batch, or anew in each epoch, corrected for how far the policy has moved", default="gae"
    )
    gae_lambda: Scalar = field(
        "lambda of the generalised advantage: 0 one-step TD, 1 Monte Carlo", default=0.95, accepts="[0, 1]"
    )

    def __post_init__(self) -> None:
        check(self, "num_minibatches")
        check_micro_batches(self, on_policy.num_sequences(self))

    def divides_into(self, devices: int) -> bool:
        """Whether the environments and the minibatches can be divided."""
        return on_policy.divides_into(self, devices, self.num_minibatches * self.micro_batches)

    def init(self, key: Key) -> OnPolicyState:
        """The start of a run, with a `Learner` for its optimisation."""
        return initial_state(self, key, lambda params: initial_learner(self, params))

    def step(self, state: OnPolicyState) -> tuple[OnPolicyState, Metrics]:
        """One rollout, and `num_epochs` passes over its minibatches."""
        rollout_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))
        memory = state.rollout.memory

        # Collect
        next_state, batch, metrics = collect(self, state, rollout_key)

        # Credit
        samples = self.credit(batch)

        # Learn
        (learning_rate,) = learning_rates(self, state, self.learning_rate)
        again = self.vtrace_at(memory, batch) if self.advantage == "vtrace" else None
        params, learner, learning = optimize(
            self, state.params, state.opt_state, memory, samples, update_key, learning_rate, again
        )

        metrics |= learning | {
            "explained_variance": losses.explained_variance(batch.value, samples.value_target),
            "learning_rate": learning_rate,
        }
        return next_state._replace(params=params, opt_state=learner), metrics

    def credit(self, batch: Transition) -> Samples:
        """Generalised advantages, and the lambda-returns as value targets."""
        ends = batch.terminated, batch.truncated
        advantage = returns.gae(batch.reward, batch.value, batch.next_value, *ends, self.gamma, self.gae_lambda)
        return self.normalized(samples_of(batch, advantage, advantage + batch.value))

    def vtrace_at(self, memory: Memory, batch: Transition) -> Callable[[Params], Samples]:
        """Credit anew for a policy that has moved, corrected by its ratio to the one that acted (V-trace)."""

        def samples(params: Params) -> Samples:
            ratio = jnp.exp(_policy(self, params, memory, batch).log_prob(batch.action) - batch.log_prob)
            ends = batch.terminated, batch.truncated
            value_target, advantage = returns.vtrace(
                batch.reward, batch.value, batch.next_value, *ends, self.gamma, ratio, self.gae_lambda
            )
            return self.normalized(samples_of(batch, advantage, value_target))

        return samples


def check_micro_batches(algorithm: Any, num_sequences: int) -> None:
    """Refuse `micro_batches` that do not divide the sequences of a minibatch.

    Raises:
        InputError: naming the field, the value and what would be accepted.
    """
    size = num_sequences // algorithm.num_minibatches
    if size % algorithm.micro_batches:
        raise InputError(
            f"{type(algorithm).__name__}.micro_batches = {algorithm.micro_batches} does not divide the {size} "
            "sequences of a minibatch"
        )


def initial_learner(ppo: ProximalUpdate, params: Params) -> Learner:
    """What `optimize` starts a run from."""
    return Learner(adam(ppo.learning_rate, ppo.max_grad_norm).init(params), jnp.float32(1.0))


def optimize(
    ppo: Any,
    params: Params,
    learner: Learner,
    memory: Memory,
    samples: Samples,
    key: Key,
    learning_rate: Scalar,
    samples_at: Callable[[Params], Samples] | None = None,
) -> tuple[Params, Learner, Metrics]:
    """All gradient steps of an iteration on samples `[T, B, ...]`, however they were collected.

    `ppo` is asked for its `network`, its `loss` and the hyperparameters of the optimisation, so that an algorithm that
    collects in another way can be given. `samples_at` gives, at the start of each epoch, what is learned from in it.
    Metrics are means over the gradient steps made.
    """
    acted = _policy(ppo, params, memory, samples) if ppo.objective in ("kl_penalty", "clip_kl") else None
    kl_coef = ppo.kl_coef * learner.kl_scale
    fixed = as_sequences(ppo.network, samples._replace(policy=acted))

    def sequences(carry: Any) -> Samples:
        return as_sequences(ppo.network, samples_at(carry[0])._replace(policy=acted)) if samples_at else fixed

    (params, adam_state, _), (steps, made) = minibatch_epochs(
        _gradient_step(ppo, memory, learning_rate, kl_coef),
        (params, learner.adam, jnp.bool_(False)),
        key,
        fixed.reset.shape[1],
        ppo.num_epochs,
        ppo.num_minibatches,
        sequences,
    )
    count = jnp.sum(made)
    metrics: Metrics = {name: Mean(jnp.sum(jnp.where(made, x, 0.0)), count) for name, x in steps.items()}
    metrics["updates"] = Count(count)
    kl_scale = learner.kl_scale
    if acted is not None:
        kl = losses.masked_mean(acted.kl(_policy(ppo, params, memory, samples)), samples.policy_weight)
        metrics |= {"kl": kl, "kl_coef": kl_coef}
        kl_scale = losses.adapted_kl_coef(kl_scale, kl, ppo.adaptive_kl)
    return params, Learner(adam_state, kl_scale), metrics


def _gradient_step(ppo: Any, memory: Memory, learning_rate: Scalar, kl_coef: Float[Array, ""]) -> Callable[..., Any]:
    """One step on the chosen sequences, unless the approximate KL has passed `target_kl` in this iteration."""
    optimizer, gradient = adam(learning_rate, ppo.max_grad_norm), mean_gradient(ppo.loss, 1, ppo.micro_batches)

    def update(carry: Any, chosen: Array, sequences: Samples) -> tuple[Any, Any]:
        params, adam_state, stopped = carry
        minibatch, start = minibatch_of(sequences, memory, chosen)
        if ppo.normalize_advantage == "minibatch":
            of = everywhere((minibatch.advantage, minibatch.policy_weight))  # no exchange: all devices have the batch
            minibatch = minibatch._replace(advantage=everywhere(losses.normalized_advantage(*of)))
        grads, metrics = gradient(params, start, minibatch, kl_coef)
        stopped |= metrics["approx_kl"] > ppo.target_kl
        updates, next_adam_state = optimizer.update(grads, adam_state, params)
        moved = (optax.apply_updates(params, updates), next_adam_state)
        kept = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), moved, (params, adam_state))
        return (*kept, stopped), (metrics | {"grad_norm": optax.tree.norm(grads)}, ~stopped)

    return update


def _policy(ppo: Any, params: Params, memory: Memory, samples: Samples | Transition) -> Distribution:
    return ppo.network.unroll(params, memory, samples.obs, samples.reset)[1].distribution
