"""Rejax's part of off_policy.py: seconds of one whole training by SAC on Pendulum, compiled before, as a line of JSON.

pip install rejax 'gymnax<1'
"""

import argparse
import json
import time
from importlib import metadata

import jax
from rejax import SAC  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("steps", "envs", "updates", "width", "batch", "seeds", "warmup"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    sac = SAC.create(
        env="Pendulum-v1",
        agent_kwargs={"activation": "relu"},
        hidden_layer_sizes=(args.width, args.width),
        total_timesteps=args.steps,
        eval_freq=args.steps,
        skip_initial_evaluation=True,
        num_envs=args.envs,
        num_epochs=args.updates,
        buffer_size=args.steps,
        fill_buffer=args.batch,  # as few steps without updates as there can be: they are timed with the others
        batch_size=args.batch,
        learning_rate=1e-3,
        gamma=0.99,
        polyak=0.995,
        max_grad_norm=1e9,
    ).replace(eval_callback=lambda algorithm, state, key: ())
    key = jax.random.key(0) if args.seeds == 1 else jax.random.split(jax.random.key(0), args.seeds)
    train = jax.jit(SAC.train if args.seeds == 1 else jax.vmap(SAC.train, (None, 0)))
    start = time.perf_counter()
    compiled = train.lower(sac, key).compile()
    seconds_compile = time.perf_counter() - start
    start = time.perf_counter()
    state, _ = jax.block_until_ready(compiled(sac, key))
    found = {"seconds": time.perf_counter() - start, "steps": int(state.global_step.sum())}
    versions = {name: metadata.version(name) for name in ("rejax", "gymnax", "jax")}
    print(json.dumps(found | {"seconds_compile": seconds_compile, "versions": versions}))


if __name__ == "__main__":
    main()
