"""Gymnax environments behind our interface. This is the only file that knows gymnax.

Conventions:

- Observations reach the network as float32: integer boxes are cast, discrete ones become one-hot.
- A discrete action is passed on. A continuous one is a vector: where the environment's bounds are finite, [-1, 1] is
  mapped onto them, and whatever the policy produced is clipped first. The log-probability stays that of the action the
  distribution produced. Clipping is then part of the environment's dynamics, so the policy gradient is exact;
  correcting the log-probability for it instead would put a point mass on each bound, which has no density.
- Python numbers among the parameters become typed arrays: they are traced leaves of the program.
- Parameters that follow from others are computed from them in every reset and step, so physics that are swept stay
  consistent.
"""

import dataclasses
import functools
import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core.algorithm import Key
from pgjax.core.errors import InputError, nearest
from pgjax.core.hyperparameters import TRACED, pytree
from pgjax.core.own import is_own, named, traced
from pgjax.core.text import brief, is_same
from pgjax.environments.base import Box, Discrete, Space, TimeStep, strong

DERIVED: dict[str, dict[str, Callable[[Any], Any]]] = {
    "CartPole-v1": {
        "total_mass": lambda params: params.masscart + params.masspole,
        "polemass_length": lambda params: params.masspole * params.length,
    }
}
"""Parameters that gymnax stores beside those they follow from."""


BINARY = (
    *("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar"),
    *("Catch-bsuite", "DeepSea-bsuite", "Pong-misc"),
)
"""Environments whose float32 observations are zeros and ones."""


@pytree
class GymnaxEnvironment:
    """One gymnax environment with its parameters; made by `make`."""

    params: Annotated[Any, TRACED]
    env: Any
    id: str | None
    """What `make` was given; None for an environment object, which only its owner can make again."""
    constructor_options: tuple[tuple[str, Any], ...]
    observation_space: Box
    action_space: Space

    def __repr__(self) -> str:
        names = [f.name for f in dataclasses.fields(self.params)]
        params = {name: getattr(self.params, name) for name in names}
        changed = {name: x for name, x in params.items() if not is_same(x, getattr(self.env.default_params, name))}
        options = dict(self.constructor_options) | changed
        return f"make({', '.join([repr(self.name), *(f'{name}={brief(x)}' for name, x in options.items())])})"

    @property
    def name(self) -> str:
        """The id, or what an environment object calls itself."""
        return self.id or str(getattr(self.env, "name", type(self.env).__name__))

    @property
    def time_limit(self) -> Any:
        """The parameter `max_steps_in_episode`; None where there is none."""
        return getattr(self.params, "max_steps_in_episode", None)

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        """Gymnax's reset, with float32 observations and a strongly typed state."""
        obs, state = self.env.reset(key, self._traceable_params())
        return jax.tree.map(strong, state), self._observation(obs)

    def step(self, key: Key, state: Any, action: jax.Array) -> TimeStep:
        """Gymnax's step; the observation is that of the successor, before gymnax resets."""
        params, action = self._traceable_params(), self.received(action)
        if _steps_like_gymnax(self.env):  # without the reset that gymnax's own `step` computes every time
            obs, state, reward, terminated, _ = self.env.step_env(key, state, action, params)
            truncated = self.env.is_truncated(state, params)
        else:
            _, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
            obs = info["final_observation"]
        return TimeStep(
            state=jax.tree.map(strong, state),
            obs=self._observation(obs),
            reward=jnp.asarray(reward, jnp.float32).reshape(()),
            terminated=jnp.asarray(terminated, bool).reshape(()),
            truncated=jnp.asarray(truncated, bool).reshape(()),
        )

    def _traceable_params(self) -> Any:
        """As JAX arrays: where an algorithm is closed over they are NumPy's, which no traced integer can index."""
        return jax.tree.map(strong, _consistent(self.id, self.params))

    def _observation(self, obs: Any) -> jax.Array:
        space = self.env.observation_space(self.params)
        if hasattr(space, "n"):
            return jax.nn.one_hot(obs, space.n, dtype=jnp.float32)
        return jnp.asarray(obs, jnp.float32)

    def received(self, action: jax.Array) -> jax.Array:
        """A choice unchanged; of numbers [-1, 1] mapped onto finite bounds, then all clipped to the bounds."""
        if isinstance(self.action_space, Discrete):
            return action
        space = self.env.action_space(self.params)
        action = action.reshape(space.shape)
        if self.action_space.high == 1.0:
            action = space.low + (jnp.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (space.high - space.low)
        return jnp.clip(action, space.low, space.high).astype(jnp.float32)


def make(env: Any, **options: Any) -> GymnaxEnvironment:
    """A gymnax environment by an id that is known, or any gymnax-style environment object (six-value step), behind our
    interface.

    `options` override the environment's parameters (`length=1.0`) or its constructor's arguments (`num_bits=3`).

    Raises:
        InputError: an unknown option (with those there are) or one that follows from others, an environment that does
            not keep to the interface, or one whose data cannot be had.
    """
    env_id = env if isinstance(env, str) else None
    constructor_options: dict[str, Any] = {}
    if isinstance(env, str):
        constructor = inspect.signature(_import_gymnax().registration._registry[env]).parameters
        given = {k: options[k] for k in options if k in constructor}
        constructor_options = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        env = _construct(env, constructor_options)
    name = env_id or type(env).__name__
    with named(name, "default_params"):
        params = env.default_params
    if not dataclasses.is_dataclass(params) or isinstance(params, type):
        raise InputError(f"{name}: default_params is {params!r}: expected a flax struct, a dataclass")
    fields = {f.name for f in dataclasses.fields(params)}
    for option in options.keys() - constructor_options.keys() - fields:
        raise InputError(f"{name} has no option {option!r}: {nearest(option, fields | set(_arguments(env)))}")
    overrides = {option: options[option] for option in options.keys() - constructor_options.keys()}
    params = _override(env_id, name, params, overrides)
    return _check(
        GymnaxEnvironment(
            params=params,
            env=env,
            id=env_id,
            constructor_options=tuple(sorted(constructor_options.items())),
            observation_space=_observation_space(name, env, params, env_id in BINARY),
            action_space=_action_space(name, env, params),
        )
    )


def _steps_like_gymnax(env: Any) -> bool:
    """Whether `step` is the one that all gymnax environments inherit: `step_env`, `is_truncated`, reset."""
    return getattr(type(env), "step", None) is _import_gymnax().environments.environment.Environment.step


def _consistent(env_id: str | None, params: Any) -> Any:
    """The parameters, with those that follow from others computed from them."""
    derived = DERIVED.get(env_id or "", {})
    return dataclasses.replace(params, **{name: follows(params) for name, follows in derived.items()})


def with_options(env: GymnaxEnvironment, **options: Any) -> GymnaxEnvironment:
    """`env` with some of its options changed and the others kept.

    Raises:
        InputError: as `make` does.
    """
    fields = {f.name for f in dataclasses.fields(env.params)}
    if options.keys() <= fields:
        return dataclasses.replace(env, params=_override(env.id, env.name, env.params, options))
    own = fields - DERIVED.get(env.id or "", {}).keys()
    kept = dict(env.constructor_options) | {name: getattr(env.params, name) for name in own}
    return make(env.id or env.env, **(kept | options))


def option_names(env: GymnaxEnvironment) -> dict[str, bool]:
    """What `with_options` can change; true for parameters, which are numbers, false for constructor arguments."""
    constructor = inspect.signature(_import_gymnax().registration._registry[env.id]).parameters if env.id else {}
    return dict.fromkeys(constructor, False) | {f.name: True for f in dataclasses.fields(env.params)}


def _override(env_id: str | None, name: str, params: Any, overrides: dict[str, Any]) -> Any:
    """Typed parameters with some overridden and the derived ones following."""
    given = dataclasses.replace(
        params, **{k: _param(f"{name}: {k}", v, np.asarray(getattr(params, k))) for k, v in overrides.items()}
    )
    params = _consistent(env_id, given)
    for option in overrides.keys() & DERIVED.get(env_id or "", {}).keys():
        if not np.isclose(getattr(given, option), getattr(params, option)):
            raise InputError(
                f"{name}: {option} = {overrides[option]!r} is not accepted: it follows from the other parameters and "
                f"is {getattr(params, option):g} with these"
            )
    return jax.tree.map(_typed, params)


def register(env_id: str, factory: Callable[..., Any]) -> None:
    """Make what `factory(**options)` returns known to gymnax."""
    _import_gymnax().register(env_id, factory)


def registered_envs() -> list[str]:
    """The ids gymnax knows."""
    return list(_import_gymnax().registered_envs)


def _construct(env_id: str, options: dict[str, Any]) -> Any:
    try:
        return _cached_env(env_id, tuple(sorted(options.items())))
    except TypeError as error:
        expected = "expected what makes an environment in the style of gymnax"
        raise InputError(f"{env_id} cannot be made: {error}; {expected}") from error
    except OSError as error:  # MNISTBandit-bsuite downloads its images when it is made
        raise InputError(f"{env_id} downloads data when it is made, and that failed: {error}") from error


@functools.lru_cache(maxsize=64)
def _cached_env(env_id: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """The same object for the same id: it is a static part of the program, and a new one would recompile it."""
    return _import_gymnax().make(env_id, **dict(options))[0]


def _arguments(env: Any) -> list[str]:
    parameters = inspect.signature(type(env).__init__).parameters.values()
    return [p.name for p in parameters if p.name != "self" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _param(label: str, given: Any, default: np.ndarray) -> np.ndarray:
    """`given` as an array like `default`, the parameter it overrides."""
    try:
        value, default = np.asarray(given), _typed(default)
    except ValueError as error:
        raise InputError(f"{label} = {given!r} is not accepted: expected a number") from error
    kind = {"f": "finite", "b": "boolean (True, False)"}.get(default.dtype.kind, "whole")
    with np.errstate(over="ignore"):
        numbers = value.astype(default.dtype) if value.dtype.kind in "biuf" else value
    accepted = value.dtype.kind in "biuf" and value.shape == default.shape and np.all(np.isfinite(numbers))
    if not accepted or (default.dtype.kind != "f" and np.any(numbers != value)):
        raise InputError(
            f"{label} = {given!r} is not accepted: expected {kind} numbers of shape {default.shape} within "
            f"{default.dtype}"
        )
    if label.endswith(": max_steps_in_episode") and np.any(numbers < 1):
        raise InputError(f"{label} = {given!r} is not accepted: expected at least 1")
    return numbers


def _typed(leaf: Any) -> np.ndarray:
    """A strongly typed 32-bit array from a Python number or an array."""
    leaf = np.asarray(leaf)
    return leaf.astype({"f": np.float32, "i": np.int32, "b": np.bool_, "u": np.uint32}[leaf.dtype.kind])


def _observation_space(name: str, env: Any, params: Any, is_binary: bool) -> Box:
    with named(name, "observation_space"):
        space = env.observation_space(params)
    _check_space(name, "observes", space)
    if hasattr(space, "n"):
        return Box((int(space.n),), dtype="bool")
    if not hasattr(space, "low"):
        raise InputError(f"{name} observes {space!r}: expected a Box or a Discrete space")
    seen = traced(name, "reset", lambda: env.reset(jax.random.key(0), params)[0]).dtype
    dtype = "bool" if is_binary else str(seen) if seen.itemsize == 1 else "float32"
    return Box(tuple(space.shape), dtype=dtype)


def _check_space(name: str, does: str, space: Any) -> None:
    """Refuse a space without elements, or with bounds that are none."""
    if hasattr(space, "n"):
        if int(space.n) < 1:
            raise InputError(f"{name} {does} Discrete({space.n}): expected at least one choice")
    elif hasattr(space, "low"):
        low, high = np.asarray(space.low), np.asarray(space.high)
        if 0 in space.shape or np.any(np.isnan(low) | np.isnan(high)) or np.any(low > high):
            raise InputError(
                f"{name} {does} a Box of shape {tuple(space.shape)} from {low} to {high}: expected elements, and "
                "bounds with low <= high"
            )


def _action_space(name: str, env: Any, params: Any) -> Space:
    with named(name, "action_space"):
        space = env.action_space(params)
    _check_space(name, "acts in", space)
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    if not hasattr(space, "low"):
        raise InputError(f"{name} acts in {space!r}: expected a Box or a Discrete space")
    size = int(np.prod(space.shape, dtype=int))
    bounds = np.abs([np.min(space.low), np.max(space.high)])
    finite = np.all(bounds < np.finfo(np.float32).max)
    return Box((size,), -1.0, 1.0) if finite else Box((size,))


def _check(env: GymnaxEnvironment) -> GymnaxEnvironment:
    """Trace one reset and one step, without compiling, and refuse what does not keep to the six-value interface."""

    def one_step(key: Key) -> Any:
        _, state = env.env.reset(key, env.params)
        return env.env.step(key, state, _example_action(env), env.params)

    result = traced(env.name, "reset and step", lambda: one_step(jax.random.key(0)))
    expected = (
        "expected (obs, state, reward, terminated, truncated, info with 'final_observation'), as in gymnax >= 1.0"
    )
    if not isinstance(result, tuple) or len(result) != 6:
        given = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
        raise InputError(f"{env.name}: step gives {given}; {expected}")
    if "final_observation" not in result[5]:
        raise InputError(
            f"{env.name}: step gives no info['final_observation'], what was seen before a reset; {expected}"
        )
    observed = traced(env.name, "reset", lambda: env.reset(jax.random.key(0))[1]).shape
    if observed != env.observation_space.shape:
        raise InputError(
            f"{env.name}: observations have shape {observed}, its space says {env.observation_space.shape}"
        )
    return env


def _example_action(env: GymnaxEnvironment) -> jax.Array:
    space = env.action_space
    return jnp.int32(0) if isinstance(space, Discrete) else env.received(jnp.zeros(space.shape))


class _Deferred(types.ModuleType):
    """Stands for a module until one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _deferred_plotting() -> Iterator[None]:
    """Let gymnax import its plotting packages without loading them: they cost seconds and only rendering uses them."""
    names = ["seaborn", "matplotlib", "matplotlib.pyplot", "matplotlib.colors"]
    stand_ins = {name: _Deferred(name) for name in names if name not in sys.modules}
    for name, stand_in in stand_ins.items():
        sys.modules[name] = stand_in
        parent, _, child = name.rpartition(".")
        if parent in stand_ins:
            setattr(stand_ins[parent], child, stand_in)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _import_gymnax() -> Any:
    if "gymnax" not in sys.modules:
        with _deferred_plotting():
            importlib.import_module("gymnax")
    return sys.modules["gymnax"]


CLASSIC = ("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0")
"""What gymnax draws by Gymnasium, which needs pygame."""
DRAWN = (
    *(*CLASSIC, "Catch-bsuite"),
    *("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar"),
    *("Pong-misc", "PointRobot-misc", "MetaMaze-misc", "FourRooms-misc"),
)
"""What gymnax's Visualizer draws, by the names its environments give themselves."""


class Film(NamedTuple):
    """An episode as pictures."""

    pictures: Iterator[np.ndarray]
    """`[H, W, 3]` of uint8, all of one size; each is drawn when it is asked for."""
    milliseconds: int
    """For which each is shown."""


def filmed(env: Any, states: list[Any], returns: Any) -> Film:
    """The episode that went through `states`, with the return so far in each picture's title.

    An environment of somebody's own is drawn by its `render(state)`, one in the style of gymnax by its `render(state,
    params)`: a picture `[H, W, 3]` of uint8.

    Raises:
        InputError: neither gymnax nor a `render` draws this environment, what `render` gives is no picture, or a
            package is missing.
    """
    states = [jax.device_get(state) for state in states]
    if isinstance(env, GymnaxEnvironment) and hasattr(env.env, "render") and not _is_gymnaxs(env.env):
        return _film_of_own(env.name, lambda state: env.env.render(state, env.params), states, returns)
    if is_own(env) and hasattr(env, "render"):
        return _film_of_own(env.name, env.render, states, returns)
    if not isinstance(env, GymnaxEnvironment) or env.env.name not in DRAWN:
        raise InputError(
            f"{env.name} cannot be drawn; gymnax draws {', '.join(DRAWN)}, and one of your own its render(state), in "
            "the style of gymnax render(state, params)"
        )
    if env.env.name in CLASSIC and importlib.util.find_spec("pygame") is None:
        raise InputError(f"drawing {env.name} needs pygame: pip install 'pgjax[render]'")
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):  # pygame draws to memory and needs neither screen nor sound
        os.environ.setdefault(driver, "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from gymnax.visualize import Visualizer

    try:
        drawer = Visualizer(env.env, jax.device_get(env.params), states, returns)
        drawer.init()
    except ImportError as error:
        raise InputError(f"drawing {env.name} needs a package: pip install 'pgjax[render]' ({error})") from error
    return Film(_pictures(drawer.fig, drawer.update, len(states)), drawer.interval)


def _is_gymnaxs(env: Any) -> bool:
    return type(env).__module__.startswith("gymnax.")


def _film_of_own(name: str, render: Callable[[Any], Any], states: list[Any], returns: Any) -> Film:
    from matplotlib import pyplot

    with named(name, "render"):
        drawn = [np.asarray(render(state)) for state in states]
    if any(x.dtype != np.uint8 or x.ndim != 3 or x.shape != (*drawn[0].shape[:2], 3) for x in drawn):
        found = sorted({f"{x.dtype}{list(x.shape)}" for x in drawn})
        raise InputError(f"{name}.render gives {', '.join(found)}: expected uint8[H, W, 3], always the same")
    figure, panel = pyplot.subplots(layout="constrained")
    panel.axis("off")
    image = panel.imshow(drawn[0])

    def update(frame: int) -> None:
        image.set_data(drawn[frame])
        panel.set_title(f"{name}: Step {frame + 1:4d} - Return {returns[frame]:7.2f}")

    return Film(_pictures(figure, update, len(drawn)), 100)


def _pictures(figure: Any, update: Callable[[int], None], count: int) -> Iterator[np.ndarray]:
    """A figure after each of its updates; drawn once, where matplotlib's own writers draw it three times."""
    from matplotlib import pyplot

    try:
        for i in range(count):
            update(i)
            figure.canvas.draw()
            yield np.array(figure.canvas.buffer_rgba())[..., :3]
    finally:
        pyplot.close(figure)
