"""Rejax's part of peers.py: one task per process."""

from typing import Any

import jax
import jax.numpy as jnp
from child import answer, read_task, timed
from rejax import PPO  # type: ignore[import-not-found,unused-ignore]


def throughput(task: dict[str, Any]) -> dict[str, Any]:
    case, parts = task["case"], max(task["evaluations"], 1)
    ppo = PPO.create(
        env=case["env"],
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        total_timesteps=case["total_steps"],
        eval_freq=case["total_steps"] // parts,
        skip_initial_evaluation=True,
        **case["shapes"],
        **task["hyperparameters"],
    )
    if not task["evaluations"]:
        ppo = ppo.replace(eval_callback=lambda algorithm, state, key: ())
    seeds, calls = case["seeds"], range(task["calls"])
    keys = [jax.random.key(call) if seeds == 1 else jax.random.split(jax.random.key(call), seeds) for call in calls]
    train = jax.jit(PPO.train if seeds == 1 else jax.vmap(PPO.train, (None, 0)))
    compiled, seconds_compile = timed(lambda: train.lower(ppo, keys[0]).compile())
    runs = [timed(lambda key: jax.block_until_ready(compiled(ppo, key)), key) for key in keys]
    state, evaluations = runs[-1][0]
    returns = evaluations[1][..., -1, :].mean(-1) if task["evaluations"] else jnp.array([])
    return {
        "seconds_compile": seconds_compile,
        "seconds_run": [seconds for _, seconds in runs],
        "steps": int(state.global_step.sum()),
        "returns": returns.ravel().tolist(),
    }


if __name__ == "__main__":
    answer(throughput(read_task()))
