"""Every network keeps the interface's law: unroll is a scan of step, resets included."""

import dataclasses
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import pgjax
from pgjax.environments.base import Box, Discrete
from pgjax.networks.distributions import Categorical, DiagGaussian, TanhGaussian
from pgjax.networks.network import has_memory
from pgjax.networks.torsos import Conv, orthogonal


class LinenTorso(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        return linen.relu(linen.Dense(self.width)(x))


class NnxTorso(nnx.Module):
    def __init__(self, inputs, width, rngs):
        self.linear = nnx.Linear(inputs, width, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.linear(x))


TINY = pgjax.Transformer(width=8, layers=2, num_heads=4, num_groups=2, mlp_width=6, context=4)
OTHER_WAY = {
    "positions": "learned",
    "norm": "layer",
    "gated": False,
    "activation": "gelu",
    "biases": "all",
    "query_key_norm": True,
    "shared_torso": True,
}
VECTOR, GRID = Box((3,)), Box((6, 5, 2))
NETWORKS = {
    "mlp": (pgjax.MLP(hidden=(8, 8)), VECTOR),
    "mlp-shared": (pgjax.MLP(hidden=(8,), shared_torso=True), VECTOR),
    "mlp-on-grid": (pgjax.MLP(hidden=(8,)), GRID),
    "cnn": (pgjax.CNN(channels=(4, 4), hidden=(8,)), GRID),
    "cnn-shared": (pgjax.CNN(channels=(4,), stride=2, hidden=(8,), shared_torso=True), GRID),
    "gru": (pgjax.GRU(hidden=(8,), memory_size=6), VECTOR),
    "gru-shared": (pgjax.GRU(hidden=(8,), memory_size=6, shared_torso=True), VECTOR),
    "mlp-squashed": (pgjax.MLP(hidden=(8,), squash=True, state_dependent_std=True), VECTOR),
    "gru-squashed": (pgjax.GRU(hidden=(8,), memory_size=6, squash=True, orthogonal_init=False), VECTOR),
    "transformer": (TINY, VECTOR),
    "transformer-learned": (dataclasses.replace(TINY, **OTHER_WAY), VECTOR),
    "linen": (pgjax.Custom(LinenTorso(8)), VECTOR),
    "nnx": (pgjax.Custom(nnx.bridge.to_linen(NnxTorso, 3, 8)), VECTOR),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_unroll_is_a_scan_of_step(name):
    network, observations = NETWORKS[name]
    actions = Discrete(4) if observations is GRID else Box((2,), -1.0, 1.0)
    T, B = 7, 3
    keys = jax.random.split(jax.random.key(0), 3)
    obs = jax.random.normal(keys[0], (T, B, *observations.shape))
    reset = jax.random.bernoulli(keys[1], 0.3, (T, B))

    @jax.jit
    def both(key):
        params = network.init(key, observations, actions)
        params = jax.tree.map(lambda x: x + 0.1, params)  # biases and log_std start at zero
        memory = jax.tree.map(lambda x: x + jnp.asarray(0.5, x.dtype), network.initial_memory(B))
        stepped = jax.lax.scan(lambda m, x: network.step(params, m, *x), memory, (obs, reset))
        return stepped, network.unroll(params, memory, obs, reset)

    (memory, output), (memory_unrolled, output_unrolled) = both(keys[2])
    assert output.value.shape == (T, B)
    expected = Categorical if isinstance(actions, Discrete) else TanhGaussian if network.squash else DiagGaussian
    assert isinstance(output.distribution, expected)
    assert jax.tree.leaves(output.distribution)[0].shape == (T, B, 4 if expected is Categorical else 2)
    chex.assert_trees_all_close(output, output_unrolled, rtol=2e-5, atol=2e-6)
    chex.assert_trees_all_close(memory, memory_unrolled, rtol=2e-5, atol=2e-6)


def test_memory_is_forgotten_at_a_reset_and_only_there():
    network = pgjax.GRU(hidden=(8,), memory_size=6)
    params = network.init(jax.random.key(0), VECTOR, Discrete(2))
    obs = jnp.ones((2, 3))
    full = jax.tree.map(lambda x: x + 1.0, network.initial_memory(2))
    after, _ = network.step(params, full, obs, jnp.array([True, False]))
    from_nothing, _ = network.step(params, network.initial_memory(2), obs, jnp.array([False, False]))
    for name in after:
        np.testing.assert_allclose(after[name][0], from_nothing[name][0], rtol=1e-6)
        assert not np.allclose(after[name][1], from_nothing[name][1])


@pytest.mark.parametrize("changes", [{}, OTHER_WAY], ids=["rotary", "learned"])
def test_a_transformer_sees_its_context_of_its_episode_and_no_more(changes):
    """A change of one observation reaches the steps that may attend to it, and no other."""
    network = dataclasses.replace(TINY, layers=1, **changes)
    params = network.init(jax.random.key(0), VECTOR, Discrete(2))
    T, changed, new_episode = 12, 3, 5
    obs = jax.random.normal(jax.random.key(1), (T, 1, 3))
    unroll = jax.jit(lambda obs, reset: network.unroll(params, network.initial_memory(1), obs, reset)[1].value[:, 0])
    for reset_at, reached in ((new_episode, range(changed, new_episode)), (None, range(changed, changed + 4))):
        reset = jnp.zeros((T, 1), bool) if reset_at is None else jnp.zeros((T, 1), bool).at[reset_at].set(True)
        before, after = (np.asarray(unroll(x, reset)) for x in (obs, obs.at[changed].add(1.0)))
        moved = ~np.isclose(before, after, rtol=1e-5, atol=1e-7)
        assert np.flatnonzero(moved).tolist() == list(reached)


@pytest.mark.slow
def test_rotary_positions_are_relative():
    """An episode that starts late in an unroll is the episode that starts at once."""
    params = TINY.init(jax.random.key(0), VECTOR, Discrete(2))
    obs = jax.random.normal(jax.random.key(1), (9, 1, 3))
    late = TINY.unroll(params, TINY.initial_memory(1), obs, jnp.zeros((9, 1), bool).at[6].set(True))[1]
    at_once = TINY.unroll(params, TINY.initial_memory(1), obs[6:], jnp.zeros((3, 1), bool).at[0].set(True))[1]
    np.testing.assert_allclose(late.value[6:], at_once.value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, r"Transformer.num_heads = 3 is not accepted: expected a divisor of width = 64"),
        ({"num_groups": 3}, r"Transformer.num_groups = 3 is not accepted: expected a divisor of num_heads = 4"),
        ({"width": 12, "num_heads": 4}, r"rotary positions need heads of even width, not 3"),
        ({"context": 0}, r"Transformer.context = 0"),
        ({"rotary_scaling": (8, 1, 4)}, r"Transformer.rotary_scaling = \(8, 1, 4\) is not accepted"),
        ({"rotary_scaling": (8, 4, 4, 32)}, r"high turns above them"),
        ({"norm": "batch"}, r"Transformer.norm = 'batch' is not accepted: expected one of 'rms', 'layer'"),
    ],
)
def test_transformers_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(pgjax.InputError, match=message):
        pgjax.Transformer(**fields)


def test_only_recurrent_networks_have_memory():
    assert has_memory(TINY)
    assert has_memory(pgjax.GRU())
    assert not has_memory(pgjax.MLP())
    assert not has_memory(pgjax.CNN())


def test_shared_torso_is_one_torso():
    separate = pgjax.MLP(hidden=(8,)).init(jax.random.key(0), VECTOR, Discrete(2))
    shared = pgjax.MLP(hidden=(8,), shared_torso=True).init(jax.random.key(0), VECTOR, Discrete(2))
    assert separate.keys() == {"actor", "critic", "policy", "value"}
    assert shared.keys() == {"shared", "policy", "value"}
    weights = [separate[name]["params"]["Dense_0"]["kernel"] for name in ("actor", "critic")]
    assert not np.allclose(*weights), "separate torsos start from different keys"


def test_a_standard_deviation_comes_from_a_parameter_or_from_the_state_within_bounds():
    obs = jnp.array([[0.0, 0.0, 0.0], [3.0, -2.0, 1.0]])
    for depends in (False, True):
        network = pgjax.MLP(hidden=(8,), state_dependent_std=depends)
        params = network.init(jax.random.key(0), VECTOR, Box((2,)))
        params = jax.tree.map(lambda x: x + 0.1, params)
        log_std = network.step(params, (), obs, jnp.zeros(2, bool))[1].distribution.log_std
        assert np.allclose(log_std[0], log_std[1]) != depends
        extreme = jnp.array([100.0, -100.0])
        log_std = params["policy"]["log_std"]
        params["policy"]["log_std"] = log_std | {"bias": extreme} if depends else extreme
        bounded = network.step(params, (), obs, jnp.zeros(2, bool))[1].distribution.log_std
        np.testing.assert_array_equal(bounded, [[2.0, -20.0]] * 2)


def test_orthogonal_initialisation_is_a_switch():
    """Without it all kernels are Lecun's: variance 1 / fan-in, the policy's head included."""
    params = pgjax.MLP(hidden=(200, 200), orthogonal_init=False).init(jax.random.key(0), VECTOR, Discrete(50))
    for kernel in (params["actor"]["params"]["Dense_1"]["kernel"], params["policy"]["kernel"]):
        assert float(jnp.var(kernel)) == pytest.approx(1 / 200, rel=0.05)
        assert not np.allclose(kernel.T @ kernel, kernel[:, 0] @ kernel[:, 0] * np.eye(kernel.shape[1]), atol=0.05)


def test_initial_gains():
    """sqrt(2) for hidden layers, 0.01 for the policy, 1 for the value; log_std starts at 0 and depends on no state."""
    params = pgjax.MLP(hidden=(8, 8)).init(jax.random.key(0), VECTOR, Box((2,)))
    kernel = params["actor"]["params"]["Dense_1"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(8), atol=1e-5)
    np.testing.assert_allclose(params["policy"]["kernel"].T @ params["policy"]["kernel"], 1e-4 * np.eye(2), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(params["value"]["kernel"]), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(params["policy"]["log_std"], np.zeros(2))


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (3, 3, 4, 16)])
def test_orthogonal_initialisation(shape):
    matrix = np.asarray(orthogonal(1.0)(jax.random.key(1), shape)).reshape(-1, shape[-1])
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(gram, np.eye(min(matrix.shape)), atol=1e-5)


def test_vmapped_init_equals_solo_init():
    network, keys = pgjax.MLP(hidden=(8,)), jax.random.split(jax.random.key(0), 3)
    many = jax.vmap(lambda key: network.init(key, VECTOR, Discrete(2)))(keys)
    solo = network.init(keys[1], VECTOR, Discrete(2))
    jax.tree.map(lambda m, s: np.testing.assert_allclose(m[1], s, atol=1e-6), many, solo)


def test_vmapped_init_does_not_hang():
    """Batched QRs of independent layers in one program can deadlock on CPU; ours are taken one at a time."""
    code = """
import jax, pgjax
from pgjax.environments.base import Box, Discrete
init = jax.jit(jax.vmap(lambda key: pgjax.MLP().init(key, Box((4,)), Discrete(2))))
for seed in range(30):
    jax.block_until_ready(init(jax.random.split(jax.random.key(seed), 16)))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_bad_networks_are_refused():
    with pytest.raises(pgjax.InputError, match=r"MLP.activation = 'sigmoidal' is not accepted: expected one of 'tanh'"):
        pgjax.MLP(activation="sigmoidal")
    with pytest.raises(pgjax.InputError, match=r"MLP.hidden = \(64, 0\) is not accepted"):
        pgjax.MLP(hidden=(64, 0))
    with pytest.raises(pgjax.InputError, match="CNN needs observations of shape"):
        pgjax.CNN().init(jax.random.key(0), VECTOR, Discrete(2))
    with pytest.raises(pgjax.InputError, match="do not fit"):
        pgjax.CNN(kernel_size=7).init(jax.random.key(0), GRID, Discrete(2))

    class NoFeatures(linen.Module):
        @linen.compact
        def __call__(self, x):
            return x.sum()

    with pytest.raises(pgjax.InputError, match=r"torso 'actor' maps \(1, 3\) to \(\): expected \(1, features\)"):
        pgjax.Custom(NoFeatures()).init(jax.random.key(0), VECTOR, Discrete(2))


@pytest.mark.parametrize(("kernel_size", "stride", "height"), [(3, 1, 10), (3, 2, 10), (4, 3, 11), (2, 2, 7)])
def test_convolution_equals_that_of_flax(kernel_size, stride, height):
    ours = Conv(5, kernel_size, stride, orthogonal_init=True)
    x = jax.random.normal(jax.random.key(0), (2, height, height + 1, 3))
    params = ours.init(jax.random.key(1), x)
    reference = linen.Conv(5, (kernel_size,) * 2, (stride,) * 2, padding="VALID")
    np.testing.assert_allclose(ours.apply(params, x), reference.apply(params, x), rtol=1e-4, atol=1e-5)


# Networks of a user's own


class Own:
    """An MLP of which one method is somebody else's."""

    def __init__(self, method, replacement):
        for name in ("init", "initial_memory", "step", "unroll"):
            setattr(self, name, replacement if name == method else getattr(pgjax.MLP(hidden=(8,)), name))

    def init(self): ...
    def initial_memory(self): ...
    def step(self): ...
    def unroll(self): ...


def fails(*_):
    raise ValueError("oops")


def said(**changed):
    def step(*arguments):
        memory, output = pgjax.MLP(hidden=(8,)).step(*arguments)
        return changed.get("memory", memory), output._replace(**{k: v for k, v in changed.items() if k != "memory"})

    return step


BROKEN = {
    "init raises": ("init", fails, r"Own: init raised ValueError: oops"),
    "memory raises": ("initial_memory", fails, r"Own: initial_memory raised ValueError: oops"),
    "memory of one": ("initial_memory", lambda batch: jnp.zeros((1, 4)), r"gives arrays of shape \(1, 4\) for a batch"),
    "memory lost": (
        "initial_memory",
        lambda batch: jnp.zeros((batch, 4)),
        r"Own: step gives another memory, \(\), than it is given, float32\[3, 4\]",
    ),
    "step raises": ("step", fails, r"Own: step raised ValueError: oops"),
    "no pair": ("step", lambda *_: None, r"Own: step gives a NoneType: expected \(memory, Output\("),
    "no output": ("step", lambda *_: ((), 1.0), r"Own: step gives \(tuple, .*\): expected \(memory, Output\("),
    "value": ("step", said(value=jnp.zeros((3, 1))), r"step gives a value of shape \(3, 1\): expected \(3,\)"),
    "distribution": ("step", said(distribution=None), r"Own: step: its distribution raised AttributeError"),
    "unroll": (
        "unroll",
        lambda params, memory, obs, reset: pgjax.MLP(hidden=(8,)).step(params, memory, obs.reshape(-1, 4), reset),
        r"Own: unroll gives a value of shape \(6,\): expected \(2, 3\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_network_of_ones_own_is_told_what_is_wrong(tiny_ppo, cartpole, case):
    method, replacement, message = BROKEN[case]
    with pytest.raises(pgjax.InputError, match=message):
        pgjax.run(tiny_ppo(cartpole, Own(method, replacement)), progress=False)


def test_a_network_that_is_no_object_or_no_module_is_refused(tiny_ppo, cartpole):
    with pytest.raises(pgjax.InputError, match=r"PPO.network = .*MLP.* is not accepted: expected a network such as"):
        tiny_ppo(cartpole, pgjax.MLP)
    with pytest.raises(
        pgjax.InputError, match=r"Custom: init raised AttributeError: 'builtin_function_or_method' object has no"
    ):
        pgjax.run(tiny_ppo(cartpole, pgjax.Custom(abs)), progress=False)
