"""Stable-Baselines3's part of off_policy_learning.py: greedy returns after SAC or TD3, one figure per seed, as JSON.

    pip install stable-baselines3

What that script's `start_peers` says is given, and its learning rate is constant as rejax's is.
"""

import argparse
import json
from importlib import metadata

import numpy as np
import torch  # type: ignore[import-not-found,unused-ignore]
from stable_baselines3 import SAC, TD3  # type: ignore[import-not-found,unused-ignore]
from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found,unused-ignore]
from stable_baselines3.common.evaluation import evaluate_policy  # type: ignore[import-not-found,unused-ignore]
from stable_baselines3.common.noise import NormalActionNoise  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True)
    given = parser.parse_args().settings
    torch.set_num_threads(1)
    returns = []
    for seed in range(given["seeds"]):
        env = make_vec_env(given["env"], n_envs=1, seed=seed)
        half = env.action_space.high[0]  # noise is added to actions in [-1, 1]
        noise = NormalActionNoise(np.zeros(1), np.full(1, given["noise_std"] / half))
        model = {"sac": SAC, "td3": TD3}[given["algorithm"]](
            "MlpPolicy",
            env,
            learning_rate=given["learning_rate"],
            buffer_size=given["steps"],
            learning_starts=given["warmup"],
            batch_size=given["batch_size"],
            train_freq=1,
            gradient_steps=1,
            policy_kwargs={"net_arch": given["hidden"]},
            action_noise=noise if given["algorithm"] == "td3" else None,
            seed=seed,
            device="cpu",
        )
        model.learn(given["steps"])
        test = make_vec_env(given["env"], n_envs=64, seed=10_000 + seed)
        returns.append(float(evaluate_policy(model, test, n_eval_episodes=given["episodes"])[0]))
    versions = {name: metadata.version(name) for name in ("stable-baselines3", "torch", "gymnasium")}
    print(json.dumps({"returns": returns, "versions": versions}))


if __name__ == "__main__":
    main()
