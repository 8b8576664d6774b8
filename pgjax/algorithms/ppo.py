"""Proximal policy optimisation (Schulman et al., 2017), with the details practice has added, each a switch.

One iteration collects `num_steps` steps from `num_envs` environments, estimates advantages, and makes
`num_epochs * num_minibatches` gradient steps on

    L = E[ppo_clip] + vf_coef E[value loss] - ent_coef E[entropy].
"""

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from pgjax import losses, returns
from pgjax.environments.base import Environment
from pgjax.errors import InputError
from pgjax.networks import MLP, Memory, Network, has_memory
from pgjax.normalize import (
    Moments,
    RewardScale,
    initial_moments,
    initial_reward_scale,
    normalize,
    scale_reward,
    update_moments,
    update_reward_scale,
)
from pgjax.optimizers import adam, minibatch_epochs, scheduled
from pgjax.rollout import Actor, RolloutState, initial_rollout, rollout
from pgjax.sharding import SHARE_STEPS, mean_of_shares
from pgjax.types import INIT_STREAM, TRACED, Key, Metrics, Params, Scalar, check_fields, field, pytree


class PPOState(NamedTuple):
    key: Key
    """The root: iteration i draws from fold_in(key, i)."""
    iteration: Array
    """int32, iterations done."""
    params: Params
    opt_state: Any
    rollout: RolloutState
    obs_moments: Moments | None
    reward_scale: RewardScale | None


class Minibatch(NamedTuple):
    """Columns of a rollout: `[T, size, ...]` for a network with memory, else `[1, size, ...]`."""

    obs: Array
    reset: Array
    action: Array
    log_prob: Array
    value: Array
    advantage: Array
    value_target: Array


@pytree
class PPO:
    env: Annotated[Environment, TRACED]
    network: Network = field("policy and value network", default=MLP())
    total_steps: int = field(
        "environment steps to train for, over all environments", default=1_000_000, accepts="[1, inf)"
    )
    num_envs: int = field("environments stepped in parallel (B)", default=64, accepts="[1, inf)")
    num_steps: int = field("steps of each environment per iteration (T)", default=128, accepts="[1, inf)")
    num_epochs: int = field("passes over each collected batch", default=4, accepts="[1, inf)")
    num_minibatches: int = field("gradient steps per epoch", default=4, accepts="[1, inf)")
    learning_rate: Scalar = field("step size of Adam", default=2.5e-4, accepts="[0, inf)")
    lr_schedule: Literal["constant", "linear"] = field(
        "learning rate over the run: constant, or down to 0", default="linear"
    )
    gamma: Scalar = field("discount per step", default=0.99, accepts="[0, 1]")
    gae_lambda: Scalar = field(
        "lambda of the generalised advantage: 0 one-step TD, 1 Monte Carlo", default=0.95, accepts="[0, 1]"
    )
    clip_eps: Scalar = field("the probability ratio is clipped to 1 +- this", default=0.2, accepts="(0, inf)")
    ent_coef: Scalar = field("weight of the entropy bonus", default=0.0, accepts="[0, inf)")
    vf_coef: Scalar = field("weight of the value loss", default=0.5, accepts="[0, inf)")
    max_grad_norm: Scalar = field(
        "global norm gradients are scaled down to; inf leaves them", default=0.5, accepts="(0, inf]"
    )
    target_kl: Scalar = field(
        "a minibatch with a larger approximate KL ends the iteration", default=float("inf"), accepts="(0, inf]"
    )
    clip_value: bool = field("clip the value's change to clip_eps as well", default=False)
    normalize_advantage: Literal["minibatch", "batch", "none"] = field(
        "what advantages are brought to mean 0 and standard deviation 1 over", default="minibatch"
    )
    normalize_obs: bool = field("scale observations by their running mean and standard deviation", default=False)
    normalize_reward: bool = field(
        "divide rewards by the running standard deviation of the discounted return", default=False
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.total_steps < self.steps_per_iteration:
            raise InputError(
                f"PPO.total_steps = {self.total_steps} is less than one iteration: expected at least "
                f"num_envs * num_steps = {self.num_envs} * {self.num_steps} = {self.steps_per_iteration}"
            )
        if self.num_columns % self.num_minibatches:
            what = "num_envs" if has_memory(self.network) else "num_envs * num_steps"
            raise InputError(
                f"PPO.num_minibatches = {self.num_minibatches} does not divide {what} = {self.num_columns}"
                + (": a network with memory learns from whole sequences" if has_memory(self.network) else "")
            )

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_columns(self) -> int:
        """What minibatches are drawn from: sequences for a network with memory, single steps otherwise."""
        return self.num_envs if has_memory(self.network) else self.steps_per_iteration

    @property
    def num_iterations(self) -> int:
        """Whole iterations within `total_steps`."""
        return self.total_steps // self.steps_per_iteration

    def divides_into(self, devices: int) -> bool:
        """Whether an iteration can be divided over so many devices, and is large enough for that to pay."""
        columns, steps = (n // self.num_minibatches for n in (self.num_columns, self.steps_per_iteration))
        return self.num_envs % devices == 0 and columns % devices == 0 and steps // devices >= SHARE_STEPS

    def init(self, key: Key) -> PPOState:
        params_key, env_key = jax.random.split(jax.random.fold_in(key, INIT_STREAM))
        params = self.network.init(params_key, self.env.observation_space, self.env.action_space)
        obs_moments = initial_moments(self.env.observation_space.shape) if self.normalize_obs else None
        return PPOState(
            key=key,
            iteration=jnp.int32(0),
            params=params,
            opt_state=adam(self.learning_rate, self.max_grad_norm).init(params),
            rollout=initial_rollout(self.env, self._actor(params, obs_moments), env_key, self.num_envs),
            obs_moments=obs_moments,
            reward_scale=initial_reward_scale(self.num_envs) if self.normalize_reward else None,
        )

    def actor(self, state: PPOState) -> Actor:
        return self._actor(state.params, state.obs_moments)

    def _actor(self, params: Params, obs_moments: Moments | None) -> Actor:
        return Actor(
            self.network.initial_memory,
            lambda memory, obs, reset: self.network.step(params, memory, normalize(obs_moments, obs), reset),
        )

    def step(self, state: PPOState) -> tuple[PPOState, Metrics]:
        rollout_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))

        # Collect
        rollout_state, batch, metrics = rollout(self.env, self.actor(state), state.rollout, rollout_key, self.num_steps)

        # Credit
        reward = scale_reward(state.reward_scale, batch.reward)
        advantage = returns.gae(
            reward, batch.value, batch.next_value, batch.terminated, batch.truncated, self.gamma, self.gae_lambda
        )
        value_target = advantage + batch.value
        if self.normalize_advantage == "batch":
            advantage = losses.normalized_advantage(advantage)

        # Learn
        samples = Minibatch(
            obs=normalize(state.obs_moments, batch.obs),
            reset=batch.reset,
            action=batch.action,
            log_prob=batch.log_prob,
            value=batch.value,
            advantage=advantage,
            value_target=value_target,
        )
        params, opt_state, learning = self._learn(state, samples, update_key)

        done = batch.terminated | batch.truncated
        state = PPOState(
            key=state.key,
            iteration=state.iteration + 1,
            params=params,
            opt_state=opt_state,
            rollout=rollout_state,
            obs_moments=state.obs_moments and update_moments(state.obs_moments, batch.obs),
            reward_scale=state.reward_scale and update_reward_scale(state.reward_scale, batch.reward, done, self.gamma),
        )
        metrics |= learning
        metrics["explained_variance"] = losses.explained_variance(batch.value, value_target)
        return state, metrics

    def _learn(self, state: PPOState, samples: Minibatch, key: Key) -> tuple[Params, Any, Metrics]:
        """All gradient steps of an iteration. Metrics are means over the gradient steps made."""
        memory = state.rollout.memory
        if not has_memory(self.network):
            samples = jax.tree.map(lambda x: x.reshape(1, self.num_columns, *x.shape[2:]), samples)
        learning_rate = scheduled(self.lr_schedule, self.learning_rate, state.iteration, self.num_iterations)
        optimizer = adam(learning_rate, self.max_grad_norm)

        def update(carry: Any, columns: Array) -> tuple[Any, Any]:
            params, opt_state, stopped = carry
            minibatch = jax.tree.map(lambda x: x[:, columns], samples)
            start = jax.tree.map(lambda x: x[columns], memory)
            if self.normalize_advantage == "minibatch":
                minibatch = minibatch._replace(advantage=losses.normalized_advantage(minibatch.advantage))
            gradient = mean_of_shares(jax.grad(self.loss, has_aux=True), in_axes=(None, 0, 1))
            grads, metrics = gradient(params, start, minibatch)
            stopped |= metrics["approx_kl"] > self.target_kl
            updates, next_opt_state = optimizer.update(grads, opt_state, params)
            made = (optax.apply_updates(params, updates), next_opt_state)
            params, opt_state = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), made, (params, opt_state))
            metrics["grad_norm"] = optax.tree.norm(grads)
            return (params, opt_state, stopped), (metrics, ~stopped)

        carry = (state.params, state.opt_state, jnp.bool_(False))
        (params, opt_state, _), (metrics, made) = minibatch_epochs(
            update, carry, key, self.num_columns, self.num_epochs, self.num_minibatches
        )
        metrics = {
            name: jnp.sum(jnp.where(made, x, 0.0)) / jnp.maximum(jnp.sum(made), 1) for name, x in metrics.items()
        }
        return params, opt_state, metrics | {"updates": jnp.sum(made), "learning_rate": learning_rate}

    def loss(self, params: Params, memory: Memory, minibatch: Minibatch) -> tuple[Array, Metrics]:
        """The loss of one minibatch; `memory` is what the network remembered at the start of its sequences."""
        _, output = self.network.unroll(params, memory, minibatch.obs, minibatch.reset)
        log_ratio = output.distribution.log_prob(minibatch.action) - minibatch.log_prob
        ratio = jnp.exp(log_ratio)
        if self.clip_value:
            value_losses = losses.clipped_value_loss(
                output.value, minibatch.value, minibatch.value_target, self.clip_eps
            )
        else:
            value_losses = losses.value_loss(output.value, minibatch.value_target)
        policy_loss = jnp.mean(losses.ppo_clip(ratio, minibatch.advantage, self.clip_eps))
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
