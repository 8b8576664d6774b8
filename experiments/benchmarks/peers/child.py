"""What the children of peers.py share: the task they are given, the clock, and the line of JSON they answer with.

It imports only the standard library, so that every peer's environment can run it.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def read_task() -> dict[str, Any]:
    return json.loads(sys.argv[1])


def answer(found: dict[str, Any]) -> None:
    print(json.dumps(found))


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call(*arguments)
    return result, time.perf_counter() - start


class Course:
    """The evaluations of an agent until it is solved or its budget is spent.

    Seconds count from the start of the process, the interpreter's own start and all imports included.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.evaluations: list[dict[str, float]] = []
        self.solved: float | None = None
        self.imported = self.seconds()

    def seconds(self) -> float:
        return time.time() - self.task["launched"]

    def evaluated(self, steps: int, mean: float) -> None:
        self.evaluations.append({"steps": steps, "seconds": self.seconds(), "return": mean})
        if mean >= self.task["threshold"]:
            self.solved = self.evaluations[-1]["seconds"]

    def over(self) -> bool:
        return self.solved is not None or len(self.evaluations) == self.task["max_evaluations"]

    def found(self, seconds_compile: float | None, steps_per_second: float) -> dict[str, Any]:
        """What is reported; `seconds_compile` None where compiling is not a step of its own."""
        return {
            "seconds_imports": self.imported,
            "seconds_compile": seconds_compile,
            "seconds_solved": self.solved,
            "steps": self.evaluations[-1]["steps"],
            "return": self.evaluations[-1]["return"],
            "steps_per_second": steps_per_second,
            "evaluations": self.evaluations,
        }
