"""Learning on real environments, and every environment there is: minutes, so only with `pytest -m slow`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def launch(script, *arguments):
    """As a user would: optimised, and on the devices there are."""
    settings = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-W", "error", str(EXPERIMENTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=3000, env=settings).stdout


@pytest.mark.slow
def test_presets_reach_their_goals(tmp_path):
    """Without memory MemoryChain stays at chance."""
    envs = "CartPole-v1", "Catch-bsuite", "MemoryChain-bsuite"
    launch("ppo_learning.py", "--envs", *envs, "--seeds", 4, "--out", tmp_path)
    rows = json.loads((tmp_path / "ppo_learning.json").read_text())["rows"]
    assert len(rows) == 4
    for row in rows:
        if row["goal"] is None:
            assert abs(row["interquartile_mean"]) < 0.2, row["name"]
        else:
            assert row["interquartile_mean"] >= row["goal"], row["name"]


@pytest.mark.slow
def test_off_policy_presets_reach_their_goals_on_pendulum(tmp_path):
    launch("off_policy_learning.py", "--envs", "Pendulum-v1", "--seeds", 2, "--episodes", 256, "--out", tmp_path)
    found = json.loads((tmp_path / "off_policy_learning.json").read_text())["found"]
    for name, goal in {"ddpg": -180, "td3": -180, "sac": -180, "ppo": -2000}.items():
        assert np.mean(found[f"{name} on Pendulum-v1"]["returns"]) >= goal, name


@pytest.mark.slow
def test_every_rung_of_the_ladder_reaches_its_goal(tmp_path):
    """All solve CartPole but the total return. Ten seeds: of four, NPG has two that do not."""
    launch("ladder.py", "--envs", "CartPole-v1", "--seeds", 10, "--out", tmp_path)
    rows = json.loads((tmp_path / "ladder.json").read_text())["rows"]
    assert len(rows) == 10
    for row in rows:
        if row["rung"] != "REINFORCE, total return":
            assert row["interquartile_mean"]["value"] >= row["goal"], row["rung"]


@pytest.mark.slow
def test_the_cartpole_policy_balances_gymnasiums_own():
    figures = dict(re.findall(r"(\w+)=([\d.]+)", launch("gymnasium_transfer.py")))
    assert float(figures["return_mean_gymnasium"]) >= 475
