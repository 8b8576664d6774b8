"""Policies where there is no jax: NumPy and ONNX Runtime give the actions that `predict` gives."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

import pgjax
from pgjax.environments.base import Discrete
from pgjax.environments.catalog import CATALOG
from pgjax.learning.normalize import Moments
from pgjax.running import numpy_policy, presets

PENDULUM = "Pendulum-v1"
CASES = {
    "discrete": ("ppo", "CartPole-v1", {}),
    "normalised": ("ppo", "MountainCarContinuous-v0", {"normalize_obs": True}),
    "squashed": ("sac", PENDULUM, {}),
    "gru": ("ppo", "CartPole-v1", {"network": pgjax.GRU(hidden=(8,), memory_size=6)}),
    "cnn": ("ppo", "Freeway-MinAtar", {"network": pgjax.CNN(channels=(3, 2), kernel_size=2, stride=2, hidden=(8,))}),
} | {
    name: ("ppo", PENDULUM, {"network": pgjax.MLP(hidden=(8, 8), activation=name)})
    for name in ("relu", "gelu", "silu", "elu")
}


def with_state(name, env_id, fields):
    """An algorithm and what its policy is in a state: random weights, large enough that actions differ."""
    tuned = presets.preset(name, env_id)
    algorithm = pgjax.tuned(name, env_id, **fields) if tuned else pgjax.PPO(pgjax.make(env_id), **fields)
    spaces = algorithm.env.observation_space, algorithm.env.action_space
    leaves, structure = jax.tree.flatten(algorithm.network.init(jax.random.key(0), *spaces))
    random = np.random.default_rng(0)
    leaves = [random.normal(size=x.shape) / (np.sqrt(x.size / x.shape[-1]) if x.ndim > 1 else 10.0) for x in leaves]
    params = jax.tree.unflatten(structure, [jnp.asarray(x, jnp.float32) for x in leaves])
    shape = spaces[0].shape
    moments = Moments(0.5 * jnp.ones(shape), 2.0 * jnp.ones(shape), jnp.float32(9.0))
    is_off_policy = hasattr(algorithm, "num_critics")
    state = SimpleNamespace(
        params={"policy": params} if is_off_policy else params,
        obs_moments=moments if algorithm.normalize_obs else None,
        iteration=jnp.int32(1),
    )
    return algorithm, state


def assert_same_actions(algorithm, state, tmp_path):
    result = pgjax.Result(algorithm, state, {}, 0, 0, 0.0, 0.0)
    result.export(tmp_path / "policy.npz")
    result.export(tmp_path / "policy.onnx")
    policy = numpy_policy.Policy(tmp_path / "policy.npz")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    shape = algorithm.env.observation_space.shape
    remembers = isinstance(algorithm.network, pgjax.GRU)
    memory, numpy_memory, onnx_memory = None, None, np.zeros((64, policy.about["memory_size"]), np.float32)
    for t in range(3 if remembers else 1):
        obs = np.random.default_rng(t).normal(scale=2.0, size=(64, *shape)).astype(np.float32)
        expected = result.predict(obs, memory=memory)
        found = policy(obs, numpy_memory)
        inputs = {"obs": obs} | ({"memory": onnx_memory} if remembers else {})
        onnx_action, *rest = session.run(None, inputs)
        if remembers:
            (expected, memory), (found, numpy_memory), (onnx_memory,) = expected, found, rest
        if isinstance(algorithm.env.action_space, Discrete):
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(onnx_action, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(onnx_action, expected, rtol=1e-4, atol=1e-5)
        assert len(np.unique(np.asarray(expected), axis=0)) > 1, "another action for another observation"
    if not remembers:
        np.testing.assert_allclose(policy(obs[2]), found[2], rtol=1e-5)


@pytest.fixture(scope="module", autouse=True)
def namespaces_are_states():
    jax.tree_util.register_pytree_node(
        SimpleNamespace, lambda state: ((vars(state),), None), lambda _, x: SimpleNamespace(**x[0])
    )


@pytest.mark.parametrize("case", CASES)
def test_numpy_and_onnx_give_the_same_actions(case, tmp_path):
    assert_same_actions(*with_state(*CASES[case]), tmp_path)


@pytest.mark.slow
def test_every_preset_in_an_environment_can_be_exported(tmp_path):
    for name, subjects in presets.table().items():
        for env_id in subjects:
            if env_id in CATALOG:
                assert_same_actions(*with_state(name, env_id, {}), tmp_path)


def test_a_policy_runs_where_there_is_nothing_but_numpy(tmp_path):
    algorithm, state = with_state(*CASES["normalised"])
    result = pgjax.Result(algorithm, state, {}, 0, 0, 0.0, 0.0)
    result.export(tmp_path / "made" / "policy.npz")
    (tmp_path / "made" / "policy.npz").rename(tmp_path / "policy.npz")
    (tmp_path / "numpy_policy.py").write_text(Path(numpy_policy.__file__).read_text())
    code = """
import sys
sys.modules.update({name: None for name in ("jax", "flax", "pgjax")})
import numpy_policy
policy = numpy_policy.Policy("policy.npz")
for wrong in ([0.0] * 4, [[0.0]], [[[0.0, 0.0]]]):
    try:
        policy(wrong)
    except ValueError as error:
        assert "expected (2,) or ('N', 2)" in str(error), error
    else:
        raise AssertionError(wrong)
print(policy([-0.4, 0.01]).item())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(result.predict(np.array([-0.4, 0.01])).item(), rel=1e-4)


def test_what_cannot_be_exported_is_refused(tiny, tmp_path, init):
    state = init(tiny, jax.random.key(0))
    result = pgjax.Result(tiny, state, {}, 0, 0, 0.0, 0.0)
    with pytest.raises(pgjax.InputError, match=r"path = .*policy.pkl' is not accepted: expected an ending of .npz or"):
        result.export(tmp_path / "policy.pkl")
    transformer = pgjax.PPO(
        tiny.env, pgjax.Transformer(width=8, layers=1, num_heads=2, num_groups=2, mlp_width=8, context=8)
    )
    with pytest.raises(pgjax.InputError, match="a Transformer cannot be exported: expected an MLP, a CNN or a GRU"):
        result._replace(algorithm=transformer).export(tmp_path / "policy.npz")
    several = result._replace(state=jax.tree.map(lambda x: jnp.stack([x, x]), state))
    with pytest.raises(pgjax.InputError, match=r"there are 2 members: expected one, by member\(i\)"):
        several.export(tmp_path / "policy.npz")
