"""`make`, and the environments as a kind of part: by id, with parameters and constructor arguments as options."""

import dataclasses
import importlib.util
from typing import Any

from pgjax.core.errors import InputError, nearest
from pgjax.core.parts import Description, dataclass_options, from_json, to_json
from pgjax.environments import gymnax
from pgjax.environments.base import Environment
from pgjax.environments.catalog import SUITE_MODULES
from pgjax.environments.gymnax import GymnaxEnvironment, option_names, with_options
from pgjax.environments.host import Gymnasium
from pgjax.environments.suite import SuiteEnvironment, loaded
from pgjax.environments.suites import Brax, Craftax, Jumanji, Navix, Playground
from pgjax.environments.wrappers import WRAPPERS, Wrapper, own_options


def make(env: Any, **options: Any) -> Environment:
    """A gymnax environment by id, one of another suite by `suite:name`, or any gymnax-style environment object
    (six-value step), behind our interface.

    `options` override the environment's parameters (`length=1.0`) or its constructor's arguments (`num_bits=3`); of
    another suite they are what the suite's class in `environments/suites.py` says.

    Raises:
        InputError: an unknown id (with the nearest ones), an unknown option (with those there are) or one that follows
            from others, an environment that does not keep to the interface, one whose data cannot be had, or of a suite
            that is not installed.
    """
    if isinstance(env, str) and ":" in env:
        return make_of_suite(env, **options)
    return gymnax.make(env, **options)


SUITES: dict[str, type[SuiteEnvironment]] = {
    "playground": Playground,
    "brax": Brax,
    "navix": Navix,
    "craftax": Craftax,
    "jumanji": Jumanji,
    "gymnasium": Gymnasium,
}


def make_of_suite(env_id: str, **options: Any) -> SuiteEnvironment:
    """`suite:name`, with options as the suite's class says.

    Raises:
        InputError: the suite or the name is not known (with the nearest ones), the suite is not installed, or an option
            is not accepted.
    """
    cls: Any = _suite(env_id)
    name = env_id.partition(":")[2]
    if name not in cls.names():
        raise InputError(f"env = {env_id!r} is not a known environment: {nearest(name, cls.names())}")
    kept = tuple(sorted((option, _hashable(value)) for option, value in options.items()))
    return cls(env_id, kept, *cls.describe(loaded(cls, env_id, kept)))


def names_of(suite: str) -> list[str]:
    """The ids of a suite.

    Raises:
        InputError: it is not known, or not installed.
    """
    return [f"{suite}:{name}" for name in _suite(f"{suite}:").names()]


def _suite(env_id: str) -> type[SuiteEnvironment]:
    suite = env_id.partition(":")[0]
    if suite not in SUITES:
        raise InputError(f"env = {env_id!r} is of no known suite: {nearest(suite, SUITES)}")
    if importlib.util.find_spec(SUITE_MODULES[suite]) is None:
        raise InputError(f"env = {env_id!r} needs {SUITE_MODULES[suite]}: pip install 'pgjax[{suite}]'")
    return SUITES[suite]


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


class Environments:
    """Every id that `pgjax.make` knows. An environment without one is somebody's own code."""

    sentence = "environment id; pgjax envs lists them"

    def make(self, name: str, **options: Any) -> Any:
        """`pgjax.make(name, **options)`, or a wrapper of `env`, which is described like a part."""
        if name in WRAPPERS:
            inner, own = options["env"], {key: from_json(value) for key, value in options.items() if key != "env"}
            return WRAPPERS[name](self.make(inner["name"], **inner["options"]), **own)
        return make(name, **{option: from_json(value) for option, value in options.items()})

    def describe(self, part: Any) -> Description | None:
        """Its id with its constructor's arguments and its parameters; None where it has no id."""
        if isinstance(part, SuiteEnvironment):
            return {"name": part.id, "options": dict(part.options)}
        if isinstance(part, Wrapper):
            inner, names = self.describe(part.env), {cls: name for name, cls in WRAPPERS.items()}
            if inner is None or type(part) not in names:
                return None
            own = {name: to_json(value) for name, value in own_options(part).items()}
            return {"name": names[type(part)], "options": {"env": inner} | own}
        if not isinstance(part, GymnaxEnvironment) or part.id is None:
            return None
        params = {f.name: to_json(getattr(part.params, f.name)) for f in dataclasses.fields(part.params)}
        return {"name": part.id, "options": dict(part.constructor_options) | params}

    def with_options(self, part: Any, **options: Any) -> Any:
        """A copy with other parameters or constructor arguments; of somebody's own, with other fields."""
        if isinstance(part, GymnaxEnvironment):
            return with_options(part, **options)
        if isinstance(part, SuiteEnvironment):
            return make_of_suite(part.id, **(dict(part.options) | options))
        if isinstance(part, Wrapper):
            own = {name: value for name, value in options.items() if name in own_options(part)}
            inner = {name: value for name, value in options.items() if name not in own}
            env = self.with_options(part.env, **inner) if inner else part.env
            return dataclasses.replace(part, env=env, **own)
        return dataclasses.replace(part, **options)

    def options(self, part: Any) -> dict[str, bool]:
        """Parameters and constructor arguments; of somebody's own environment, its fields."""
        if isinstance(part, SuiteEnvironment):
            return dict.fromkeys(dict(part.options), False)
        if isinstance(part, Wrapper):
            return self.options(part.env) | {k: v for k, v in dataclass_options(part).items() if k != "env"}
        return option_names(part) if isinstance(part, GymnaxEnvironment) else dataclass_options(part)

    def declaration(self, name: str) -> type | None:
        """None: which options there are is known once the environment has been made."""
        return None


ENVIRONMENTS = Environments()
