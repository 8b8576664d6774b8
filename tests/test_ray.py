"""The recipe for a Ray cluster, on one that it starts here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import UNOPTIMIZED

SCRIPT = Path(__file__).parents[1] / "experiments" / "ray_cluster.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--num-envs", "64"), r"2 processes: Result\(algorithm: PPO on CartPole-v1, length: 8,192"),
        (("search", "--widths", "8", "16", "--seeds", "1"), r"(?:width=\d+ learning_rate=\S+ score=\S+\n){2}"),
    ],
)
def test_ray_trains_one_run_on_two_workers_and_searches(arguments, said, tmp_path):
    # Ray's workers have a low priority of their own: beside other tests they would hardly run
    variables = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "XLA_FLAGS": UNOPTIMIZED}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--total-steps", "8192"],
        env=os.environ | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout), done.stdout
