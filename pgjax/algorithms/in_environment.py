"""What all algorithms that act in an environment share, whatever they learn from."""

from typing import Annotated, Any

from jaxtyping import Array

from pgjax.core.algorithm import Key, Params, Scores
from pgjax.core.hyperparameters import TRACED, Scalar, field, pytree
from pgjax.environments.base import Environment
from pgjax.environments.registry import ENVIRONMENTS
from pgjax.learning.acting import Actor, predict
from pgjax.learning.evaluation import episode_scores
from pgjax.learning.normalize import Moments, normalize
from pgjax.learning.optimizers import Schedule, scheduled
from pgjax.networks.feedforward import MLP
from pgjax.networks.network import Memory, Network
from pgjax.networks.registry import NETWORKS


@pytree
class InEnvironment:
    """Hyperparameters that mean the same everywhere, how the policy is asked, and how it is judged."""

    env: Annotated[Environment, TRACED] = field("what is acted in", part=ENVIRONMENTS)
    network: Network = field("policy and value network", default=MLP(), part=NETWORKS)
    total_steps: int = field(
        "environment steps to train for, over all environments", default=1_000_000, accepts="[1, 1e18]"
    )
    lr_schedule: Schedule = field(
        "every learning rate over the run: constant, down to 0 linearly or as a half cosine, or c / (k + lr_offset)",
        default="linear",
    )
    lr_offset: Scalar = field(
        "iterations after which robbins_monro has halved the learning rate", default=100.0, accepts="(0, inf)"
    )
    gamma: Scalar = field("discount per step", default=0.99, accepts="[0, 1]")
    max_grad_norm: Scalar = field(
        "global norm gradients are scaled down to; inf leaves them", default=0.5, accepts="(0, inf]"
    )
    normalize_obs: bool = field("scale observations by their running mean and standard deviation", default=False)
    normalize_reward: bool = field(
        "divide rewards by the running standard deviation of the discounted return", default=False
    )

    unit = "env steps"
    score = ("return_mean", "max")

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps, over all environments."""
        raise NotImplementedError

    @property
    def num_iterations(self) -> int:
        """Whole iterations within `total_steps`."""
        return self.total_steps // self.steps_per_iteration

    def divides_into(self, devices: int) -> bool:
        """Whether `devices` is 1; an algorithm that can be divided says so itself."""
        return devices == 1

    def policy_params(self, state: Any) -> Params:
        """The parameters of `network` in a state."""
        return state.params

    def actor(self, state: Any) -> Actor:
        """The policy of `state`, which normalises observations itself."""
        return acting(self.network, self.policy_params(state), state.obs_moments)

    def evaluate(self, state: Any, key: Key, num: int) -> Scores:
        """`return_mean`, `return_std` and `episodes`: undiscounted, of the greedy policy in `num` complete episodes."""
        return episode_scores(self, state, key, num)

    def predict(
        self, state: Any, obs: Any, deterministic: bool = True, key: Key | None = None, memory: Memory = None
    ) -> Any:
        """The action for `obs`, `[*obs]` or `[N, *obs]`, as NumPy; `(action, memory)` if the network remembers.

        Raises:
            InputError: as `learning.acting.predict` does.
        """
        return predict(self, state, obs, deterministic, key, memory)


def acting(network: Network, params: Params, obs_moments: Moments | None) -> Actor:
    """The policy of `network` with these parameters, for observations as the environment gives them."""
    return Actor(
        network.initial_memory,
        lambda memory, obs, reset: network.step(params, memory, normalize(obs_moments, obs), reset),
    )


def learning_rates(algorithm: Any, state: Any, *rates: Scalar) -> list[Array]:
    """Each rate by the algorithm's schedule in the iteration after `state`."""
    offset, iterations = algorithm.lr_offset, algorithm.num_iterations
    return [scheduled(algorithm.lr_schedule, rate, state.iteration, iterations, offset) for rate in rates]
