"""The part of Stable-Baselines3, and of SBX, in off_policy.py: seconds of training by SAC on Pendulum after its
warm-up, as a line of JSON.

    pip install stable-baselines3     # or sbx-rl
"""

import argparse
import json
import time
from importlib import metadata

from stable_baselines3.common.callbacks import BaseCallback  # type: ignore[import-not-found,unused-ignore]
from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found,unused-ignore]


class Watch(BaseCallback):  # type: ignore[misc,unused-ignore]
    """When so many steps were done."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first, self.started, self.begun = first, 0.0, 0

    def _on_step(self) -> bool:
        if not self.begun and self.num_timesteps >= self.first:
            self.started, self.begun = time.perf_counter(), self.num_timesteps
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("steps", "envs", "updates", "width", "batch", "seeds", "warmup"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--sbx", action="store_true")
    args = parser.parse_args()
    if args.sbx:
        from sbx import SAC  # type: ignore[import-not-found,unused-ignore]
    else:
        from stable_baselines3 import SAC  # type: ignore[import-not-found,unused-ignore]
    model = SAC(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", n_envs=args.envs, seed=0),
        learning_rate=1e-3,
        buffer_size=args.steps,
        learning_starts=args.warmup,
        batch_size=args.batch,
        gradient_steps=args.updates,
        policy_kwargs={"net_arch": [args.width, args.width]},
        device="cpu",
    )
    watch = Watch(args.warmup + 200 * args.envs)  # SBX compiles in its first updates
    model.learn(args.steps, callback=watch)
    found = {"seconds": time.perf_counter() - watch.started, "steps": model.num_timesteps - watch.begun}
    names = ("sbx-rl", "jax") if args.sbx else ("stable-baselines3", "torch")
    print(json.dumps(found | {"seconds_compile": None, "versions": {name: metadata.version(name) for name in names}}))


if __name__ == "__main__":
    main()
