"""Rejax's part of off_policy_learning.py: greedy returns after SAC or TD3, one figure per seed, as a line of JSON.

    pip install rejax 'gymnax<1'

What that script's `start_peers` says is given. Rejax has no other schedule than a constant learning rate.
"""

import argparse
import json
from importlib import metadata

import jax
from rejax import SAC, TD3  # type: ignore[import-not-found,unused-ignore]
from rejax.evaluate import evaluate  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True)
    given = parser.parse_args().settings
    width, algorithm = tuple(given["hidden"]), {"sac": SAC, "td3": TD3}[given["algorithm"]]
    own = {
        "sac": {"agent_kwargs": {"activation": "relu"}, "hidden_layer_sizes": width},
        "td3": {
            "actor_kwargs": {"activation": "relu"},
            "critic_kwargs": {"activation": "relu"},
            "exploration_noise": given["noise_std"],
        },
    }[given["algorithm"]]
    trainer = algorithm.create(
        env=given["env"],
        total_timesteps=given["steps"],
        eval_freq=given["steps"],
        skip_initial_evaluation=True,
        num_envs=1,
        num_epochs=1,
        buffer_size=given["steps"],
        fill_buffer=given["warmup"],
        batch_size=given["batch_size"],
        learning_rate=given["learning_rate"],
        gamma=0.99,
        polyak=0.995,
        max_grad_norm=1e9,
        **own,
    )

    def score(algo, state, key):  # type: ignore[no-untyped-def]
        limit = algo.env_params.max_steps_in_episode
        return evaluate(algo.make_act(state), key, algo.env, algo.env_params, given["episodes"], limit)[1].mean()

    trainer = trainer.replace(eval_callback=score)
    keys = jax.random.split(jax.random.key(0), given["seeds"])
    _, returns = jax.jit(jax.vmap(algorithm.train, (None, 0)))(trainer, keys)
    versions = {name: metadata.version(name) for name in ("rejax", "gymnax", "jax")}
    print(json.dumps({"returns": returns[:, -1].tolist(), "versions": versions}))


if __name__ == "__main__":
    main()
