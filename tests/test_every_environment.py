"""Every gymnax environment trains: two iterations, no error, no warning, finite metrics."""

import jax
import numpy as np
import pytest

import pgjax
from pgjax.environments.catalog import CATALOG


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [env_id for env_id in CATALOG if env_id != "MNISTBandit-bsuite"])
def test_two_iterations(env_id, tiny_ppo):
    grid = len(CATALOG[env_id][0]) == 3
    network = pgjax.CNN(channels=(2,), stride=2, hidden=(8,)) if grid else pgjax.MLP(hidden=(8,))
    algorithm = tiny_ppo(pgjax.make(env_id), network=network, total_steps=64)
    program = jax.jit(pgjax.train).lower(algorithm, jax.random.key(0))
    # Only whether it runs is asked here, and unoptimised programs compile in half the time.
    state, metrics = program.compile(compiler_options={"xla_backend_optimization_level": 0})(
        algorithm, jax.random.key(0)
    )
    assert int(state.iteration) == 2
    for name, values in metrics.items():
        if not name.startswith(("return_", "length_")):
            assert np.all(np.isfinite(values)), name
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))
