"""pgjax's part of peers.py: one task per process."""

from typing import Any

import jax
import numpy as np
from child import Course, answer, read_task, timed

import pgjax
from pgjax.running.compile import MAX_CHUNK, ROWS, compile_programs, env_layout, member_layout
from pgjax.running.population import copies
from pgjax.running.presets import preset


class Trainer:
    """The programs of `pgjax.run`, compiled, and what they are called with."""

    def __init__(self, ppo: pgjax.PPO, seeds: int, episodes: int | None) -> None:
        subject: Any = ppo if seeds == 1 else copies(ppo, seeds)
        self.layout = env_layout(subject) if seeds == 1 else member_layout(subject)
        self.programs = compile_programs(subject, self.layout, ROWS, episodes)
        self.subject = self.layout.place_algorithm(subject)

    def init(self, key: jax.Array) -> Any:
        return self.programs.init(self.subject, self.layout.place(key))

    def train(self, state: Any, iterations: int) -> Any:
        for done in range(0, iterations, MAX_CHUNK):
            state, _ = self.programs.advance(self.subject, state, np.int32(min(MAX_CHUNK, iterations - done)))
        return jax.block_until_ready(state)

    def evaluate(self, state: Any) -> np.ndarray:
        return np.asarray(self.programs.evaluate(self.subject, state)["return_mean"])


def timed_training(ppo: pgjax.PPO, seeds: int, evaluations: int, episodes: int, calls: int) -> dict[str, Any]:
    """Seconds to compile and of each call."""
    trainer, seconds_compile = timed(lambda: Trainer(ppo, seeds, episodes if evaluations else None))
    parts = max(evaluations, 1)

    def run(key: jax.Array) -> Any:
        state, returns = trainer.init(key), []
        for _ in range(parts):
            state = trainer.train(state, ppo.num_iterations // parts)
            if evaluations:
                returns.append(trainer.evaluate(state))
        return returns

    keys = [
        jax.random.key(call) if seeds == 1 else jax.random.split(jax.random.key(call), seeds) for call in range(calls)
    ]
    runs = [timed(run, key) for key in keys]
    return {
        "seconds_compile": seconds_compile,
        "seconds_run": [seconds for _, seconds in runs],
        "steps": seeds * ppo.num_iterations * ppo.steps_per_iteration,
        "returns": np.ravel(runs[-1][0][-1]).tolist() if evaluations else [],
    }


def throughput(task: dict[str, Any]) -> dict[str, Any]:
    case = task["case"]
    ppo = pgjax.PPO(
        pgjax.make(case["env"]),
        total_steps=case["total_steps"],
        lr_schedule="constant",
        clip_value=True,
        **case["shapes"],
        **task["hyperparameters"],
    )
    return timed_training(ppo, case["seeds"], task["evaluations"], task["episodes"], task["calls"])


def solve(task: dict[str, Any], course: Course) -> dict[str, Any]:
    fields = preset("ppo", task["env"]) if task["way"] == "preset" else task["hyperparameters"]
    ppo = pgjax.PPO(pgjax.make(task["env"]), **fields)
    piece = task["every"] // ppo.steps_per_iteration
    trainer, seconds_compile = timed(lambda: Trainer(ppo, 1, task["episodes"]))
    state, seconds, done = trainer.init(jax.random.key(task["seed"])), 0.0, 0
    while not course.over() and done < ppo.num_iterations:
        state, spent = timed(trainer.train, state, min(piece, ppo.num_iterations - done))
        done, seconds = int(state.iteration), seconds + spent
        course.evaluated(done * ppo.steps_per_iteration, float(trainer.evaluate(state)))
    return course.found(seconds_compile, done * ppo.steps_per_iteration / seconds)


if __name__ == "__main__":
    task = read_task()
    answer(solve(task, Course(task)) if task["part"] == "solve" else throughput(task))
