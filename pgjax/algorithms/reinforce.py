"""REINFORCE (Williams, 1992): the score function times what complete episodes returned, less a baseline.

    grad J = E[sum_t grad log pi(a_t|s_t) (Psi_t - b_t)]

`credit` chooses Psi_t, with R_t = sum_{k >= t} gamma^(k-t) r_k: the return of the whole episode, R_0; the reward-to-go
R_t, without what the action could not change; or gamma^t R_t, whose gradient is that of J = E[R_0] (Sutton & Barto,
2018, eq. 13.8), as it is without gamma^t only at gamma = 1. `baseline` chooses b_t, which changes the variance and not
the mean.

Only complete episodes count, without favouring short ones. Every iteration starts new episodes, and those that start
while the longest possible one (`env.time_limit`) still fits into the rollout are counted, each to its end; of the
others nothing is. Whether an episode counts is thus known when it starts, so by Wald's identity the sum over those that
do is the expected number of them times grad J: with the fixed number of steps as the denominator the direction is
unbiased. At `num_steps = env.time_limit` it is exactly the first episode of each environment; twice that wastes less
where episodes are short. A time limit ends an episode like any other end: what is estimated is the return of episodes
as they are, and nothing is bootstrapped (see `vpg`). Without a known limit the first episode of each environment
counts, as far as the rollout goes.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from pgjax.algorithms.in_environment import learning_rates
from pgjax.algorithms.on_policy import (
    OnPolicyState,
    Samples,
    SeparateValue,
    check,
    collect,
    fit_value,
    initial_state,
    samples_of,
)
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.learning import losses, returns
from pgjax.learning.normalize import at_start
from pgjax.learning.optimizers import adam, mean_gradient
from pgjax.learning.rollout import Transition, initial_rollout
from pgjax.networks.network import Memory, has_memory


@pytree
class REINFORCE(SeparateValue):
    """REINFORCE (Williams, 1992; less a baseline: Sutton & Barto, 2018, eq. 13.11).

    Adam follows grad J = E[sum_t grad log pi(a_t|s_t) (Psi_t - b_t)].
    """

    learning_rate: Scalar = field("step size of the policy's Adam", default=5e-3, accepts="[0, inf)")
    num_steps: int = field(
        "steps of each environment per iteration (T), at least the longest episode", default=500, accepts="[1, inf)"
    )
    credit: Literal["total_return", "reward_to_go", "discounted_reward_to_go"] = field(
        "what an action is credited with: R_0, R_t or gamma^t R_t", default="reward_to_go"
    )
    baseline: Literal["none", "mean", "value", "optimal"] = field(
        "what is subtracted: the other episodes' mean per time step, a learned value, or what minimises the variance",
        default="mean",
    )
    normalize_advantage: bool = field("bring credit less baseline to mean 0, standard deviation 1", default=False)

    def __post_init__(self) -> None:
        check(self, "value_minibatches" if str(self.baseline) == "value" else None)
        limit = self.env.time_limit
        if not isinstance(limit, (type(None), jax.core.Tracer)) and self.num_steps < np.max(limit):
            raise InputError(
                f"REINFORCE.num_steps = {self.num_steps} is not accepted: expected at least the longest episode of "
                f"{self.env.name}, {int(np.max(limit))} steps, because only complete episodes count"
            )
        if self.baseline == "optimal" and has_memory(self.network):
            raise InputError(
                "REINFORCE.baseline = 'optimal' is not accepted with a network with memory, whose score is a gradient "
                "through the whole episode: expected one of 'none', 'mean', 'value'"
            )

    def init(self, key: Key) -> OnPolicyState:
        """The start of a run, with two Adams: the policy's and the value's."""
        optimizer = adam(self.learning_rate, self.max_grad_norm)
        return initial_state(self, key, lambda params: (optimizer.init(params), optimizer.init(params)))

    def step(self, state: OnPolicyState) -> tuple[OnPolicyState, Metrics]:
        """New episodes, one gradient step of the policy, and those of the value where it is the baseline."""
        keys = jax.random.split(jax.random.fold_in(state.key, state.iteration), 3)

        # Collect, from new episodes
        state = state._replace(
            rollout=initial_rollout(self.env, self.actor(state), keys[0], self.num_envs),
            reward_scale=state.reward_scale and at_start(state.reward_scale),
        )
        memory = state.rollout.memory
        next_state, batch, metrics = collect(self, state, keys[1])

        # Credit
        samples, counted = self._samples(state.params, batch)

        # Learn
        policy_rate, value_rate = learning_rates(self, state, self.learning_rate, self.value_learning_rate)
        policy_adam, value_adam = state.opt_state
        mean, learning = mean_gradient(self.loss)(state.params, memory, samples)
        grads = jax.tree.map(lambda g: counted * g, mean)  # the sum over the steps that count / all steps
        updates, policy_adam = adam(policy_rate, self.max_grad_norm).update(grads, policy_adam, state.params)
        params = optax.apply_updates(state.params, updates)
        if self.baseline == "value":
            everything = samples._replace(weight=None)
            params, value_adam, value_loss = fit_value(
                self, params, value_adam, memory, everything, value_rate, keys[2]
            )
            explained_variance = losses.explained_variance(batch.value, samples.value_target)
            learning |= {"value_loss": value_loss, "explained_variance": explained_variance}
        metrics |= learning | {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": policy_rate,
            "counted": counted,
        }
        return next_state._replace(params=params, opt_state=(policy_adam, value_adam)), metrics

    def _samples(self, params: Params, batch: Transition) -> tuple[Samples, Float[Array, ""]]:
        """What is learned from, where the steps that do not count have no weight; and the share of those that do."""
        done = batch.terminated | batch.truncated
        start = returns.episode_start(batch.reset)
        time = jnp.arange(self.num_steps)[:, None] - start
        limit = self.num_steps if self.env.time_limit is None else self.env.time_limit
        counted = start + limit <= self.num_steps
        # What the end of the rollout cuts off is bootstrapped for the value's sake: it is never in a counted episode.
        reward_to_go = returns.reward_to_go(batch.reward, done, jnp.zeros_like(done), self.gamma, batch.next_value)
        credit, discount = reward_to_go, self.gamma**time
        if self.credit == "total_return":
            rest = returns.reward_to_go(discount * batch.reward, done, jnp.zeros_like(done), 1.0)
            credit = jnp.take_along_axis(rest, start, axis=0)
        advantage = credit - self._baseline(params, batch, credit, counted, time)
        if self.credit == "discounted_reward_to_go":
            advantage = discount * advantage
        if self.normalize_advantage:
            advantage = losses.normalized_advantage(advantage, counted)
        weight = counted.astype(jnp.float32)
        return samples_of(batch, advantage, reward_to_go, weight), jnp.mean(weight)

    def _baseline(
        self,
        params: Params,
        batch: Transition,
        credit: Float[Array, "T B"],
        counted: Bool[Array, "T B"],
        time: Int[Array, "T B"],
    ) -> Float[Array, "T B"]:
        if self.baseline == "none":
            return jnp.zeros_like(credit)
        if self.baseline == "value":
            return batch.value
        weight = counted.astype(jnp.float32)
        if self.baseline == "optimal":
            # A step of all environments at a time: the gradients of all samples at once would fill memory.
            weight *= jax.lax.map(lambda x: self._squared_score(params, *x), (batch.obs, batch.action))
        return returns.time_step_baseline(credit, weight, time)

    def _squared_score(self, params: Params, obs: Float[Array, "B *obs"], action: Array) -> Float[Array, "B"]:
        """|grad log pi(a|s)|^2 of every sample."""

        def log_prob(params: Params, obs: Array, action: Array) -> Array:
            _, output = self.network.step(params, (), obs[None], jnp.zeros(1, bool))
            return output.distribution.log_prob(action[None])[0]

        score = jax.vmap(jax.grad(log_prob), (None, 0, 0))(params, obs, action)
        return jax.vmap(lambda s: optax.tree.vdot(s, s))(score)

    def loss(self, params: Params, memory: Memory, samples: Samples) -> tuple[Float[Array, "T B"], dict[str, Array]]:
        """-log pi(a|s) (Psi - b) - ent_coef entropy, `[T, B]`, with its terms as metrics."""
        policy = self.network.unroll(params, memory, samples.obs, samples.reset)[1].distribution
        policy_loss = losses.policy_gradient(policy.log_prob(samples.action), samples.advantage)
        entropy = policy.entropy()
        return policy_loss - self.ent_coef * entropy, {"policy_loss": policy_loss, "entropy": entropy}
