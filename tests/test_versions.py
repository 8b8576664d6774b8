"""The lowest versions that pyproject.toml allows work together: they are installed and trained with."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = ["ppo", "--env", "CartPole-v1", "--num-envs", "8", "--num-steps", "16", "--total-steps", "2560"]


def call(*command, cwd):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_lowest_versions_train_resume_evaluate_and_sweep(tmp_path):
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [d for d in dependencies if not re.fullmatch(r"[\w-]+>=\d+(\.\d+)+", d)] == []  # each has a lower bound
    lowest = [d.replace(">=", "==") for d in dependencies]
    call(sys.executable, "-m", "venv", "low", cwd=tmp_path)
    call("low/bin/python", "-m", "pip", "install", "-q", "--no-compile", *lowest, ROOT, cwd=tmp_path)

    def pgjax(*arguments):
        return call("low/bin/pgjax", *arguments, cwd=tmp_path)

    assert "steps=2560 " in pgjax("train", *SMALL, "--directory", "run", "--episodes", "4")
    assert "steps=5120 " in pgjax("resume", "run", "--total-steps", "5120")
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["steps"] == 5120
    assert "episodes=4 " in pgjax("evaluate", "run", "--episodes", "4")
    rates = ["--seeds", "2", "--learning-rate", "1e-3,1e-2", "--episodes", "4", "--directory", "sweep"]
    assert "members=4 failed=0 " in pgjax("sweep", *SMALL, *rates)
