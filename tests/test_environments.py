"""Gymnax behind our interface, and the probes."""

import dataclasses
import functools
import json
import subprocess
import sys

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXACTLY

import pgjax
from pgjax.environments import probes
from pgjax.environments.base import Box, Discrete, TimeStep
from pgjax.environments.catalog import CATALOG
from pgjax.environments.own import OWN
from pgjax.reporting.again import again

TRAINABLE = [env_id for env_id in gymnax.registered_envs if env_id != "MNISTBandit-bsuite"]


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_catalog_lists_what_gymnax_has():
    assert list(CATALOG) == list(gymnax.registered_envs)
    for env_id in TRAINABLE:
        env = pgjax.make(env_id)
        shape, actions = CATALOG[env_id]
        assert env.observation_space.shape == shape
        size = env.action_space.n if isinstance(env.action_space, Discrete) else env.action_space.shape[0]
        assert actions.split()[0] == str(size)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FourRooms-misc", "FrozenLake-misc", "BernoulliBandit-misc"])
def test_types_at_the_boundary(env_id):
    """Observations float32 of the declared shape, reward a float32 scalar, strong types that keep across steps."""
    env = pgjax.make(env_id)
    state, obs = jax.eval_shape(env.reset, jax.random.key(0))
    after = jax.eval_shape(env.step, jax.random.key(0), state, jax.ShapeDtypeStruct((), jnp.int32))
    for x in (obs, after.obs):
        assert (x.shape, x.dtype) == (env.observation_space.shape, jnp.float32)
    assert (after.reward.shape, after.reward.dtype) == ((), jnp.float32)
    assert (after.terminated.dtype, after.truncated.dtype) == (bool, bool)
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b and not a.weak_type, state, after.state))


def test_discrete_observations_become_one_hot():
    env = pgjax.make("FrozenLake-misc")
    _, obs = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(obs, np.eye(16)[0])


def test_termination_and_truncation_stay_apart():
    env = pgjax.make("CartPole-v1", max_steps_in_episode=3)
    state, _ = env.reset(jax.random.key(0))
    for expected in (False, False, True):
        after = env.step(jax.random.key(1), state, jnp.int32(0))
        assert (bool(after.terminated), bool(after.truncated)) == (False, expected)
        state = after.state
    assert int(state.time) == 3, "a step resets nothing"

    fallen = pgjax.make("CartPole-v1", theta_threshold_radians=0.0)
    after = fallen.step(jax.random.key(1), fallen.reset(jax.random.key(0))[0], jnp.int32(0))
    assert (bool(after.terminated), bool(after.truncated)) == (True, False)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0", "DeepSea-bsuite"])
def test_a_step_is_that_of_gymnax_without_its_reset(env_id):
    """Step by step to the end of an episode; DeepSea has a `step` of its own."""
    env = pgjax.make(env_id)
    jit = functools.partial(jax.jit, compiler_options=EXACTLY)
    ours, theirs = jit(env.step), jit(lambda *args: env.env.step(*args, env.params))
    state, _ = env.reset(jax.random.key(0))
    for t in range(300):
        key, action = jax.random.key(t), jnp.int32(t % 2)
        after = ours(key, state, action)
        obs, _, reward, terminated, truncated, info = theirs(key, state, action)
        np.testing.assert_allclose(after.obs, info["final_observation"], rtol=1e-6)
        assert (after.reward, after.terminated, after.truncated) == (reward, terminated, truncated)
        if terminated | truncated:
            assert not np.array_equal(obs, after.obs)
            break
        state = after.state
    assert terminated | truncated


class Recorder:
    """A gymnax-style environment that shows the action it was given."""

    def __init__(self, low, high, shape):
        self.space = gymnax.environments.spaces.Box(low, high, shape)

    default_params = gymnax.EnvParams(max_steps_in_episode=2)

    def action_space(self, params):
        return self.space

    def observation_space(self, params):
        return gymnax.environments.spaces.Box(-9, 9, (int(np.prod(self.space.shape, dtype=int)),))

    def reset(self, key, params):
        return jnp.zeros(self.observation_space(params).shape), jnp.int32(0)

    def step(self, key, state, action, params):
        obs = action.reshape(-1)
        flag = jnp.bool_(False)
        return obs, state, jnp.ones((1,)), flag, flag, {"final_observation": obs}


def test_continuous_actions_arrive_inside_their_bounds():
    """Finite bounds: [-1, 1] is mapped onto them. Whatever the policy says is clipped."""
    env = pgjax.make(Recorder(np.array([-1.0, 0.0]), np.array([3.0, 0.1]), (2,)))
    assert env.action_space == Box((2,), -1.0, 1.0)
    sent = [[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [-50.0, 50.0]]
    got = [env.step(jax.random.key(0), jnp.int32(0), jnp.array(a)).obs for a in sent]
    np.testing.assert_allclose(got, [[-1, 0], [3, 0.1], [1, 0.05], [-1, 0.1]], rtol=1e-6)
    assert np.max(np.array(got)[:, 1]) <= np.float32(0.1)

    unbounded = pgjax.make(Recorder(-np.inf, np.inf, ()))
    assert unbounded.action_space == Box((1,))
    assert float(unbounded.step(jax.random.key(0), jnp.int32(0), jnp.array([7.0])).obs[0]) == 7.0


def test_rewards_of_any_shape_arrive_as_scalars():
    env = pgjax.make(Recorder(-1.0, 1.0, (1,)))
    assert env.step(jax.random.key(0), jnp.int32(0), jnp.zeros(1)).reward.shape == ()


def test_parameters_are_traced_leaves():
    """New physics, same program."""
    traces = []

    @jax.jit
    def first_step(env, key):
        traces.append(0)
        return env.step(key, env.reset(key)[0], jnp.int32(1)).obs

    given = (10, 20.0, np.float32(30))
    results = [first_step(pgjax.make("CartPole-v1", force_mag=f), jax.random.key(0)) for f in given]
    assert len(traces) == 1
    assert len({float(r[1]) for r in results}) == 3
    env = pgjax.make("CartPole-v1")

    def with_force(force):
        swept = dataclasses.replace(env, params=dataclasses.replace(env.params, force_mag=force))
        return first_step(swept, jax.random.key(0))

    forces = jnp.array([10.0, 20.0, 30.0])
    np.testing.assert_allclose(jax.vmap(with_force)(forces), jnp.stack(results), rtol=1e-6)


@pytest.mark.parametrize(
    ("env_id", "parameter"), [("Acrobot-v1", "available_torque"), ("DiscountingChain-bsuite", "reward_timestep")]
)
def test_parameters_that_are_arrays_may_be_closed_over(env_id, parameter):
    """A constant of the program, indexed with a traced action or state; by whatever way it was set."""
    env = pgjax.make(env_id)
    doubled = 2 * np.asarray(getattr(env.params, parameter))
    replaced = dataclasses.replace(env, params=dataclasses.replace(env.params, **{parameter: doubled}))
    keys, action = jax.random.split(jax.random.key(0), 3), jnp.int32(1)

    def two_steps(env, key, action):
        state, _ = env.reset(key)
        return env.step(key, env.step(key, state, action).state, action)

    for closed_over in (env, pgjax.make(env_id, **{parameter: doubled}), replaced):
        passed = jax.jit(two_steps)(closed_over, keys[0], action)
        eager = two_steps(closed_over, keys[0], action)
        jitted = jax.jit(lambda *x, env=closed_over: two_steps(env, *x))(keys[0], action)
        vmapped = jax.vmap(lambda *x, env=closed_over: two_steps(env, *x), (0, None))(keys, action)
        first = jax.tree.map(lambda x: x[0], vmapped)
        for found in (eager, jitted, first):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, passed)


def test_physics_that_follow_from_others_do_so_also_when_traced():
    """A longer pole in gymnax's CartPole, whose half-length times mass is a parameter of its own."""
    env = pgjax.make("CartPole-v1")
    assert (float(env.params.total_mass), float(env.params.polemass_length)) == (np.float32(1.1), np.float32(0.05))
    made = pgjax.make("CartPole-v1", length=2.0, masspole=0.4)
    assert (float(made.params.total_mass), float(made.params.polemass_length)) == (np.float32(1.4), np.float32(0.8))
    traced = dataclasses.replace(env, params=dataclasses.replace(env.params, length=2.0, masspole=0.4))

    @jax.jit
    def first_step(env):
        return env.step(jax.random.key(1), env.reset(jax.random.key(0))[0], jnp.int32(1)).obs

    np.testing.assert_allclose(first_step(traced), first_step(made), rtol=1e-6)
    inconsistent, state = traced.env, env.reset(jax.random.key(0))[0]
    wrong = inconsistent.step(jax.random.key(1), state, jnp.int32(1), traced.params)[0]
    assert not np.allclose(first_step(made), wrong)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("CartPole-v2", {}, "env = 'CartPole-v2' is not a known environment: did you mean CartPole-v1"),
        ("CartPole-v1", {"lenght": 1.0}, "no option 'lenght': did you mean length"),
        ("CartPole-v1", {"length": float("nan")}, "length = nan is not accepted: expected finite numbers"),
        ("CartPole-v1", {"length": "long"}, "length = 'long' is not accepted"),
        ("CartPole-v1", {"total_mass": 9.0}, "total_mass = 9.0 is not accepted: it follows from .* and is 1.1"),
        ("CartPole-v1", {"max_steps_in_episode": 10.5}, "max_steps_in_episode = 10.5 .* expected whole numbers"),
        ("CartPole-v1", {"max_steps_in_episode": 2**40}, "max_steps_in_episode = 1099511627776 .* within int32"),
        ("CartPole-v1", {"max_steps_in_episode": 0}, "max_steps_in_episode = 0 is not accepted: expected at least 1"),
        (
            "CartPole-v1",
            {"length": 1e300},
            "length = 1e[+]300 .* expected finite numbers .* within float32",
        ),
        (None, {}, "env = None is not accepted: expected an id, an environment with our interface or gymnax's"),
        ("MNISTBandit-bsuite", {}, "downloads data when it is made, and that failed"),
    ],
)
def test_bad_input_is_refused(env, options, message, monkeypatch):
    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr("gymnax.utils.load_mnist.urlretrieve", no_network)
    monkeypatch.setattr("gymnax.utils.load_mnist.path.isfile", lambda _: False)
    with pytest.raises(pgjax.InputError, match=message):
        pgjax.make(env, **options)


def test_five_value_step_is_refused():
    class Old(Recorder):
        def step(self, key, state, action, params):
            return super().step(key, state, action, params)[:5]

    with pytest.raises(pgjax.InputError, match=r"step gives 5 values; expected .*final_observation"):
        pgjax.make(Old(-1.0, 1.0, (1,)))


def test_a_broken_environment_of_ones_own_is_told_what_is_wrong():
    class Raises(Recorder):
        def step(self, key, state, action, params):
            raise KeyError("mine")

    class Nothing(Recorder):
        def step(self, key, state, action, params):
            return None

    class NoReset(Recorder):
        def reset(self, key, params):
            return jnp.zeros(3) @ jnp.zeros(4)

    class Narrow(Recorder):
        def action_space(self, params=None):
            return gymnax.environments.spaces.Box(1.0, -1.0, (1,))

    class Undefined(Recorder):
        def observation_space(self, params=None):
            return gymnax.environments.spaces.Box(float("nan"), 1.0, (1,))

    class NoChoice(Recorder):
        def action_space(self, params=None):
            return gymnax.environments.spaces.Discrete(0)

    class Hidden(Recorder):
        @property
        def default_params(self):
            raise RuntimeError("not to be had")

    for cls, message in {
        Hidden: "Hidden: default_params raised RuntimeError: not to be had",
        Raises: "reset and step raised KeyError: 'mine'",
        Nothing: "step gives a NoneType; expected",
        NoReset: "reset raised TypeError: dot_general",
        Narrow: r"acts in a Box of shape \(1,\) from 1.0 to -1.0: expected elements, and bounds with low <= high",
        Undefined: r"observes a Box of shape \(1,\) from nan to 1.0",
        NoChoice: r"acts in Discrete\(0\): expected at least one choice",
    }.items():
        with pytest.raises(pgjax.InputError, match=message):
            pgjax.make(cls(-1.0, 1.0, (1,)))


def test_constructor_arguments_and_registered_environments():
    assert pgjax.make("MemoryChain-bsuite", num_bits=3, memory_length=7).observation_space.shape == (5,)
    pgjax.register("Recorder-test", lambda: Recorder(-1.0, 1.0, (1,)))
    try:
        assert pgjax.make("Recorder-test").name == "Recorder-test"
        with pytest.raises(pgjax.InputError, match="already registered"):
            pgjax.register("Recorder-test", lambda: None)
    finally:
        gymnax.registered_envs.remove("Recorder-test")
        del gymnax.registration._registry["Recorder-test"]


@pgjax.pytree
class Line:
    """Ten places along a line, the last one an end; each method can be replaced by a broken one."""

    length: pgjax.Scalar = pgjax.field("steps until the episode is cut", default=20, accepts="[1, inf)")
    broken: str = pgjax.field("which method is, and how", default="")

    name = "Line"
    action_space = Discrete(2)

    @property
    def observation_space(self):
        if self.broken == "box":
            return Box(0.0, 1.0, (1,))
        return gymnasium.spaces.Box(0.0, 1.0, (1,)) if self.broken == "space" else Box((1,))

    @property
    def time_limit(self):
        return self.length

    def reset(self, key):
        state = jnp.int32(0), jnp.int32(0)
        return self.see(state) if self.broken == "reset" else (state, self.see(state))

    def step(self, key, state, action):
        if self.broken == "if" and action:
            return None
        place, time = jnp.clip(state[0] + 2 * self.received(action) - 1, 0, 9), state[1] + 1
        state = place, time.astype(jnp.float32) if self.broken == "state" else time
        obs = jnp.zeros(3) if self.broken == "obs" else self.see(state)
        reward = jnp.ones(1) if self.broken == "reward" else jnp.float32(place)
        ends = place == 9, time >= self.length
        return (state, obs, reward, *ends) if self.broken == "step" else TimeStep(state, obs, reward, *ends)

    def received(self, action):
        return action[None] if self.broken == "received" else action

    def see(self, state):
        return state[0][None] / 9.0

    def render(self, state):
        return np.full((8, 8, 3), 25 * int(state[0]), np.uint8)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("space", r"Line: observation_space is Box\(.*: expected a Box of pgjax.environments.base"),
        ("box", r"Line: observation_space is Box\(shape=0.0.*: expected Box\(shape, low, high\) with a tuple first"),
        ("reset", r"Line: reset gives a ShapeDtypeStruct: expected \(state, obs\)"),
        (
            "if",
            r"TracerBoolConversionError: .* \(test_environments.py, line \d+\); what depends on an array is chosen by",
        ),
        ("state", r"Line: step gives another state, .*float32\[\].* than reset does"),
        ("obs", r"Line: step gives an observation of shape \(3,\): expected an array of shape \(1,\)"),
        ("reward", r"Line: step gives reward of shape \(1,\): expected an array of shape \(\)"),
        ("step", "Line: step gives 5 values: expected a TimeStep"),
        ("received", r"Line: received gives an action of shape \(1,\): expected an array of shape \(\)"),
    ],
)
def test_an_environment_of_ones_own_is_traced_before_anything_compiles(broken, message):
    ppo = pgjax.PPO(pgjax.wrappers.ActionRepeat(Line(broken=broken), 2) if broken == "obs" else Line(broken=broken))
    with pytest.raises(pgjax.InputError, match=message):
        pgjax.run(ppo, progress=False)


def test_what_is_nearly_an_environment_says_what_it_lacks():
    class Bare:
        name, observation_space, action_space, time_limit = "Bare", Box((1,)), Discrete(2), None
        reset, step = Line.reset, Line.step

    with pytest.raises(pgjax.InputError, match=r"expected an environment .*; it has no received"):
        pgjax.PPO(Bare())
    with pytest.raises(pgjax.InputError, match=r"expected an environment .*: an object of the class, Line\(\)"):
        pgjax.PPO(Line)
    Bare.received = Line.received
    with pytest.raises(pgjax.InputError, match=r"Bare is no pytree: write @pgjax.pytree above the class Bare"):
        pgjax.PPO(Bare()).init(jax.random.key(0))


def test_an_environment_with_our_interface_is_known_once_it_is_registered(tmp_path):
    assert pgjax.make(Line(), length=5).length == 5
    with pytest.raises(pgjax.InputError, match=r"env = Line is a class: expected an object of it, make\(Line\(\)\)"):
        pgjax.make(Line)
    with pytest.raises(pgjax.InputError, match="Line has no option 'lenght': did you mean length"):
        pgjax.make(Line(), lenght=5)
    with pytest.raises(pgjax.InputError, match="Gymnasium has it, stepped on the host: gymnasium:CartPole-v0"):
        pgjax.make("CartPole-v0")
    with pytest.raises(pgjax.InputError, match=r"Gymnasium's style gymnasium.register and make\('gymnasium:ID'\)"):
        pgjax.make(object())
    pgjax.register("Line-v0", Line)
    try:
        with pytest.raises(pgjax.InputError, match="already registered"):
            pgjax.register("Line-v0", Line)
        small = {"num_envs": 4, "num_steps": 8, "num_minibatches": 1, "total_steps": 32}
        ppo = pgjax.PPO(pgjax.make("Line-v0", length=7), pgjax.MLP(hidden=(8,)), **small)
        trained = pgjax.run(ppo, directory=tmp_path / "run", episodes=2, progress=False)
        loaded = pgjax.load(tmp_path / "run")
        assert (loaded.algorithm.env, type(loaded.algorithm.env)) == (Line(length=7), Line)
        stored = json.loads((tmp_path / "run" / "config.json").read_text())
        assert "--env Line-v0 --env-params length=7" in again(stored, "run")
        assert again(stored, "run").endswith(f"--import {__name__}")
        (steps, _), *_ = pgjax.render(loaded, tmp_path / "line.gif", max_steps=3)
        assert (steps, (tmp_path / "line.gif").exists()) == (3, True)
        swept = pgjax.sweep(trained.algorithm, length=[3.0, 4.0], points=1, episodes=2, progress=False)
        assert swept.axes.keys() == {"length"}
    finally:
        OWN.table.pop("Line-v0")
    with pytest.raises(pgjax.InputError, match="env = 'Line-v0' is not a known environment"):
        pgjax.load(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored | {"imports": ["of_mine"]}))
    with pytest.raises(pgjax.InputError, match=r"made with code of of_mine: import it before, .* by --import of_mine"):
        pgjax.load(tmp_path / "run")


def test_gymnax_is_imported_without_its_plotting_packages_and_still_draws():
    out = run_python("""
import sys, jax
import pgjax
env = pgjax.make("Catch-bsuite")
heavy = [m for m in ("matplotlib", "seaborn", "pandas", "scipy.stats") if m in sys.modules]
print(heavy)
import matplotlib
matplotlib.use("Agg")
import gymnax
figure, axes = env.env.render(env.reset(jax.random.key(0))[0], env.params)
print(type(figure).__module__, len(axes.texts))
pong, params = gymnax.make("Pong-misc")
print(type(pong.render(pong.reset(jax.random.key(0), params)[1], params)).__module__)
import gymnax.visualize
print(gymnax.visualize.Visualizer.__name__)
""")
    heavy, figure, image, visualizer = out.split("\n")[:4]
    assert heavy == "[]"
    assert figure == "matplotlib.figure 2"
    assert image == "builtins" or image.startswith("matplotlib")
    assert visualizer == "Visualizer"


def test_probe_recall_pays_for_the_cue():
    env = probes.Recall(delay=2)
    state, obs = env.reset(jax.random.key(3))
    cue = int(state.cue)
    assert float(obs[0]) == 2 * cue - 1
    for expected_reward, expected_end in ((0, False), (0, False), (1, True)):
        after = env.step(jax.random.key(4), state, jnp.int32(cue))
        assert (float(after.reward), bool(after.terminated)) == (expected_reward, expected_end)
        state = after.state
    assert float(after.obs[0]) == 0.0, "the cue is gone by the time of the answer"


def test_probes_refuse_what_would_never_end():
    with pytest.raises(pgjax.InputError, match=r"Recall.delay = -1 is not accepted"):
        probes.Recall(delay=-1)
    with pytest.raises(pgjax.InputError, match=r"ConstantReward.time_limit = 0 is not accepted"):
        probes.ConstantReward(time_limit=0)


def test_probe_constant_reward_is_truncated_and_delayed_reward_terminates():
    env = probes.ConstantReward(time_limit=2)
    state, _ = env.reset(jax.random.key(0))
    first = env.step(jax.random.key(0), state, jnp.int32(0))
    second = env.step(jax.random.key(0), first.state, jnp.int32(0))
    assert [bool(x) for x in (first.truncated, second.truncated, second.terminated)] == [False, True, False]

    env = probes.DelayedReward()
    first = env.step(jax.random.key(0), env.reset(jax.random.key(0))[0], jnp.int32(0))
    second = env.step(jax.random.key(0), first.state, jnp.int32(0))
    assert (float(first.reward), float(second.reward), bool(second.terminated)) == (0.0, 1.0, True)
