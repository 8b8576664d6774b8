"""SAC beside rejax, Stable-Baselines3 and SBX: env steps per second on Pendulum, same networks, batches and updates.

    python experiments/benchmarks/off_policy.py --rejax ENV/bin/python --sb3 ENV/bin/python --sbx ENV/bin/python

The arguments are Pythons of environments of their own (the docstrings of `peers/rejax_sac.py` and `peers/sb3_sac.py`
say what to install); a peer that is not given is left out. Ours and the peers take turns, each time a peer's process
with one training, compiled before. SBX and Stable-Baselines3 train one seed, and a tenth of the steps.

Also the share that ours has of the rate at which the matrix products of a gradient step run alone, one after another.

Writes off_policy.json and off_policy.md to experiments/results/benchmarks.
"""

import collections
import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from harness import RESULTS, compiled_iterations, markdown, write_report
from work import matrix_products, peaks, product_flops

import pgjax
from pgjax.algorithms.off_policy import Learner
from pgjax.running.config import to_config

PEERS = Path(__file__).parent / "peers"
WARMUP = 1000


class Case(NamedTuple):
    name: str
    seeds: int = 1
    envs: int = 1
    updates: int = 1
    width: int = 64
    batch: int = 256
    steps: int = 10_000


CASES = (
    Case("1 environment"),
    Case("1 environment, 2 x 256", width=256, steps=4000),
    Case("1 environment, 8 seeds", seeds=8, steps=4000),
    Case("64 environments, an update for each 64 steps", envs=64, steps=256_000),
)


@dataclasses.dataclass(frozen=True)
class Options:
    rejax: Annotated[Path | None, tyro.conf.arg(help="Python of an environment with rejax")] = None
    sb3: Annotated[Path | None, tyro.conf.arg(help="Python of an environment with Stable-Baselines3")] = None
    sbx: Annotated[Path | None, tyro.conf.arg(help="Python of an environment with SBX")] = None
    turns: Annotated[int, tyro.conf.arg(help="timings of each")] = 5
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = RESULTS


def sac(case: Case) -> pgjax.SAC:
    hidden = (case.width, case.width)
    return pgjax.SAC(
        pgjax.make("Pendulum-v1"),
        pgjax.MLP(hidden, "relu", shared_torso=True, state_dependent_std=True, squash=True, orthogonal_init=False),
        critic=pgjax.MLPCritic(hidden),
        total_steps=10**9,
        num_envs=case.envs,
        num_updates=case.updates,
        num_rounds=250,
        batch_size=case.batch,
        buffer_size=case.steps // case.envs * case.envs,
        warmup=WARMUP,
        learning_rate=1e-3,
        critic_learning_rate=1e-3,
        temperature_learning_rate=1e-3,
    )


class Ours:
    """A compiled training, past its warm-up."""

    def __init__(self, case: Case) -> None:
        self.algorithm = sac(case)
        iterations = max(1, case.steps // self.algorithm.steps_per_iteration)
        self.program = compiled_iterations(self.algorithm, case.seeds, iterations)
        self.state, self.steps = self.program.state, case.seeds * iterations * self.algorithm.steps_per_iteration
        self.rate()

    def rate(self) -> float:
        start = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.program.run(self.state))
        return self.steps / (time.perf_counter() - start)


def rate_of(python: Path, script: str, case: Case, *more: str) -> tuple[float, dict[str, Any]]:
    steps = case.steps if script == "rejax_sac.py" else max(2 * WARMUP + 200 * case.envs, case.steps // 10)
    sizes = case._asdict() | {"warmup": WARMUP, "steps": steps}
    flags = [text for name, value in sizes.items() if name != "name" for text in (f"--{name}", str(value))]
    environment = {name: x for name, x in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    if script == "sb3_sac.py":
        environment["OMP_NUM_THREADS"] = "1"  # with two, torch is many times slower whenever another process has a core
    command = [str(python), str(PEERS / script), *flags, *more]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["steps"] / found["seconds"], found


def share_of_products(case: Case, rate: float) -> tuple[float, float]:
    """How much of the time the matrix products of a gradient step would take alone, and their GFLOP/s on one device."""
    algorithm = sac(case)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    batch = jax.eval_shape(lambda state: algorithm.replay.sample(state.replay, jax.random.key(0), 0.99), state)
    rates = {name: jnp.float32(x) for name, x in algorithm.rates.items()}

    def update(state: Any, batch: Any) -> Any:
        learner = Learner(state.params, state.targets, state.opt_state)
        return algorithm.update(learner, batch, jax.random.key(0), jnp.int32(0), rates)

    products: collections.Counter[Any] = collections.Counter()
    for product, times in matrix_products(jax.make_jaxpr(update)(state, batch).jaxpr):
        products[product] += times
    peak = peaks(dict(products), 1)["gflops"]
    flops = sum(times * product_flops(product) for product, times in products.items())
    updates = rate * case.updates / case.envs
    return updates * flops / 1e9 / peak, peak


def measured(case: Case, options: Options) -> dict[str, Any]:
    ours = Ours(case)
    peers = {"rejax": (options.rejax, "rejax_sac.py", ())}
    if case.seeds == 1:
        peers |= {"Stable-Baselines3": (options.sb3, "sb3_sac.py", ()), "SBX": (options.sbx, "sb3_sac.py", ("--sbx",))}
    rates: dict[str, list[float]] = {"pgjax": []}
    about: dict[str, Any] = {"pgjax": {"seconds_compile": ours.program.seconds_compile}}
    for _ in range(options.turns):
        rates["pgjax"].append(ours.rate())
        for name, (python, script, more) in peers.items():
            if python:
                rate, about[name] = rate_of(python, script, case, *more)
                rates.setdefault(name, []).append(rate)
        print(case.name, {name: round(each[-1]) for name, each in rates.items()}, flush=True)
    share, peak = share_of_products(case, float(np.median(rates["pgjax"])))
    found = {"share_of_products": share, "gflops_of_products": peak, "config": to_config(ours.algorithm)}
    return {"case": case._asdict(), "steps_per_second": rates, "about": about} | found


def main(options: Options) -> None:
    found = [measured(case, options) for case in CASES]
    rows = []
    for each in found:
        ours = np.array(each["steps_per_second"]["pgjax"])
        for name, rates in each["steps_per_second"].items():
            ratio = ours / np.array(rates)
            turns = f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})" if name != "pgjax" else ""
            share = f"{100 * each['share_of_products']:.0f} %" if name == "pgjax" else ""
            compiling = each["about"][name]["seconds_compile"]
            compiled = f"{compiling:.1f}" if compiling else ""
            rows.append([each["case"]["name"], name, f"{np.median(rates):,.0f}", turns, share, compiled])
    header = ["Pendulum-v1, batch 256", "", "env steps/s", "pgjax / peer in turns", "share of one core's products"]
    table = f"SAC, 2 x 64 unless said otherwise; medians of {options.turns} turns; steps of all seeds.\n\n"
    write_report(options.out, table + markdown([*header, "compile, s"], rows, 2), None, {"cases": found})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
