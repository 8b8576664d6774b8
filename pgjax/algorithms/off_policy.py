"""What the off-policy algorithms share: exploring, replay, and the loop of collecting and updating.

One iteration is `num_rounds` rounds: `num_steps` steps of every environment go into the replay buffer, then
`num_updates` gradient steps are made on batches drawn from it. Until the buffer holds `warmup` transitions nothing is
updated, and the first `warmup` steps of a run take uniformly random actions.

The buffer holds observations and rewards as the environment gave them, and normalisers, if there are any, meet them as
they are drawn: everything that is learned from at the same time is on the same scale.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from pgjax.algorithms.in_environment import InEnvironment, acting, learning_rates
from pgjax.core.algorithm import HELD_STREAM, INIT_STREAM, Key, Metrics, Params, check_counts
from pgjax.core.devices import host_memory
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import Scalar, check_fields, field, pytree
from pgjax.core.metrics import Count, Mean, merged
from pgjax.core.text import shows_briefly
from pgjax.environments.base import Discrete
from pgjax.environments.own import check_environment
from pgjax.learning import losses
from pgjax.learning.acting import Actor
from pgjax.learning.normalize import (
    Moments,
    RewardScale,
    initial_moments,
    initial_reward_scale,
    normalize,
    scale_reward,
    update_moments,
    update_reward_scale,
)
from pgjax.learning.optimizers import Schedule, adam, polyak
from pgjax.learning.replay import Batch, Experience, Replay, ReplayState, replay_bytes
from pgjax.learning.rollout import RolloutState, Step, initial_rollout, rollout
from pgjax.networks.critic import CRITICS, Critic, MLPCritic
from pgjax.networks.distributions import Categorical, TanhGaussian
from pgjax.networks.network import Memory, Output, has_memory
from pgjax.networks.registry import check_network


class Learner(NamedTuple):
    """What gradient steps change."""

    params: Params
    """`policy`, `critics`, and what else is learned."""
    targets: Params
    """Slow copies of some of them, by the same names."""
    opt_state: dict[str, Any]
    """Adam's, by the same names."""


@shows_briefly
class OffPolicyState(NamedTuple):
    """The `State` of every off-policy algorithm."""

    key: Key
    """The root: iteration i draws from fold_in(key, i)."""
    iteration: Array
    """int32, iterations done."""
    params: Params
    targets: Params
    opt_state: dict[str, Any]
    rollout: RolloutState
    replay: ReplayState
    obs_moments: Moments | None
    reward_scale: RewardScale | None


@pytree
class OffPolicy(InEnvironment):
    """What is the same for every off-policy algorithm: hyperparameters, and the loop around its `update`."""

    critic: Critic = field("action-value network", default=MLPCritic(), part=CRITICS)
    total_steps: int = field(
        "environment steps to train for, over all environments", default=100_000, accepts="[1, 1e18]"
    )
    num_envs: int = field("environments stepped in parallel (B)", default=1, accepts="[1, inf)")
    num_steps: int = field("steps of each environment in a round (T)", default=1, accepts="[1, inf)")
    num_updates: int = field("gradient steps in a round", default=1, accepts="[1, inf)")
    num_rounds: int = field("rounds of collecting and updating in an iteration", default=250, accepts="[1, inf)")
    batch_size: int = field("transitions in a gradient step", default=256, accepts="[1, inf)")
    buffer_size: int = field(
        "transitions that replay holds, over all environments", default=100_000, accepts="[1, inf)"
    )
    warmup: int = field("transitions before the first update, of random actions", default=1000, accepts="[0, inf)")
    warmup_repeat: int = field("steps that each of these random actions lasts", default=1, accepts="[1, inf)")
    n: int = field("steps of a target before it bootstraps", default=1, accepts="[1, inf)")
    learning_rate: Scalar = field("step size of the policy's Adam", default=3e-4, accepts="[0, inf)")
    critic_learning_rate: Scalar = field("step size of the critics' Adam", default=3e-4, accepts="[0, inf)")
    lr_schedule: Schedule = field(
        "every learning rate over the run: constant, down to 0 linearly or as a half cosine, or c / (k + lr_offset)",
        default="constant",
    )
    tau: Scalar = field("how far targets move towards what they are copies of", default=0.005, accepts="[0, 1]")
    target_every: int = field(
        "gradient steps between moves of targets; with tau = 1 a hard update", default=1, accepts="[1, inf)"
    )
    max_grad_norm: Scalar = field(
        "global norm gradients are scaled down to; inf leaves them", default=float("inf"), accepts="(0, inf]"
    )
    keep_replay: bool = field(
        "keep the buffer in checkpoints; without it a run that goes on fills an empty one before it updates, and is "
        "not the run without a break",
        default=True,
    )

    num_critics = 2
    with_target: ClassVar[tuple[str, ...]] = ("critics",)
    """What of the parameters has a slow copy."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def steps_per_iteration(self) -> int:
        """B * T * rounds environment steps."""
        return self.num_envs * self.num_steps * self.num_rounds

    @property
    def rates(self) -> dict[str, Scalar]:
        """The step size of each of the parameters, before the schedule."""
        return {"policy": self.learning_rate, "critics": self.critic_learning_rate}

    @property
    def not_kept(self) -> tuple[str, ...]:
        """Fields of the state that checkpoints leave out."""
        return () if self.keep_replay else ("replay",)

    @property
    def replay(self) -> Replay:
        """The buffer, whose state a run carries."""
        return Replay(self.num_envs, self.buffer_size // self.num_envs, self.n, self.batch_size)

    def policy_params(self, state: OffPolicyState) -> Params:
        """Those beside the critics'."""
        return state.params["policy"]

    def explorer(
        self, params: Params, obs_moments: Moments | None, is_random: Bool[Array, ""], held: Key | None = None
    ) -> Actor:
        """The policy that collects: its own distribution, or uniform actions (those of `held`) where `is_random`."""
        actor = acting(self.network, params["policy"], obs_moments)

        def act(memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
            memory, output = actor.act(memory, obs, reset)
            explored: Any = Explored(output.distribution, is_random, held)
            return memory, output._replace(distribution=explored)

        return Actor(actor.initial_memory, act)

    def init(self, key: Key) -> OffPolicyState:
        """The start of a run: targets equal to what they are copies of, an empty buffer."""
        params_key, env_key = jax.random.split(jax.random.fold_in(key, INIT_STREAM))
        env = self.env
        params = self.initial_params(params_key)
        obs_moments = initial_moments(env.observation_space.shape) if self.normalize_obs else None
        explorer = self.explorer(params, obs_moments, jnp.bool_(False))
        return OffPolicyState(
            key=key,
            iteration=jnp.int32(0),
            params=params,
            targets={name: params[name] for name in self.with_target},
            opt_state={name: adam(0.0, 0.0).init(each) for name, each in params.items()},
            rollout=initial_rollout(env, explorer, env_key, self.num_envs),
            replay=self.replay.init(env),
            obs_moments=obs_moments,
            reward_scale=initial_reward_scale(self.num_envs) if self.normalize_reward else None,
        )

    def initial_params(self, key: Key) -> Params:
        """New networks: `policy` and `critics`, of which there are `num_critics`."""
        check_environment(self.env)
        spaces = self.env.observation_space, self.env.action_space
        check_network(self.network, *spaces)
        policy_key, *critic_keys = jax.random.split(key, 1 + self.num_critics)
        critics = tuple(self.critic.init(critic_key, *spaces) for critic_key in critic_keys)
        return {"policy": self.network.init(policy_key, *spaces), "critics": critics}

    def step(self, state: OffPolicyState) -> tuple[OffPolicyState, Metrics]:
        """`num_rounds` rounds of collecting and updating."""
        key = jax.random.fold_in(state.key, state.iteration)
        rates = dict(zip(self.rates, learning_rates(self, state, *self.rates.values()), strict=True))

        def one_round(carry: Any, i: Array) -> tuple[Any, Any]:
            envs, replay, learner = carry
            collect_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            count = state.iteration * self.num_rounds + i

            # Collect
            is_random = count * self.num_envs * self.num_steps < self.warmup
            held = None
            if self.warmup_repeat > 1:
                held = jax.random.fold_in(jax.random.fold_in(state.key, HELD_STREAM), count // self.warmup_repeat)
            explorer = self.explorer(learner.params, state.obs_moments, is_random, held)
            envs, experience, metrics = rollout(self.env, explorer, envs, collect_key, self.num_steps, self._record)
            replay = self.replay.add(replay, experience)

            # Learn
            def update(learner: Learner, x: tuple[Array, Key]) -> tuple[Learner, Metrics]:
                nth, key = x
                batch_key, key = jax.random.split(key)
                batch = self.normalized(state, self.replay.sample(replay, batch_key, self.gamma))
                learner, learning = self.update(learner, batch, key, i * self.num_updates + nth, rates)
                nth_of_all = count * self.num_updates + nth
                return learner._replace(targets=self.moved(learner, nth_of_all)), learning

            xs = jnp.arange(self.num_updates), jax.random.split(update_key, self.num_updates)
            learner, learning = updates_if(
                self.replay.holds(replay, max(self.warmup, self.n * self.num_envs)), update, learner, xs
            )
            seen = (experience.obs if self.normalize_obs else None, experience if self.normalize_reward else None)
            return (envs, replay, learner), (metrics | learning, seen)

        learner = Learner(state.params, state.targets, state.opt_state)
        (envs, replay, learner), (metrics, seen) = jax.lax.scan(
            one_round, (state.rollout, state.replay, learner), jnp.arange(self.num_rounds)
        )
        state = self.with_seen(state, *seen)
        state = state._replace(iteration=state.iteration + 1, rollout=envs, replay=replay, **learner._asdict())
        return state, merged(metrics) | {"learning_rate": rates["policy"]}

    def update(
        self, learner: Learner, batch: Batch, key: Key, nth: Array, rates: dict[str, Array]
    ) -> tuple[Learner, Metrics]:
        """One gradient step, the `nth` of the iteration; targets stay."""
        raise NotImplementedError

    def _record(self, step: Step) -> Experience:
        """What replay stores of a step."""
        dtype = self.env.observation_space.dtype
        action = step.output.distribution.env_action(step.action)
        ends = step.terminated, step.truncated
        return Experience(step.obs.astype(dtype), action, step.reward, *ends, step.next_obs.astype(dtype))

    def normalized(self, state: OffPolicyState, batch: Batch) -> Batch:
        """By the normalisers as they are in this iteration."""
        return batch._replace(
            obs=normalize(state.obs_moments, batch.obs),
            next_obs=normalize(state.obs_moments, batch.next_obs),
            reward=scale_reward(state.reward_scale, batch.reward),
        )

    def with_seen(self, state: OffPolicyState, obs: Array | None, experience: Experience | None) -> OffPolicyState:
        """The normalisers after an iteration, `[rounds, T, B, ...]`."""
        if obs is not None and state.obs_moments:
            state = state._replace(obs_moments=update_moments(state.obs_moments, obs.astype(jnp.float32)))
        if experience is not None and state.reward_scale:
            reward, terminated, truncated = (
                x.reshape(-1, self.num_envs) for x in (experience.reward, experience.terminated, experience.truncated)
            )
            scale = update_reward_scale(state.reward_scale, reward, terminated | truncated, self.gamma)
            state = state._replace(reward_scale=scale)
        return state

    def moved(self, learner: Learner, nth: Array) -> Params:
        """The targets after gradient step `nth` of the run."""
        online = {name: learner.params[name] for name in self.with_target}
        if self.target_every == 1:
            return polyak(learner.targets, online, self.tau)
        rate = jnp.where((nth + 1) % self.target_every == 0, self.tau, 0.0)
        return polyak(learner.targets, online, rate)

    def action_values(self, critics: Params, obs: Array, action: Array | None) -> Float[Array, "critics N *n"]:
        """What each critic says."""
        return jnp.stack([self.critic.values(params, obs, action) for params in critics])

    def with_critics(
        self, learner: Learner, batch: Batch, target: Float[Array, "N"], rates: dict[str, Array]
    ) -> tuple[Learner, Metrics]:
        """A gradient step of all critics on their squared errors."""

        def loss(critics: Params) -> tuple[Array, tuple[Array, Array]]:
            value = self.action_values(critics, batch.obs, None if self._chooses else batch.action)
            if self._chooses:
                value = jnp.take_along_axis(value, batch.action[None, :, None], axis=2)[..., 0]
            error = losses.value_loss(value, jnp.broadcast_to(target, value.shape))
            return jnp.sum(jnp.mean(error, axis=1)), (jnp.mean(error), jnp.mean(value))

        grads, (error, value) = jax.grad(loss, has_aux=True)(learner.params["critics"])
        learner = stepped(learner, {"critics": grads}, rates, self.max_grad_norm)
        return learner, {
            "critic_loss": Mean(error, 1),
            "value": Mean(value, 1),
            "updates": Count(jnp.int32(1)),
        }

    @property
    def _chooses(self) -> bool:
        return isinstance(self.env.action_space, Discrete)


class Explored(NamedTuple):
    """A policy, or uniform actions in its place: in (-1, 1), or of all choices."""

    policy: Any
    is_random: Bool[Array, ""]
    held: Key | None = None
    """Where the uniform actions come from if they last for several steps."""

    def noise(self, key: Key, times: tuple[int, ...] = ()) -> Any:
        """That of the policy, and uniform numbers."""
        policy_key, key = jax.random.split(key)
        shape = jax.eval_shape(lambda policy: policy.mode(), self.policy).shape
        return self.policy.noise(policy_key, times), jax.random.uniform(key, times + shape)

    def sample_and_log_prob(self, noise: Any) -> tuple[Array, Array]:
        """The action; its log-probability is the policy's, whoever chose it."""
        noise, uniform = noise
        if self.held is not None:
            uniform = jax.random.uniform(self.held, uniform.shape)
        action, log_prob = self.policy.sample_and_log_prob(noise)
        if isinstance(self.policy, Categorical):
            chosen = jnp.floor(uniform * self.policy.logits.shape[-1]).astype(jnp.int32)
        else:
            between = 1.999998 * uniform - 0.999999
            chosen = jnp.arctanh(between) if isinstance(self.policy, TanhGaussian) else between
        return jnp.where(self.is_random, chosen, action), log_prob

    def env_action(self, action: Any) -> Array:
        """As the policy does."""
        return self.policy.env_action(action)


def stepped(learner: Learner, grads: dict[str, Params], rates: dict[str, Array], max_grad_norm: Scalar) -> Learner:
    """A step of Adam for each of the named parameters."""
    params, opt_state = dict(learner.params), dict(learner.opt_state)
    for name, grad in grads.items():
        updates, opt_state[name] = adam(rates[name], max_grad_norm).update(grad, opt_state[name], params[name])
        params[name] = optax.apply_updates(params[name], updates)
    return learner._replace(params=params, opt_state=opt_state)


def updates_if(due: Bool[Array, ""], update: Any, learner: Learner, xs: Any) -> tuple[Learner, Metrics]:
    """All updates of a round if they are due; else none, and metrics of nothing."""

    def make(learner: Learner) -> tuple[Learner, Metrics]:
        learner, learning = jax.lax.scan(update, learner, xs)
        return learner, merged(learning)

    shapes = jax.eval_shape(make, learner)[1]
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.cond(due, make, lambda learner: (learner, nothing), learner)


def check(algorithm: Any) -> None:
    """Refuse hyperparameters that do not fit together.

    Raises:
        InputError: naming the field, the value and what would be accepted.
    """
    check_fields(algorithm)
    name, size = type(algorithm).__name__, algorithm.steps_per_iteration
    if algorithm.total_steps < size:
        raise InputError(
            f"{name}.total_steps = {algorithm.total_steps} is less than one iteration: expected at least "
            f"num_envs * num_steps * num_rounds = {algorithm.num_envs} * {algorithm.num_steps} * "
            f"{algorithm.num_rounds} = {size}"
        )
    check_counts(algorithm)
    if has_memory(algorithm.network):
        raise InputError(
            f"{name}.network = {algorithm.network!r} is not accepted: expected one without memory, because replay "
            "draws steps out of the middle of episodes, where what it remembered is not known"
        )
    if algorithm.warmup_repeat > 1 and algorithm.num_steps > 1:
        raise InputError(
            f"{name}.warmup_repeat = {algorithm.warmup_repeat} is not accepted with num_steps = "
            f"{algorithm.num_steps}: expected num_steps = 1, one step of each environment in a round"
        )
    _check_buffer(algorithm, name)


def _check_buffer(algorithm: Any, name: str) -> None:
    num_envs, size, warmup = algorithm.num_envs, algorithm.buffer_size, algorithm.warmup
    if size % num_envs:
        raise InputError(f"{name}.buffer_size = {size} is not accepted: expected a multiple of num_envs = {num_envs}")
    least = num_envs * max(algorithm.n, algorithm.num_steps)
    if size < least:
        raise InputError(
            f"{name}.buffer_size = {size} is not accepted: expected at least a round and a target, {least}"
        )
    if algorithm.batch_size > size:
        raise InputError(
            f"{name}.batch_size = {algorithm.batch_size} is larger than the buffer: expected at most buffer_size = "
            f"{size}"
        )
    limit = min(size, algorithm.total_steps - 1)
    if warmup > limit:
        raise InputError(
            f"{name}.warmup = {warmup} is not accepted: expected at most {limit}, because updates begin when the "
            f"buffer of buffer_size = {size} holds so many, and total_steps = {algorithm.total_steps} ends the run"
        )
    needed, there = replay_bytes(algorithm.env, size), host_memory()
    if needed > there:
        raise InputError(
            f"{name}.buffer_size = {size} takes {needed / 1e9:,.1f} GB of {there / 1e9:,.1f} GB: expected at most "
            f"{size * there // needed}"
        )
