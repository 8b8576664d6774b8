"""Runs that stop and go on: the same bits, the same files, and nothing lost to damage."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings

import jax
import numpy as np
import pytest

import pgjax
from pgjax.checkpoint import Checkpoints, load_state
from pgjax.logging import JsonLines
from pgjax.rundir import locked, read_rows, status

run_module = importlib.import_module("pgjax.run")

CASES = {
    "mlp": ({"env": "CartPole-v1"}, None),
    "gru": ({"env": "CartPole-v1", "network": pgjax.GRU(hidden=(8,), memory_size=8)}, None),
    "everything": (
        {
            "env": "Pendulum-v1",
            "network": pgjax.MLP(hidden=(8,), shared_torso=True),
            "normalize_obs": True,
            "normalize_reward": True,
        },
        None,
    ),
    "population": ({"env": "CartPole-v1"}, 8),
}


def case(name, tiny_ppo):
    fields, seeds = CASES[name]
    fields = dict(fields)
    return tiny_ppo(pgjax.make(fields.pop("env")), **fields), {"seeds": seeds, "checkpoint_every": 2, "episodes": 4}


@pytest.fixture
def one_iteration_chunks(monkeypatch):
    monkeypatch.setattr(run_module, "CHUNK_SECONDS", 0.0)


def stop_at(monkeypatch, iteration, number=signal.SIGTERM):
    """Send this process a signal when the metrics of `iteration` arrive."""
    write = JsonLines.write

    def write_and_stop(self, rows):
        write(self, rows)
        if self.path.name == "metrics.jsonl" and rows and rows[-1]["iteration"] == iteration:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(JsonLines, "write", write_and_stop)


def leaves(state):
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}
    is_key = jax.dtypes.prng_key
    return {k: jax.random.key_data(v) if jax.dtypes.issubdtype(v.dtype, is_key) else v for k, v in named.items()}


def assert_same_run(a, b):
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    states = [leaves(pgjax.load(directory).state) for directory in (a, b)]
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tiny_ppo, tmp_path_factory):
    """Every case from start to end, and the same stopped by SIGTERM after iteration 3, both on disk."""
    base = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "CHUNK_SECONDS", 0.0)
        for name in CASES:
            algorithm, settings = case(name, tiny_ppo)
            pgjax.run(algorithm, 5, base / name / "whole", progress=False, **settings)
        stop_at(patch, 3)
        for name in CASES:
            algorithm, settings = case(name, tiny_ppo)
            with pytest.raises(pgjax.Interrupted, match=r"stopped by SIGTERM after iteration 3 of 6 .* pgjax resume"):
                pgjax.run(algorithm, 5, base / name / "stopped", progress=False, **settings)
            assert status(base / name / "stopped") == "interrupted"
    return base


def test_a_stopped_run_continues_to_the_same_bits_in_a_new_process(undisturbed):
    """Every leaf of the final state, and every line of the files, for every algorithm and network and a population."""
    code = "import sys, pgjax\nfor directory in sys.argv[1:]: pgjax.resume(directory, progress=False)"
    stopped = [str(undisturbed / name / "stopped") for name in CASES]
    subprocess.run([sys.executable, "-c", code, *stopped], check=True, timeout=300)
    for name in CASES:
        assert_same_run(undisturbed / name / "stopped", undisturbed / name / "whole")
        assert status(undisturbed / name / "stopped") == "finished"


def test_members_of_a_population_are_the_runs_of_their_seeds(undisturbed, tiny_ppo, train):
    population = pgjax.load(undisturbed / "population" / "whole")
    algorithm, _ = case("population", tiny_ppo)
    solo, metrics = train(algorithm, jax.random.key(5 + 3))
    member = population.member(3)
    for name, leaf in leaves(member.state.params).items():
        np.testing.assert_allclose(leaf, leaves(solo.params)[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(member.metrics["entropy"], metrics["entropy"], atol=1e-4)
    assert member.predict(np.zeros(4)).shape == ()
