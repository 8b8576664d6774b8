"""The part of Stable-Baselines3 and of SBX, which share an interface, in peers.py: one task per process."""

import time
from typing import Any

from child import Course, answer, read_task, timed
from stable_baselines3.common.callbacks import BaseCallback  # type: ignore[import-not-found,unused-ignore]
from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found,unused-ignore]
from stable_baselines3.common.evaluation import evaluate_policy  # type: ignore[import-not-found,unused-ignore]

task = read_task()
if task["peer"] == "sbx":
    from sbx import PPO  # type: ignore[import-not-found,unused-ignore]
else:
    from stable_baselines3 import PPO  # type: ignore[import-not-found,unused-ignore]


class Watch(BaseCallback):  # type: ignore[misc,unused-ignore]
    """Evaluates between iterations and stops when the course is over.

    Training is timed from the end of the first iteration, in which SBX compiles, without the evaluations.
    """

    def __init__(self, course: Course) -> None:
        super().__init__()
        self.course = course
        self.env = make_vec_env(task["env"], n_envs=task["hyperparameters"]["n_envs"], seed=1_000 + task["seed"])
        self.started = self.evaluating = 0.0
        self.first_steps = self.steps = 0
        self.training = 0.0

    def _on_rollout_start(self) -> None:
        if self.num_timesteps == task["hyperparameters"]["n_envs"] * task["hyperparameters"]["n_steps"]:
            self.started, self.first_steps = time.perf_counter(), self.num_timesteps
        if self.num_timesteps and self.num_timesteps % task["every"] == 0:
            self._evaluate()

    def _on_step(self) -> bool:
        return not self.course.over()

    def _on_training_end(self) -> None:
        if not self.course.over():
            self._evaluate()

    def _evaluate(self) -> None:
        self.training = time.perf_counter() - self.started - self.evaluating
        self.steps = self.num_timesteps - self.first_steps
        (mean, _), seconds = timed(lambda: evaluate_policy(self.model, self.env, task["episodes"]))
        self.evaluating += seconds
        self.course.evaluated(self.num_timesteps, float(mean))


def solve(course: Course) -> dict[str, Any]:
    given = dict(task["hyperparameters"])
    steps, rate, clip = given.pop("n_timesteps"), given.pop("learning_rate"), given.pop("clip_range")
    model = PPO(
        env=make_vec_env(task["env"], n_envs=given.pop("n_envs"), seed=task["seed"]),
        learning_rate=lambda remaining: rate * remaining,
        clip_range=lambda remaining: clip * remaining,
        seed=task["seed"],
        device="cpu",
        **given,
    )
    watch = Watch(course)
    model.learn(steps, callback=watch)
    return course.found(None, watch.steps / watch.training)


if __name__ == "__main__":
    answer(solve(Course(task)))
