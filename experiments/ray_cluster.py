"""On a Ray cluster: one run divided over all workers, or a search in which each worker trains compiled populations.

    python experiments/ray_cluster.py run                      # two workers on this machine
    python experiments/ray_cluster.py search --widths 16 64
    python experiments/ray_cluster.py run --address auto --workers 8 --directory /shared/runs/cartpole

Plain actors: Ray places one worker on each share of the cluster, and `pgjax.connect` joins those of a run. A run that
was cut, or whose worker was lost, goes on by the same command. Needs `pip install 'pgjax[ray]'`.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import ray
import tyro
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import pgjax
from pgjax.commands.launch import free_port


@dataclasses.dataclass(frozen=True)
class Options:
    what: Annotated[Literal["run", "search"], tyro.conf.Positional, tyro.conf.arg(help="one run, or many populations")]
    address: Annotated[str | None, tyro.conf.arg(help="of the cluster; by default one is started here")] = None
    workers: Annotated[int, tyro.conf.arg(help="how many")] = 2
    cpus: Annotated[int, tyro.conf.arg(help="cores of each worker")] = 1
    gpus: Annotated[int, tyro.conf.arg(help="GPUs of each worker")] = 0
    directory: Annotated[Path | None, tyro.conf.arg(help="where the run is kept, seen by all workers")] = None
    env: Annotated[str, tyro.conf.arg(help="environment, with PPO's preset")] = "CartPole-v1"
    num_envs: Annotated[int, tyro.conf.arg(help="environments of the run")] = 64
    total_steps: Annotated[int, tyro.conf.arg(help="environment steps of each agent")] = 204_800
    widths: Annotated[tuple[int, ...], tyro.conf.arg(help="hidden units that are searched")] = (16, 64)
    learning_rates: Annotated[tuple[float, ...], tyro.conf.arg(help="learning rates that are searched")] = (3e-4, 1e-3)
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each setting")] = 4


class Worker:
    """A process on its share of the cluster."""

    def free_address(self) -> str:
        """HOST:PORT where the others reach this worker."""
        return f"{ray.util.get_node_ip_address()}:{free_port()}"

    def run(self, options: Options, coordinator: str, process: int) -> str:
        """This worker's part of the one run."""
        pgjax.connect(coordinator, options.workers, process)
        ppo = pgjax.tuned("ppo", options.env, num_envs=options.num_envs, total_steps=options.total_steps)
        result = pgjax.run(ppo, directory=options.directory, progress=False)
        return f"{jax.process_count()} processes: {result!r}"

    def search(self, options: Options, width: int) -> dict[str, Any]:
        """All learning rates and seeds of one width, as one program."""
        ppo = pgjax.tuned("ppo", options.env, total_steps=options.total_steps, network=pgjax.MLP(hidden=(width, width)))
        found = pgjax.sweep(ppo, learning_rate=list(options.learning_rates), seeds=options.seeds, progress=False)
        best = found.best()
        return {"width": width, **best.setting, "score": best.score}


def start(options: Options) -> list[Any]:
    """The workers, all at once or none: a run waits for each of them."""
    share = {"CPU": options.cpus} | ({"GPU": options.gpus} if options.gpus else {})
    group = placement_group([share] * options.workers)
    ray.get(group.ready())
    actor = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus)(Worker)
    placed = actor.options(
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        runtime_env={"env_vars": {"PGJAX_CPU_DEVICES": str(options.cpus)}},
    )
    return [placed.remote() for _ in range(options.workers)]


def main(options: Options) -> None:
    ray.init(options.address, num_cpus=None if options.address else options.workers * options.cpus, log_to_driver=False)
    workers = start(options)
    if options.what == "run":
        coordinator = ray.get(workers[0].free_address.remote())
        parts = [worker.run.remote(options, coordinator, process) for process, worker in enumerate(workers)]
        waited_for = parts
        while waited_for:
            done, waited_for = ray.wait(waited_for)
            ray.get(done)  # raises what a worker raised, or that it is lost, while the others still wait for it
        print(ray.get(parts[0]))
        return
    pool = ray.util.ActorPool(workers)
    found = pool.map(lambda worker, width: worker.search.remote(options, width), options.widths)
    for row in sorted(found, key=lambda row: -row["score"]):
        print(" ".join(f"{name}={value:g}" for name, value in row.items()))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
