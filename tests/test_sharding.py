"""Devices: a divided run is the undivided one, members are spread, and the cores of a CPU become devices."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import pgjax
from pgjax import alignment
from pgjax.algorithms.on_policy import Samples
from pgjax.core.devices import env_mesh
from pgjax.core.metrics import numbers
from pgjax.learning import losses
from pgjax.learning.optimizers import mean_gradient
from pgjax.running.compile import ROWS, compile_programs, env_layout, member_layout
from pgjax.running.population import copies


def assert_close(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-3), tree, other)


def trained(subject, key, layout):
    """How many devices it used, and state, metrics and scores after three iterations by the programs of a run."""
    programs = compile_programs(subject, layout, ROWS, 4)
    subject, key = layout.place_algorithm(subject), layout.place(key)
    state, metrics = programs.advance(subject, programs.init(subject, key), np.int32(3))
    scores = programs.evaluate(subject, state)
    found = (state._replace(key=jax.random.key_data(state.key)), numbers(metrics), scores)
    return layout.mesh.size, jax.device_get(found)


DIVIDED = {
    "ppo-mlp": (pgjax.PPO, {"normalize_obs": True, "normalize_reward": True}, 4),
    "ppo-gru": (pgjax.PPO, {"network": pgjax.GRU(hidden=(8,), memory_size=4), "normalize_obs": True}, 4),
    "vpg": (pgjax.VPG, {}, 4),
    "a2c": (pgjax.A2C, {}, 8),
}


@pytest.mark.parametrize(
    "name", ["ppo-mlp", *(pytest.param(x, marks=pytest.mark.slow) for x in ("a2c", "ppo-gru", "vpg"))]
)
def test_a_run_divided_over_devices_is_the_undivided_one(name, tiny_algorithm, monkeypatch):
    """Episodes end, are cut and start anew on each device by itself; normalisers and clipping see all environments."""
    monkeypatch.setattr("pgjax.algorithms.on_policy.SHARE_STEPS", 16)
    cls, fields, devices = DIVIDED[name]
    env = pgjax.make("CartPole-v1", max_steps_in_episode=12)
    sizes = {"num_envs": 16, "total_steps": 3 * 16 * 8, "max_grad_norm": 0.1}
    algorithm = tiny_algorithm(cls, env, **(fields | sizes))
    assert [n for n in range(1, 9) if algorithm.divides_into(n)] == [n for n in (1, 2, 4, 8) if n <= devices]
    used, shared = trained(algorithm, jax.random.key(0), env_layout(algorithm, min(devices + 1, 8)))
    assert used == devices
    used, alone = trained(algorithm, jax.random.key(0), env_layout(algorithm, 1))
    assert used == 1
    assert_close(shared, alone)
    assert np.sum(alone[1]["episodes"]) > 16


def test_devices_sum_once_for_a_minibatch(tiny_algorithm, cartpole, monkeypatch):
    monkeypatch.setattr("pgjax.algorithms.on_policy.SHARE_STEPS", 16)
    ppo = tiny_algorithm(pgjax.PPO, cartpole, num_envs=16, total_steps=16 * 8)
    program = compile_programs(ppo, env_layout(ppo, 2), ROWS, None).advance.as_text()
    inner = [line for line in program.splitlines() if " all-reduce(" in line and line.count("while/body") >= 3]
    assert ["psum" in line for line in inner] == [True]


SHARDED = [("sft", 2), ("rlhf", 2), *((name, shards) for name in ("dpo", "grpo", "online-dpo") for shards in (1, 2))]


@pytest.mark.parametrize(
    ("name", "shards"),
    [("sft", 1), ("lm", 2), *(pytest.param(*x, marks=pytest.mark.slow) for x in [*SHARDED, ("rlhf", 1)])],
)
def test_a_language_model_divided_over_devices_is_the_undivided_one(
    name, shards, tiny_token_algorithm, monkeypatch, capfd
):
    """Sampling, reading and gradients are shared, a reward of texts is asked once; and XLA has nothing to say of it."""
    monkeypatch.setattr("pgjax.core.devices.SHARDED_SIZE", 1)
    for module in ("supervised", "sampling"):
        monkeypatch.setattr(f"pgjax.alignment.{module}.SHARE_TOKENS", 1)
    fields = {"batch_size": 16}
    if name in ("grpo", "rlhf"):
        words = alignment.TOKENIZERS.make("grammar")
        fields["reward"] = alignment.HostReward(lambda prompts, answers: [len(x) % 7.0 for x in answers], words)
    algorithm = tiny_token_algorithm(name, **fields)
    used, shared = trained(algorithm, jax.random.key(0), env_layout(algorithm, 2 * shards, shards))
    assert used == 2 * shards
    used, alone = trained(algorithm, jax.random.key(0), env_layout(algorithm, 1))
    assert used == 1
    assert_close(shared, alone)
    assert "SPMD" not in capfd.readouterr().err


def test_no_device_has_more_than_its_share_of_a_large_model(tiny_token_algorithm, monkeypatch):
    """Neither parameters nor moments of the optimiser, before and after an iteration; on four devices two copies."""
    monkeypatch.setattr("pgjax.alignment.supervised.SHARE_TOKENS", 1)
    lm = tiny_token_algorithm("lm")
    lm = dataclasses.replace(lm, network=dataclasses.replace(lm.network, width=32, layers=3, mlp_width=256))
    layouts = {shards: env_layout(lm, 4, shards) for shards in (1, 2, 4)}
    bytes_of, needed = {}, {}
    for shards, layout in layouts.items():
        programs = compile_programs(lm, layout, ROWS, None)
        algorithm = layout.place_algorithm(lm)
        state = programs.init(algorithm, layout.place(jax.random.key(0)))
        for _ in range(2):
            on_first = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((state.params, state.opt_state))]
            assert bytes_of.setdefault(shards, sum(on_first)) == sum(on_first)
            state, _ = programs.advance(algorithm, state, layout.place_count(1))
        needed[shards] = programs.bytes_needed
    assert bytes_of[2] < 0.6 * bytes_of[1]
    assert bytes_of[4] < 0.36 * bytes_of[1]
    assert needed[4] < needed[2] < needed[1]
    with pytest.raises(
        pgjax.InputError, match="shards = 3 is not accepted: expected a divisor of the 4 devices that LM"
    ):
        env_layout(lm, 4, 3)


def test_a_run_in_shards_is_kept_and_goes_on(tiny_token_algorithm, tmp_path, monkeypatch):
    for name in ("core.devices.SHARDED_SIZE", "alignment.supervised.SHARE_TOKENS"):
        monkeypatch.setattr(f"pgjax.{name}", 1)
    lm = tiny_token_algorithm("lm", lr_schedule="constant")
    half = dataclasses.replace(lm, total_steps=lm.total_steps // 2)
    how = {"devices": 4, "shards": 2, "episodes": 4, "progress": False}
    whole = pgjax.run(lm, directory=tmp_path / "whole", **how)
    pgjax.run(half, directory=tmp_path / "half", **how)
    again = pgjax.resume(tmp_path / "half", lm.total_steps, progress=False)
    assert again.steps_now == lm.total_steps // 2
    for a, b in zip(jax.tree.leaves(whole.state.params), jax.tree.leaves(again.state.params), strict=True):
        assert not a.is_fully_replicated or a.ndim < 2
        np.testing.assert_array_equal(a, b)
    assert_close(pgjax.load(tmp_path / "whole").state.params, whole.state.params)
    alone = dataclasses.replace(lm, total_steps=2 * lm.total_steps)
    with pytest.warns(UserWarning, match="was trained on shards = 2 and goes on on 1: equal to rounding"):
        pgjax.resume(tmp_path / "half", alone.total_steps, shards=1, progress=False)
    with pytest.raises(pgjax.InputError, match="shards = 2 is not accepted with seeds"):
        pgjax.run(lm, seeds=2, shards=2)


def test_a_weighted_mean_over_devices_is_the_weighted_mean():
    """Shares weigh unequally, and one device has none that counts: a mean of means would be another."""
    x = jax.random.normal(jax.random.key(0), (3, 16))
    weight = (jax.random.uniform(jax.random.key(1), (3, 16)) < 0.4).astype(jnp.float32).at[:, :4].set(0.0)
    samples = Samples(*[x] * 7, weight=weight)

    def loss(params, memory, samples):
        return params * samples.obs**2, {"x": samples.obs}

    def gradient(samples):
        return mean_gradient(loss)(jnp.float32(2.0), (), samples)

    with jax.set_mesh(env_mesh(4)):
        spread_out = jax.device_put(samples, NamedSharding(env_mesh(4), PartitionSpec(None, "envs")))
        over_devices, metrics = jax.jit(gradient)(spread_out)
    np.testing.assert_allclose(over_devices, np.average(x**2, weights=weight), rtol=1e-5)
    np.testing.assert_allclose(metrics["x"], np.average(x, weights=weight), rtol=1e-5)
    np.testing.assert_allclose(over_devices, gradient(samples)[0], rtol=1e-5)
    of_nothing = gradient(samples._replace(weight=jnp.zeros_like(x)))
    assert jax.tree.leaves(of_nothing) == [0.0, 0.0]
    np.testing.assert_allclose(losses.masked_mean(x, weight), np.average(x, weights=weight), rtol=1e-5)


def test_a_small_run_is_not_divided(tiny):
    assert [n for n in range(1, 9) if tiny.divides_into(n)] == []
    assert env_layout(tiny).mesh.size == 1


def test_members_of_a_run_are_spread_and_trained_a_few_at_a_time(tiny, monkeypatch):
    """Six members on three devices; the two of each device at once, or one after the other."""
    subject, keys = copies(tiny, 6), jax.random.split(jax.random.key(0), 6)
    used, apart = trained(subject, keys, member_layout(subject, 4))
    assert used == 3
    monkeypatch.setattr("pgjax.running.population.STEPS_AT_ONCE", 2 * tiny.steps_per_iteration)
    used, in_pairs = trained(subject, keys, member_layout(subject, 1))
    assert used == 1
    assert_close(apart, in_pairs)
    for i in (0, 5):
        _, alone = trained(tiny, keys[i], env_layout(tiny, 1))
        assert_close(jax.tree.map(lambda x, i=i: x[i], (in_pairs[0], in_pairs[2])), (alone[0], alone[2]))
        assert_close({name: x[:, i] for name, x in in_pairs[1].items()}, alone[1])


def test_a_number_of_devices_that_there_is_not_is_refused(tiny):
    with pytest.raises(pgjax.InputError, match="devices = 9 is not accepted: expected from 1 to the 8 there are"):
        pgjax.run(tiny, devices=9)


def in_a_new_process(code, **variables):
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | variables, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("first", ["pgjax, jax", "jax, pgjax"])
def test_every_core_of_a_cpu_becomes_a_device(first):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = f"import {first}; print(jax.local_device_count())"
    assert in_a_new_process(count).stdout == f"{cores}\n"
    assert in_a_new_process(count, PGJAX_CPU_DEVICES="3").stdout == "3\n"
    assert in_a_new_process(count, JAX_NUM_CPU_DEVICES="7").stdout == "7\n"
    assert in_a_new_process(count, PGJAX_CPU_DEVICES="3", JAX_NUM_CPU_DEVICES="7").stdout == "3\n"
    assert in_a_new_process(count, XLA_FLAGS="--xla_force_host_platform_device_count=5").stdout == "5\n"


def test_it_is_said_once_that_jax_was_running_before():
    code = "import jax; jax.devices(); import pgjax; pgjax.make('CartPole-v1'); print(jax.local_device_count())"
    done = in_a_new_process(code, PGJAX_CPU_DEVICES="3")
    assert done.stdout == "1\n"
    assert done.stderr.count("jax was running before pgjax was imported with 1 CPU device for 3 cores") == 1
    assert "UserWarning" not in in_a_new_process(code, PGJAX_CPU_DEVICES="1").stderr


def test_an_unusable_number_of_cores_is_refused():
    done = in_a_new_process("import pgjax", PGJAX_CPU_DEVICES="many")
    assert "PGJAX_CPU_DEVICES = 'many' is not accepted: expected a number of devices, 1 or more" in done.stderr
