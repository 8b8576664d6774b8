"""One of several processes, for test_processes: what it is asked to do, and its results as JSON.

one_process.py CASE PROCESS PROCESSES PORT DIRECTORY
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import pgjax
from pgjax import alignment
from pgjax.core import processes
from pgjax.core.devices import env_mesh


def ppo(**changes):
    return pgjax.PPO(
        pgjax.make("CartPole-v1"),
        pgjax.MLP(hidden=(8,)),
        **{
            "num_envs": 16,
            "num_steps": 64,
            "num_minibatches": 2,
            "num_epochs": 2,
            "total_steps": 16 * 64 * 6,
            "learning_rate": 1e-3,
            "normalize_obs": True,
        }
        | changes,
    )


def language_model():
    """Whose larger arrays are divided."""
    data = alignment.TEXTS.make("grammar", examples=128, length=16)
    sizes = {"width": 16, "num_heads": 2, "num_groups": 1, "mlp_width": 256, "context": 16}
    network = alignment.Transformer(layers=2, **sizes)
    tokenizer = alignment.TOKENIZERS.make("grammar")
    rates = {"learning_rate": 1e-2, "warmup": 2}
    return alignment.LM(
        data=data, tokenizer=tokenizer, network=network, batch_size=64, total_steps=64 * 16 * 4, **rates
    )


def leaves(tree):
    return [np.asarray(x, float).ravel().tolist() for x in jax.tree.leaves(tree)]


def messages(process, count, directory):
    """Exchanges, failures and arrays, without a training run."""
    mesh = env_mesh(jax.device_count())
    keys = jax.random.split(jax.random.key(0), mesh.size)
    placed = processes.placed({"key": keys, "x": np.arange(mesh.size)}, NamedSharding(mesh, PartitionSpec("envs")))
    back = processes.on_host(placed)
    like = {"key": jax.random.key(0), "x": jnp.zeros(3)}
    first = processes.of_first({"key": jax.random.key(process), "x": np.full(3, float(process))}, like)
    found = {
        "exchanged": processes.exchanged({"process": process, "text": "x" * 3000}),
        "agreed": processes.agreed(process + 10),
        "is whole": np.array_equal(back["key"], jax.random.key_data(keys))
        and back["x"].tolist() == [*range(mesh.size)],
        "of first": leaves({"key": jax.random.key_data(first["key"]), "x": first["x"]}),
        "raised": [],
    }

    def fails_alone():
        with processes.together():
            if process == count - 1:
                raise OSError("the disk is full")

    calls = [
        fails_alone,
        lambda: pgjax.run(ppo(num_envs=16 * (1 + process)), progress=False),
        lambda: pgjax.run(ppo(num_envs=17, num_minibatches=1, total_steps=17 * 64), progress=False),
        lambda: pgjax.run(ppo(), seeds=count + 1, progress=False),
        lambda: pgjax.run(ppo(), devices=1, progress=False),
        lambda: processes.connect("nowhere", count, process),
    ]
    for call in calls:
        try:
            call()
        except (pgjax.InputError, OSError) as error:
            found["raised"].append(f"{type(error).__name__}: {error}")
    return found


def divided(process, count, directory):
    """A run and a language model in shards, each kept."""
    how = {"progress": False, "episodes": 4, "checkpoint_every": 2}
    single = pgjax.run(ppo(), 3, directory / "run", **how)
    model = pgjax.run(language_model(), 3, directory / "lm", shards=2, **how)
    rows = single.metrics["return_mean"].tolist()
    return {"run": leaves(single.state.params), "lm": leaves(model.state.params), "rows": rows}


def members(process, count, directory):
    """A population and two sweeps, each kept."""
    seeds = pgjax.run(ppo(), 3, directory / "seeds", seeds=4, progress=False, episodes=4, checkpoint_every=2)
    how = {"learning_rate": [1e-3, 3e-3], "progress": False, "points": 3, "episodes": 4}
    sweep = pgjax.sweep(ppo(), seeds=2, directory=directory / "sweep", **how)
    pbt = pgjax.sweep(ppo(), seeds=2, search=pgjax.PBT(every=1), directory=directory / "pbt", **how)
    return {
        "seeds": leaves(seeds.state.params),
        "sweep": leaves([state.params for state in sweep.states]),
        "pbt": leaves([state.params for state in pbt.states]),
        "rows": seeds.metrics["entropy"].tolist(),
    }


def stopping(process, count, directory):
    """A run that the last process is told to stop, and goes on."""

    def callback(progress):
        if progress.iteration == 3 and process == count - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        pgjax.run(ppo(), 3, directory / "run", progress=False, episodes=4, checkpoint_every=1, callback=callback)
    except pgjax.Interrupted as stop:
        said = str(stop)
    return going_on(process, count, directory) | {"said": said}


def going_on(process, count, directory):
    """The run that was stopped, to its end."""
    result = pgjax.run(ppo(), 3, directory / "run", progress=False, episodes=4, checkpoint_every=1)
    return {"run": leaves(result.state.params), "steps_now": result.steps_now}


def dying(process, count, directory):
    """A run in which the last process dies."""

    def callback(progress):
        if progress.iteration == 3 and process == count - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    pgjax.run(ppo(), 3, directory / "run", progress=False, episodes=4, checkpoint_every=1, callback=callback)


if __name__ == "__main__":
    case, process, count, port, directory = sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5])
    pgjax.connect(f"localhost:{port}", count, process, timeout=120, heartbeat=10)
    found = globals()[case](process, count, directory)
    (directory / f"{case}-{process}.json").write_text(json.dumps(found))
