"""Environment steps of PPO training per second, the floating-point work they are, and how near it comes to the peak.

    python experiments/benchmarks/throughput.py
    python experiments/benchmarks/throughput.py --cases cartpole-64x128 breakout-mlp-64x128 --seeds 1 8

Each case and number of seeds has a process of its own, which compiles (timed apart) and warms up. Then the processes
of a case take turns, one repetition each, while the others are idle. Work per step is XLA's cost analysis of loop-free
pieces: a minibatch's loss and gradient, as often as an iteration computes it, and one action of every environment;
environments, sampling and the optimiser are not counted. The peak is what the matrix products of that gradient, taken
from its trace with their shapes, reach when each is repeated alone in the same process, on one device (which on a host
may keep several cores busy) and on as many at once as the training uses. Writes throughput.json (config and every
repetition), throughput.md and throughput.png.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from harness import RESULTS, Training, Worker, markdown, pyplot, quartiles, report, serve, take_turns
from work import peaks, product_flops, work

import pgjax
from pgjax.running.config import from_config, to_config

CASES: dict[str, tuple[str, Any, dict[str, int]]] = {
    "cartpole-4x128": ("CartPole-v1", pgjax.MLP(), {"num_envs": 4, "num_steps": 128}),
    "cartpole-64x128": ("CartPole-v1", pgjax.MLP(), {"num_envs": 64, "num_steps": 128}),
    "cartpole-1024x128": ("CartPole-v1", pgjax.MLP(), {"num_envs": 1024, "num_steps": 128}),
    "cartpole-2048x16": ("CartPole-v1", pgjax.MLP(), {"num_envs": 2048, "num_steps": 16}),
    "cartpole-gru-64x128": ("CartPole-v1", pgjax.GRU(), {"num_envs": 64, "num_steps": 128}),
    "pendulum-100x100": (
        "Pendulum-v1",
        pgjax.MLP(),
        {"num_envs": 100, "num_steps": 100, "num_epochs": 10, "num_minibatches": 10},
    ),
    "breakout-mlp-64x128": ("Breakout-MinAtar", pgjax.MLP(), {"num_envs": 64, "num_steps": 128}),
    "breakout-cnn-64x128": ("Breakout-MinAtar", pgjax.CNN(), {"num_envs": 64, "num_steps": 128}),
}
"""Environment, network, and what is not the default of PPO: 4 epochs of 4 minibatches."""


@dataclasses.dataclass(frozen=True)
class Options:
    cases: Annotated[tuple[str, ...], tyro.conf.arg(help=f"of: {', '.join(CASES)}")] = tuple(CASES)
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(help="members trained together; default 1 8 32, on a GPU 512")] = ()
    repetitions: Annotated[int, tyro.conf.arg(help="timings of each case, alternated")] = 5
    seconds: Annotated[float, tyro.conf.arg(help="about how long a repetition takes")] = 1.0
    longest: Annotated[float, tyro.conf.arg(help="more seeds are left out where an iteration would take longer")] = 20.0
    devices: Annotated[int | None, tyro.conf.arg(help="host devices of each process; default what jax makes")] = None
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = RESULTS


def worker(config: dict[str, Any], seeds: int, seconds: float) -> None:
    ppo = from_config(config)
    training = Training(ppo, seeds, seconds)
    done = work(ppo)
    facts = {
        "learning_flops": done.learning_flops,
        "acting_flops": done.acting_flops,
        "product_flops": sum(times * product_flops(product) for product, times in done.products.items()),
        "peaks": [peaks(done.products, devices) for devices in sorted({1, training.devices})],
    }
    serve(training.facts | facts, training.repetition)


def make_ppo(case: str) -> pgjax.PPO:
    env, network, sizes = CASES[case]
    return pgjax.PPO(pgjax.make(env), network=network, **sizes)


def figures(worker: Worker) -> dict[str, Any]:
    speed = quartiles(each["steps_per_second"] for each in worker.repetitions)
    gflops = speed["median"] * (worker.facts["learning_flops"] + worker.facts["acting_flops"]) / 1e9
    return worker.facts | {
        "steps_per_second": speed,
        "cores_busy": quartiles(each["cores_busy"] for each in worker.repetitions)["median"],
        "gflops": gflops,
        "share_of_peak": gflops / worker.facts["peaks"][-1]["gflops"],
        "repetitions": worker.repetitions,
    }


def make_table(found: list[dict[str, Any]]) -> str:
    def row(x: dict[str, Any]) -> list[str]:
        speed, peak = x["steps_per_second"], x["peaks"][-1]
        return [
            x["case"],
            str(x["seeds"]),
            f"{speed['median']:,.0f} [{speed['low']:,.0f}, {speed['high']:,.0f}]",
            f"{x['devices']}",
            f"{x['cores_busy']:.2f}",
            f"{(x['learning_flops'] + x['acting_flops']) / 1e3:,.0f}",
            f"{x['gflops']:.1f}",
            f"{peak['gflops']:.0f} ({peak['square_gflops']:.0f})",
            f"{100 * x['share_of_peak']:.0f} %",
            f"{x['process_bytes'] / 1e6:,.0f} ({x['program_bytes'] / 1e6:,.0f})",
            f"{x['seconds_compile']:.1f}",
        ]

    header = ["case", "seeds", "env steps/s [quartiles]", "devices", "cores busy", "kflop/step", "GFLOP/s"]
    header += ["peak of its products (1024^3)", "share", "MB of the process (program)", "seconds to compile"]
    return markdown(header, [row(x) for x in found])


def plot(found: list[dict[str, Any]], out: Path) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4.5), layout="constrained", sharey=True)
    cases, seeds = (list(dict.fromkeys(x[name] for x in found)) for name in ("case", "seeds"))
    height = 0.8 / len(seeds)
    for i, count in enumerate(seeds):
        shown = [x for x in found if x["seeds"] == count]
        places = [cases.index(x["case"]) + height * (i - (len(seeds) - 1) / 2) for x in shown]
        speed = [x["steps_per_second"] for x in shown]
        spread = np.abs([[x["median"] - x["low"] for x in speed], [x["high"] - x["median"] for x in speed]])
        label = f"{count} seed{'s' * (count > 1)}"
        left.barh(places, [x["median"] for x in speed], height, xerr=spread, label=label)
        right.barh(places, [100 * x["share_of_peak"] for x in shown], height)
    left.set_yticks(range(len(cases)), cases)
    left.invert_yaxis()
    left.set(xscale="log", xlabel="env steps per second")
    left.legend()
    right.set(xlim=(0, 100), xlabel="% of the peak of its matrix products")
    figure.savefig(out / "throughput.png", dpi=110)


def main(options: Options) -> None:
    seeds = options.seeds or (1, 8, 32, *([512] if jax.default_backend() == "gpu" else []))
    algorithms = {case: make_ppo(case) for case in options.cases}
    found = []
    for case, ppo in algorithms.items():
        workers: dict[int, Worker] = {}
        rate = float("inf")
        for count in seeds:
            if count * ppo.steps_per_iteration / rate > options.longest:
                print(f"{case}, {count} seed(s): left out", file=sys.stderr, flush=True)
                continue
            workers[count] = Worker("throughput", to_config(ppo), count, options.seconds, devices=options.devices)
            rate = workers[count].facts["warm_up_steps_per_second"]
        take_turns({f"{case}, {count} seed(s)": each for count, each in workers.items()}, options.repetitions)
        found += [{"case": case, "seeds": count} | figures(each) for count, each in workers.items()]
    report(options.out, make_table(found), algorithms, {"cases": found})
    plot(found, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
