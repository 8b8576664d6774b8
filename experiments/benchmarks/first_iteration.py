"""One process of startup.py: prints how long each phase to the first iteration took since the time it is given."""

import importlib
import itertools
import json
import sys
import time


def first_iteration(started: float) -> None:
    marks = [started]
    import jax

    import pgjax
    from pgjax.commands.flags import enable_compilation_cache
    from pgjax.running.presets import preset

    for name in ("tyro", "pgjax.commands.cli", "pgjax.running.shell"):
        importlib.import_module(name)
    pgjax.registered_envs()  # imports gymnax
    marks.append(time.time())
    enable_compilation_cache()
    ppo = pgjax.PPO(pgjax.make("CartPole-v1"), **preset("ppo", "CartPole-v1"))
    key = jax.random.key(0)
    marks.append(time.time())
    init = jax.jit(lambda ppo, key: ppo.init(key)).lower(ppo, key)
    step = jax.jit(lambda ppo, state: ppo.step(state), donate_argnums=1).lower(ppo, init.out_info)
    marks.append(time.time())
    compiled_init, compiled_step = init.compile(), step.compile()
    marks.append(time.time())
    jax.block_until_ready(compiled_step(ppo, compiled_init(ppo, key)))
    marks.append(time.time())
    print(json.dumps([after - before for before, after in itertools.pairwise(marks)]))


if __name__ == "__main__":
    first_iteration(float(sys.argv[1]))
