"""What the on-policy algorithms share, so that the file of each holds the idea that gives it its name.

Declarations of the hyperparameters that mean the same everywhere, the state of a run and its start, collecting with
normalisers that stand still, and the regression of a value network that is learned apart from its policy.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pgjax.algorithms.in_environment import InEnvironment, acting
from pgjax.core.algorithm import INIT_STREAM, Key, Metrics, Params, check_counts
from pgjax.core.devices import SHARE_STEPS
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, check_fields, field, pytree
from pgjax.core.text import shows_briefly
from pgjax.environments.own import check_environment
from pgjax.learning import losses, returns
from pgjax.learning.normalize import (
    Moments,
    RewardScale,
    has_seen,
    initial_moments,
    initial_reward_scale,
    normalize,
    scale_reward,
    update_moments,
    update_reward_scale,
)
from pgjax.learning.optimizers import adam, mean_gradient, minibatch_epochs
from pgjax.learning.rollout import RolloutState, Transition, initial_rollout, transitions
from pgjax.networks.distributions import Distribution
from pgjax.networks.network import Memory, Network, has_memory
from pgjax.networks.registry import check_network


@pytree
class OnPolicy(InEnvironment):
    """What is the same for every on-policy algorithm: hyperparameters and sizes."""

    num_envs: int = field("environments stepped in parallel (B)", default=64, accepts="[1, inf)")
    num_steps: int = field("steps of each environment per iteration (T)", default=128, accepts="[1, inf)")
    ent_coef: Scalar = field("weight of the entropy bonus", default=0.0, accepts="[0, inf)")
    reward_clip: Scalar = field(
        "rewards, scaled or not, are clipped to +- this; inf leaves them", default=float("inf"), accepts="(0, inf]"
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def steps_per_iteration(self) -> int:
        """T * B environment steps."""
        return self.num_envs * self.num_steps


@pytree
class SeparateValue(OnPolicy):
    """Hyperparameters of those whose value is fitted by gradient steps of its own."""

    value_learning_rate: Scalar = field("step size of the value's Adam", default=1e-3, accepts="[0, inf)")
    value_epochs: int = field("passes of the value over each collected batch", default=4, accepts="[1, inf)")
    value_minibatches: int = field("gradient steps of the value per epoch", default=4, accepts="[1, inf)")
    normalize_advantage: bool = field("bring advantages to mean 0 and standard deviation 1", default=True)


@shows_briefly
class OnPolicyState(NamedTuple):
    """The `State` of every on-policy algorithm."""

    key: Key
    """The root: iteration i draws from fold_in(key, i)."""
    iteration: Array
    """int32, iterations done."""
    params: Params
    opt_state: Any
    """What the algorithm's optimisers carry."""
    rollout: RolloutState
    obs_moments: Moments | None
    reward_scale: RewardScale | None


class Samples(NamedTuple):
    """What is learned from: sequences, `[T, B, ...]` of a rollout, or `[1, T * B, ...]` for a network without
    memory."""

    obs: Array
    reset: Array
    action: Array
    log_prob: Array
    value: Array
    advantage: Array
    value_target: Array
    weight: Array | None = None
    """How much each counts in every mean; None where all count alike."""
    policy: Distribution | None = None
    """The policy that acted, where a loss asks for its KL divergence."""
    is_choice: Array | None = None
    """False where no action was chosen and a state is only valued, such as after the end; None where all are."""

    @property
    def policy_weight(self) -> Array | None:
        """How much each counts in means over what the policy chose."""
        if self.is_choice is None:
            return self.weight
        return jnp.where(self.is_choice, 1.0 if self.weight is None else self.weight, 0.0)


def check(algorithm: Any, minibatches: str | None = None) -> None:
    """Refuse hyperparameters that do not fit together; `minibatches` names the field that must divide a batch.

    Raises:
        InputError: naming the field, the value and what would be accepted.
    """
    check_fields(algorithm)
    name = type(algorithm).__name__
    num_envs, num_steps, size = algorithm.num_envs, algorithm.num_steps, algorithm.steps_per_iteration
    if algorithm.total_steps < size:
        raise InputError(
            f"{name}.total_steps = {algorithm.total_steps} is less than one iteration: expected at least "
            f"num_envs * num_steps = {num_envs} * {num_steps} = {size}"
        )
    check_counts(algorithm)
    if isinstance(algorithm, SeparateValue) and getattr(algorithm.network, "shared_torso", False):
        raise InputError(
            f"{name}.network = {algorithm.network!r} is not accepted: expected shared_torso=False, because fitting "
            "the value would move the policy"
        )
    if minibatches and num_sequences(algorithm) % getattr(algorithm, minibatches):
        remembers = has_memory(algorithm.network)
        raise InputError(
            f"{name}.{minibatches} = {getattr(algorithm, minibatches)} does not divide "
            f"{'num_envs' if remembers else 'num_envs * num_steps'} = {num_sequences(algorithm)}"
            + (": a network with memory learns from whole sequences" if remembers else "")
        )


def num_sequences(algorithm: Any) -> int:
    """How many sequences minibatches are drawn from: whole ones for a network with memory, else of one step each."""
    return algorithm.num_envs if has_memory(algorithm.network) else algorithm.steps_per_iteration


def divides_into(algorithm: Any, devices: int, num_minibatches: int) -> bool:
    """Whether environments and minibatches can be divided over so many devices, with enough for each to pay."""
    sequences, steps = (n // num_minibatches for n in (num_sequences(algorithm), algorithm.steps_per_iteration))
    return algorithm.num_envs % devices == 0 and sequences % devices == 0 and steps // devices >= SHARE_STEPS


def initial_state(algorithm: Any, key: Key, initial_opt_state: Any) -> OnPolicyState:
    """The start of a run; `initial_opt_state(params)` is what the algorithm's optimisers start from."""
    params_key, env_key = jax.random.split(jax.random.fold_in(key, INIT_STREAM))
    env, network = algorithm.env, algorithm.network
    check_environment(env)
    check_network(network, env.observation_space, env.action_space)
    params = network.init(params_key, env.observation_space, env.action_space)
    obs_moments = initial_moments(env.observation_space.shape) if algorithm.normalize_obs else None
    return OnPolicyState(
        key=key,
        iteration=jnp.int32(0),
        params=params,
        opt_state=initial_opt_state(params),
        rollout=initial_rollout(env, acting(network, params, obs_moments), env_key, algorithm.num_envs),
        obs_moments=obs_moments,
        reward_scale=initial_reward_scale(algorithm.num_envs) if algorithm.normalize_reward else None,
    )


def collect(algorithm: Any, state: OnPolicyState, key: Key) -> tuple[OnPolicyState, Transition, Metrics]:
    """One rollout of the policy of `state`.

    Returns the state after it, its normalisers having seen the rollout; the rollout as learning sees it, with
    observations and rewards by the normalisers of before; and the statistics of episodes. Before the normalisers have
    seen anything, observations and rewards are left alone.
    """
    policy = acting(algorithm.network, state.params, state.obs_moments)
    envs, batch, metrics = transitions(algorithm.env, policy, state.rollout, key, algorithm.num_steps)
    done = batch.terminated | batch.truncated
    scale = state.reward_scale
    limit = (
        algorithm.reward_clip if scale is None else jnp.where(has_seen(scale.moments), algorithm.reward_clip, jnp.inf)
    )
    normalized = batch._replace(
        obs=normalize(state.obs_moments, batch.obs),
        reward=jnp.clip(scale_reward(scale, batch.reward), -limit, limit),
    )
    state = state._replace(
        iteration=state.iteration + 1,
        rollout=envs,
        obs_moments=state.obs_moments and update_moments(state.obs_moments, batch.obs),
        reward_scale=scale and update_reward_scale(scale, batch.reward, done, algorithm.gamma),
    )
    return state, normalized, metrics


def samples_of(
    batch: Transition, advantage: Float[Array, "T B"], value_target: Float[Array, "T B"], weight: Array | None = None
) -> Samples:
    """What of a rollout is learned from, with what its actions are credited with."""
    acted = batch.obs, batch.reset, batch.action, batch.log_prob, batch.value
    return Samples(*acted, advantage, value_target, weight)


def gae_samples(algorithm: Any, batch: Transition) -> Samples:
    """A rollout with generalised advantages, normalised where the algorithm says so, and the lambda-returns."""
    ends = batch.terminated, batch.truncated
    advantage = returns.gae(batch.reward, batch.value, batch.next_value, *ends, algorithm.gamma, algorithm.gae_lambda)
    value_target = advantage + batch.value
    if algorithm.normalize_advantage:
        advantage = losses.normalized_advantage(advantage)
    return samples_of(batch, advantage, value_target)


def as_sequences(network: Network, samples: Samples) -> Samples:
    """`samples` `[T, B, ...]` with the sequences that minibatches are drawn from on the second axis."""
    if has_memory(network):
        return samples
    return jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), samples)


def minibatch_of(samples: Samples, memory: Memory, chosen: Int[Array, "size"]) -> tuple[Samples, Memory]:
    """The chosen sequences, and what the network remembered at the start of each."""
    return jax.tree.map(lambda x: x[:, chosen], samples), jax.tree.map(lambda x: x[chosen], memory)


def fit_value(
    algorithm: Any, params: Params, opt_state: Any, memory: Memory, samples: Samples, learning_rate: Scalar, key: Key
) -> tuple[Params, Any, Array]:
    """Gradient steps of the value alone towards `samples.value_target`, and the mean loss on the way.

    The policy's parameters have gradient zero and stay.
    """
    optimizer, sequences = adam(learning_rate, algorithm.max_grad_norm), as_sequences(algorithm.network, samples)

    def loss(params: Params, memory: Memory, minibatch: Samples) -> tuple[Array, dict[str, Array]]:
        value = algorithm.network.unroll(params, memory, minibatch.obs, minibatch.reset)[1].value
        value_loss = losses.value_loss(value, minibatch.value_target)
        return value_loss, {"value_loss": value_loss}

    gradient = mean_gradient(loss)

    def update(carry: Any, chosen: Array, sequences: Samples) -> tuple[Any, Array]:
        params, opt_state = carry
        minibatch, start = minibatch_of(sequences, memory, chosen)
        grads, metrics = gradient(params, start, minibatch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics["value_loss"]

    sizes = num_sequences(algorithm), algorithm.value_epochs, algorithm.value_minibatches
    (params, opt_state), value_losses = minibatch_epochs(
        update, (params, opt_state), key, *sizes, epoch_data=lambda _: sequences
    )
    return params, opt_state, jnp.mean(value_losses)
