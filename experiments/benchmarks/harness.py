"""What the benchmarks share: a training program compiled apart from its runs, and processes that run it on request."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from common import markdown as markdown
from common import pyplot as pyplot
from common import write_report

from pgjax.core.cores import count_cores
from pgjax.core.processes import agreed
from pgjax.running.compile import ROWS, compile_programs, env_layout, member_layout
from pgjax.running.config import from_config, to_config
from pgjax.running.population import copies

CORES = count_cores()
RESULTS = Path("experiments/results/benchmarks")
STEPS_PER_CALL = 16_384
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes share an accelerator


class Program(NamedTuple):
    run: Callable[[Any], tuple[Any, Any]]
    """state -> (state, metrics); the state is donated."""
    state: Any
    seconds_compile: float
    """Of all programs of a run but the evaluation, tracing included."""
    memory: Any
    """XLA's memory analysis, of one device."""
    text: str
    """As XLA has compiled it."""


def compiled_iterations(algorithm: Any, seeds: int, iterations: int, devices: int | None = None) -> Program:
    """`iterations` iterations of `seeds` members, by the programs of `pgjax.run` and on the devices that it uses."""
    key = jax.random.key(0)
    if seeds > 1:
        algorithm, key = copies(algorithm, seeds), jax.random.split(key, seeds)
    start = time.perf_counter()
    layout = member_layout(algorithm, devices) if seeds > 1 else env_layout(algorithm, devices)
    programs = compile_programs(algorithm, layout, ROWS, None)
    seconds = time.perf_counter() - start
    algorithm, key = layout.place_algorithm(algorithm), layout.place(key)

    def run(state: Any) -> tuple[Any, Any]:
        return programs.advance(algorithm, state, np.int32(iterations))

    advance = programs.advance
    return Program(run, programs.init(algorithm, key), seconds, advance.memory_analysis(), advance.as_text())


class Training:
    """A compiled training program, warmed up, and how many calls of it take about `seconds`."""

    def __init__(self, algorithm: Any, seeds: int, seconds: float, devices: int | None = None) -> None:
        per_iteration = seeds * algorithm.steps_per_iteration
        iterations = max(1, STEPS_PER_CALL // per_iteration)
        self.program = compiled_iterations(algorithm, seeds, iterations, devices)
        self.state, self.calls, self.steps_per_call = self.program.state, 1, iterations * per_iteration
        rate = agreed(self.repetition()["steps_per_second"])
        if self.steps_per_call < seconds * rate:
            rate = agreed(self.repetition()["steps_per_second"])
        self.calls = max(1, round(seconds * rate / self.steps_per_call))
        self.devices = max(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(self.state))
        memory, device = self.program.memory, jax.local_devices()[0].memory_stats()
        self.facts = {
            "devices": self.devices,
            "seconds_compile": self.program.seconds_compile,
            "program_bytes": self.devices * (memory.temp_size_in_bytes + memory.argument_size_in_bytes),
            "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT,
            "device_bytes": device["peak_bytes_in_use"] if device else None,
            "steps_per_repetition": self.calls * self.steps_per_call,
            "warm_up_steps_per_second": rate,
        }

    def repetition(self) -> dict[str, float]:
        start, busy = time.perf_counter(), time.process_time()
        for _ in range(self.calls):
            self.state, _ = self.program.run(self.state)
        jax.block_until_ready(self.state)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        return {"steps_per_second": self.calls * self.steps_per_call / seconds, "cores_busy": busy / seconds}


def serve(facts: dict[str, Any], repetition: Callable[[], dict[str, float]]) -> None:
    """In a `Worker`'s process: say what was set up, then make a repetition for every line that comes in."""
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        print(json.dumps(repetition()), flush=True)


def worker(config: dict[str, Any], seeds: int, seconds: float) -> None:
    training = Training(from_config(config), seeds, seconds)
    serve(training.facts, training.repetition)


class Worker:
    """`module.worker(*arguments)` in a process of its own; idle between repetitions."""

    def __init__(
        self, module: str, *arguments: Any, devices: int | None = None, environment: Mapping[str, str] = os.environ
    ) -> None:
        environment = {name: x for name, x in environment.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        if devices:
            environment["JAX_NUM_CPU_DEVICES"] = str(devices)
        code = f"import json, sys, {module}; {module}.worker(*json.loads(sys.argv[1]))"
        command = [sys.executable, "-c", code, json.dumps(arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdin and self.process.stdout
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.facts = self._receive()
        self.repetitions: list[dict[str, float]] = []

    def repeat(self) -> None:
        self.requests.write("\n")
        self.requests.flush()
        self.repetitions.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        for line in self.answers:
            if line.startswith("{"):  # gloo writes lines of its own
                return json.loads(line)
        raise SystemExit(f"a process of the benchmark ended with status {self.process.wait()}")

    def close(self) -> None:
        self.requests.close()
        self.process.wait()


def take_turns(workers: dict[str, Worker], repetitions: int) -> None:
    """Every worker's repetitions, alternated, and the end of the workers."""
    for i in range(repetitions):
        for name, each in workers.items():
            each.repeat()
            rate = each.repetitions[-1]["steps_per_second"]
            print(f"{i + 1} of {repetitions}, {name}: {rate:,.0f} steps/s", file=sys.stderr, flush=True)
    for each in workers.values():
        each.close()


def quartiles(values: Iterable[float]) -> dict[str, float]:
    low, median, high = np.quantile(list(values), [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "low": low, "high": high}


def report(out: Path, table: str, algorithms: dict[str, Any], figures: dict[str, Any]) -> None:
    """The files of a benchmark, with the config of every algorithm in it."""
    name, *arguments = sys.argv
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    about = {
        "command": f"python experiments/benchmarks/{Path(name).name} {' '.join(arguments)}".rstrip(),
        "cores": CORES,
        "processor": models[0] if models else platform.processor(),
        "config": {name: to_config(algorithm) for name, algorithm in algorithms.items()},
    }
    write_report(out, table, next(iter(algorithms.values())), about | figures)
