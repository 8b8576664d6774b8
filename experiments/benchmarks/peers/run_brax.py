"""Brax training's part of peers.py: one task per process.

Its PPO is not a function that can be compiled ahead: it trains in epochs and says how long each took. The first two
epochs compile (the second finds its state placed differently); the others, equal to them, are the calls that are timed.
"""

import itertools
from typing import Any

import gymnax
import jax
from brax.envs.base import Env, State  # type: ignore[import-not-found,unused-ignore]
from brax.training.agents.ppo import networks, train  # type: ignore[import-not-found,unused-ignore]
from child import answer, read_task


class GymnaxEnv(Env):  # type: ignore[misc,unused-ignore]
    """A gymnax environment with one continuous action; Brax ends its episodes and resets it."""

    def __init__(self, name: str) -> None:
        self.env, self.params = gymnax.make(name)

    def reset(self, rng: jax.Array) -> Any:
        key, reset_key = jax.random.split(rng)
        obs, state = self.env.reset_env(reset_key, self.params)
        state = jax.tree.map(jax.numpy.asarray, state)
        zero = jax.numpy.zeros(())
        return State(pipeline_state=state, obs=obs, reward=zero, done=zero, info={"key": key})

    def step(self, state: Any, action: jax.Array) -> Any:
        key, step_key = jax.random.split(state.info["key"])
        torque = action * self.env.action_space(self.params).high  # Brax acts in [-1, 1]
        obs, after, reward, terminated, _ = self.env.step_env(step_key, state.pipeline_state, torque, self.params)
        state.info["key"] = key
        return state.replace(pipeline_state=after, obs=obs, reward=reward, done=terminated.astype(float))

    @property
    def observation_size(self) -> int:
        return self.env.observation_space(self.params).shape[0]

    @property
    def action_size(self) -> int:
        return self.env.action_space(self.params).shape[0]

    @property
    def backend(self) -> str:
        return "none"


def throughput(task: dict[str, Any]) -> dict[str, Any]:
    case, given = task["case"], task["hyperparameters"]
    env, shapes = GymnaxEnv(case["env"]), case["shapes"]
    epochs: list[tuple[int, float]] = []  # steps so far, seconds so far
    train.train(
        env,
        num_timesteps=case["total_steps"] * (2 + task["calls"]),
        num_evals=3 + task["calls"],
        run_evals=False,
        progress_fn=lambda steps, metrics: epochs.append((steps, float(metrics["training/walltime"]))),
        episode_length=env.params.max_steps_in_episode,
        num_envs=shapes["num_envs"],
        unroll_length=shapes["num_steps"],  # minibatches of whole unrolls: as many samples as elsewhere
        batch_size=shapes["num_envs"] // shapes["num_minibatches"],
        num_minibatches=shapes["num_minibatches"],
        num_updates_per_batch=shapes["num_epochs"],
        learning_rate=given["learning_rate"],
        discounting=given["gamma"],
        gae_lambda=given["gae_lambda"],
        clipping_epsilon=given["clip_eps"],
        clipping_epsilon_value=given["clip_eps"],
        entropy_cost=given["ent_coef"],
        vf_loss_coefficient=given["vf_coef"],
        max_grad_norm=given["max_grad_norm"],
        network_factory=lambda *sizes, **options: networks.make_ppo_networks(
            *sizes,
            policy_hidden_layer_sizes=(64, 64),
            value_hidden_layer_sizes=(64, 64),
            activation=jax.numpy.tanh,
            distribution_type="normal",
            **options,
        ),
    )
    seconds = [after - before for (_, before), (_, after) in itertools.pairwise(epochs[1:])]
    return {
        "seconds_compile": epochs[1][1] - 2 * min(seconds),
        "seconds_run": seconds,
        "steps": epochs[1][0] - epochs[0][0],
        "returns": [],
    }


if __name__ == "__main__":
    answer(throughput(read_task()))
