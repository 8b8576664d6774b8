"""The laws every algorithm keeps, as one table of algorithms against properties. A new algorithm adds a row."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.core.algorithm import EVALUATION_STREAM, INIT_STREAM
from pgjax.core.hyperparameters import Scalar, field_types
from pgjax.running.compile import forget_programs

GRU = pgjax.GRU(hidden=(8,), memory_size=8)
EPISODES = {"max_steps_in_episode": 8}  # as long as a rollout of the tiny algorithms
ROWS = {
    "reinforce": {"env": ("Pendulum-v1", EPISODES), "baseline": "value", "credit": "discounted_reward_to_go"},
    "ppo": {"env": "CartPole-v1"},
    "sft": {"weight_decay": 0.1},
    "rlhf": {"kl_target": 1.0},
    "ppo-everything": {
        "env": "Pendulum-v1",
        "network": pgjax.MLP(hidden=(8,), shared_torso=True),
        "normalize_obs": True,
        "normalize_reward": True,
        "reward_clip": 0.5,
        "normalize_advantage": "batch",
        "objective": "clip_kl",
        "clip_value": True,
        "target_kl": 0.5,
        "lr_schedule": "constant",
    },
}
MORE_ROWS = {
    "sac": {"env": "Pendulum-v1", "n": 2, "normalize_obs": True, "normalize_reward": True},
    "trpo": {"env": "Pendulum-v1", "network": pgjax.MLP(hidden=(8,), squash=True)},
    "a2c": {"env": "CartPole-v1", "advantage": "n_step", "n": 3, "lr_schedule": "robbins_monro"},
    "ddpg": {"env": "Pendulum-v1", "noise_theta": 0.15},
    "td3": {"env": "Pendulum-v1", "target_every": 2, "num_updates": 2},
    "sac-fixed": {"env": "Pendulum-v1", "adapt_temperature": False, "num_steps": 2, "num_rounds": 4},
    "discrete-sac": {"env": "CartPole-v1", "lr_schedule": "linear"},
    "lm": {"weight_decay": 0.1, "lr_schedule": "linear"},
    "reward-model": {"weight_decay": 0.1, "lr_schedule": "constant"},
    "process-reward-model": {"weight_decay": 0.1},
    "rlhf-after": {"score_at": "after", "whiten_rewards": True, "clip_value": True, "kl_target": 1.0},
    "grpo": {"skip_equal": True},
    "grpo-sequence": {"kl": "k2", "ratio": "sequence", "aggregate": "sequence", "baseline": "leave_one_out"},
    "rloo": {"num_epochs": 1},
    "online-dpo": {"label_smoothing": 0.1},
    "dpo": {"label_smoothing": 0.1, "weight_decay": 0.1},
    "kto": {"desirable_weight": 2.0, "weight_decay": 0.1},
    "ppo-gru": {"env": "CartPole-v1", "network": GRU},
    "npg": {"env": "CartPole-v1"},
    "vpg": {"env": "CartPole-v1", "lr_schedule": "cosine"},
    "reinforce-gru": {"env": ("Pendulum-v1", EPISODES), "network": GRU, "credit": "total_return"},
    "reinforce-optimal": {
        "env": ("Pendulum-v1", EPISODES),
        "baseline": "optimal",
        "normalize_advantage": True,
        "network": pgjax.MLP(hidden=(8,), state_dependent_std=True),
    },
    "a2c-gru": {"env": "CartPole-v1", "network": GRU, "normalize_advantage": True},
    "npg-gru": {"env": "CartPole-v1", "network": GRU, "step_rule": "learning_rate"},
    "ppo-vtrace": {"env": "CartPole-v1", "objective": "kl_penalty", "adaptive_kl": 1e-3, "advantage": "vtrace"},
}
"""Their compilation takes minutes: `pytest -m slow`."""
EPISODE = {"episodes", *(f"{x}_{y}" for x in ("return", "length") for y in ("mean", "min", "max"))}
COMMON = EPISODE | {"entropy", "grad_norm", "learning_rate"}
VALUE = {"value_loss", "explained_variance"}
SAMPLED = {"reward", "kl_to_start", "kl_k1", "kl_k2", "kl_k3", "entropy", "eos_rate", "length"} | {
    *("policy_loss", "approx_kl", "clip_fraction", "grad_norm", "learning_rate")
}
IMPLICIT = {f"rewards/{x}" for x in ("chosen", "rejected", "margins", "accuracies")}
REPLAYED = EPISODE | {"critic_loss", "value", "policy_loss", "updates", "learning_rate"}
REPORTED = {
    "reinforce": COMMON | {"policy_loss", "counted"},
    "vpg": COMMON | VALUE | {"policy_loss"},
    "a2c": COMMON | VALUE | {"policy_loss"},
    "npg": COMMON | VALUE | {"policy_loss", "kl", "step_norm", "step_fraction"},
    "trpo": COMMON | VALUE | {"policy_loss", "kl", "step_norm", "step_fraction"},
    "ppo": COMMON | VALUE | {"policy_loss", "approx_kl", "clip_fraction", "updates"},
    "ddpg": REPLAYED,
    "td3": REPLAYED,
    "sac": REPLAYED | {"entropy", "temperature"},
    "discrete-sac": REPLAYED | {"entropy", "temperature"},
    "lm": {"loss", "accuracy", "grad_norm", "learning_rate"},
    "sft": {"loss", "accuracy", "grad_norm", "learning_rate"},
    "reward-model": {"log_loss", "accuracy", "margin", "grad_norm", "learning_rate"},
    "process-reward-model": {"log_loss", "accuracy", "grad_norm", "learning_rate"},
    "rlhf": SAMPLED | {"beta", "value_loss", "updates"},
    "grpo": SAMPLED | {"equal_groups"},
    "rloo": SAMPLED | {"equal_groups"},
    "online-dpo": SAMPLED - {"policy_loss", "approx_kl", "clip_fraction"} | IMPLICIT | {"loss", "ties"},
    "dpo": {"loss", "logps/chosen", "logps/rejected", "grad_norm", "learning_rate"} | IMPLICIT,
    "kto": {"loss", "kl", "grad_norm", "learning_rate"}
    | {f"{x}/{y}" for x in ("rewards", "logps") for y in ("chosen", "rejected")},
}


def name_of(row):
    """Of the algorithm: the longest that the row begins with."""
    return max((name for name in ALGORITHMS if row == name or row.startswith(f"{name}-")), key=len)


@pytest.fixture(scope="module", params=[*ROWS, *(pytest.param(row, marks=pytest.mark.slow) for row in MORE_ROWS)])
def row(request):
    yield request.param
    forget_programs(20_000)  # all rows in one process would come to more than it may map


@pytest.fixture(scope="module")
def algorithm(row, tiny_algorithm, tiny_token_algorithm):
    fields = dict((ROWS | MORE_ROWS)[row])
    if "env" not in fields:
        return tiny_token_algorithm(name_of(row), **fields)
    env = fields.pop("env")
    env_id, options = env if isinstance(env, tuple) else (env, {})
    return tiny_algorithm(algorithm_class(name_of(row)), pgjax.make(env_id, **options), **fields)


def assert_same_bits(a, b):
    a, b = ({jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(x)} for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(words(a[name]), words(b[name]), err_msg=name)


def words(x):
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_every_algorithm_has_a_row():
    assert set(map(name_of, ROWS | MORE_ROWS)) == set(ALGORITHMS)


def test_same_key_same_bits_and_another_key_others(algorithm, train):
    state, metrics = train(algorithm, jax.random.key(0))
    again = train(algorithm, jax.random.key(0))
    assert_same_bits((state, metrics), again)
    other, _ = train(algorithm, jax.random.key(1))
    assert not jax.tree.all(jax.tree.map(np.allclose, other.params, state.params))


def test_any_split_into_chunks_gives_the_same_bits(algorithm, train, chunk, init):
    whole, metrics = train(algorithm, jax.random.key(0))
    for sizes in ([6], [1, 3, 2]):
        state, rows = init(algorithm, jax.random.key(0)), []
        for size in sizes:
            state, some = chunk(algorithm, state, jnp.int32(size), 6)
            rows.append(jax.tree.map(lambda x, size=size: x[:size], some))
        assert_same_bits(state, whole)
        assert_same_bits(jax.tree.map(lambda *x: jnp.concatenate(x), *rows), metrics)


def test_metrics_are_scalars_of_the_iteration(row, algorithm, train):
    _, metrics = train(algorithm, jax.random.key(0))
    expected = REPORTED[name_of(row)]
    if getattr(algorithm, "baseline", None) == "value":
        expected = expected | VALUE
    if getattr(algorithm, "objective", "") in ("kl_penalty", "clip_kl"):
        expected = expected | {"kl", "kl_coef"}
    assert metrics.keys() == expected
    assert {x.shape for x in metrics.values()} == {(algorithm.num_iterations,)}


def scalar_fields(algorithm):
    return [name for name, hint in field_types(type(algorithm)).items() if hint == Scalar]


def idle(algorithm):
    """The `Scalar` fields that do nothing in this program, each with the switch that turns it on."""
    objective = getattr(algorithm, "objective", None)
    baseline, step_rule = getattr(algorithm, "baseline", None), getattr(algorithm, "step_rule", "max_kl")
    off = {
        "kl_horizon": not np.isfinite(getattr(algorithm, "kl_target", 1.0)),
        "lr_offset": algorithm.lr_schedule != "robbins_monro",
        "kl_coef": objective in ("clip", "cpi"),
        "adaptive_kl": objective in ("clip", "cpi"),
        "value_learning_rate": baseline not in (None, "value"),
        "gae_lambda": getattr(algorithm, "advantage", "gae") == "n_step",
        "backtrack": True,  # full steps are accepted here; tests/test_tabular.py has one that is not
        "clip_eps": objective in ("cpi", "kl_penalty") and not algorithm.clip_value,
        "eos_penalty": hasattr(algorithm, "label"),  # both of a pair are without EOS here, and labels alone matter
    }
    if isinstance(algorithm, pgjax.SAC) and not algorithm.adapt_temperature:
        off |= {"temperature_learning_rate": True, "target_entropy": True}
    if isinstance(algorithm, pgjax.NPG):
        off |= {"learning_rate": step_rule == "max_kl", "max_kl": step_rule == "learning_rate"}
    return {name for name, unused in off.items() if unused}


def varied(algorithm):
    """One algorithm per `Scalar` field and one with other physics, each changed in that alone."""
    changed = {
        "target_kl": 1e-7,
        "ent_coef": 0.3,
        "clip_eps": 1e-3,
        "clip_eps_high": 1e-3,
        "max_grad_norm": 1e-3,
        "adaptive_kl": 1e-7,
        "backtrack": 0.1,
        "kl_target": np.inf,
    }
    # Where all rewards are clipped all episodes return the same, and normalised advantages are rounding.
    changed["reward_clip"] = 3.0 if isinstance(algorithm, pgjax.REINFORCE) else 0.2
    rows = [
        dataclasses.replace(algorithm, **{name: changed.get(name, 0.7 * getattr(algorithm, name))})
        for name in scalar_fields(algorithm)
    ]
    if not hasattr(algorithm, "env"):
        return rows
    params = algorithm.env.params
    physics = {name: np.float32(5.0) for name in ("g", "gravity") if hasattr(params, name)}
    env = dataclasses.replace(algorithm.env, params=dataclasses.replace(params, **physics))
    return [*rows, dataclasses.replace(algorithm, env=env)]


def test_every_scalar_field_vmaps_matters_and_matches_the_solo_run(algorithm, init, step):
    """One vmapped program over all rows: each equals the solo step (to rounding) and differs from the base, unless a
    switch of this program leaves the field idle."""
    rows = [algorithm, *varied(algorithm)]
    population = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    start = init(algorithm, jax.random.key(0))

    def two_steps(algorithm):
        return algorithm.step(algorithm.step(start)[0])[0].params

    together = jax.jit(jax.vmap(two_steps))(population)
    base = jax.tree.map(lambda x: x[0], together)
    names = ["base", *scalar_fields(algorithm), "physics"]
    for i, (name, row) in enumerate(zip(names, rows, strict=False)):
        state, _ = step(row, start)
        solo = step(row, state)[0].params
        member = jax.tree.map(lambda x, i=i: x[i], together)
        chex.assert_trees_all_close(member, solo, atol=2e-5)
        if i:
            same = jax.tree.map(lambda a, b: bool(np.all(a == b)), member, base)
            assert jax.tree.all(same) == (name in idle(algorithm)), f"{name}: use it, or list it in idle() if it is off"


def test_new_values_of_scalar_fields_do_not_recompile(algorithm):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def probe(algorithm):
        return jax.tree.map(lambda x: x * 1, algorithm)

    for row in [algorithm, *varied(algorithm)]:
        probe(row)
    if not hasattr(algorithm, "env"):
        return
    probe(dataclasses.replace(algorithm, gamma=1, lr_offset=np.float64(0.1), max_grad_norm=jnp.float32(0.3)))
    limit = int(algorithm.env.params.max_steps_in_episode)
    probe(dataclasses.replace(algorithm, env=pgjax.make(algorithm.env.id, max_steps_in_episode=limit)))


@pytest.mark.parametrize("name", ["ppo-everything", pytest.param("ppo-gru", marks=pytest.mark.slow)])
def test_policy_ratio_starts_at_one_also_while_normalisers_move(name, tiny_ppo, init, step):
    """With learning rate 0 every ratio of the iteration is one: what acted is what is improved."""
    fields = dict((ROWS | MORE_ROWS)[name])
    algorithm = tiny_ppo(pgjax.make(fields.pop("env")), **fields)
    state = init(algorithm, jax.random.key(0))
    for _ in range(3):
        state, _ = step(algorithm, state)
    frozen = dataclasses.replace(algorithm, learning_rate=0.0)
    after, metrics = step(frozen, state)
    assert float(metrics["approx_kl"]) < 1e-9
    assert float(metrics["clip_fraction"]) == 0.0
    if algorithm.normalize_obs:
        assert not np.allclose(after.obs_moments.mean, state.obs_moments.mean)


def test_state_is_strongly_typed_and_keeps_its_types(algorithm, init, step):
    """A state restored from disk has no weak types and must not select another program."""
    state = init(algorithm, jax.random.key(0))
    after, _ = step(algorithm, state)
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (before.shape, before.dtype) == (now.shape, now.dtype)
        assert not getattr(before, "weak_type", False)
        assert not getattr(now, "weak_type", False)
    assert after.iteration.dtype == jnp.int32
    assert int(after.iteration) == 1


def test_evaluation_shares_no_keys_with_training_and_changes_nothing(algorithm, init, step):
    key = jax.random.key(0)
    used = [jax.random.fold_in(key, i) for i in range(1000)] + [jax.random.fold_in(key, INIT_STREAM), key]
    evaluation = jax.random.key_data(jax.random.fold_in(key, EVALUATION_STREAM))
    assert not any(np.array_equal(jax.random.key_data(k), evaluation) for k in used)

    state = init(algorithm, key)
    undisturbed = step(algorithm, state)
    if hasattr(algorithm, "env"):
        assert int(pgjax.evaluate(algorithm, state, key, num_episodes=3).num_episodes) == 3
    else:
        assert algorithm.score[0] in jax.jit(type(algorithm).evaluate, static_argnums=3)(algorithm, state, key, 3)
    assert_same_bits(step(algorithm, state), undisturbed)
