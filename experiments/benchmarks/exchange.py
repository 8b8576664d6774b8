"""What it costs to divide one run over devices and processes, beside a model of it, and what the model says of GPUs.

    python experiments/benchmarks/exchange.py
    python experiments/benchmarks/exchange.py --devices 1 2 --processes 1 2

PPO on CartPole with 64 environments x 128 steps, whatever the devices: the same run, divided (strong scaling). Each
point is one process with so many host devices, or so many processes with one device each, which take turns. Each also
times a sum over all devices of vectors of several sizes, which latency and bandwidth are taken from. The model of an
iteration is what it takes on one device, divided by the devices that have a core of their own, and one exchange for
each collective that XLA put into the program: a gradient per minibatch, and what gathers the batch.

The predictions are for GPUs that nobody measured: data parallelism, each GPU with the same work (weak scaling), no
exchange hidden behind computing, a ring within a node of 8 and a ring of nodes. The constants are options.

Writes exchange.json (config and every repetition) and exchange.md.
"""

import dataclasses
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from harness import CORES, RESULTS, Training, Worker, markdown, quartiles, report, serve, take_turns
from jax.sharding import PartitionSpec

import pgjax
from pgjax.commands.launch import environments, free_port
from pgjax.core.devices import BOTH, env_mesh, total_bytes
from pgjax.running.config import from_config, to_config

SIZES = [4**k for k in range(1, 12)]
"""Bytes of the vectors that are summed: up to 4 MiB."""
SMALL = 2**16
"""Bytes up to which a sum takes as long as an empty one."""
NODE = 8
"""GPUs that are close to each other."""


@dataclasses.dataclass(frozen=True)
class Options:
    devices: Annotated[tuple[int, ...], tyro.conf.arg(help="of one process")] = (1, 2, 4, 8)
    processes: Annotated[tuple[int, ...], tyro.conf.arg(help="with one device each")] = (2, 4)
    repetitions: Annotated[int, tyro.conf.arg(help="timings of each point, alternated")] = 5
    seconds: Annotated[float, tyro.conf.arg(help="about how long a repetition takes")] = 2.0
    gpu_flops: Annotated[float, tyro.conf.arg(help="of predictions: operations per second of a GPU")] = 4e14
    node_bandwidth: Annotated[float, tyro.conf.arg(help="bytes per second of each GPU within a node")] = 450e9
    network_bandwidth: Annotated[float, tyro.conf.arg(help="bytes per second of each GPU between nodes")] = 50e9
    node_latency: Annotated[float, tyro.conf.arg(help="seconds of a step of a ring within a node")] = 3e-6
    network_latency: Annotated[float, tyro.conf.arg(help="seconds of a step of a ring between nodes")] = 8e-6
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = RESULTS


def seconds_of_a_sum(size: int, devices: int) -> float:
    """Of a vector of so many bytes over all devices: the median of some programs of many sums each."""
    mesh = env_mesh(devices)
    count = max(4, min(256, 2**22 // size))

    @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec(BOTH), out_specs=PartitionSpec(BOTH))
    def sums(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda _, y: jax.lax.pcast(jax.lax.pmean(y, BOTH), BOTH, to="varying"), x)

    zeros = jax.jit(lambda: jnp.zeros(devices * size // 4), out_shardings=jax.NamedSharding(mesh, PartitionSpec(BOTH)))
    program, x, times = jax.jit(sums).lower(zeros()).compile(), zeros(), []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(program(x))
        times.append((time.perf_counter() - start) / count)
    return float(np.median(times[1:]))


def fitted(seconds: dict[int, float]) -> tuple[float, float]:
    """Latency (s), the median of small vectors, and bandwidth (bytes/s), by what the largest takes beyond it."""
    latency, largest = float(np.median([x for size, x in seconds.items() if size <= SMALL])), max(seconds)
    return latency, largest / (seconds[largest] - latency)


def collectives(program: str) -> int:
    """In an iteration of a compiled program, each counted once."""
    found = re.findall(r" all-(?:gather|reduce)\(.*", program)
    return sum("while/body" in rest for rest in found)


def worker(config: dict[str, Any], devices: int, seconds: float) -> None:
    pgjax.connect()
    training = Training(from_config(config), 1, seconds, devices)
    facts = training.facts | {"collectives": collectives(training.program.text)}
    if devices > 1:
        facts["seconds_of_a_sum"] = {size: seconds_of_a_sum(size, devices) for size in SIZES}
    serve(facts, training.repetition)


class Together:
    """The processes of a point, as one `Worker`."""

    def __init__(self, config: dict[str, Any], devices: int, processes: int, seconds: float) -> None:
        places = environments(processes, free_port()) if processes > 1 else [dict(os.environ)]
        self.pool = ThreadPoolExecutor(processes)
        start = partial(Worker, "exchange", config, devices, seconds, devices=devices // processes)
        self.workers = list(self.pool.map(lambda place: start(environment=place), places))
        self.facts, self.repetitions = self.workers[0].facts, self.workers[0].repetitions

    def repeat(self) -> None:
        list(self.pool.map(Worker.repeat, self.workers))

    def close(self) -> None:
        list(self.pool.map(Worker.close, self.workers))


def make_ppo() -> pgjax.PPO:
    return pgjax.PPO(pgjax.make("CartPole-v1"), num_envs=64, num_steps=128)


def measure(options: Options) -> list[dict[str, Any]]:
    """A row for each point: what was measured, and what the model says of it."""
    ppo = make_ppo()
    parameters = total_bytes(jax.eval_shape(ppo.init, jax.random.key(0)).params)
    points = [(1, n) for n in options.devices] + [(n, n) for n in options.processes]
    config, started = to_config(ppo), {}
    for processes, devices in points:
        started[f"{processes} x {devices // processes}"] = Together(config, devices, processes, options.seconds)
    take_turns(started, options.repetitions)
    alone = quartiles(x["steps_per_second"] for x in started["1 x 1"].repetitions)["median"]
    rows = []
    for (processes, devices), each in zip(points, started.values(), strict=True):
        speed = quartiles(x["steps_per_second"] for x in each.repetitions)
        row = {"processes": processes, "devices": devices, "steps_per_second": speed, "repetitions": each.repetitions}
        row |= each.facts | {"seconds": ppo.steps_per_iteration / speed["median"], "gradient_bytes": parameters}
        row["modelled"] = ppo.steps_per_iteration / alone / min(devices, CORES)
        if devices > 1:
            row["latency"], row["bandwidth"] = fitted({int(k): x for k, x in each.facts["seconds_of_a_sum"].items()})
            updates = ppo.num_epochs * ppo.num_minibatches
            exchanges = updates + each.facts["collectives"] - 1
            row["modelled"] += exchanges * row["latency"] + updates * parameters / row["bandwidth"]
        rows.append(row)
    return rows


def predictions(options: Options) -> list[dict[str, Any]]:
    def exchange(size: float, gpus: int) -> float:
        inside = min(gpus, NODE)
        nodes = gpus // inside
        within = 2 * (inside - 1) * (options.node_latency + size / inside / options.node_bandwidth)
        return within + 2 * (nodes - 1) * (options.network_latency + size / inside / nodes / options.network_bandwidth)

    cases = {
        "PPO, 9,155 parameters, 1 ms a minibatch": (4 * 9_155, 1e-3),
        "PPO, 9,155 parameters, 0.1 ms a minibatch": (4 * 9_155, 1e-4),
    } | {
        f"language model, {name} parameters, 16,384 tokens a GPU": (4 * n, 6 * n * 16_384 / options.gpu_flops)
        for name, n in {"124 M": 124e6, "1.5 G": 1.5e9}.items()
    }
    return [
        {"case": case, "computing": seconds, "gpus": gpus, "exchange": exchange(size, gpus)}
        | {"efficiency": seconds / (seconds + exchange(size, gpus))}
        for case, (size, seconds) in cases.items()
        for gpus in (8, 16, 64, 256)
    ]


def make_tables(rows: list[dict[str, Any]], predicted: list[dict[str, Any]]) -> str:
    alone = rows[0]["steps_per_second"]["median"]
    measured = []
    for row in rows:
        speed, devices = row["steps_per_second"], row["devices"]
        line = [f"{row['processes']} x {devices // row['processes']}"]
        line += [f"{speed['median']:,.0f} [{speed['low']:,.0f}, {speed['high']:,.0f}]"]
        line += [f"{100 * speed['median'] / alone / devices:.0f} %"]
        line += [f"{100 * speed['median'] / alone / min(devices, CORES):.0f} %"]
        line += [f"{1e6 * row['latency']:,.0f}" if "latency" in row else ""]
        line += [f"{row['bandwidth'] / 1e9:.2f}" if "bandwidth" in row else ""]
        measured.append([*line, f"{1e3 * row['seconds']:.1f}", f"{1e3 * row['modelled']:.1f}"])
    header = ["processes x devices", "env steps/s [quartiles]", "efficiency per device", f"per core of {CORES}"]
    header += ["latency of an exchange, us", "bandwidth, GB/s", "ms an iteration", "by the model"]
    cases: dict[str, list[dict[str, Any]]] = {}
    for x in predicted:
        cases.setdefault(x["case"], []).append(x)
    said = [
        [case, f"{1e3 * each[0]['computing']:,.2f}"]
        + [f"{100 * x['efficiency']:.0f} % ({1e3 * x['exchange']:,.2f})" for x in each]
        for case, each in cases.items()
    ]
    names = [f"{x['gpus']} GPUs" for x in next(iter(cases.values()))]
    return "\n".join(
        [
            markdown(header, measured),
            "**Predicted, not measured**: efficiency (ms of an exchange) where each GPU keeps its work as more come.",
            "",
            markdown(["work of one exchange", "ms of computing", *names], said),
        ]
    )


def main(options: Options) -> None:
    rows, predicted = measure(options), predictions(options)
    report(options.out, make_tables(rows, predicted), {"ppo": make_ppo()}, {"rows": rows, "predicted": predicted})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
